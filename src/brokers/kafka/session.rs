//! One session: hands messages over, judges what comes back, and asks before it believes that a topic is missing. It
//! holds no message itself.

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
use crate::brokers::kafka::questions::Asked;
use crate::brokers::kafka::record::Extras;
use crate::brokers::kafka::silence::Silence;
use crate::brokers::kafka::times::RecordTimes;
use crate::brokers::kafka::topology::TopicAdmin;
use crate::brokers::{
    ConnectError, Headers, Refusal, RefusalReason, Refused, Sent, Sequence, Session, SessionError, Topology,
    Verdict,
};
use crate::event::Message;

/// The state of a topic.
pub(super) enum Topic {
    /// It takes messages; its limit, where it is known.
    Open(Option<usize>),
    /// It takes none, as far as the cluster has said; it is asked about again.
    Closed(Refusal),
}

/// The limits of a session.
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
    pub(super) limits: SessionLimits,
    /// Closed topics that are to be asked about.
    pub(super) questions: Vec<Arc<str>>,
    pub(super) asking: Option<JoinHandle<Asked>>,
    pub(super) asked: Option<Instant>,
    /// A topic was found that had been closed.
    pub(super) has_changed: bool,
    pub(super) failure: Option<SessionError>,
    /// The messages that librdkafka has.
    pub(super) batches: TopicBatches,
    pub(super) silence: Silence,
    pub(super) times: RecordTimes,
    /// librdkafka sends at once what it has, and nothing joins.
    is_sending_at_once: bool,
}

/// Few messages: a batch of more is worth waiting for.
pub(super) const FEW: usize = 16;

/// The wait for the rest of a batch's verdicts after the first: one look for several partitions.
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
        let (questions, asking, asked, has_changed, failure) = (Vec::new(), None, None, false, None);
        Self {
            client,
            surveyor,
            headers,
            topics,
            limits,
            questions,
            asking,
            asked,
            has_changed,
            failure,
            batches: TopicBatches::default(),
            silence: Silence::default(),
            times: RecordTimes::default(),
            is_sending_at_once: false,
        }
    }

    /// The reason why nothing is sent to this topic now; a new one is asked about first.
    fn closed(&mut self, name: &Arc<str>) -> Option<Refusal> {
        let refusal = match self.topics.get(name) {
            Some(Topic::Open(_)) => return None,
            Some(Topic::Closed(_)) | None if self.surveyor.topology == Topology::Ignore => {
                self.topics.insert(name.clone(), Topic::Open(None));
                return None;
            }
            Some(Topic::Closed(refusal)) => refusal.clone(),
            None => Refusal::unable(format!("the topic {name} is looked for")),
        };
        self.close_topic(name.clone(), refusal.clone());
        self.ask_about(name);
        Some(refusal)
    }

    pub(super) fn ask_about(&mut self, name: &Arc<str>) {
        if !self.questions.contains(name) {
            self.questions.push(name.clone());
        }
    }

    /// The client knows no such topic, and a broker that has just started may not either: the cluster is asked.
    fn unknown(&mut self, name: Arc<str>, code: Code) -> Refusal {
        if self.surveyor.topology == Topology::Ignore {
            return Refusal::wrong(
                RefusalReason::NoDestination,
                format!("the topic {name} does not exist: {code}"),
            );
        }
        let refusal = Refusal::unable(format!("topic {name}: {code}; it is looked for"));
        self.ask_about(&name);
        self.close_topic(name, refusal.clone());
        refusal
    }

    /// The refusal of a record of this size by its topic; known only of an uncompressed size.
    fn too_large(&self, name: &str, size: usize) -> Option<Refusal> {
        match self.topics.get(name) {
            Some(Topic::Open(Some(limit))) if !self.limits.compressed && size > *limit => {
                let text =
                    format!("{size} bytes as a record, more than the {limit} of topic {name} (max.message.bytes)");
                Some(Refusal::event(RefusalReason::TooLarge, text))
            }
            _ => None,
        }
    }

    /// The meaning of librdkafka's own refusal to take a message.
    fn not_taken(&mut self, code: Code, topic: &Arc<str>) -> Sent {
        if let Some(text) = self.client.fatal() {
            return Sent::Lost(SessionError::lost(text));
        }
        match code {
            Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition => {
                Sent::Refused(self.unknown(topic.clone(), code))
            }
            Code::QueueFull => Sent::RetryLater("the queue of the client library is full".to_owned()),
            code => Sent::Refused(refusal(code, topic)),
        }
    }

    /// Judges a report; `is_alone`: no other message was in its batch.
    fn judge(&mut self, sequence: Sequence, outcome: DeliveryReport, is_alone: bool, into: &mut Verdicts) {
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
        let refusal = match code {
            Code::PurgeQueue | Code::PurgeInflight => return,
            Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition => {
                self.unknown(topic.into(), code)
            }
            Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => match self.refuse_large(&topic, size) {
                Ok(refusal) => refusal,
                Err(lost) => {
                    self.failure.get_or_insert(lost);
                    return;
                }
            },
            Code::InvalidTimestamp => {
                let text = self.times.refused(sequence, &topic);
                Refusal::unable(format!("topic {topic}: {code}; {text}"))
            }
            // All records of a batch are called invalid if one of them is, or if the times of several are refused.
            Code::InvalidRecord if self.times.doubt(sequence) || !is_alone => {
                Refusal::unable(format!("topic {topic}: {code}; sent again with the present time"))
            }
            code => refusal(code, &topic),
        };
        if matches!(refusal.kind, Refused::Event(_)) {
            self.times.settled(sequence);
        }
        into.push((sequence, Verdict::Refused(refusal)));
    }

    /// Whether a topic takes more before a verdict comes.
    fn takes_topic(&self, name: &str) -> bool {
        self.batches.takes(name)
    }

    /// The broker refuses whole batches: a message is to blame only if it was alone in its batch.
    fn refuse_large(&self, topic: &str, size: usize) -> Result<Refusal, SessionError> {
        let text = format!("{size} bytes as a record, too large for the topic {topic}");
        let refusal = Refusal::event(RefusalReason::TooLarge, text);
        let limit = match self.topics.get(topic) {
            Some(Topic::Open(limit)) => *limit,
            _ => None,
        };
        if size > limit.unwrap_or(usize::MAX).min(self.limits.batch_size) {
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
        if let Some(refusal) = self.closed(name) {
            return Sent::Refused(refusal);
        }
        let mut extras = Extras::new(&self.headers, message);
        extras.timestamp = self.times.of(sequence, name, extras.timestamp);
        if let Some(refusal) = self.too_large(name, extras.size) {
            return Sent::Refused(refusal);
        }
        let number = self.batches.number(name);
        let sent = self.client.send((sequence, number), name, &message.key, &message.event.body, &mut extras);
        let Err(code) = sent else {
            self.batches.add(number, extras.size);
            return Sent::Taken;
        };
        self.not_taken(code, name)
    }

    fn takes_more(&self) -> bool {
        // What joined now could be sent in pieces, behind which librdkafka would busy-loop.
        if self.is_sending_at_once {
            return false;
        }
        self.limits.renders || self.surveyor.literals.iter().any(|name| self.takes_topic(name))
    }

    fn takes(&self, message: &Message) -> bool {
        self.takes_topic(&message.address)
    }

    fn reason(&self, address: &str) -> Option<String> {
        self.silence.reason(address)
    }

    fn flush(&mut self) {
        let closed = self.batches.close();
        if closed > 0 && closed <= self.limits.most_at_once {
            self.is_sending_at_once = true;
            // It ends when everything is answered, so what another topic leaves unanswered would hold this one up.
            let is_all = closed == self.batches.messages();
            self.client.send_at_once(if is_all { LINGER } else { LINGER / 2 });
        }
    }

    fn has_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    async fn verdicts(&mut self, into: &mut Verdicts) -> Result<(), SessionError> {
        let before = into.len();
        let client = self.client.clone();
        let reports = client.reports();
        loop {
            // Before anything is taken: dropped here, this future has lost nothing.
            if self.asking.as_ref().is_some_and(JoinHandle::is_finished) {
                self.hear().await;
            }
            let looks = self.look_at_silence().await;
            for (sequence, number, outcome) in reports.take() {
                let is_alone = self.batches.answered(number);
                self.judge(sequence, outcome, is_alone, into);
            }
            let due = [self.ask(), looks].into_iter().flatten().min();
            let takes_more = std::mem::replace(&mut self.is_sending_at_once, reports.is_sending_at_once());
            if into.len() > before || self.has_changed || (takes_more && !self.is_sending_at_once) {
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
                () = self.hear() => {}
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }

    fn away(&self) -> Option<ConnectError> {
        self.client.reports().away()
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
                        // Whether it was alone, and with which time, is not known here.
                        Code::InvalidRecord => None,
                        code => Some(refusal(code, &topic)),
                    };
                    // A topic is judged by a session that can ask about it.
                    let refusal = refusal.filter(|refusal| matches!(refusal.kind, Refused::Event(_)));
                    into.extend(refusal.map(|refusal| (sequence, Verdict::Refused(refusal))));
                }
                DeliveryReport::Failed { .. } => {}
            }
        }
    }
}
