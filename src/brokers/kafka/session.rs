//! One session: hands messages over, judges what comes back, and asks before it believes that a topic is missing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::brokers::kafka::batch::Batch;
use crate::brokers::kafka::client::{Client, Outcome};
use crate::brokers::kafka::questions::{Asked, BETWEEN_QUESTIONS};
use crate::brokers::kafka::record::{Extras, Waiting};
use crate::brokers::kafka::topology::Surveyor;
use crate::brokers::{
    ConnectError, Handed, Headers, Refusal, RefusalReason, Session, SessionError, Ticket, Topology, Verdict,
};
use crate::message::Message;

/// Where the messages of one topic go.
pub(super) enum Topic {
    /// To librdkafka; a limit of the topic, where it is known.
    Open(Option<usize>),
    /// Nowhere until the cluster has said whether it exists.
    Asking(Vec<Held>),
    /// Back, until it is time to ask again.
    Closed { refusal: Refusal, since: Instant },
}

impl Topic {
    pub(super) fn closed(refusal: Refusal) -> Self {
        Self::Closed { refusal, since: Instant::now() }
    }
}

/// One message whose topic is asked about.
pub(super) enum Held {
    /// Not yet with librdkafka.
    Waiting(Box<Waiting>),
    /// librdkafka knew no such topic.
    Failed(Ticket, Code),
}

/// One producer, from connect to close.
pub(super) struct KafkaSession {
    pub(super) client: Arc<Client>,
    pub(super) surveyor: Surveyor,
    pub(super) headers: Headers,
    pub(super) topics: HashMap<Arc<str>, Topic>,
    pub(super) batch_size: usize,
    pub(super) compressed: bool,
    /// Topics in `Asking` that no running question is about.
    pub(super) questions: Vec<Arc<str>>,
    pub(super) asking: Option<JoinHandle<Asked>>,
    pub(super) asked: Option<Instant>,
    /// Why some messages wait for their topic.
    pub(super) trouble: Option<ConnectError>,
    pub(super) failure: Option<SessionError>,
    /// What librdkafka has.
    pub(super) batch: Batch,
}

/// How long the rest of a batch's verdicts may take after the first: several partitions, one look.
const GATHER: Duration = Duration::from_millis(1);

pub(super) type Verdicts = Vec<(Ticket, Verdict)>;

impl KafkaSession {
    pub(super) fn new(
        client: Arc<Client>,
        surveyor: Surveyor,
        headers: Headers,
        topics: HashMap<Arc<str>, Topic>,
        batch_size: usize,
        compressed: bool,
    ) -> Self {
        let (questions, asking, asked, trouble, failure) = (Vec::new(), None, None, None, None);
        Self {
            client,
            surveyor,
            headers,
            topics,
            batch_size,
            compressed,
            questions,
            asking,
            asked,
            trouble,
            failure,
            batch: Batch::default(),
        }
    }

    /// Whether messages of this topic wait for an answer; a topic not met before is asked about first.
    fn asks_about(&mut self, name: &Arc<str>) -> bool {
        match self.topics.get(name) {
            Some(Topic::Open(_)) => false,
            Some(Topic::Asking(_)) => true,
            Some(Topic::Closed { .. }) | None if self.surveyor.topology == Topology::Ignore => {
                self.topics.insert(name.clone(), Topic::Open(None));
                false
            }
            Some(Topic::Closed { .. }) | None => {
                self.ask_about(name);
                true
            }
        }
    }

    fn ask_about(&mut self, name: &Arc<str>) {
        if !matches!(self.topics.get(name), Some(Topic::Asking(_))) {
            self.topics.insert(name.clone(), Topic::Asking(Vec::new()));
            self.questions.push(name.clone());
        }
    }

    fn hold(&mut self, name: &Arc<str>, held: Held) {
        self.ask_about(name);
        if let Some(Topic::Asking(list)) = self.topics.get_mut(name) {
            list.push(held);
        }
    }

    /// Why this topic does not take a record of this size; only an uncompressed size says so.
    fn too_large(&self, name: &str, size: usize) -> Option<Refusal> {
        match self.topics.get(name) {
            Some(Topic::Open(Some(limit))) if !self.compressed && size > *limit => {
                let text =
                    format!("{size} bytes as a record, more than the {limit} of topic {name} (max.message.bytes)");
                Some(Refusal::new(RefusalReason::TooLarge, text))
            }
            _ => None,
        }
    }

    /// What librdkafka's own refusal to take a message means; none: its topic is asked about.
    fn not_taken(&self, code: Code, topic: &str) -> Option<Handed> {
        if let Some(text) = self.client.fatal() {
            return Some(Handed::Lost(SessionError::lost(text)));
        }
        match code {
            Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition => None,
            Code::QueueFull => Some(Handed::NotNow("the queue of the client library is full".to_owned())),
            code => Some(match refusal(code, topic) {
                Some(refusal) => Handed::Refused(refusal),
                None => Handed::NotNow(code.to_string()),
            }),
        }
    }

    pub(super) fn resend(&mut self, mut waiting: Box<Waiting>, into: &mut Verdicts) {
        let ticket = waiting.ticket;
        let name = waiting.topic.clone();
        if self.asks_about(&name) {
            // An earlier one of the same topic was not taken: keep their order.
            self.hold(&name, Held::Waiting(waiting));
            return;
        }
        if let Some(refusal) = self.too_large(&name, waiting.extras.size) {
            into.push((ticket, Verdict::Refused(refusal)));
            return;
        }
        let Waiting { key, body, extras, .. } = &mut *waiting;
        let Err(code) = self.client.send(ticket, &name, key, body, extras) else {
            self.batch.add(extras.size);
            return;
        };
        match self.not_taken(code, &name) {
            None => self.hold(&name, Held::Waiting(waiting)),
            Some(Handed::Refused(refusal)) => into.push((ticket, Verdict::Refused(refusal))),
            Some(Handed::NotNow(text)) => into.push((ticket, Verdict::NotNow(text))),
            Some(Handed::Lost(error)) => self.failure = Some(error),
            Some(Handed::Over) => {}
        }
    }

    fn judge(&mut self, ticket: Ticket, outcome: Outcome, into: &mut Verdicts) {
        let (code, topic, size) = match outcome {
            Outcome::Stored => return into.push((ticket, Verdict::Stored)),
            Outcome::Failed { code, topic, size } => (code, topic, size),
        };
        // After a fatal error every other error is only its consequence.
        if let Some(text) = self.client.fatal() {
            self.failure.get_or_insert_with(|| SessionError::lost(text));
            return;
        }
        match code {
            Code::PurgeQueue | Code::PurgeInflight => {}
            Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition => {
                self.hold(&topic.into(), Held::Failed(ticket, code));
            }
            Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => match self.refuse_large(&topic, size) {
                Ok(refusal) => into.push((ticket, Verdict::Refused(refusal))),
                Err(lost) => {
                    self.failure.get_or_insert(lost);
                }
            },
            code => into.push(match refusal(code, &topic) {
                Some(refusal) => (ticket, Verdict::Refused(refusal)),
                None => (ticket, Verdict::NotNow(code.to_string())),
            }),
        }
    }

    /// The broker refuses whole batches: a message is to blame only if it was alone in its batch.
    fn refuse_large(&self, topic: &str, size: usize) -> Result<Refusal, SessionError> {
        let text = format!("{size} bytes as a record, too large for the topic {topic}");
        let refusal = Refusal::new(RefusalReason::TooLarge, text);
        let limit = match self.topics.get(topic) {
            Some(Topic::Open(limit)) => *limit,
            _ => None,
        };
        if size > limit.unwrap_or(usize::MAX).min(self.batch_size) {
            return Ok(refusal);
        }
        Err(SessionError::suspect(refusal))
    }
}

/// What a code says of the message itself; none: a repeat may mend it.
fn refusal(code: Code, topic: &str) -> Option<Refusal> {
    let reason = match code {
        Code::MessageSizeTooLarge => RefusalReason::TooLarge,
        Code::TopicAuthorizationFailed => RefusalReason::NotAuthorised,
        Code::InvalidTopic => RefusalReason::Unroutable,
        Code::InvalidRecord | Code::InvalidTimestamp | Code::PolicyViolation => RefusalReason::Other,
        _ => return None,
    };
    Some(Refusal::new(reason, format!("topic {topic}: {code}")))
}

#[async_trait]
impl Session for KafkaSession {
    fn send(&mut self, ticket: Ticket, message: &Message) -> Handed {
        if let Some(failure) = &self.failure {
            return Handed::Lost(failure.clone());
        }
        let name = &message.address;
        if let Some(Topic::Closed { refusal, since }) = self.topics.get(name)
            && since.elapsed() < BETWEEN_QUESTIONS
        {
            return Handed::Refused(refusal.clone());
        }
        let mut extras = Extras::new(&self.headers, message);
        let waiting = |extras| {
            let body = message.event.body.clone();
            Held::Waiting(Box::new(Waiting { ticket, topic: name.clone(), key: message.key.clone(), body, extras }))
        };
        if self.asks_about(name) {
            self.hold(name, waiting(extras));
            return Handed::Over;
        }
        if let Some(refusal) = self.too_large(name, extras.size) {
            return Handed::Refused(refusal);
        }
        let Err(code) = self.client.send(ticket, name, &message.key, &message.event.body, &mut extras) else {
            self.batch.add(extras.size);
            return Handed::Over;
        };
        self.not_taken(code, name).unwrap_or_else(|| {
            self.hold(name, waiting(extras));
            Handed::Over
        })
    }

    fn takes_more(&self) -> bool {
        self.batch.takes_more()
    }

    fn flush(&mut self) {
        self.batch.close();
    }

    async fn verdicts(&mut self, into: &mut Verdicts) -> Result<(), SessionError> {
        let before = into.len();
        let client = self.client.clone();
        let reports = client.reports();
        loop {
            // Before anything is taken: dropped here, this future has lost nothing.
            if self.asking.as_ref().is_some_and(JoinHandle::is_finished) {
                self.hear(into).await;
            }
            let outcomes = reports.take();
            self.batch.answered(outcomes.len());
            for (ticket, outcome) in outcomes {
                self.judge(ticket, outcome, into);
            }
            let due = self.ask();
            if into.len() > before {
                return Ok(());
            }
            if self.client.fatal_reported() && self.failure.is_none() {
                self.failure = self.client.fatal().map(SessionError::lost);
            }
            if let Some(failure) = &self.failure {
                return Err(failure.clone());
            }
            tokio::select! {
                () = reports.news.notified() => {
                    if reports.count() < self.batch.messages() {
                        tokio::time::sleep(GATHER).await;
                    }
                }
                () = self.hear(into) => {}
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }

    fn away(&self) -> Option<ConnectError> {
        self.client.reports().away().or_else(|| self.trouble.clone())
    }

    async fn close(mut self: Box<Self>, patience: Duration, into: &mut Verdicts) {
        if let Some(asking) = self.asking.take() {
            asking.abort();
        }
        let client = self.client.clone();
        // A panic in there leaves everything unsettled, which is what the caller assumes.
        let _ = tokio::task::spawn_blocking(move || client.finish(patience)).await;
        let fatal = self.client.fatal().is_some();
        for (ticket, outcome) in self.client.reports().take() {
            match outcome {
                Outcome::Stored => into.push((ticket, Verdict::Stored)),
                Outcome::Failed { code, topic, size } if !fatal => {
                    let large = matches!(code, Code::MessageSizeTooLarge | Code::MessageBatchTooLarge);
                    let refusal = if large { self.refuse_large(&topic, size).ok() } else { refusal(code, &topic) };
                    into.extend(refusal.map(|refusal| (ticket, Verdict::Refused(refusal))));
                }
                Outcome::Failed { .. } => {}
            }
        }
    }
}
