//! Nats.

use std::sync::Arc;

use async_trait::async_trait;

use crate::brokers::{Broker, ConnectError, Finding, Headers, Refusal, Session, Terms};
use crate::message::Event;
use crate::settings::Section;

/// The settings of `[broker.nats]`.
#[derive(Clone, Debug)]
pub struct Settings {}

impl Settings {
    /// Reads `[broker.nats]`.
    pub fn read(_section: &mut Section<'_>) -> Self {
        Self {}
    }
}

/// The broker.
#[derive(Debug)]
pub struct Nats {}

impl Nats {
    /// The broker that these settings describe.
    #[must_use]
    pub fn new(_settings: &Settings, _terms: &Terms) -> Self {
        Self {}
    }
}

#[async_trait]
impl Broker for Nats {
    fn name(&self) -> &'static str {
        "nats"
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
