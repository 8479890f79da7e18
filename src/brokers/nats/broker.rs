//! The broker: what `[broker.nats]` describes, and how a session of it comes about.

use std::sync::Arc;

use async_trait::async_trait;

use super::connection::NatsConnection;
use super::dial::{self, ServerTurn};
use super::session::NatsSession;
use super::settings::Settings;
use super::stream;
use super::topology::{self, KnownStream};
use crate::brokers::dial as addresses;
use crate::brokers::{Broker, ConnectError, Encoding, Finding, Headers, Refusal, Session, Terms, Topology};
use crate::event::Event;

/// NATS JetStream.
#[derive(Debug)]
pub(crate) struct Nats {
    settings: Settings,
    terms: Terms,
    headers: Headers,
    turn: ServerTurn,
}

impl Nats {
    /// The broker that these settings describe.
    #[must_use]
    pub(crate) fn new(settings: &Settings, terms: &Terms) -> Self {
        // The binding has the attribute as a header of its own; `content-type` is what consumers knew first.
        let headers = Headers::new(terms.headers, "ce-", "content-type", Encoding::Percent)
            .with_content_type_also_as("ce-datacontenttype");
        Self { settings: settings.clone(), terms: terms.clone(), headers, turn: ServerTurn::default() }
    }

    async fn dial(&self) -> Result<NatsConnection, ConnectError> {
        dial::dial(&self.settings, self.terms.max_in_flight, &self.turn).await
    }

    /// The stream that a session starts with, created where that is ours to do; and what is to be said of it.
    async fn prepare(&self, connection: &mut NatsConnection) -> Result<(KnownStream, Vec<Finding>), ConnectError> {
        let mut known = topology::look(connection, &self.settings).await?;
        topology::able(&known, &self.settings)?;
        let mut findings = Vec::new();
        if matches!(known, KnownStream::Missing) {
            match self.settings.topology {
                Topology::Declare => {
                    known = KnownStream::Stands(topology::create(connection, &self.settings).await?);
                }
                Topology::Check => return Err(topology::missing(connection.at(), &self.settings)),
                Topology::Ignore => findings.push(Finding::Missing(topology::missing_text(&self.settings))),
            }
        }
        findings.extend(self.findings(connection, &known));
        Ok((known, findings))
    }

    fn findings(&self, connection: &NatsConnection, known: &KnownStream) -> Vec<Finding> {
        let (stream, mut findings) = match known {
            KnownStream::Stands(stream) => (Some(stream), topology::subjects_not_taken(stream, &self.settings)),
            KnownStream::Missing | KnownStream::Unasked | KnownStream::Unknown => (None, Vec::new()),
        };
        findings.push(topology::sizes(connection.max_payload(), stream, &self.terms));
        findings
    }

    /// The findings of an inspection about the stream itself.
    fn state(&self, known: &KnownStream) -> Finding {
        let name = &self.settings.stream;
        match known {
            KnownStream::Stands(stream) => {
                Finding::Good(format!("the stream {name} exists and takes {}", stream.subjects.join(", ")))
            }
            KnownStream::Missing if self.settings.topology == Topology::Declare => {
                let subjects = self.settings.stream_subjects.join(", ");
                Finding::Good(format!("the stream {name} will be created at start and take {subjects}"))
            }
            KnownStream::Missing => Finding::Missing(topology::missing_text(&self.settings)),
            KnownStream::Unasked => Finding::Warning(format!(
                "these credentials may not look at the stream {name}; nothing is known of it"
            )),
            KnownStream::Unknown => {
                let subject = stream::info_subject(&self.settings.api, name);
                Finding::Warning(format!("nothing is known of the stream {name}: no answer to {subject}"))
            }
        }
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

    fn address(&mut self, event: &Event) -> Result<(Arc<str>, Arc<str>), Refusal> {
        self.settings.router.address(event)
    }

    fn headers(&self) -> &Headers {
        &self.headers
    }

    async fn connect(&mut self) -> Result<(Box<dyn Session>, Vec<Finding>), ConnectError> {
        let mut connection = self.dial().await?;
        let (known, findings) = match self.prepare(&mut connection).await {
            Ok(prepared) => prepared,
            Err(error) => {
                connection.leave();
                return Err(error);
            }
        };
        let session = NatsSession::new(connection, &self.headers, &self.settings, &known);
        Ok((Box::new(session), findings))
    }

    async fn inspect(&mut self) -> Result<Vec<Finding>, ConnectError> {
        let mut connection = self.dial().await?;
        let known = topology::look(&mut connection, &self.settings).await?;
        let version = &connection.server().version;
        let mut findings = vec![Finding::Good(format!("nats-server {version} at {}", connection.at()))];
        if !matches!(known, KnownStream::Unasked | KnownStream::Unknown) {
            findings.push(Finding::Good("JetStream is enabled for these credentials".to_owned()));
        }
        findings.push(self.state(&known));
        if let Err(error) = topology::able(&known, &self.settings) {
            findings.push(Finding::Warning(format!("{error}: events wait until that changes")));
        }
        findings.extend(self.findings(&connection, &known));
        if let (KnownStream::Stands(stream), Topology::Declare) = (&known, self.settings.topology)
            && let Some(messages) = stream.unread
        {
            findings.push(Finding::Warning(format!(
                "the stream {} has {messages} messages, no consumer and no limit: it grows until the disk is full; read it, \
                 or limit its age or size",
                self.settings.stream
            )));
        }
        findings.extend(addresses::silent(&self.settings.hosts()).await);
        Ok(findings)
    }
}
