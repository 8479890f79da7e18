//! One session: hands messages to a producer, judges its reports, and asks the cluster about a topic before it reports
//! that topic as missing. It holds no message itself.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::time::Instant;

use crate::brokers::kafka::batch::{LINGER, TopicBatches};
use crate::brokers::kafka::client::{Client, DeliveryReport};
use crate::brokers::kafka::codes::refusal;
use crate::brokers::kafka::record::Extras;
use crate::brokers::kafka::silence::{FoundReasons, Silence};
use crate::brokers::kafka::times::RecordTimes;
use crate::brokers::kafka::topics::{SessionTopics, TopicAnswer};
use crate::brokers::{
    ConnectError, Headers, Refusal, RefusalReason, Refused, Sent, Sequence, Session, SessionError, Verdict,
};
use crate::event::Message;

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
    client: Arc<Client>,
    headers: Headers,
    topics: SessionTopics,
    limits: SessionLimits,
    failure: Option<SessionError>,
    /// The messages that librdkafka has.
    batches: TopicBatches,
    silence: Silence,
    times: RecordTimes,
    /// librdkafka sends at once what it has, and nothing joins.
    is_sending_at_once: bool,
}

/// Few messages: a batch of more is worth waiting for.
pub(super) const FEW: usize = 16;

/// The wait for the rest of a batch's verdicts after the first: one look for several partitions.
const GATHER: Duration = Duration::from_millis(1);

type Verdicts = Vec<(Sequence, Verdict)>;

impl KafkaSession {
    pub(super) fn new(client: Arc<Client>, headers: Headers, topics: SessionTopics, limits: SessionLimits) -> Self {
        Self {
            client,
            headers,
            topics,
            limits,
            failure: None,
            batches: TopicBatches::default(),
            silence: Silence::new(limits.stuck_after),
            times: RecordTimes::default(),
            is_sending_at_once: false,
        }
    }

    /// Notes what the looks at the cluster have found.
    fn note(&mut self, answer: Option<TopicAnswer>, found: Option<FoundReasons>) {
        let lost = answer.and_then(|answer| self.topics.answered(answer, self.limits.batch_size));
        let stuck = found.and_then(|found| self.silence.found(&found, &self.batches));
        self.failure = self.failure.take().or(lost).or(stuck);
    }

    /// The meaning of librdkafka's own refusal to take a message.
    fn not_taken(&mut self, code: Code, topic: &Arc<str>) -> Sent {
        if let Some(text) = self.client.fatal() {
            return Sent::Lost(SessionError::lost(text));
        }
        match code {
            Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition => {
                Sent::Refused(self.topics.unknown(topic.clone(), code))
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
                self.topics.unknown(topic.into(), code)
            }
            Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => {
                let text = format!("{size} bytes as a record, too large for the topic {topic}");
                let refusal = Refusal::event(RefusalReason::TooLarge, text);
                // The broker refuses whole batches; what is larger than they are is sent alone.
                if !is_alone && size <= self.limits.batch_size {
                    self.failure.get_or_insert_with(|| SessionError::suspect(refusal));
                    return;
                }
                refusal
            }
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
}

#[async_trait]
impl Session for KafkaSession {
    fn send(&mut self, sequence: Sequence, message: &Message) -> Sent {
        if let Some(failure) = &self.failure {
            return Sent::Lost(failure.clone());
        }
        let name = &message.address;
        let limit = match self.topics.limit(name) {
            Ok(limit) => limit,
            Err(refusal) => return Sent::Refused(refusal),
        };
        let mut extras = Extras::new(&self.headers, message);
        extras.timestamp = self.times.of(sequence, name, extras.timestamp);
        // The broker's size is known only of an uncompressed record.
        if let Some(limit) = limit.filter(|limit| !self.limits.compressed && extras.size > *limit) {
            return Sent::Refused(self.topics.too_large(name, extras.size, limit));
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
        self.limits.renders || self.topics.admin.literals.iter().any(|name| self.batches.takes(name))
    }

    fn takes(&self, message: &Message) -> bool {
        self.batches.takes(&message.address)
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
        std::mem::take(&mut self.topics.has_changed)
    }

    async fn verdicts(&mut self, into: &mut Verdicts) -> Result<(), SessionError> {
        let before = into.len();
        let client = self.client.clone();
        let reports = client.reports();
        loop {
            let (answer, found) = (self.topics.look.found_now(), self.silence.look.found_now());
            self.note(answer, found);
            for (sequence, number, outcome) in reports.take() {
                let is_alone = self.batches.answered(number);
                self.judge(sequence, outcome, is_alone, into);
            }
            let looks = self.silence.ask(&self.batches, &self.topics.admin);
            let due = [self.topics.ask(&self.client), looks].into_iter().flatten().min();
            let takes_more = std::mem::replace(&mut self.is_sending_at_once, reports.is_sending_at_once());
            if into.len() > before || self.topics.has_changed || (takes_more && !self.is_sending_at_once) {
                return Ok(());
            }
            self.failure = self.failure.take().or_else(|| self.client.fatal().map(SessionError::lost));
            if let Some(failure) = &self.failure {
                return Err(failure.clone());
            }
            tokio::select! {
                () = reports.news.notified() => {
                    if !self.is_sending_at_once && reports.count() < self.batches.messages() {
                        tokio::time::sleep(GATHER).await;
                    }
                }
                answer = self.topics.look.found() => self.note(Some(answer), None),
                found = self.silence.look.found() => self.note(None, Some(found)),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }

    fn away(&self) -> Option<ConnectError> {
        self.client.reports().away()
    }

    async fn close(mut self: Box<Self>, patience: Duration, into: &mut Verdicts) {
        let client = self.client.clone();
        // A panic in there leaves everything unsettled, which is what the caller assumes.
        let _ = tokio::task::spawn_blocking(move || client.finish(patience)).await;
        let mut verdicts = Vec::new();
        for (sequence, _, outcome) in self.client.reports().take() {
            // Whether it was alone in its batch is not known here.
            self.judge(sequence, outcome, false, &mut verdicts);
        }
        // An address is judged by a session that can ask about it.
        let is_final = |verdict: &Verdict| match verdict {
            Verdict::Refused(refusal) => matches!(refusal.kind, Refused::Event(_)),
            _ => true,
        };
        into.extend(verdicts.into_iter().filter(|(_, verdict)| is_final(verdict)));
    }
}
