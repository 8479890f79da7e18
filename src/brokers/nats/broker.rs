//! The broker: what `[broker.nats]` describes, and how a session of it comes about.

use async_trait::async_trait;

use super::connection::NatsConnection;
use super::dial::{self, ServerTurn};
use super::rights;
use super::session::NatsSession;
use super::settings::{Settings, StreamPlan};
use super::stream;
use super::topology::{self, KnownStream};
use crate::brokers::dial as addresses;
use crate::brokers::{Broker, ConnectError, ErrorKind, Finding, Session, Terms, Topology};

/// NATS JetStream.
#[derive(Debug)]
pub(crate) struct Nats {
    settings: Settings,
    terms: Terms,
    turn: ServerTurn,
}

impl Nats {
    /// The broker that these settings describe.
    #[must_use]
    pub(crate) fn new(settings: &Settings, terms: &Terms) -> Self {
        Self { settings: settings.clone(), terms: terms.clone(), turn: ServerTurn::default() }
    }

    async fn dial(&self) -> Result<NatsConnection, ConnectError> {
        dial::dial(&self.settings, self.terms.max_in_flight, &self.turn).await
    }

    /// The streams that a session starts with, created where that is ours to do; and what is to be said of them. Only the
    /// main one must exist.
    async fn prepare(
        &self,
        connection: &mut NatsConnection,
    ) -> Result<(Vec<KnownStream>, Vec<Finding>), ConnectError> {
        let mut all = Vec::new();
        let mut findings: Vec<Finding> = connection.refusing().collect();
        for plan in &self.settings.streams {
            let established = topology::establish(connection, &self.settings, plan).await;
            let (known, finding) = self.tolerate(connection, plan, established)?;
            findings.extend(finding);
            findings.extend(self.findings(connection, plan, &known));
            all.push(known);
        }
        Ok((all, findings))
    }

    /// The error about a stream that only routes name is a finding.
    fn tolerate(
        &self,
        connection: &NatsConnection,
        plan: &StreamPlan,
        found: Result<(KnownStream, Option<Finding>), ConnectError>,
    ) -> Result<(KnownStream, Option<Finding>), ConnectError> {
        match found {
            Err(error) if plan != self.settings.main() && connection.is_open() => {
                let is_forbidden = error.kind == ErrorKind::Authentication;
                let known = if is_forbidden { KnownStream::Unasked } else { KnownStream::Unknown };
                Ok((known, Some(Finding::Warning(error.text))))
            }
            found => found,
        }
    }

    fn findings(&self, connection: &NatsConnection, plan: &StreamPlan, known: &KnownStream) -> Vec<Finding> {
        let (stream, mut findings) = match known {
            KnownStream::Stands(stream) => (Some(stream), topology::subjects_not_taken(stream, plan)),
            KnownStream::Missing | KnownStream::Unasked | KnownStream::Unknown => (None, Vec::new()),
        };
        if stream.is_some() || plan == self.settings.main() {
            findings.push(topology::sizes(connection.max_payload(), stream, &self.terms));
        }
        findings
    }

    /// The findings of an inspection about a stream.
    fn state(&self, plan: &StreamPlan, known: &KnownStream) -> Vec<Finding> {
        let name = &plan.name;
        let mut findings = vec![match known {
            KnownStream::Stands(stream) => {
                Finding::Good(format!("the stream {name} exists and takes {}", stream.subjects.join(", ")))
            }
            KnownStream::Missing if self.settings.topology == Topology::Declare && !plan.subjects.is_empty() => {
                let subjects = plan.subjects.join(", ");
                Finding::Good(format!("the stream {name} will be created at start and take {subjects}"))
            }
            KnownStream::Missing => Finding::Missing(topology::missing_text(plan)),
            KnownStream::Unasked => Finding::Warning(format!(
                "these credentials may not look at the stream {name}; nothing is known of it"
            )),
            KnownStream::Unknown => {
                let subject = stream::info_subject(&self.settings.api, name);
                Finding::Warning(format!("nothing is known of the stream {name}: no answer to {subject}"))
            }
        }];
        if let Err(error) = topology::able(known, plan) {
            findings.push(Finding::Warning(format!("{error}: events wait until that changes")));
        }
        if let (KnownStream::Stands(stream), Topology::Declare) = (known, self.settings.topology)
            && let Some(messages) = stream.unread
        {
            findings.push(Finding::Warning(format!(
                "the stream {name} has {messages} messages, no consumer and no limit: it grows until the disk is full; read \
                 it, or limit its age or size"
            )));
        }
        findings
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
        let mut connection = self.dial().await?;
        let (known, findings) = match self.prepare(&mut connection).await {
            Ok(prepared) => prepared,
            Err(error) => {
                connection.leave();
                return Err(error);
            }
        };
        let session = NatsSession::new(connection, &self.terms.headers, &self.settings, &known);
        Ok((Box::new(session), findings))
    }

    async fn inspect(&mut self) -> Result<Vec<Finding>, ConnectError> {
        let mut connection = self.dial().await?;
        let version = &connection.server().version;
        let mut findings = vec![Finding::Good(format!("nats-server {version} at {}", connection.at()))];
        findings.extend(connection.refusing());
        let mut missing = Vec::new();
        for plan in &self.settings.streams {
            let looked = topology::look(&mut connection, &self.settings, plan).await;
            let (known, finding) = self.tolerate(&connection, plan, looked.map(|known| (known, None)))?;
            let is_first = plan == self.settings.main();
            if is_first && !matches!(known, KnownStream::Unasked | KnownStream::Unknown) {
                findings.push(Finding::Good("JetStream is enabled for these credentials".to_owned()));
            }
            findings.extend(finding);
            findings.extend(self.state(plan, &known));
            findings.extend(self.findings(&connection, plan, &known));
            if matches!(known, KnownStream::Missing) && self.settings.topology == Topology::Declare {
                missing.push(plan);
            }
        }
        findings.extend(rights::lacking(&mut connection, &self.settings, &missing).await);
        findings.extend(addresses::silent(&self.settings.hosts()).await);
        Ok(findings)
    }
}
