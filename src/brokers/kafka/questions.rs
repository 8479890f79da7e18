//! A missing topic is first a question: when a session asks, and what follows from the answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::brokers::kafka::session::{KafkaSession, Topic};
use crate::brokers::kafka::topology::{Purpose, TopicState, Topics, deleted};
use crate::brokers::{ConnectError, Refusal, RefusalReason, SessionError};

/// The cluster is asked about topics at most this often.
const BETWEEN_QUESTIONS: Duration = Duration::from_secs(1);

/// A sender of thousands of event names must not fill the memory with topics that are missing.
const REMEMBERED: usize = 1024;

/// The topics asked about, and the answer.
pub(super) type Asked = (Vec<Arc<str>>, Result<Topics, ConnectError>);

impl KafkaSession {
    /// Starts a question if there is one and it is time; says when it will be time.
    pub(super) fn ask(&mut self) -> Option<Instant> {
        if self.asking.is_some() || (self.questions.is_empty() && self.client.reports().away().is_none()) {
            return None;
        }
        let now = Instant::now();
        let due = self.asked.map_or(now, |asked| asked + BETWEEN_QUESTIONS);
        if due > now {
            return Some(due);
        }
        self.asked = Some(now);
        let names = std::mem::take(&mut self.questions);
        let (surveyor, client) = (self.surveyor.clone(), self.client.clone());
        self.asking = Some(tokio::spawn(async move {
            let survey = surveyor.survey(&client, &names, Purpose::Question).await;
            (names, survey)
        }));
        None
    }

    /// Waits for the answer to the running question; nothing is awaited between it and what follows from it.
    pub(super) async fn hear(&mut self) {
        let Some(asking) = &mut self.asking else { return std::future::pending().await };
        let asked = asking.await;
        self.asking = None;
        match asked {
            Ok(asked) => self.answered(asked),
            Err(_) => self.failure = Some(SessionError::lost("the question about topics panicked")),
        }
    }

    fn answered(&mut self, (names, answer): Asked) {
        // Where the brokers are away, the session says so; what waits for its topic goes on waiting.
        let Ok(survey) = answer else { return self.questions.extend(names) };
        // Without names it was only asked whether the brokers are back; one that starts may not know its topics.
        if let Some(gone) = survey.gone.filter(|_| !names.is_empty()) {
            self.failure = Some(SessionError::lost(format!("the topic {gone} does not exist any more")));
            return;
        }
        let wrong = |text| Refusal::wrong(RefusalReason::NoDestination, text);
        for name in names {
            let missing = format!("the topic {name} does not exist");
            match survey.standing.get(&name) {
                Some(TopicState::Exists(limit)) => self.open_topic(name, *limit),
                Some(TopicState::Hidden) => self.open_topic(name, None),
                Some(TopicState::NotYet(why)) => {
                    let text = format!("{missing} and cannot be created at the moment: {why}");
                    self.close_topic(name, Refusal::unable(text));
                }
                Some(TopicState::Deleted) => {
                    let text = deleted(&name);
                    self.close_topic(name, Refusal::unable(text));
                }
                Some(TopicState::NotCreated(why)) => {
                    let text = format!("{missing} and cannot be created: {why}");
                    self.close_topic(name, wrong(text));
                }
                Some(TopicState::Missing) | None => self.close_topic(name, wrong(missing)),
            }
        }
    }

    fn open_topic(&mut self, name: Arc<str>, limit: Option<usize>) {
        if limit.is_some_and(|limit| limit < self.limits.batch_size) {
            let text = format!("the topic {name} asks for smaller batches; connecting again");
            self.failure = Some(SessionError::lost(text));
        }
        self.has_changed |= matches!(self.topics.insert(name, Topic::Open(limit)), Some(Topic::Closed(_)));
    }

    /// Keeps messages from this topic until the cluster says otherwise.
    pub(super) fn close_topic(&mut self, name: Arc<str>, refusal: Refusal) {
        if self.topics.len() >= REMEMBERED {
            self.topics.retain(|_, topic| !matches!(topic, Topic::Closed(_)));
        }
        self.topics.insert(name, Topic::Closed(refusal));
    }
}
