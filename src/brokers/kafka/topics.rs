//! The topics as a session knows them. A missing one is first a question: when it is asked, and what follows from the
//! answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::time::Instant;

use crate::brokers::kafka::client::Client;
use crate::brokers::kafka::topology::{Purpose, TopicAdmin, TopicState, Topics};
use crate::brokers::look::TopologyLook;
use crate::brokers::{ConnectError, Refusal, RefusalReason, SessionError, Topology};

/// The cluster is asked about topics at most this often.
const BETWEEN_QUESTIONS: Duration = Duration::from_secs(1);

/// Limits change by hand, and a question delays what goes to the topic by a moment.
const FRESH: Duration = Duration::from_secs(5);

/// A sender of thousands of event names must not fill the memory with topics that are missing.
const REMEMBERED: usize = 1024;

/// The limit of a topic that takes messages, where it is known, and when the cluster said so; or why it takes none.
type KnownTopic = Result<(Option<usize>, Instant), Refusal>;

/// The topics asked about, and the answer.
pub(super) type TopicAnswer = (Vec<Arc<str>>, Result<Topics, ConnectError>);

/// The topics of a session.
pub(super) struct SessionTopics {
    pub(super) admin: Arc<TopicAdmin>,
    topics: HashMap<Arc<str>, KnownTopic>,
    /// Topics that are to be asked about.
    questions: Vec<Arc<str>>,
    pub(super) look: TopologyLook<TopicAnswer>,
    /// A topic was found that had been closed.
    pub(super) has_changed: bool,
}

impl SessionTopics {
    /// Begins with what a survey found; any other topic is asked about when its first message arrives.
    pub(super) fn new(admin: Arc<TopicAdmin>, survey: &Topics) -> Self {
        let known = |(name, state): (&Arc<str>, &TopicState)| (name.clone(), known(name, state));
        let topics = survey.standing.iter().map(known).collect();
        Self { admin, topics, questions: Vec::new(), look: TopologyLook::default(), has_changed: false }
    }

    /// The limit of this topic, or the reason why nothing is sent to it now: then it is asked about again.
    pub(super) fn limit(&mut self, name: &Arc<str>) -> Result<Option<usize>, Refusal> {
        let refusal = match self.topics.get(name) {
            Some(Ok((limit, _))) => return Ok(*limit),
            _ if self.admin.settings.topology == Topology::Ignore => {
                self.topics.insert(name.clone(), Ok((None, Instant::now())));
                return Ok(None);
            }
            Some(Err(refusal)) => refusal.clone(),
            None => Refusal::unable(format!("the topic {name} is being looked up")),
        };
        self.doubt(name.clone(), &refusal);
        Err(refusal)
    }

    /// The refusal of a record that is larger than the limit of its topic. The operator may have raised it: an old one is
    /// asked for again, and the answer decides.
    pub(super) fn too_large(&mut self, name: &Arc<str>, size: usize, limit: usize) -> Refusal {
        let text = format!("{size} bytes as a record, more than the {limit} of topic {name} (max.message.bytes)");
        if self.topics.get(name).is_some_and(|topic| matches!(topic, Ok((_, since)) if since.elapsed() < FRESH)) {
            return Refusal::event(RefusalReason::TooLarge, text);
        }
        let refusal = Refusal::unable(format!("{text}; it is being looked up again"));
        self.doubt(name.clone(), &refusal);
        refusal
    }

    /// The client knows no such topic, and a broker that has just started may not either: the cluster is asked.
    pub(super) fn unknown(&mut self, name: Arc<str>, code: Code) -> Refusal {
        if self.admin.settings.topology == Topology::Ignore {
            let text = format!("the topic {name} does not exist: {code}");
            return Refusal::wrong(RefusalReason::NoDestination, text);
        }
        let refusal = Refusal::unable(format!("topic {name}: {code}; it is being looked up"));
        self.doubt(name, &refusal);
        refusal
    }

    /// Keeps messages from this topic until the cluster says otherwise, and asks about it.
    fn doubt(&mut self, name: Arc<str>, refusal: &Refusal) {
        if !self.questions.contains(&name) {
            self.questions.push(name.clone());
        }
        self.close(name, refusal.clone());
    }

    fn close(&mut self, name: Arc<str>, refusal: Refusal) {
        if self.topics.len() >= REMEMBERED {
            self.topics.retain(|_, topic| topic.is_ok());
        }
        self.topics.insert(name, Err(refusal));
    }

    /// Starts a question if there is one and it is time; says when it will be time.
    pub(super) fn ask(&mut self, client: &Arc<Client>) -> Option<Instant> {
        let now = Instant::now();
        let next = self.look.next(now, BETWEEN_QUESTIONS)?;
        if self.questions.is_empty() && client.reports().away().is_none() {
            return None;
        }
        if next > now {
            return Some(next);
        }
        let names = std::mem::take(&mut self.questions);
        let (admin, client) = (self.admin.clone(), client.clone());
        self.look.begin(async move {
            let survey = admin.survey(&client, &names, Purpose::Question).await;
            (names, survey)
        });
        None
    }

    /// Notes an answer; returns why the session is lost, if it is. `batch_size` is that of its client.
    pub(super) fn answered(&mut self, (names, answer): TopicAnswer, batch_size: usize) -> Option<SessionError> {
        let Ok(survey) = answer else {
            // Where the brokers are away, the session says so; what waits for its topic goes on waiting.
            self.questions.extend(names);
            return None;
        };
        // Without names it was only asked whether the brokers are back; one that starts may not know its topics.
        if let Some(gone) = survey.gone.filter(|_| !names.is_empty()) {
            return Some(SessionError::lost(format!("the topic {gone} does not exist any more")));
        }
        let mut lost = None;
        for name in names {
            match survey.standing.get(&name).map(|state| known(&name, state)) {
                Some(Ok((limit, since))) => {
                    if limit.is_some_and(|limit| limit < batch_size) {
                        let text = format!("the topic {name} asks for smaller batches; connecting again");
                        lost = Some(SessionError::lost(text));
                    }
                    self.has_changed |= matches!(self.topics.insert(name, Ok((limit, since))), Some(Err(_)));
                }
                Some(Err(refusal)) => self.close(name, refusal),
                None => {}
            }
        }
        lost
    }
}

/// The topic as the cluster has just described it.
fn known(name: &str, state: &TopicState) -> KnownTopic {
    state.limit(name).map(|limit| (limit, Instant::now()))
}
