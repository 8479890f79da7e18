//! The broker: what `[broker.nats]` describes, and how a session of it comes about.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use async_trait::async_trait;

use super::connection::NatsConnection;
use super::session::NatsSession;
use super::settings::Settings;
use super::stream::StreamLook;
use super::topology::{SurveyPurpose, survey};
use super::{dial, rights};
use crate::brokers::dial as addresses;
use crate::brokers::{Broker, ConnectError, Finding, Session, Terms, Topology};

/// NATS JetStream.
#[derive(Debug)]
pub(crate) struct Nats {
    settings: Settings,
    terms: Terms,
    /// The server at which the next attempt to connect starts.
    turn: usize,
    /// Whether each stream of the settings has stored something in any session.
    stored: Vec<Arc<AtomicBool>>,
}

impl Nats {
    /// The broker that these settings describe.
    #[must_use]
    pub(crate) fn new(settings: &Settings, terms: &Terms) -> Self {
        let stored = settings.streams.iter().map(|_| Arc::default()).collect();
        Self { settings: settings.clone(), terms: terms.clone(), turn: 0, stored }
    }

    async fn dial(&mut self) -> Result<(NatsConnection, Vec<Finding>), ConnectError> {
        dial::dial(&self.settings, self.terms.max_in_flight, &mut self.turn).await
    }
}

#[async_trait]
impl Broker for Nats {
    fn name(&self) -> &'static str {
        "nats"
    }

    fn location(&self) -> String {
        self.settings.location()
    }

    async fn connect(&mut self) -> Result<(Box<dyn Session>, Vec<Finding>), ConnectError> {
        let (mut connection, mut findings) = self.dial().await?;
        let mut known = Vec::new();
        for plan in &self.settings.streams {
            let survey = survey(&mut connection, &self.settings, plan, &self.terms, SurveyPurpose::Session);
            let (look, of_stream) = survey.await?;
            known.push(look);
            findings.extend(of_stream);
        }
        let session = NatsSession::new(connection, &self.terms, &self.settings, &known, &self.stored);
        Ok((Box::new(session), findings))
    }

    async fn inspect(&mut self) -> Result<Vec<Finding>, ConnectError> {
        let (mut connection, refusing) = self.dial().await?;
        let (version, at) = (connection.version(), &connection.at);
        let mut findings = vec![Finding::Good(format!("nats-server {version} at {at}"))];
        findings.extend(refusing);
        let mut missing = Vec::new();
        for plan in &self.settings.streams {
            let survey = survey(&mut connection, &self.settings, plan, &self.terms, SurveyPurpose::Inspection);
            let (look, of_stream) = survey.await?;
            if plan == self.settings.main() && !matches!(look, StreamLook::Forbidden | StreamLook::Silent) {
                findings.push(Finding::Good("JetStream is enabled for these credentials".to_owned()));
            }
            findings.extend(of_stream);
            if look == StreamLook::Missing && self.settings.topology == Topology::Declare {
                missing.push(plan);
            }
        }
        findings.extend(rights::lacking(&mut connection, &self.settings, &missing).await);
        findings.extend(addresses::silent(&self.settings.hosts()).await);
        Ok(findings)
    }
}
