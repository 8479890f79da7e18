//! Topics that give no answer: a client made for this question looks why, and a client that is stuck is replaced.
//!
//! librdkafka sends again what a topic with too few replicas refuses, for ever, and reports nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::brokers::kafka::session::KafkaSession;
use crate::brokers::kafka::topology::TopicHealth;
use crate::brokers::{ConnectError, SessionError};

/// A topic that gives no answer for this long is looked at.
const SILENT: Duration = Duration::from_secs(3);

/// Between two looks.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);

/// The interval of checks whether a look has ended.
const TICK: Duration = Duration::from_millis(200);

/// The result of a look.
type FoundHealth = Result<HashMap<Arc<str>, TopicHealth>, ConnectError>;

/// The looks.
#[derive(Default)]
pub(super) struct Silence {
    looking: Option<JoinHandle<FoundHealth>>,
    looked: Option<Instant>,
    /// The reasons why topics give no answer, where they were found.
    reasons: HashMap<Arc<str>, String>,
}

impl Silence {
    /// The reason why this topic gives no answer.
    pub(super) fn reason(&self, topic: &str) -> Option<String> {
        self.reasons.get(topic).cloned()
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        if let Some(looking) = &self.looking {
            looking.abort();
        }
    }
}

impl KafkaSession {
    /// Takes what a look found, or starts one where it is time; says when this is to be called again.
    pub(super) async fn look_at_silence(&mut self) -> Option<Instant> {
        if let Some(looking) = &mut self.silence.looking {
            if looking.is_finished() {
                let found = looking.await;
                self.silence.looking = None;
                if let Ok(found) = found {
                    self.found(found);
                }
            }
        } else {
            let now = Instant::now();
            let due = self.silence.looked.map_or(now, |looked| looked + BETWEEN_LOOKS);
            let silent = if due > now { Vec::new() } else { self.batches.silent(SILENT) };
            if due <= now && silent.is_empty() {
                self.silence.reasons.clear();
            }
            if !silent.is_empty() {
                self.silence.looked = Some(now);
                let surveyor = self.surveyor.clone();
                self.silence.looking = Some(tokio::spawn(async move { surveyor.look(&silent).await }));
            }
        }
        let wait = if self.silence.looking.is_some() { TICK } else { SILENT };
        (self.batches.messages() > 0).then(|| Instant::now() + wait)
    }

    fn found(&mut self, found: FoundHealth) {
        let silent = self.batches.silent(SILENT);
        self.silence.reasons.clear();
        match found {
            Ok(found) => {
                for (topic, health) in found.into_iter().filter(|(topic, _)| silent.contains(topic)) {
                    match health {
                        TopicHealth::Unable(why) => {
                            self.silence.reasons.insert(topic, why);
                        }
                        TopicHealth::Good => self.replace_if_stuck(&topic),
                    }
                }
            }
            Err(error) => {
                let reasons = silent.into_iter().map(|topic| (topic, error.text.clone()));
                self.silence.reasons.extend(reasons);
            }
        }
    }

    /// A topic that has everything it needs answers within a minute, or its client is stuck.
    fn replace_if_stuck(&mut self, topic: &Arc<str>) {
        if self.batches.silent(self.limits.stuck_after).contains(topic) {
            let seconds = self.limits.stuck_after.as_secs();
            let text = format!(
                "no answer for {seconds} s to what goes to the topic {topic}, although it has its leader and its \
                 replicas; connecting with a new client"
            );
            self.failure.get_or_insert_with(|| SessionError::lost(text));
        }
    }
}
