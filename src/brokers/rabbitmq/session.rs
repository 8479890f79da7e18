//! One session: hands messages to the channel and says what became of them. The delivery task polls everything here,
//! so the channel has one owner.
//!
//! Length: whatever a channel can say of a message, and what follows from each, is only understood together.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::message::BasicReturnMessage;
use lapin::{Channel, Confirmation};
use tokio::time::{sleep_until, timeout, timeout_at};

use crate::brokers::rabbitmq::connection::{ATTEMPT, IdleConnection, Link, describe, open_channel};
use crate::brokers::rabbitmq::loss;
use crate::brokers::rabbitmq::publication::Publication;
use crate::brokers::rabbitmq::questions::Questions;
use crate::brokers::rabbitmq::returns::{ConfirmOutcome, Judgement, Returns, SentMessage};
use crate::brokers::rabbitmq::topology::Exchanges;
use crate::brokers::rabbitmq::tries::{ExchangeKey, Turns};
use crate::brokers::{Headers, Refusal, RefusalReason, Sent, Sequence, Session, SessionError, Verdict};
use crate::event::Message;
use crate::process::failpoint;

/// RabbitMQ confirms within milliseconds. Of what is in flight to a quorum queue that is deleted it says nothing at
/// all, neither confirm nor return (seen with 3.10): after so long we look whether the topology still stands.
const DOUBT: Duration = Duration::from_secs(2);

/// A queue without a majority confirms once it has one again, and meanwhile every resending adds a copy. What was in flight
/// to a queue that was deleted is confirmed never: after so long it is sent again, on a connection to the next node.
const SILENCE: Duration = Duration::from_mins(10);

/// A channel that is to be replaced takes nothing for so long, so that what is in flight may end.
const PAUSE: Duration = Duration::from_secs(2);

/// The wait for the broker's words: when a channel ends, all its confirms fail, and the first may not carry them.
const AFTERMATH: Duration = Duration::from_millis(200);

/// The data that the session gets back with a confirm.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) sequence: Sequence,
    pub(super) exchange: Arc<str>,
    pub(super) key: Arc<str>,
}

impl Owner {
    fn place(&self) -> ExchangeKey {
        (self.exchange.clone(), self.key.clone())
    }
}

type Confirmed = (SentMessage<Owner>, lapin::Result<Confirmation>);

/// The end of a try, or the message again if no channel was opened for it in time.
type Tried = (Owner, Result<lapin::Result<Confirmation>, Publication>);

/// One channel on one connection.
pub(super) struct RabbitmqSession {
    link: Link,
    channel: Channel,
    headers: Headers,
    plan: Arc<Exchanges>,
    kept: IdleConnection,
    confirms: FuturesUnordered<BoxFuture<'static, Confirmed>>,
    returns: Returns<Owner>,
    questions: Questions,
    /// Messages on channels of their own, which may end without harm: of doubtful exchanges, and of addresses that nacked.
    tries: FuturesUnordered<BoxFuture<'static, Tried>>,
    turns: Turns<(Owner, Publication)>,
    /// Found, not yet taken by `verdicts`.
    ready: Vec<(Sequence, Verdict)>,
    loss: Option<SessionError>,
    /// The exchanges and keys for which the channel has nacked. RabbitMQ keeps for each channel which node leads a queue
    /// and whether the queue takes messages, and learns nothing of it once that node is dead or the limit is removed.
    nacked: HashSet<ExchangeKey>,
    /// Since then one of them takes messages on another channel: this one is to be replaced.
    outdated: Option<Instant>,
    /// The channel was replaced.
    has_changed: bool,
    /// So long it waits for a confirm.
    patience: Duration,
    /// It had none for so long: this node may be cut off from the others.
    is_silent: bool,
}

impl RabbitmqSession {
    pub(super) fn new(
        link: Link,
        channel: Channel,
        headers: Headers,
        plan: Arc<Exchanges>,
        kept: IdleConnection,
        retry_max: Duration,
    ) -> Self {
        Self {
            link,
            channel,
            headers,
            plan,
            kept,
            confirms: FuturesUnordered::new(),
            returns: Returns::default(),
            questions: Questions::new(retry_max),
            tries: FuturesUnordered::new(),
            turns: Turns::default(),
            ready: Vec::new(),
            loss: None,
            nacked: HashSet::new(),
            outdated: None,
            has_changed: false,
            patience: failpoint::every("rabbitmq.silence", SILENCE),
            is_silent: false,
        }
    }

    fn lost(&mut self, text: impl Into<String>) {
        self.loss = Some(SessionError::lost(text));
    }

    fn publish(&mut self, owner: Owner, id: &str, publication: Publication) {
        let sent = self.returns.send(label(&owner.exchange, &owner.key, id), owner);
        let publishing = publication.publish(self.channel.clone());
        // Futures are first polled in the order in which they are pushed, so messages go out in it.
        self.confirms.push(publishing.map(|outcome| (sent, outcome)).boxed());
    }

    /// Notes a confirm; what follows from it is judged when all that are there are noted.
    fn confirmed(&mut self, (sent, outcome): Confirmed) -> Result<(), lapin::Error> {
        match read(outcome?) {
            Ok((outcome, attached)) => {
                let label = attached.as_ref().and_then(|message| {
                    let id = message.properties.message_id().as_ref()?;
                    Some(label(message.exchange.as_str(), message.routing_key.as_str(), id.as_str()))
                });
                self.returns.confirm(sent, outcome, label);
            }
            Err(loss) => self.loss = Some(loss),
        }
        Ok(())
    }

    fn judged(&mut self, owner: Owner, judgement: Judgement) {
        let verdict = match judgement {
            Judgement::Stored => Verdict::Stored,
            Judgement::Nacked => {
                let text = format!(
                    "the broker refused a message for now (nack): exchange `{}`, routing key `{}`",
                    owner.exchange, owner.key
                );
                self.nacked.insert((owner.exchange, owner.key));
                Verdict::Nacked(text)
            }
            Judgement::Returned => Verdict::Refused(self.returned(&owner)),
        };
        self.ready.push((owner.sequence, verdict));
    }

    /// A return shows that the exchange is there. Only for the main one is there more that we know of and that can be
    /// gone: the queue and its binding, which is looked at, and with `declare` made again.
    fn returned(&mut self, owner: &Owner) -> Refusal {
        let text = format!(
            "no queue is bound to the exchange `{}` for the routing key `{}`: the broker returned the message",
            owner.exchange, owner.key
        );
        if *owner.exchange != *self.plan.main() || !self.plan.has_queue() {
            return Refusal::wrong(RefusalReason::Unroutable, text);
        }
        let has_stood = self.questions.has_stood();
        self.questions.doubt();
        if has_stood { Refusal::wrong(RefusalReason::Unroutable, text) } else { Refusal::unable(text) }
    }

    /// Begins the tries that there is room for.
    fn start_tries(&mut self) {
        while let Some((owner, publication)) = self.turns.next(Instant::now()) {
            let connection = self.link.connection.clone();
            let attempt = async move {
                match timeout(ATTEMPT, open_channel(&connection)).await {
                    Ok(Ok(channel)) => (owner, Ok(publication.publish(channel).await)),
                    Ok(Err(error)) => (owner, Ok(Err(error))),
                    Err(_) => (owner, Err(publication)),
                }
            };
            self.tries.push(attempt.boxed());
        }
    }

    fn tried(&mut self, (owner, end): Tried) {
        let place = owner.place();
        self.turns.end(&place);
        match end {
            Ok(Ok(confirmation)) => {
                let (outcome, returned) = match read(confirmation) {
                    Ok((outcome, returned)) => (outcome, returned.is_some()),
                    Err(loss) => return self.loss = Some(loss),
                };
                self.plan.memory.lock().took(&place.0, &place.1);
                let judgement = outcome.judge(returned);
                if judgement == Judgement::Stored && self.nacked.contains(&place) {
                    self.outdated.get_or_insert_with(Instant::now);
                }
                self.judged(owner, judgement);
            }
            Ok(Err(error)) if is_of_broker(&error) && self.link.is_alive() => {
                let refusal = loss::refusal(&error, &mut self.plan.memory.lock());
                let is_forbidden = refusal.reason() == RefusalReason::NotAuthorised;
                if is_forbidden && self.link.has_ended_token() {
                    return self.lost(format!("the token has expired: {}", refusal.text));
                }
                let is_vague = is_forbidden && self.link.has_old_token();
                let refusal = if is_vague { Refusal::unable(refusal.text) } else { refusal };
                self.ready.push((owner.sequence, Verdict::Refused(refusal)));
            }
            Ok(Err(error)) => {
                let text = self.link.fault().unwrap_or_else(|| describe(&error));
                self.lost(text);
            }
            // During an alarm the broker reads nothing: that is no silence.
            Err(publication) if self.link.was_blocked(ATTEMPT) => self.turns.wait(place, (owner, publication)),
            Err(_) => self.lost("the broker does not answer"),
        }
    }

    /// The channel has ended: finds the error that carries the broker's words, and what follows from it.
    async fn lose(&mut self, first: lapin::Error) {
        let mut error = first;
        while !is_of_broker(&error) {
            match timeout(AFTERMATH, self.confirms.next()).await {
                Ok(Some(confirmed)) => error = self.confirmed(confirmed).err().unwrap_or(error),
                Ok(None) | Err(_) => break,
            }
        }
        // Without the broker's words it is the connection that has ended, and the connection knows why.
        if let (false, Some(text)) = (is_of_broker(&error), self.link.fault()) {
            return self.lost(text);
        }
        self.loss = Some(loss::judge(&error, &mut self.plan.memory.lock()));
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
        if self.loss.is_some() || self.link.blocked().is_some() {
            return;
        }
        let connection = self.link.connection.clone();
        if let Some(Some(gone)) = self.questions.answer(&connection, &self.plan).now_or_never() {
            self.lost(gone);
        }
        while let Some(Some(tried)) = self.tries.next().now_or_never() {
            self.tried(tried);
        }
    }

    /// Waits until something happens, and notes it.
    async fn step(&mut self) {
        let blocked = self.link.blocked().is_some();
        if self.confirms.is_empty() && !self.link.is_alive() {
            // The event that reported this may already have been consumed by `blocked()`, or have arrived before the
            // library knew.
            let text = self.link.fault().unwrap_or_else(|| "the connection ended".to_owned());
            return self.lost(text);
        }
        if !self.nacked.is_empty() && !blocked && self.confirms.is_empty() {
            return self.renew_channel().await;
        }
        if blocked {
            self.questions.set_aside();
        } else {
            self.start_tries();
        }
        let Self { link, confirms, tries, turns, questions, plan, returns, patience, is_silent, .. } = self;
        let connection = &link.connection.clone();
        // What was in flight during an alarm was not read: it has all its time from then on.
        let oldest = returns.waiting_since().into_iter().chain(turns.oldest()).min();
        let waiting = oldest.and_then(|since| Some(since).max(link.unblocked)).filter(|_| !blocked);
        let since = waiting.unwrap_or_else(Instant::now);
        let doubtful = waiting.and_then(|since| questions.next_doubt(since + DOUBT));
        tokio::select! {
            biased;
            Some(confirmed) = confirms.next(), if !confirms.is_empty() => {
                if let Err(error) = self.confirmed(confirmed) {
                    self.lose(error).await;
                }
            }
            fault = link.news() => self.loss = fault.map(SessionError::lost),
            Some(tried) = tries.next(), if !tries.is_empty() => self.tried(tried),
            gone = questions.answer(connection, plan), if !blocked => self.loss = gone.map(SessionError::lost),
            () = sleep_until(doubtful.unwrap_or(since).into()), if doubtful.is_some() => questions.doubt(),
            () = sleep_until((since + *patience).into()), if waiting.is_some() && !*is_silent => {
                self.is_silent = true;
                let seconds = self.patience.as_secs();
                self.lost(format!("no confirm for {seconds} s on a living connection"));
            }
        }
    }

    /// Takes a new channel in place of one that has nacked, while nothing is in flight.
    async fn renew_channel(&mut self) {
        let connection = self.link.connection.clone();
        match timeout(ATTEMPT, open_channel(&connection)).await {
            Ok(Ok(channel)) => {
                self.channel = channel;
                self.nacked.clear();
                self.outdated = None;
                self.has_changed = true;
            }
            Ok(Err(error)) => {
                self.lost(format!("cannot open a new channel after a nack: {}", describe(&error)));
            }
            Err(_) if self.link.was_blocked(ATTEMPT) => {}
            Err(_) => self.lost("the broker does not answer"),
        }
    }

    fn has_nacked(&self, message: &Message) -> bool {
        !self.nacked.is_empty() && self.nacked.contains(&(message.address.clone(), message.key.clone()))
    }

    fn is_waiting(&self) -> bool {
        !self.confirms.is_empty() || !self.turns.is_empty()
    }
}

/// Reads a confirm. Where the channel is not in confirm mode nothing is known of the message.
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

/// The part of a message that its return shows. Two sources may send one id, to different places.
fn label(exchange: &str, key: &str, id: &str) -> Box<str> {
    [exchange, "\n", key, "\n", id].concat().into()
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
        let (exchange, key) = (&message.address, &message.key);
        let known = self.plan.memory.lock();
        let is_doubted = known.is_doubted(exchange, key);
        if let Some(refusal) = known.too_large(message.event.body.len(), Instant::now()) {
            return Sent::Refused(refusal);
        }
        drop(known);
        let frame_max = usize::try_from(self.link.connection.configuration().frame_max()).unwrap_or(usize::MAX);
        let publication = match Publication::new(message, &self.headers, frame_max) {
            Ok(publication) => publication,
            Err(refusal) => return Sent::Refused(refusal),
        };
        let owner = Owner { sequence, exchange: exchange.clone(), key: key.clone() };
        if is_doubted || self.has_nacked(message) {
            self.turns.wait(owner.place(), (owner, publication));
        } else {
            self.publish(owner, message.event.id(), publication);
        }
        // On a channel that has died unnoticed it fails, and `verdicts` tells why.
        Sent::Taken
    }

    fn takes_more(&self) -> bool {
        self.outdated.is_none_or(|since| since.elapsed() >= PAUSE)
    }

    /// An address that is doubtful or has nacked gets one message at a time.
    fn takes(&self, message: &Message) -> bool {
        self.turns.is_empty() || !self.turns.has(&(message.address.clone(), message.key.clone()))
    }

    fn has_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    async fn verdicts(&mut self, into: &mut Vec<(Sequence, Verdict)>) -> Result<(), SessionError> {
        loop {
            if self.loss.is_none() {
                self.drain().await;
            }
            for (owner, judgement) in self.returns.judgements() {
                self.judged(owner, judgement);
            }
            self.glance();
            if !self.ready.is_empty() || self.has_changed {
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
        let is_lost = self.loss.is_some();
        // Also after a loss: on a connection that lives, what is in flight on other channels, or on one that we give up, is
        // still confirmed.
        while self.is_waiting() && self.link.is_alive() && self.link.blocked().is_none() {
            (self.loss, self.has_changed) = (None, false);
            // The step in between notices an alarm that begins meanwhile.
            let turn = deadline.min(tokio::time::Instant::now() + AFTERMATH);
            let _ = timeout_at(turn, self.verdicts(into)).await;
            if turn == deadline {
                break;
            }
        }
        into.append(&mut self.ready);
        let Self { link, channel, kept, loss, is_silent, .. } = *self;
        drop(channel);
        if (is_lost || loss.is_some()) && link.is_alive() && !is_silent {
            *kept.lock() = Some(link);
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
