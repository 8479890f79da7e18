//! Rabbitmq.

use std::sync::Arc;

use async_trait::async_trait;

use crate::brokers::{Broker, ConnectError, Finding, Headers, Refusal, Session, Terms};
use crate::message::Event;
use crate::settings::Section;

/// The settings of `[broker.rabbitmq]`.
#[derive(Clone, Debug)]
pub struct Settings {}

impl Settings {
    /// Reads `[broker.rabbitmq]`.
    pub fn read(_section: &mut Section<'_>) -> Self {
        Self {}
    }
}

/// The broker.
#[derive(Debug)]
pub struct Rabbitmq {}

impl Rabbitmq {
    /// The broker that these settings describe.
    #[must_use]
    pub fn new(_settings: &Settings, _terms: &Terms) -> Self {
        Self {}
    }
}

#[async_trait]
impl Broker for Rabbitmq {
    fn name(&self) -> &'static str {
        "rabbitmq"
    }
    fn location(&self) -> String {
        unreachable!()
    }
    fn address(&mut self, _event: &Event) -> Result<(Arc<str>, Arc<str>), Refusal> {
        unreachable!()
    }
    fn headers(&self) -> &Headers {
        unreachable!()
    }
    async fn connect(&mut self) -> Result<(Box<dyn Session>, Vec<Finding>), ConnectError> {
        unreachable!()
    }
    async fn inspect(&mut self) -> Result<Vec<Finding>, ConnectError> {
        unreachable!()
    }
}
