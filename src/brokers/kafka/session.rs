//! One session: hands messages over, judges what comes back, and asks before it believes that a topic is missing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::brokers::kafka::batch::{LINGER, TopicBatches};
use crate::brokers::kafka::client::{Client, DeliveryReport};
use crate::brokers::kafka::codes::refusal;
use crate::brokers::kafka::questions::{Asked, BETWEEN_QUESTIONS};
use crate::brokers::kafka::record::{Extras, WaitingMessage};
use crate::brokers::kafka::silence::Silence;
use crate::brokers::kafka::times::RecordTimes;
use crate::brokers::kafka::topology::TopicAdmin;
use crate::brokers::{
    ConnectError, Headers, Refusal, RefusalReason, Sent, Sequence, Session, SessionError, Topology, Verdict,
};
use crate::event::Message;

/// Where the messages of one topic go.
pub(super) enum Topic {
    /// To librdkafka; a limit of the topic, where it is known.
    Open(Option<usize>),
    /// Nowhere until the cluster has said whether it exists.
    Asking(Vec<AskedMessage>),
    /// Back, until it is time to ask again.
    Closed { refusal: Refusal, since: Instant },
}

impl Topic {
    pub(super) fn closed(refusal: Refusal) -> Self {
        Self::Closed { refusal, since: Instant::now() }
    }
}

/// One message whose topic is asked about.
pub(super) enum AskedMessage {
    /// Not yet with librdkafka.
    WaitingMessage(Box<WaitingMessage>),
    /// librdkafka knew no such topic.
    Failed(Sequence, Code),
}

/// What a session is told beside its client.
#[derive(Clone, Copy)]
pub(super) struct SessionLimits {
    pub(super) batch_size: usize,
    pub(super) compressed: bool,
    pub(super) renders: bool,
    pub(super) stuck_after: Duration,
    pub(super) most_at_once: usize,
}

/// One producer, from connect to close.
pub(super) struct KafkaSession {
    pub(super) client: Arc<Client>,
    pub(super) surveyor: TopicAdmin,
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
    pub(super) batches: TopicBatches,
    /// Topics with placeholders: any other may come.
    pub(super) renders: bool,
    pub(super) silence: Silence,
    /// A client that gives no answer for this long, although its topic could, is stuck.
    pub(super) stuck_after: Duration,
    pub(super) times: RecordTimes,
    /// A batch of at most so many messages is sent at once.
    most_at_once: usize,
    /// librdkafka sends at once what it has, and nothing joins.
    is_sending_at_once: bool,
}

/// Few messages: a batch of more is worth waiting for.
pub(super) const FEW: usize = 16;

/// How long the rest of a batch's verdicts may take after the first: several partitions, one look.
const GATHER: Duration = Duration::from_millis(1);

pub(super) type Verdicts = Vec<(Sequence, Verdict)>;

impl KafkaSession {
    pub(super) fn new(
        client: Arc<Client>,
        surveyor: TopicAdmin,
        headers: Headers,
        topics: HashMap<Arc<str>, Topic>,
        limits: SessionLimits,
    ) -> Self {
        let (questions, asking, asked, trouble, failure) = (Vec::new(), None, None, None, None);
        let SessionLimits { batch_size, compressed, renders, stuck_after, most_at_once } = limits;
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
            batches: TopicBatches::default(),
            renders,
            silence: Silence::default(),
            stuck_after,
            times: RecordTimes::default(),
            most_at_once,
            is_sending_at_once: false,
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

    fn hold(&mut self, name: &Arc<str>, held: AskedMessage) {
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
    fn not_taken(&self, code: Code, topic: &str) -> Option<Sent> {
        if let Some(text) = self.client.fatal() {
            return Some(Sent::Lost(SessionError::lost(text)));
        }
        match code {
            Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition => None,
            Code::QueueFull => Some(Sent::RetryLater("the queue of the client library is full".to_owned())),
            code => Some(match refusal(code, topic) {
                Some(refusal) => Sent::Refused(refusal),
                None => Sent::RetryLater(code.to_string()),
            }),
        }
    }

    pub(super) fn resend(&mut self, mut waiting: Box<WaitingMessage>, into: &mut Verdicts) {
        let sequence = waiting.sequence;
        let name = waiting.topic.clone();
        if self.asks_about(&name) {
            // An earlier one of the same topic was not taken: keep their order.
            self.hold(&name, AskedMessage::WaitingMessage(waiting));
            return;
        }
        if let Some(refusal) = self.too_large(&name, waiting.extras.size) {
            into.push((sequence, Verdict::Refused(refusal)));
            return;
        }
        let WaitingMessage { key, body, extras, .. } = &mut *waiting;
        let number = self.batches.number(&name);
        let Err(code) = self.client.send((sequence, number), &name, key, body, extras) else {
            self.batches.add(number, extras.size);
            return;
        };
        match self.not_taken(code, &name) {
            None => self.hold(&name, AskedMessage::WaitingMessage(waiting)),
            Some(Sent::Refused(refusal)) => into.push((sequence, Verdict::Refused(refusal))),
            Some(Sent::RetryLater(text)) => into.push((sequence, Verdict::RetryLater(text))),
            Some(Sent::Lost(error)) => self.failure = Some(error),
            Some(Sent::Taken) => {}
        }
    }

    fn judge(&mut self, sequence: Sequence, outcome: DeliveryReport, into: &mut Verdicts) {
        let (code, topic, size) = match outcome {
            DeliveryReport::Stored => {
                self.times.settled(sequence);
                return into.push((sequence, Verdict::Stored));
            }
            DeliveryReport::Failed { code, topic, size } => (code, topic, size),
        };
        // After a fatal error every other error is only its consequence.
        if let Some(text) = self.client.fatal() {
            self.failure.get_or_insert_with(|| SessionError::lost(text));
            return;
        }
        match code {
            Code::PurgeQueue | Code::PurgeInflight => {}
            Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition => {
                self.hold(&topic.into(), AskedMessage::Failed(sequence, code));
            }
            Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => match self.refuse_large(&topic, size) {
                Ok(refusal) => into.push((sequence, Verdict::Refused(refusal))),
                Err(lost) => {
                    self.failure.get_or_insert(lost);
                }
            },
            Code::InvalidTimestamp => {
                let text = self.times.refused(sequence, &topic);
                into.push((sequence, Verdict::RetryLater(format!("topic {topic}: {code}; {text}"))));
            }
            // Several records in one batch whose time is refused are called invalid.
            Code::InvalidRecord if self.times.doubt(sequence) => {
                let text = format!("topic {topic}: {code}; sent again with the present time");
                into.push((sequence, Verdict::RetryLater(text)));
            }
            code => {
                let verdict = match refusal(code, &topic) {
                    Some(refusal) => {
                        self.times.settled(sequence);
                        Verdict::Refused(refusal)
                    }
                    None => Verdict::RetryLater(format!("topic {topic}: {code}")),
                };
                into.push((sequence, verdict));
            }
        }
    }

    /// Whether a topic takes more before a verdict comes.
    fn takes_topic(&self, name: &str) -> bool {
        match self.topics.get(name) {
            Some(Topic::Asking(held)) => held.is_empty(),
            _ => self.batches.takes(name),
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

#[async_trait]
impl Session for KafkaSession {
    fn send(&mut self, sequence: Sequence, message: &Message) -> Sent {
        if let Some(failure) = &self.failure {
            return Sent::Lost(failure.clone());
        }
        let name = &message.address;
        if let Some(Topic::Closed { refusal, since }) = self.topics.get(name)
            && since.elapsed() < BETWEEN_QUESTIONS
        {
            return Sent::Refused(refusal.clone());
        }
        let mut extras = Extras::new(&self.headers, message);
        extras.timestamp = self.times.of(sequence, name, extras.timestamp);
        let waiting = |extras| {
            let body = message.event.body.clone();
            AskedMessage::WaitingMessage(Box::new(WaitingMessage {
                sequence,
                topic: name.clone(),
                key: message.key.clone(),
                body,
                extras,
            }))
        };
        if self.asks_about(name) {
            self.hold(name, waiting(extras));
            return Sent::Taken;
        }
        if let Some(refusal) = self.too_large(name, extras.size) {
            return Sent::Refused(refusal);
        }
        let number = self.batches.number(name);
        let sent = self.client.send((sequence, number), name, &message.key, &message.event.body, &mut extras);
        let Err(code) = sent else {
            self.batches.add(number, extras.size);
            return Sent::Taken;
        };
        self.not_taken(code, name).unwrap_or_else(|| {
            self.hold(name, waiting(extras));
            Sent::Taken
        })
    }

    fn takes_more(&self) -> bool {
        // What joined now could be sent in pieces, behind which librdkafka would busy-loop.
        if self.is_sending_at_once {
            return false;
        }
        self.renders || self.surveyor.literals.iter().any(|name| self.takes_topic(name))
    }

    fn takes(&self, message: &Message) -> bool {
        self.takes_topic(&message.address)
    }

    fn reason(&self, address: &str) -> Option<String> {
        let asks = matches!(self.topics.get(address), Some(Topic::Asking(_)));
        let trouble = self.trouble.as_ref().filter(|_| asks).map(|error| error.text.clone());
        trouble.or_else(|| self.silence.reason(address))
    }

    fn flush(&mut self) {
        let closed = self.batches.close();
        if closed > 0 && closed <= self.most_at_once {
            self.is_sending_at_once = true;
            self.client.send_at_once(LINGER);
        }
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
            let looks = self.look_at_silence().await;
            for (sequence, number, outcome) in reports.take() {
                self.batches.answered(number);
                self.judge(sequence, outcome, into);
            }
            let due = [self.ask(), looks].into_iter().flatten().min();
            let takes_more = std::mem::replace(&mut self.is_sending_at_once, reports.is_sending_at_once());
            if into.len() > before || (takes_more && !self.is_sending_at_once) {
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
                    if !self.is_sending_at_once && reports.count() < self.batches.messages() {
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
        for (sequence, _, outcome) in self.client.reports().take() {
            match outcome {
                DeliveryReport::Stored => into.push((sequence, Verdict::Stored)),
                DeliveryReport::Failed { code, topic, size } if !fatal => {
                    let refusal = match code {
                        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => {
                            self.refuse_large(&topic, size).ok()
                        }
                        // Not yet tried with the present time.
                        Code::InvalidRecord if self.times.doubt(sequence) => None,
                        // Only the cluster says whether a topic is missing, and it is not asked any more.
                        Code::UnknownTopicOrPartition => None,
                        code => refusal(code, &topic),
                    };
                    into.extend(refusal.map(|refusal| (sequence, Verdict::Refused(refusal))));
                }
                DeliveryReport::Failed { .. } => {}
            }
        }
    }
}
