//! The broker: makes sessions, and says clearly what stands in the way of one.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::config::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;

use crate::brokers::dial;
use crate::brokers::kafka::client::Client;
use crate::brokers::kafka::record::BATCH_SIZE;
use crate::brokers::kafka::rights;
use crate::brokers::kafka::session::{FEW, KafkaSession, SessionLimits};
use crate::brokers::kafka::settings::Settings;
use crate::brokers::kafka::topics::SessionTopics;
use crate::brokers::kafka::topology::{Purpose, TopicAdmin, TopicState, Topics, deleted, is_forbidden};
use crate::brokers::{Broker, ConnectError, ErrorKind, Finding, LARGEST_HEADERS, Route, Session, Terms, Topology};

/// The broker.
pub(crate) struct Kafka {
    pub(super) admin: Arc<TopicAdmin>,
    terms: Terms,
    pub(super) stuck_after: Duration,
}

/// A client that gives no answer for this long, although its topic could, is replaced.
const STUCK: Duration = Duration::from_mins(1);

impl Kafka {
    /// The broker that these settings describe.
    #[must_use]
    pub(crate) fn new(settings: &Settings, terms: &Terms) -> Self {
        Self { admin: TopicAdmin::new(settings, terms), terms: terms.clone(), stuck_after: STUCK }
    }

    fn settings(&self) -> &Settings {
        &self.admin.settings
    }

    /// Loading certificates takes some milliseconds, so a thread for blocking work does it.
    async fn create(&self, config: ClientConfig) -> Result<Arc<Client>, ConnectError> {
        if let Some(tokens) = &self.admin.tokens {
            tokens.valid().await?;
        }
        let tokens = self.admin.tokens.clone();
        let created = tokio::task::spawn_blocking(move || Client::new(&config, tokens)).await;
        match created {
            Ok(Ok(client)) => Ok(Arc::new(client)),
            Ok(Err(error)) => {
                let kind =
                    if self.settings().client.security.is_tls() { ErrorKind::Tls } else { ErrorKind::Connect };
                Err(ConnectError::new(kind, self.settings().client.refusal(&error)))
            }
            Err(_) => Err(ConnectError::new(ErrorKind::Connect, "librdkafka's client could not be created")),
        }
    }

    fn advise(&self, error: &ConnectError) -> ConnectError {
        let what = match error.kind {
            ErrorKind::Authentication if self.admin.tokens.is_some() => {
                "Kafka refuses the token; check `oauth_client_id` and `oauth_scope`, and how the broker checks tokens"
            }
            ErrorKind::Authentication => {
                "Kafka refuses the credentials; check `username`, `password` and `sasl_mechanism`"
            }
            ErrorKind::Tls => {
                "no TLS connection to Kafka; check `ca_file`, `certificate_file` and the name in the \
                 broker's certificate"
            }
            _ => "cannot reach Kafka; check `bootstrap_servers` and `security_protocol`",
        };
        let servers = &self.settings().client.servers;
        ConnectError::new(error.kind, format!("{what} (bootstrap_servers {servers}): {}", error.text))
    }

    /// The problem with the main topic, if it makes a session useless.
    fn obstacle(&self, survey: &Topics) -> Option<ConnectError> {
        let name = self.admin.main()?;
        let text = match survey.standing.get(name)? {
            TopicState::Missing if self.settings().topology == Topology::Check => format!(
                "the topic {name} does not exist, or these credentials may not see it; create it, or set topology = \
                 \"declare\""
            ),
            TopicState::NotCreated(why) | TopicState::NotYet(why) => format!(
                "the topic {name} does not exist and cannot be created ({why}); create it, or let these credentials"
            ),
            TopicState::Deleted => deleted(name),
            TopicState::Hidden => format!(
                "the topic {name} exists, but these credentials may not write to it; give them the right to"
            ),
            TopicState::Exists(_) | TopicState::Missing => return None,
        };
        Some(ConnectError::new(ErrorKind::Connect, text))
    }

    /// The topics that would be created: those that are missing, and one of each template.
    fn expected(&self, survey: &Topics) -> Vec<Arc<str>> {
        let addresses = self.settings().router.main_first().map(Route::address);
        let samples = addresses.map(|template| template.samples()[0].as_str().into());
        let mut expected: Vec<Arc<str>> = Vec::new();
        for name in samples.filter(|name: &Arc<str>| !survey.partitions.contains_key(&**name)) {
            if !expected.contains(&name) {
                expected.push(name);
            }
        }
        expected
    }

    fn why_not_created(&self, code: RDKafkaErrorCode) -> String {
        let Settings { replication_factor, partitions, .. } = self.settings();
        format!("{code}, with `replication_factor` {replication_factor} and `partitions` {partitions}")
    }

    fn findings(&self, survey: &Topics) -> Vec<Finding> {
        let finding = |name: &str| match survey.standing.get(name) {
            Some(TopicState::Exists(Some(limit))) if *limit < self.terms.max_body + LARGEST_HEADERS => {
                Finding::Warning(format!(
                    "the topic {name} takes at most {limit} bytes (max.message.bytes), less than ingress.max_body \
                     ({}) with key and headers; larger events become dead letters",
                    self.terms.max_body
                ))
            }
            Some(TopicState::Exists(limit)) => {
                let partitions = survey.partitions.get(name);
                let made = if partitions.is_some() { "exists" } else { "was created" };
                let partitions = partitions.map(|count| format!(", partitions: {count}")).unwrap_or_default();
                let limit = limit.map(|limit| format!(", at most {limit} bytes")).unwrap_or_default();
                Finding::Good(format!("the topic {name} {made}{partitions}{limit}"))
            }
            Some(TopicState::NotCreated(why) | TopicState::NotYet(why)) => {
                Finding::Missing(format!("the topic {name} does not exist and cannot be created: {why}"))
            }
            Some(TopicState::Deleted) => Finding::Missing(deleted(name)),
            Some(TopicState::Hidden) => Finding::Warning(format!(
                "the topic {name} exists, but these credentials may not write to it; its events become dead letters"
            )),
            Some(TopicState::Missing) | None => match self.settings().topology {
                Topology::Declare => Finding::Good(format!("the topic {name} will be created at start")),
                Topology::Check | Topology::Ignore => Finding::Missing(format!(
                    "the topic {name} does not exist, or these credentials may not see it"
                )),
            },
        };
        self.settings().router.literals().into_iter().map(finding).collect()
    }

    /// The findings about topics that exist and have no leader, or too few replicas in sync.
    async fn unable(&self, survey: &Topics) -> Vec<Finding> {
        let literals = self.admin.literals.iter();
        let names: Vec<Arc<str>> =
            literals.filter(|name| survey.partitions.contains_key(&***name)).cloned().collect();
        if names.is_empty() {
            return Vec::new();
        }
        let reasons = self.admin.look(&names).await.unwrap_or_default();
        let finding = |name: &Arc<str>| {
            let why = reasons.get(name)?.as_ref()?;
            Some(Finding::Warning(format!("the topic {name} may not take messages at present: {why}")))
        };
        names.iter().filter_map(finding).collect()
    }

    /// The finding about topics with placeholders, of which `survey` has a sample where it cannot be created.
    fn placeholders(&self, survey: &Topics) -> Finding {
        let text = match self.settings().topology {
            Topology::Declare => "topics with placeholders are created when their first event arrives",
            Topology::Check => "topics with placeholders are looked up when their first event arrives",
            Topology::Ignore => "topics with placeholders are not looked up",
        };
        let templates = self.settings().router.main_first().map(Route::address);
        let mut open = templates.filter(|template| template.literal().is_none());
        let impossible = open.find_map(|template| {
            let [name, _] = template.samples();
            match survey.standing.get(&*name) {
                Some(TopicState::NotCreated(why)) => {
                    Some(Finding::Missing(format!("topics such as {name} cannot be created: {why}")))
                }
                _ => None,
            }
        });
        impossible.unwrap_or_else(|| Finding::Good(text.to_owned()))
    }
}

/// The topics of the settings that differ from another one only by `.` and `_`: they are one in Kafka's metrics, so a
/// cluster that has one does not create the other.
fn collisions(names: &[&str], all: &[&str]) -> Vec<Finding> {
    let same = |name: &str, other: &str| name != other && name.replace('.', "_") == other.replace('.', "_");
    let mut findings = Vec::new();
    for name in names {
        if let Some(other) = all.iter().find(|other| same(name, other)) {
            let text = "differ only by `.` and `_`; a cluster does not create the second of them: rename one";
            findings.push(Finding::Warning(format!("the topics {name} and {other} {text}")));
        }
    }
    findings
}

#[async_trait]
impl Broker for Kafka {
    fn name(&self) -> &'static str {
        "kafka"
    }

    fn location(&self) -> String {
        self.settings().client.servers.clone()
    }

    async fn connect(&mut self) -> Result<(Box<dyn Session>, Vec<Finding>), ConnectError> {
        let admin = &self.admin;
        let small = |limit: Option<usize>| limit.filter(|limit| *limit < BATCH_SIZE);
        let mut batch = small(admin.smallest_limit());
        let mut client = self.create(self.settings().client.producer(&self.terms, batch)).await?;
        let survey = admin.survey(&client, &admin.literals, Purpose::Connect).await;
        let survey = survey.map_err(|error| self.advise(&error))?;
        if let Some(obstacle) = self.obstacle(&survey) {
            return Err(obstacle);
        }
        if small(admin.smallest_limit()) != batch {
            batch = small(admin.smallest_limit());
            let brokers = client.reports().brokers();
            client = self.create(self.settings().client.producer(&self.terms, batch)).await?;
            client.reports().note_brokers(brokers);
        }
        let findings = match self.settings().topology {
            Topology::Ignore => Vec::new(),
            Topology::Declare | Topology::Check => self.findings(&survey),
        };
        let limits = SessionLimits {
            batch_size: batch.unwrap_or(BATCH_SIZE),
            compressed: self.settings().client.compresses(),
            renders: self.settings().router.has_placeholders(),
            stuck_after: self.stuck_after,
            most_at_once: match self.settings().client.has_own_linger() {
                true => 0,
                false if self.terms.awaited => usize::MAX,
                false => FEW,
            },
        };
        let session = KafkaSession::new(
            client,
            self.terms.headers.clone(),
            SessionTopics::new(admin.clone(), &survey),
            limits,
        );
        Ok((Box::new(session), findings))
    }

    async fn inspect(&mut self) -> Result<Vec<Finding>, ConnectError> {
        let admin = &self.admin;
        let client = self.create(admin.config.clone()).await?;
        let survey = admin.survey(&client, &admin.literals, Purpose::Look).await;
        let mut survey = survey.map_err(|error| self.advise(&error))?;
        let uncreatable = admin.uncreatable(&self.expected(&survey)).await;
        for (name, code) in uncreatable.iter().filter(|(_, code)| !is_forbidden(*code)) {
            survey.standing.insert(name.clone(), TopicState::NotCreated(self.why_not_created(*code)));
        }
        let mut findings = vec![Finding::Good(format!(
            "Kafka answers at {}, brokers: {}",
            self.settings().client.servers,
            survey.brokers
        ))];
        findings.extend(self.findings(&survey));
        findings.extend(self.unable(&survey).await);
        findings.extend(rights::lacking(&client, admin, &uncreatable).await);
        let there = survey.partitions.keys().map(String::as_str);
        let names: Vec<&str> = admin.literals.iter().map(|name| &**name).collect();
        findings.extend(collisions(&names, &there.chain(names.iter().copied()).collect::<Vec<_>>()));
        findings.extend(dial::silent(&self.settings().client.hosts()).await);
        if self.settings().router.has_placeholders() {
            findings.push(self.placeholders(&survey));
        }
        Ok(findings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_which_topics_differ_only_by_dots_and_underscores() {
        let found = collisions(&["a.b", "c"], &["a.b", "c", "a_b", "a.c", "a-b"]);
        let text = "the topics a.b and a_b differ only by `.` and `_`; a cluster does not create the second of them: \
                    rename one";
        assert_eq!(found, [Finding::Warning(text.to_owned())]);
    }
}
