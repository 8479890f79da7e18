//! Settle: every event ends published, as a dead letter, or counted lost; only then is its room free again.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use tokio::task::JoinHandle;

use crate::brokers::{Headers, Refusal};
use crate::dead_letters::{Letter, NewLetter, SharedStore};
use crate::delivery::entry::{Removed, record_bytes};
use crate::delivery::ring::Ring;
use crate::event::{Event, Kept, LONGEST_FIELD, Message, Outcome, Waiter, complete_all, cut};
use crate::metrics::Metrics;
use crate::process::failpoint;
use crate::process::logs::Throttle;
use crate::queue::{Buffer, EventEnd, Settlement};
use crate::status::{BrokerStatus, Loss, RefusalReason};

/// The most room that the events already taken from the queue make at once; a batch shares one lock.
pub(super) const BATCH: usize = 256;

/// The time that delivery waits before it retries to write dead letters.
const DISK_RETRY: Duration = Duration::from_secs(1);

/// A write of dead letters that takes longer is as good as none: what is refused meanwhile waits for its address.
const SLOW: Duration = Duration::from_secs(2);

/// A write of dead letters in progress.
#[derive(Debug)]
struct LetterWrite {
    /// The number written.
    task: JoinHandle<Result<usize, String>>,
    since: tokio::time::Instant,
}

/// Collects the outcomes of one batch of verdicts.
#[derive(Debug)]
pub(super) struct Settler {
    settlement: Settlement,
    refused: Vec<(Removed, Refusal)>,
    /// The outcomes of events in `settlement` that a request waits for.
    ended: Vec<(Arc<Waiter>, Outcome)>,
    /// None if there are no dead letters.
    store: Option<SharedStore>,
    /// A write of the first refused messages, in progress: never started twice, even if the wait for it is cancelled.
    writing: Option<LetterWrite>,
    /// The result of a write that has ended.
    written: Option<Result<usize, String>>,
    /// The last write failed: the store is full, or the disk fails.
    is_blocked: bool,
    /// The time of the next attempt after a failed write.
    again: Option<tokio::time::Instant>,
    headers: Headers,
    throttle: Throttle,
}

impl Settler {
    pub(super) fn new(store: Option<SharedStore>, headers: Headers) -> Self {
        let throttle = Throttle::new("events that the broker refused", 5, Duration::from_secs(1));
        let settlement = Settlement::default();
        let (refused, ended) = (Vec::new(), Vec::new());
        let (writing, written, is_blocked, again) = (None, None, false, None);
        Self { settlement, refused, ended, store, writing, written, is_blocked, again, headers, throttle }
    }

    /// Settles a confirmed message.
    pub(super) fn published(&mut self, taken: &Removed, now: Instant, metrics: &Metrics) {
        if let Some(handed) = taken.handed {
            metrics.publish_duration(now.saturating_duration_since(handed));
        }
        metrics.delivery_duration(now.saturating_duration_since(taken.message.event.accepted));
        for _ in 0..taken.overtook + usize::from(taken.overtaken) {
            metrics.out_of_order();
        }
        self.settlement.add(&taken.message.event, EventEnd::Published(taken.pair));
        end(&mut self.ended, &taken.message.event, Outcome::Kept);
    }

    /// Settles a message refused for good.
    pub(super) fn refused(&mut self, taken: Removed, refusal: Refusal, metrics: &Metrics) {
        if taken.overtaken {
            metrics.out_of_order();
        }
        let Message { event, address, .. } = &taken.message;
        let (id, address, reason) = (event.id(), &**address, refusal.reason().name());
        tracing::debug!(id, address, reason, "refused an event");
        if self.throttle.admits() {
            tracing::warn!(
                id,
                address,
                reason,
                "the broker refused an event: {}{}",
                refusal.text,
                if self.store.is_some() {
                    "; it becomes a dead letter"
                } else {
                    "; lost, because there is no `state_directory` to keep it in"
                },
            );
        }
        self.refused.push((taken, refusal));
    }

    /// The number of messages that may be refused before some are settled.
    pub(super) fn room(&self) -> usize {
        BATCH.saturating_sub(self.refused.len())
    }

    /// Whether refused messages are written more slowly than more are refused. Not while they cannot be written: then
    /// nothing is refused, and whatever is not to be refused flows.
    pub(super) fn is_behind(&self) -> bool {
        self.room() == 0 && !self.is_blocked
    }

    /// Whether anything waits to be settled.
    pub(super) fn is_empty(&self) -> bool {
        self.settlement.is_empty() && self.refused.is_empty()
    }

    /// Whether everything left waits for room among the dead letters.
    pub(super) fn waits_for_room(&self) -> bool {
        self.settlement.is_empty() && self.is_blocked
    }

    /// The size of the records of the events that wait here.
    pub(super) fn record_bytes(&self) -> u64 {
        self.refused_events().map(record_bytes).sum()
    }

    /// Whether dead letters are being written.
    pub(super) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Whether dead letters cannot be written at the moment.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    /// Counts what has ended, frees its room, and has the dead letters written beside that; a disk that is full or fails
    /// is tried again, and nothing is dropped. Returns whether dead letters can be written again.
    pub(super) fn settle(&mut self, ring: &Ring, queue: &Buffer, view: &BrokerStatus) -> bool {
        let mut is_better = false;
        match self.written.take() {
            Some(Ok(count)) => {
                self.release(count, |refusal| Some(refusal.reason()));
                is_better = std::mem::take(&mut self.is_blocked);
                if is_better {
                    view.change(|view| view.blocked = None);
                }
            }
            Some(Err(text)) => {
                self.block(text, view);
                self.again = Some(tokio::time::Instant::now() + DISK_RETRY);
            }
            None if !self.is_blocked
                && self.writing.as_ref().is_some_and(|write| write.since.elapsed() >= SLOW) =>
            {
                let text = format!("the disk has not completed a write of dead letters for {} s", SLOW.as_secs());
                self.block(text, view);
            }
            None => {}
        }
        if self.store.is_none() {
            self.release(self.refused.len(), |_| None);
        }
        self.count(ring, queue, view);
        self.write();
        is_better
    }

    /// Notes why dead letters cannot be written.
    fn block(&mut self, text: String, view: &BrokerStatus) {
        if self.throttle.admits() {
            tracing::error!("refused events wait: {text}");
        }
        view.change(|view| view.blocked = Some(text));
        self.is_blocked = true;
    }

    /// Begins to write what is refused, if it is time.
    fn write(&mut self) {
        let is_early = self.again.is_some_and(|again| tokio::time::Instant::now() < again);
        let Some(store) = self.store.clone().filter(|_| self.writing.is_none() && !is_early) else { return };
        if self.refused.is_empty() {
            return;
        }
        self.again = None;
        let entry = |(taken, refusal): &(Removed, Refusal)| {
            let letter = letter(&taken.message, &self.headers, refusal, taken.attempts);
            let returns = taken.message.event.kept == Kept::DeadLetter;
            NewLetter { returns, ..NewLetter::new(letter.line()) }
        };
        let entries = self.refused.iter().map(entry).collect();
        self.writing = Some(LetterWrite { task: write(store, entries), since: tokio::time::Instant::now() });
    }

    /// Waits until [`Settler::settle`] has something to do: a write has ended, or is to be tried again. Cancel-safe.
    pub(super) async fn news(&mut self) {
        if let Some(writing) = &mut self.writing {
            let written = (&mut writing.task).await;
            self.writing = None;
            self.written = Some(written.unwrap_or_else(|_| Err("the writer of dead letters panicked".to_owned())));
        } else if let Some(again) = self.again.filter(|_| !self.refused.is_empty()) {
            tokio::time::sleep_until(again).await;
        } else {
            std::future::pending::<()>().await;
        }
    }

    /// Waits for the write in progress, if there is one.
    pub(super) async fn finish(&mut self) {
        if self.writing.is_some() {
            self.news().await;
        }
    }

    /// Removes the first refused messages: dead letters with their reason, or lost if there is none.
    fn release(&mut self, count: usize, kept_as: impl Fn(&Refusal) -> Option<RefusalReason>) {
        for (taken, refusal) in self.refused.drain(..count) {
            let lost = (EventEnd::Lost(Loss::Refused), Outcome::Failed);
            let dead_lettered = |reason| (EventEnd::DeadLettered(reason), Outcome::DeadLettered);
            let (event_end, outcome) = kept_as(&refusal).map_or(lost, dead_lettered);
            self.settlement.add(&taken.message.event, event_end);
            end(&mut self.ended, &taken.message.event, outcome);
        }
    }

    fn count(&mut self, ring: &Ring, queue: &Buffer, view: &BrokerStatus) {
        if self.settlement.is_empty() {
            return;
        }
        let oldest = self.refused.first().map(|(taken, _)| taken.message.event.origin.received);
        // The broker has them, the ledger does not know it yet: a test may end the process here.
        if failpoint::pass("publish.settled").is_err() {
            return;
        }
        queue.settle(&self.settlement, oldest.or_else(|| ring.oldest()));
        if self.settlement.has_published() {
            view.change(|view| view.last_published = Some(SystemTime::now()));
        }
        self.settlement.clear();
        complete_all(self.ended.drain(..));
    }

    /// Settles an event that its sender withdrew before it was sent.
    pub(super) fn withdrawn(&mut self, event: &Event) {
        self.settlement.add(event, EventEnd::Withdrawn);
    }

    /// The events of messages that are refused and not settled yet.
    pub(super) fn refused_events(&self) -> impl Iterator<Item = &Event> {
        self.refused.iter().map(|(taken, _)| &*taken.message.event)
    }
}

/// Notes the outcome of an event, if a request waits for it and has no outcome yet (the journal completes at once).
fn end(ended: &mut Vec<(Arc<Waiter>, Outcome)>, event: &Event, outcome: Outcome) {
    if let Some(waiter) = event.waiter.as_ref().filter(|waiter| waiter.outcome().is_none()) {
        ended.push((waiter.clone(), outcome));
    }
}

/// Writes dead letters on a thread of their own, because a disk that hangs must not block the delivery thread. Returns
/// the number written.
fn write(store: SharedStore, entries: Vec<NewLetter>) -> JoinHandle<Result<usize, String>> {
    tokio::task::spawn_blocking(move || store.lock().append(&entries).map_err(|error| error.to_string()))
}

/// The letter of a message that was refused, by the broker or because of its address.
fn letter(message: &Message, headers: &Headers, refusal: &Refusal, attempts: u32) -> Letter {
    let headers = headers.list(&message.event).into_iter().map(|(name, value)| (name, Value::String(value)));
    Letter {
        address: cut(&message.address, LONGEST_FIELD).to_owned(),
        attempts,
        headers: headers.collect(),
        key: cut(&message.key, LONGEST_FIELD).to_owned(),
        ..Letter::new(&message.event, refusal.reason().name(), &refusal.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::brokers::{Encoding, HeaderStyle};
    use crate::dead_letters::largest_line;
    use crate::event::{Deviation, Deviations, Field, Fields, Origin};

    /// The line that a message whose texts all consist of this one becomes.
    fn line_of(text: &str, encoding: Encoding, body: &[u8]) -> Vec<u8> {
        let text = text.repeat(4096);
        let mut deviations = Deviations::default();
        for field in Field::ALL {
            deviations.note(field, Deviation::Duplicate);
        }
        let fields = Fields {
            cuid: &*text,
            actor_cuid: &text,
            event: &text,
            target_cuid: &text,
            target_type: &text,
            client_id: &text,
            report_id: &text,
            finding_id: &text,
            assessment_id: &text,
            deviations,
            ..Fields::default()
        };
        let origin = Origin {
            source: "s".repeat(256).into(),
            signature: Some([b'f'; 64]),
            verified: true,
            traceparent: Some("0".repeat(55).into()),
            received: SystemTime::now(),
        };
        let event = Box::new(Event::new(origin, body.into(), &fields, &[0; 32]));
        let message = Message { event, address: text.as_str().into(), key: text.as_str().into() };
        let headers = Headers::new(HeaderStyle::CloudEvents, "cloudEvents_", "content-type", encoding);
        let headers = headers.with_content_type_also_as("cloudEvents_datacontenttype");
        letter(&message, &headers, &Refusal::event(RefusalReason::NotAuthorised, &*text), u32::MAX).line()
    }

    #[test]
    fn the_largest_letter_fits_where_the_settings_are_good() {
        let body = format!("{{\"a\":\"{}\"}}", "\\\"".repeat(1000));
        let mut largest = 0;
        for text in ["a", "\"", "\\", "\u{1}", "\u{7f}", "%", " ", "\u{fc}", "\u{2028}", "\u{1f600}"] {
            for encoding in [Encoding::Plain, Encoding::Percent] {
                let length = line_of(text, encoding, body.as_bytes()).len();
                assert!(length <= largest_line(body.len()), "{length} bytes of {text:?}");
                largest = largest.max(length);
            }
        }
        assert!(largest + (16 << 10) > largest_line(body.len()), "{largest} bytes: not much more is asked for");
    }
}
