//! The existing topics and their limits: asked for, created, and remembered across sessions.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, OwnedResourceSpecifier, ResourceSpecifier,
    TopicReplication, TopicResult,
};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataPartition;
use tokio::time::Instant;

use crate::brokers::kafka::client::{Client, Quiet, give_token};
use crate::brokers::kafka::settings::Settings;
use crate::brokers::oauth::Tokens;
use crate::brokers::{ConnectError, ErrorKind, Refusal, RefusalReason, Terms, Topology};

/// A broker that is there answers within milliseconds; over a slow line, with TLS, within one or two seconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// Limits are good to know, not needed: they take 20 ms, with a TLS handshake some hundred.
const LIMITS: Duration = Duration::from_secs(2);

/// The time for which a deleted topic is left alone before it is created again.
const RETURNS: Duration = Duration::from_secs(10);

/// After a refusal of credentials by one broker another may still take them.
const SECOND_CHANCE: Duration = Duration::from_secs(1);

/// The state of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TopicState {
    /// It exists; its `max.message.bytes`, where we may know it.
    Exists(Option<usize>),
    Missing,
    /// It existed and is deleted: the operator may create it again in another way.
    Deleted,
    /// Missing; we are not allowed to create it, or the request can never succeed.
    NotCreated(String),
    /// It is missing and could not be created now.
    NotYet(String),
    /// It exists, but these credentials may not see it, much less write to it.
    Hidden,
}

impl TopicState {
    /// The limit of a topic that takes messages, where it is known, or why it takes none.
    pub(super) fn limit(&self, name: &str) -> Result<Option<usize>, Refusal> {
        let missing = |why: &str| format!("the topic {name} does not exist{why}");
        let wrong = |why: &str| Err(Refusal::wrong(RefusalReason::NoDestination, missing(why)));
        match self {
            Self::Exists(limit) => Ok(*limit),
            Self::Hidden => Ok(None),
            Self::Deleted => Err(Refusal::unable(deleted(name))),
            Self::NotYet(why) => {
                Err(Refusal::unable(missing(&format!(" and cannot be created at the moment: {why}"))))
            }
            Self::NotCreated(why) => wrong(&format!(" and cannot be created: {why}")),
            Self::Missing => wrong(""),
        }
    }
}

/// The answer to a survey.
#[derive(Debug)]
pub(super) struct Topics {
    pub(super) brokers: usize,
    /// The topics that were there before any was created, with the number of their partitions.
    pub(super) partitions: HashMap<String, usize>,
    pub(super) standing: HashMap<Arc<str>, TopicState>,
    /// The main topic is not there.
    pub(super) gone: Option<String>,
}

/// The permissions of a survey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Look only.
    Look,
    /// Create what is missing, where the settings say so.
    Connect,
    /// The same, but a topic that has gone is left to the next connect.
    Question,
}

/// A topic that was seen to exist.
#[derive(Clone, Copy, Debug, Default)]
struct SeenTopic {
    /// Its `max.message.bytes`, where we may know it.
    limit: Option<usize>,
    /// Since when it is known to be missing.
    missing: Option<Instant>,
}

/// The text about a topic that was deleted.
pub(super) fn deleted(name: &str) -> String {
    let seconds = RETURNS.as_secs();
    format!(
        "the topic {name} does not exist any more; it is created again if it does not return within {seconds} s"
    )
}

/// Asks the cluster about topics; lives as long as the broker.
pub(super) struct TopicAdmin {
    pub(super) settings: Settings,
    pub(super) config: ClientConfig,
    /// The topics that the settings name without placeholders.
    pub(super) literals: Vec<Arc<str>>,
    /// Topics that were seen to exist.
    seen: Mutex<HashMap<Arc<str>, SeenTopic>>,
    pub(super) tokens: Option<Arc<Tokens>>,
}

impl TopicAdmin {
    pub(super) fn new(settings: &Settings, terms: &Terms) -> Arc<Self> {
        Arc::new(Self {
            settings: settings.clone(),
            config: settings.client.producer(terms, None),
            literals: settings.router.literals().into_iter().map(Arc::from).collect(),
            seen: Mutex::default(),
            tokens: settings.client.security.oauth.as_ref().map(Tokens::new),
        })
    }

    /// The topic of everything that has no route of its own, where it is known before its first event.
    pub(super) fn main(&self) -> Option<&str> {
        self.settings.router.main().address().literal()
    }

    /// The smallest limit of all topics seen.
    pub(super) fn smallest_limit(&self) -> Option<usize> {
        self.seen.lock().values().filter_map(|seen| seen.limit).min()
    }

    /// Asks about these topics, and always about those that the settings name.
    pub(super) async fn survey(
        &self,
        client: &Arc<Client>,
        names: &[Arc<str>],
        purpose: Purpose,
    ) -> Result<Topics, ConnectError> {
        let (brokers, partitions) = list(client).await?;
        let gone = self.main().filter(|name| !partitions.contains_key(*name)).map(str::to_owned);
        let mut survey = Topics { brokers, partitions, standing: HashMap::new(), gone };
        if survey.gone.is_some() && purpose == Purpose::Question {
            return Ok(survey);
        }
        let creates = self.settings.topology == Topology::Declare && purpose != Purpose::Look;
        let (mut existing, mut missing) = (Vec::new(), Vec::new());
        for name in names {
            let state = if survey.partitions.contains_key(&**name) {
                existing.push(name.clone());
                TopicState::Exists(None)
            } else if creates && self.is_awaited(name) {
                TopicState::Deleted
            } else {
                missing.push(name.clone());
                TopicState::Missing
            };
            survey.standing.insert(name.clone(), state);
        }
        if existing.is_empty() && (missing.is_empty() || !creates) {
            return Ok(survey);
        }
        let admin = ClosingAdmin::new(self).await?;
        if creates && !missing.is_empty() {
            let answer = admin.create(&self.settings, &missing, &options(PATIENCE)).await;
            if let Err(code) = &answer
                && missing.iter().any(|name| self.main() == Some(&**name))
            {
                let text = format!("cannot create the missing topics ({}): {code}", missing.join(", "));
                return Err(ConnectError::new(ErrorKind::Connect, text));
            }
            // What goes to the topic of a route waits.
            let none = |code| missing.iter().map(|name| (name.clone(), Some(code))).collect();
            for (name, outcome) in answer.unwrap_or_else(none) {
                let state = match outcome {
                    None => TopicState::Exists(None),
                    Some(RDKafkaErrorCode::TopicAlreadyExists) => {
                        // Another client was faster, or it was there and we may not see it.
                        let found = list(client).await?.1.remove_entry(&*name);
                        let is_seen = found.is_some();
                        survey.partitions.extend(found);
                        if is_seen { TopicState::Exists(None) } else { TopicState::Hidden }
                    }
                    Some(code) if is_final(code) => TopicState::NotCreated(code.to_string()),
                    Some(code) => TopicState::NotYet(code.to_string()),
                };
                if state == TopicState::Exists(None) {
                    existing.push(name.clone());
                }
                survey.standing.insert(name, state);
            }
        }
        let limits = admin.numbers(&existing, "max.message.bytes").await;
        let mut seen = self.seen.lock();
        for name in existing {
            let limit = limits.get(&*name).copied();
            seen.insert(name.clone(), SeenTopic { limit, missing: None });
            survey.standing.insert(name, TopicState::Exists(limit));
        }
        drop(seen);
        Ok(survey)
    }

    /// Those of these missing topics that could not be created now, and why. Creates nothing.
    pub(super) async fn uncreatable(&self, names: &[Arc<str>]) -> Vec<(Arc<str>, RDKafkaErrorCode)> {
        if self.settings.topology != Topology::Declare || names.is_empty() {
            return Vec::new();
        }
        let Ok(admin) = ClosingAdmin::new(self).await else {
            return Vec::new();
        };
        let validation = options(PATIENCE).validate_only(true);
        let outcomes = admin.create(&self.settings, names, &validation).await.unwrap_or_default();
        let failed = outcomes.into_iter().filter_map(|(name, outcome)| Some((name, outcome?)));
        failed.filter(|(_, code)| *code != RDKafkaErrorCode::TopicAlreadyExists).collect()
    }

    /// Whether a missing topic was there before, and is left alone for a while.
    fn is_awaited(&self, name: &Arc<str>) -> bool {
        let mut seen = self.seen.lock();
        let Some(seen) = seen.get_mut(name) else { return false };
        seen.missing.get_or_insert_with(Instant::now).elapsed() < RETURNS
    }

    /// Looks with a client of its own why these topics give no answer; none for one that has all it needs.
    pub(super) async fn look(&self, names: &[Arc<str>]) -> Result<HashMap<Arc<str>, Option<String>>, ConnectError> {
        let admin = Arc::new(ClosingAdmin::new(self).await?);
        let asking = admin.clone();
        let ask = tokio::task::spawn_blocking(move || asking.client().inner().fetch_metadata(None, PATIENCE));
        let Ok(Ok(metadata)) = ask.await else {
            let seconds = PATIENCE.as_secs();
            let text = format!("a new client gets no answer from the cluster either, within {seconds} s");
            return Err(ConnectError::new(ErrorKind::Connect, text));
        };
        let needed = admin.numbers(names, "min.insync.replicas").await;
        let health = names.iter().map(|name| {
            let topic = metadata.topics().iter().find(|topic| *topic.name() == **name);
            let partitions = topic.map_or(&[][..], |topic| topic.partitions());
            let needed = needed.get(&**name).copied();
            let why = partitions.iter().find_map(|partition| unable(partition, needed));
            let missing = || partitions.is_empty().then(|| "the topic does not exist".to_owned());
            (name.clone(), why.or_else(missing))
        });
        Ok(health.collect())
    }
}

/// Whether creation failed because these credentials may not create.
pub(super) fn is_forbidden(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed)
}

/// Whether another attempt at creation would end the same way; too few replicas may be a broker that restarts.
fn is_final(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{InvalidPartitions, InvalidTopic, PolicyViolation};
    is_forbidden(code) || matches!(code, PolicyViolation | InvalidTopic | InvalidPartitions)
}

/// The number of brokers and all topics with their partitions.
async fn list(client: &Arc<Client>) -> Result<(usize, HashMap<String, usize>), ConnectError> {
    let blocking = client.clone();
    let ask = tokio::task::spawn_blocking(move || {
        let metadata = blocking.metadata(PATIENCE)?;
        let missing = Some(RDKafkaErrorCode::UnknownTopicOrPartition);
        let topics = metadata.topics().iter().filter(|topic| topic.error().map(RDKafkaErrorCode::from) != missing);
        let topics = topics.map(|topic| (topic.name().to_owned(), topic.partitions().len())).collect();
        Ok::<_, KafkaError>((metadata.brokers().len(), topics))
    });
    let refused = async {
        client.reports().refused.notified().await;
        tokio::time::sleep(SECOND_CHANCE).await;
    };
    let failure = tokio::select! {
        answer = ask => match answer {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error.rdkafka_error_code().map(|code| code.to_string()),
            Err(_) => None,
        },
        () = refused => None,
    };
    let text = failure.unwrap_or_else(|| "no answer".to_owned());
    Err(client.reports().reason().unwrap_or_else(|| {
        let seconds = PATIENCE.as_secs();
        ConnectError::new(
            ErrorKind::Connect,
            format!("no answer to a question about topics within {seconds} s ({text})"),
        )
    }))
}

/// A short-lived client for administration: rdkafka's keeps its log for ever, because it is not polled.
struct ClosingAdmin(Option<AdminClient<Quiet>>);

impl ClosingAdmin {
    async fn new(admin: &TopicAdmin) -> Result<Self, ConnectError> {
        let mut config = admin.config.clone();
        config.set_log_level(RDKafkaLogLevel::Emerg);
        let create = tokio::task::spawn_blocking(move || config.create_with_context(Quiet)).await;
        match create {
            Ok(Ok(client)) => {
                let client = Self(Some(client));
                if let Some(tokens) = &admin.tokens {
                    tokens.valid().await?;
                    give_token(client.client().inner(), tokens)
                        .map_err(|text| ConnectError::new(ErrorKind::Authentication, text))?;
                }
                Ok(client)
            }
            // The producer was created with the same settings, so this is a shortage of memory or threads.
            _ => Err(ConnectError::new(ErrorKind::Connect, "cannot create a second client to ask about topics")),
        }
    }

    fn client(&self) -> &AdminClient<Quiet> {
        self.0.as_ref().expect("the client is there until drop")
    }

    /// Creates topics; says of each why not, or why the request failed.
    async fn create(
        &self,
        settings: &Settings,
        names: &[Arc<str>],
        options: &AdminOptions,
    ) -> Result<Vec<(Arc<str>, Option<RDKafkaErrorCode>)>, RDKafkaErrorCode> {
        let replication = || TopicReplication::Fixed(settings.replication_factor);
        let topics = names.iter().map(|name| NewTopic::new(name, settings.partitions, replication()));
        let topics: Vec<NewTopic<'_>> = topics.collect();
        let answer = self.client().create_topics(&topics, options).await;
        let code = |error: KafkaError| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
        let results = answer.map_err(code)?;
        let outcome = |result: TopicResult| {
            result.map_or_else(|(name, code)| (name.into(), Some(code)), |name| (name.into(), None))
        };
        Ok(results.into_iter().map(outcome).collect())
    }

    /// A setting of topics; of those we may not ask about there is none.
    async fn numbers(&self, names: &[Arc<str>], setting: &str) -> HashMap<String, usize> {
        let topics: Vec<ResourceSpecifier<'_>> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        match self.client().describe_configs(&topics, &options(LIMITS)).await {
            Ok(resources) => {
                resources.into_iter().flatten().filter_map(|resource| number(&resource, setting)).collect()
            }
            Err(error) => {
                tracing::debug!(%error, "failed to read a setting of topics");
                HashMap::new()
            }
        }
    }
}

/// The reason why a partition takes nothing.
fn unable(partition: &MetadataPartition, needed: Option<usize>) -> Option<String> {
    let (id, in_sync, replicas) = (partition.id(), partition.isr().len(), partition.replicas().len());
    if partition.leader() < 0 {
        return Some(format!("partition {id} has no leader"));
    }
    let too_few = format!("partition {id} has {in_sync} of {replicas} replicas in sync");
    match needed {
        Some(needed) if in_sync < needed => {
            Some(format!("{too_few}, and min.insync.replicas is {needed} (NOT_ENOUGH_REPLICAS)"))
        }
        None if in_sync < replicas => Some(too_few),
        _ => None,
    }
}

fn number(resource: &ConfigResource, setting: &str) -> Option<(String, usize)> {
    let OwnedResourceSpecifier::Topic(name) = &resource.specifier else { return None };
    let number = resource.get(setting)?.value.as_ref()?.parse().ok()?;
    Some((name.clone(), number))
}

fn options(patience: Duration) -> AdminOptions {
    AdminOptions::new().request_timeout(Some(patience)).operation_timeout(Some(patience))
}

impl Drop for ClosingAdmin {
    fn drop(&mut self) {
        // It joins a thread that looks up every 100 ms.
        let client = self.0.take();
        let _ = std::thread::Builder::new().spawn(move || drop(client));
    }
}
