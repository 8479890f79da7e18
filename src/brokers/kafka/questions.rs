//! A missing topic is first a question: when a session asks, and what follows from the answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::brokers::kafka::session::{AskedMessage, KafkaSession, Topic, Verdicts};
use crate::brokers::kafka::topology::{Purpose, TopicState, Topics, deleted};
use crate::brokers::{ConnectError, ErrorKind, Refusal, RefusalReason, SessionError, Verdict};

/// The cluster is asked about topics at most this often.
pub(super) const BETWEEN_QUESTIONS: Duration = Duration::from_secs(1);

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
    pub(super) async fn hear(&mut self, into: &mut Verdicts) {
        let Some(asking) = &mut self.asking else { return std::future::pending().await };
        let asked = asking.await;
        self.asking = None;
        match asked {
            Ok(asked) => self.answered(asked, into),
            Err(_) => self.failure = Some(SessionError::lost("the question about topics panicked")),
        }
    }

    fn answered(&mut self, (names, answer): Asked, into: &mut Verdicts) {
        let survey = match answer {
            Ok(survey) => survey,
            Err(error) => return self.unanswered(names, &error),
        };
        self.trouble = None;
        // Without names it was only asked whether the brokers are back; one that starts may not know its topics.
        if let Some(gone) = survey.gone.filter(|_| !names.is_empty()) {
            self.failure = Some(SessionError::lost(format!("the topic {gone} does not exist any more")));
            return;
        }
        for name in names {
            let Some(Topic::Asking(held)) = self.topics.remove(&name) else { continue };
            match survey.standing.get(&name) {
                Some(TopicState::Exists(limit)) => {
                    let limit = *limit;
                    if limit.is_some_and(|limit| limit < self.batch_size) {
                        let text = format!("the topic {name} asks for smaller batches; connecting again");
                        self.failure = Some(SessionError::lost(text));
                    }
                    self.topics.insert(name, Topic::Open(limit));
                    self.release(held, into);
                }
                Some(TopicState::Hidden) => {
                    self.topics.insert(name, Topic::Open(None));
                    self.release(held, into);
                }
                Some(TopicState::NotYet(why)) => {
                    let text = format!("the topic {name} cannot be created: {why}");
                    self.trouble = Some(ConnectError::new(ErrorKind::Connect, text));
                    self.topics.insert(name.clone(), Topic::Asking(held));
                    self.questions.push(name);
                }
                Some(TopicState::Deleted) => {
                    self.trouble = Some(ConnectError::new(ErrorKind::Connect, deleted(&name)));
                    self.topics.insert(name.clone(), Topic::Asking(held));
                    self.questions.push(name);
                }
                Some(TopicState::NotCreated(why)) => {
                    let text = format!("the topic {name} does not exist and cannot be created: {why}");
                    self.close_topic(name, text, &held, into);
                }
                Some(TopicState::Missing) | None => {
                    let text = format!("the topic {name} does not exist");
                    self.close_topic(name, text, &held, into);
                }
            }
        }
    }

    /// The brokers are away: what was not sent waits with the rest, but a failure cannot be judged.
    fn unanswered(&mut self, names: Vec<Arc<str>>, error: &ConnectError) {
        let failed = |topic: Option<&Topic>| match topic {
            Some(Topic::Asking(held)) => held.iter().any(|held| matches!(held, AskedMessage::Failed(..))),
            _ => false,
        };
        if names.iter().any(|name| failed(self.topics.get(name))) {
            self.failure = Some(SessionError::lost(error.text.clone()));
        }
        self.questions.extend(names);
    }

    fn release(&mut self, held: Vec<AskedMessage>, into: &mut Verdicts) {
        if self.failure.is_some() {
            return;
        }
        // One that failed is older than those that wait: they go together, in the delivery task's order.
        let again = held.iter().any(|held| matches!(held, AskedMessage::Failed(..)));
        for held in held {
            match held {
                AskedMessage::WaitingMessage(waiting) if !again => self.resend(waiting, into),
                AskedMessage::WaitingMessage(waiting) => {
                    into.push((
                        waiting.sequence,
                        Verdict::RetryLater("the topic was missing for a moment".to_owned()),
                    ));
                }
                AskedMessage::Failed(sequence, code) => {
                    into.push((sequence, Verdict::RetryLater(code.to_string())));
                }
            }
        }
    }

    fn close_topic(&mut self, name: Arc<str>, text: String, held: &[AskedMessage], into: &mut Verdicts) {
        let refusal = Refusal::new(RefusalReason::NoDestination, text);
        for held in held {
            let sequence = match held {
                AskedMessage::WaitingMessage(waiting) => waiting.sequence,
                AskedMessage::Failed(sequence, _) => *sequence,
            };
            into.push((sequence, Verdict::Refused(refusal.clone())));
        }
        if self.topics.len() >= REMEMBERED {
            self.topics.retain(|_, topic| !matches!(topic, Topic::Closed { .. }));
        }
        self.topics.insert(name, Topic::closed(refusal));
    }
}
