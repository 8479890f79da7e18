//! One session: hands messages to the channel and says what became of them. The delivery task polls everything here,
//! so the channel has one owner.
//!
//! Length: whatever a channel can say of a message, and what follows from each, is only understood together.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::message::BasicReturnMessage;
use lapin::{Channel, Confirmation};
use tokio::time::{sleep_until, timeout, timeout_at};

use crate::brokers::rabbitmq::broker::IdleConnection;
use crate::brokers::rabbitmq::connection::{ATTEMPT, Link, News, describe, open_channel};
use crate::brokers::rabbitmq::destinations::{Destinations, ExchangeDecision, missing};
use crate::brokers::rabbitmq::loss::{self, InFlight};
use crate::brokers::rabbitmq::publication::Publication;
use crate::brokers::rabbitmq::questions::{ExchangeAnswer, Questions};
use crate::brokers::rabbitmq::returns::{ConfirmOutcome, Judgement, Returns, SentMessage};
use crate::brokers::rabbitmq::topology::{Exchanges, lock};
use crate::brokers::{Headers, Refusal, RefusalReason, Sent, Sequence, Session, SessionError, Topology, Verdict};
use crate::event::Message;

/// RabbitMQ confirms within milliseconds. Of what is on its way to a quorum queue that is deleted it says nothing at
/// all, neither confirm nor return (seen with 3.10): after so long we look whether the topology still stands.
const DOUBT: Duration = Duration::from_secs(2);

/// A quorum queue elects a leader within seconds. A connection that lives but owes a confirm for so long is stuck.
const SILENCE: Duration = Duration::from_secs(30);

/// When a channel ends, all its confirms fail within a moment; the first to fail may not carry the broker's words.
const AFTERMATH: Duration = Duration::from_millis(200);

/// What the session wants back with a confirm.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) sequence: Sequence,
    pub(super) exchange: Arc<str>,
    pub(super) key: Arc<str>,
}

type Confirmed = (SentMessage<Owner>, lapin::Result<Confirmation>);

/// One channel on one connection.
pub(super) struct RabbitmqSession {
    link: Link,
    channel: Channel,
    headers: Headers,
    plan: Arc<Exchanges>,
    known: Arc<Mutex<Destinations>>,
    kept: IdleConnection,
    confirms: FuturesUnordered<BoxFuture<'static, Confirmed>>,
    returns: Returns<Owner>,
    questions: Questions,
    /// Messages sent again because the binding may have been missing.
    sent_again: HashSet<Sequence>,
    /// Binding again has not helped: the exchange is not one whose binding takes everything.
    rebinding_is_vain: bool,
    /// Found, not yet taken by `verdicts`.
    ready: Vec<(Sequence, Verdict)>,
    loss: Option<SessionError>,
    /// The channel has nacked a message. RabbitMQ keeps for each channel which node leads a queue and whether the queue takes
    /// messages, and learns nothing of it once that node is dead or the queue's limit is removed.
    nacked: bool,
    /// The connection lives but does nothing: not to be used again.
    stuck: bool,
    alarms_ended: u64,
}

impl fmt::Debug for RabbitmqSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitmqSession").field("unconfirmed", &self.confirms.len()).finish_non_exhaustive()
    }
}

impl RabbitmqSession {
    pub(super) fn new(
        link: Link,
        channel: Channel,
        headers: Headers,
        plan: Arc<Exchanges>,
        known: Arc<Mutex<Destinations>>,
        kept: IdleConnection,
    ) -> Self {
        Self {
            link,
            channel,
            headers,
            plan,
            known,
            kept,
            confirms: FuturesUnordered::new(),
            returns: Returns::default(),
            questions: Questions::default(),
            sent_again: HashSet::new(),
            rebinding_is_vain: false,
            ready: Vec::new(),
            loss: None,
            nacked: false,
            stuck: false,
            alarms_ended: 0,
        }
    }

    fn publish(&mut self, owner: Owner, id: &str, publication: Publication) {
        let sent = self.returns.send(id, owner);
        let publishing = publication.publish(self.channel.clone());
        // Futures are first polled in the order in which they are pushed, so messages go out in it.
        self.confirms.push(publishing.map(|outcome| (sent, outcome)).boxed());
    }

    fn confirmed(&mut self, (sent, outcome): Confirmed) -> Result<(), lapin::Error> {
        let (outcome, attached) = match read(outcome?) {
            Ok(confirm) => confirm,
            Err(loss) => {
                self.loss = Some(loss);
                return Ok(());
            }
        };
        let id = attached.as_ref().and_then(|message| message.properties.message_id().as_ref());
        let mut judged = Vec::new();
        let mut judge = |owner, judgement| judged.push((owner, judgement));
        self.returns.resolve(sent, outcome, id.map(lapin::types::ShortString::as_str), &mut judge);
        for (owner, judgement) in judged {
            self.judged(owner, judgement);
        }
        Ok(())
    }

    fn judged(&mut self, owner: Owner, judgement: Judgement) {
        let verdict = match judgement {
            Judgement::Stored => {
                if self.plan.mode == Topology::Ignore {
                    lock(&self.known).saw(&owner.exchange);
                }
                Verdict::Stored
            }
            Judgement::Nacked => {
                self.nacked = true;
                Verdict::Nacked(format!(
                    "the broker refused a message for now (nack): exchange `{}`, routing key `{}`",
                    owner.exchange, owner.key
                ))
            }
            Judgement::Returned if self.is_ours(&owner.exchange) => return self.questions.returned(owner),
            Judgement::Returned => Verdict::Refused(unroutable(&owner)),
        };
        self.verdict(owner.sequence, verdict);
    }

    /// A return shows that the exchange is there. Only for the main one is there more that we know of and that can be
    /// gone: the queue and its binding.
    fn is_ours(&self, exchange: &str) -> bool {
        self.plan.has_queue() && exchange == self.plan.main
    }

    fn verdict(&mut self, sequence: Sequence, verdict: Verdict) {
        if !self.sent_again.is_empty() && !matches!(verdict, Verdict::RetryLater(_) | Verdict::Nacked(_)) {
            self.sent_again.remove(&sequence);
        }
        self.ready.push((sequence, verdict));
    }

    fn answered(&mut self, answer: ExchangeAnswer) {
        match answer {
            ExchangeAnswer::Stands(owners) => {
                for owner in owners {
                    self.returned_while_it_stands(&owner);
                }
            }
            ExchangeAnswer::Gone(text) => self.loss = Some(SessionError::lost(text)),
            ExchangeAnswer::Exchange(name, true, waiting) => {
                lock(&self.known).saw(&name);
                for (owner, id, publication) in waiting {
                    self.publish(owner, &id, publication);
                }
            }
            ExchangeAnswer::Exchange(name, false, waiting) => {
                lock(&self.known).missed(&name, Instant::now());
                for (owner, ..) in waiting {
                    self.verdict(owner.sequence, Verdict::Refused(missing(&name)));
                }
            }
        }
    }

    fn returned_while_it_stands(&mut self, owner: &Owner) {
        let again = self.sent_again.contains(&owner.sequence);
        self.rebinding_is_vain |= again;
        let verdict = if self.plan.mode == Topology::Declare && !self.rebinding_is_vain {
            self.sent_again.insert(owner.sequence);
            Verdict::RetryLater(format!(
                "came back as unroutable; the queue is bound to `{}` again",
                owner.exchange
            ))
        } else {
            Verdict::Refused(unroutable(owner))
        };
        self.verdict(owner.sequence, verdict);
    }

    /// The channel has ended: finds the error that carries the broker's words, and what follows from it.
    async fn lose(&mut self, first: lapin::Error) {
        let company = if self.confirms.is_empty() { InFlight::Only } else { InFlight::Several };
        let mut error = first;
        while !is_of_broker(&error) {
            match timeout(AFTERMATH, self.confirms.next()).await {
                Ok(Some((_, Err(other)))) => error = other,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        // Without the broker's words it is the connection that has ended, and the connection knows why.
        if let (false, Some(text)) = (is_of_broker(&error), self.link.fault()) {
            self.loss = Some(SessionError::lost(text));
            return;
        }
        self.loss = Some(loss::judge(&error, company, &self.plan, &mut lock(&self.known)));
    }

    /// Takes all confirms that are there.
    async fn drain(&mut self) {
        while let Some(Some(confirmed)) = self.confirms.next().now_or_never() {
            if let Err(error) = self.confirmed(confirmed) {
                return self.lose(error).await;
            }
        }
    }

    /// Takes an answer that is there: under a steady flow of confirms nothing else asks for it.
    fn glance(&mut self) {
        if self.loss.is_some() || self.questions.is_empty() || self.link.blocked().is_some() {
            return;
        }
        let connection = self.link.connection.clone();
        if let Some(answer) = self.questions.answer(&connection, &self.plan).now_or_never() {
            self.answered(answer);
        }
    }

    /// Waits until something happens, and notes it.
    async fn step(&mut self) {
        let blocked = self.link.blocked().is_some();
        if self.confirms.is_empty() && !self.link.is_alive() {
            // The event that reported this may already have been consumed by `blocked()`, or have arrived before the
            // library knew.
            let text = self.link.fault().unwrap_or_else(|| "the connection ended".to_owned());
            self.loss = Some(SessionError::lost(text));
            return;
        }
        if self.nacked && !blocked && !self.is_waiting() {
            return self.renew_channel().await;
        }
        if self.link.alarms_ended != self.alarms_ended {
            // What is on its way was not read during the alarm: it has all its time from now on.
            self.alarms_ended = self.link.alarms_ended;
            self.returns.watch();
        }
        let Self { link, confirms, questions, plan, returns, .. } = self;
        let connection = &link.connection.clone();
        let waiting = returns.waiting_since().filter(|_| !blocked);
        let since = waiting.unwrap_or_else(Instant::now);
        let doubtful = waiting.filter(|_| plan.has_queue()).and_then(|since| questions.next_doubt(since + DOUBT));
        tokio::select! {
            biased;
            Some(confirmed) = confirms.next(), if !confirms.is_empty() => {
                if let Err(error) = self.confirmed(confirmed) {
                    self.lose(error).await;
                }
            }
            news = link.news() => {
                if let News::Lost(text) = news {
                    self.loss = Some(SessionError::lost(text));
                }
            }
            answer = questions.answer(connection, plan), if !blocked => self.answered(answer),
            () = sleep_until(doubtful.unwrap_or(since).into()), if doubtful.is_some() => questions.doubt(),
            () = sleep_until((since + SILENCE).into()), if waiting.is_some() => {
                let text = format!("no confirm for {} s on a living connection", SILENCE.as_secs());
                self.loss = Some(SessionError::lost(text));
                self.stuck = true;
            }
        }
    }

    /// Takes a new channel in place of one that has nacked, while nothing is on its way.
    async fn renew_channel(&mut self) {
        let connection = self.link.connection.clone();
        match timeout(ATTEMPT, open_channel(&connection)).await {
            Ok(Ok(channel)) => {
                self.channel = channel;
                self.nacked = false;
            }
            Ok(Err(error)) => {
                let text = format!("cannot open a new channel after a nack: {}", describe(&error));
                self.loss = Some(SessionError::lost(text));
            }
            Err(_) => {
                self.loss = Some(SessionError::lost("the broker does not answer"));
                self.stuck = true;
            }
        }
    }

    fn is_waiting(&self) -> bool {
        !self.confirms.is_empty() || !self.questions.is_empty()
    }
}

/// What a confirm says. Where the channel is not in confirm mode nothing is known of the message.
fn read(confirmation: Confirmation) -> Result<(ConfirmOutcome, Option<BasicReturnMessage>), SessionError> {
    match confirmation {
        Confirmation::Ack(returned) => Ok((ConfirmOutcome::Ack, returned)),
        Confirmation::Nack(returned) => Ok((ConfirmOutcome::Nack, returned)),
        Confirmation::NotRequested => Err(SessionError::lost("the channel is not in confirm mode")),
    }
}

fn is_of_broker(error: &lapin::Error) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(_) | lapin::ErrorKind::IOError(_))
}

fn unroutable(owner: &Owner) -> Refusal {
    let text = format!(
        "no queue is bound to the exchange `{}` for the routing key `{}`: the broker returned the message",
        owner.exchange, owner.key
    );
    Refusal::new(RefusalReason::Unroutable, text)
}

#[async_trait]
impl Session for RabbitmqSession {
    fn send(&mut self, sequence: Sequence, message: &Message) -> Sent {
        if let Some(loss) = &self.loss {
            return Sent::Lost(loss.clone());
        }
        if let Some(reason) = self.link.blocked() {
            return Sent::RetryLater(format!("the broker has blocked the connection: {reason}"));
        }
        let gate = lock(&self.known).gate(&message.address, message.event.body.len(), Instant::now());
        if let ExchangeDecision::Refuse(refusal) = gate {
            return Sent::Refused(refusal);
        }
        let frame_max = usize::try_from(self.link.connection.configuration().frame_max()).unwrap_or(usize::MAX);
        let publication = match Publication::new(message, &self.headers, frame_max) {
            Ok(publication) => publication,
            Err(refusal) => return Sent::Refused(refusal),
        };
        let owner = Owner { sequence, exchange: message.address.clone(), key: message.key.clone() };
        if gate == ExchangeDecision::Look || self.questions.is_about(&message.address) {
            self.questions.ask(owner, message.event.id(), publication);
        } else {
            self.publish(owner, message.event.id(), publication);
        }
        // On a channel that has died unnoticed it fails, and `verdicts` tells why.
        Sent::Taken
    }

    async fn verdicts(&mut self, into: &mut Vec<(Sequence, Verdict)>) -> Result<(), SessionError> {
        loop {
            if self.loss.is_none() {
                self.drain().await;
                self.glance();
            }
            if !self.ready.is_empty() {
                into.append(&mut self.ready);
                return Ok(());
            }
            if let Some(loss) = &self.loss {
                return Err(loss.clone());
            }
            self.step().await;
        }
    }

    async fn close(mut self: Box<Self>, patience: Duration, into: &mut Vec<(Sequence, Verdict)>) {
        let deadline = tokio::time::Instant::now() + patience;
        while self.loss.is_none() && self.is_waiting() && self.link.is_alive() && self.link.blocked().is_none() {
            // The step in between notices an alarm that begins meanwhile.
            let turn = deadline.min(tokio::time::Instant::now() + AFTERMATH);
            if matches!(timeout_at(turn, self.verdicts(into)).await, Ok(Err(_))) || turn == deadline {
                break;
            }
        }
        into.append(&mut self.ready);
        let Self { link, channel, kept, loss, stuck, .. } = *self;
        drop(channel);
        if loss.is_some() && link.is_alive() && !stuck {
            kept.put(link);
        } else {
            link.close(deadline.saturating_duration_since(tokio::time::Instant::now())).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_nothing_for_stored_on_a_channel_that_does_not_confirm() {
        let loss = read(Confirmation::NotRequested).unwrap_err();
        assert_eq!(loss, SessionError::lost("the channel is not in confirm mode"));
        assert!(matches!(read(Confirmation::Ack(None)), Ok((ConfirmOutcome::Ack, None))));
        assert!(matches!(read(Confirmation::Nack(None)), Ok((ConfirmOutcome::Nack, None))));
    }
}
