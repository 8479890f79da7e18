//! Topics that give no answer: a client made for this question looks why, and a client that is stuck is replaced.
//!
//! librdkafka sends again what a topic with too few replicas refuses, for ever, and reports nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::brokers::kafka::batch::TopicBatches;
use crate::brokers::kafka::topology::TopicAdmin;
use crate::brokers::look::TopologyLook;
use crate::brokers::{ConnectError, SessionError};

/// A topic that gives no answer for this long is looked at.
const SILENT: Duration = Duration::from_secs(3);

/// Between two looks.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);

/// The result of a look: the topics, each with the reason why it cannot answer, if one was found.
pub(super) type FoundReasons = Result<HashMap<Arc<str>, Option<String>>, ConnectError>;

/// The looks.
pub(super) struct Silence {
    /// A client that gives no answer for this long, although its topic could, is replaced.
    stuck_after: Duration,
    pub(super) look: TopologyLook<FoundReasons>,
    /// The reasons why topics give no answer, where they were found.
    reasons: HashMap<Arc<str>, String>,
}

impl Silence {
    pub(super) fn new(stuck_after: Duration) -> Self {
        Self { stuck_after, look: TopologyLook::default(), reasons: HashMap::new() }
    }

    /// The reason why this topic gives no answer.
    pub(super) fn reason(&self, topic: &str) -> Option<String> {
        self.reasons.get(topic).cloned()
    }

    /// Starts a look where a topic is silent and it is time; says when this is to be called again.
    pub(super) fn ask(&mut self, batches: &TopicBatches, admin: &Arc<TopicAdmin>) -> Option<Instant> {
        let now = Instant::now();
        if self.look.next(now, BETWEEN_LOOKS) == Some(now) {
            let silent = batches.silent(SILENT);
            if silent.is_empty() {
                self.reasons.clear();
            } else {
                let admin = admin.clone();
                self.look.begin(async move { admin.look(&silent).await });
            }
        }
        (batches.messages() > 0).then(|| now + SILENT)
    }

    /// Notes what a look found; returns why the session is lost, if it is.
    pub(super) fn found(&mut self, found: &FoundReasons, batches: &TopicBatches) -> Option<SessionError> {
        let (silent, stuck) = (batches.silent(SILENT), batches.silent(self.stuck_after));
        self.reasons.clear();
        let mut lost = None;
        for topic in silent {
            let why = match found {
                Ok(found) => found.get(&topic).cloned(),
                Err(error) => Some(Some(error.text.clone())),
            };
            match why {
                Some(Some(why)) => drop(self.reasons.insert(topic, why)),
                // A topic that has everything it needs answers within a minute, or its client is stuck.
                Some(None) if stuck.contains(&topic) => {
                    let seconds = self.stuck_after.as_secs();
                    let text = format!(
                        "no answer for {seconds} s to what goes to the topic {topic}, although it has its leader and \
                         its replicas; connecting with a new client"
                    );
                    lost = Some(SessionError::lost(text));
                }
                _ => {}
            }
        }
        lost
    }
}
