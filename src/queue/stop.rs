//! The queue's side of the stop: events that only memory keeps are written to the journal; what is kept nowhere at the
//! end is lost.
//!
//! An event that is being spilled counts as the journal's from the moment it has a place there. Whether it is written
//! is unknown until the writer reports it; until then it may be delivered and settled like any other. It is counted as
//! held in memory again only if the writer reports an error, or the process ends without an answer.

use std::sync::Arc;

use crate::event::{Event, Kept, Outcome, Waiter, complete_all};
use crate::queue::Buffer;
use crate::queue::buffer::QueueState;
use crate::queue::disk::{AppendReason, Incoming};
use crate::queue::journal::Record;
use crate::status::Loss;

/// The result of [`Buffer::spill`].
#[derive(Debug)]
pub(crate) enum SpillResult {
    /// Nothing is left to spill.
    Done,
    /// Some are being written: the waiter reports when they are, then call again.
    Waits(Arc<Waiter>),
    /// The journal does not accept them: see [`Buffer::undo_spill`].
    Refused(String),
}

impl Buffer {
    /// Refuses new events from now on.
    pub(crate) fn drain(&self) {
        self.lock().draining = true;
        self.ready.notify_one();
    }

    /// Whether there is a journal.
    #[must_use]
    pub(crate) fn has_journal(&self) -> bool {
        self.lock().disk.is_some()
    }

    /// Puts copies of events that only memory keeps into the journal, oldest first: those that delivery holds, then
    /// those that wait. At most about `bytes` of them at once.
    pub(crate) fn spill<'e>(&self, held: impl Iterator<Item = &'e mut Event>, bytes: usize) -> SpillResult {
        let mut state = self.lock();
        // A withdrawn event is not written, and must not precede those that are.
        state.sweep();
        let QueueState { waiting, disk, unjournaled, .. } = &mut *state;
        if let Some(text) = disk.as_ref().and_then(|disk| disk.spill_failed.clone()) {
            return SpillResult::Refused(text);
        }
        let held = held.map(|event| (event, HeldBy::Delivery));
        let waits = waiting.iter_mut().map(|event| (&mut **event, HeldBy::Queue));
        let mut events = held.chain(waits).filter(|(event, _)| event.kept == Kept::Memory).peekable();
        if events.peek().is_none() {
            return SpillResult::Done;
        }
        let Some(disk) = disk.as_mut() else { return SpillResult::Refused("there is no journal".to_owned()) };
        if let Some(text) = &disk.failed {
            return SpillResult::Refused(text.clone());
        }
        let (mut spilled, mut refused) = (0, false);
        for (event, holder) in events {
            if event.waiter.as_ref().is_some_and(|waiter| waiter.is_withdrawn()) {
                // Delivery holds it, and will release it.
                continue;
            }
            if spilled >= bytes {
                break;
            }
            let Some(place) = disk.reserve(Record::of(event).length()) else {
                refused = true;
                break;
            };
            spilled += event.cost();
            event.kept = Kept::Journal(place.sequence);
            *unjournaled -= 1;
            disk.events += 1;
            if holder == HeldBy::Delivery {
                disk.take(place.sequence);
            }
            disk.send(Incoming {
                place,
                event: Box::new(event.clone()),
                entry: AppendReason::Spill { waiter: None },
            });
        }
        if spilled == 0 {
            let no_room = || disk.no_space.clone().unwrap_or_else(|| "the journal is full".to_owned());
            return if refused { SpillResult::Refused(no_room()) } else { SpillResult::Done };
        }
        let waiter = Waiter::new(None);
        if let Some(Incoming { entry: AppendReason::Spill { waiter: last }, .. }) = disk.incoming.last_mut() {
            *last = Some(waiter.clone());
        }
        disk.wakes_writer();
        state.check_balance();
        self.work.notify_one();
        SpillResult::Waits(waiter)
    }

    /// Counts events as held in memory only: the journal did not accept the spill, or did not answer in time. `held`
    /// are those that delivery holds.
    pub(crate) fn undo_spill<'e>(&self, held: impl Iterator<Item = &'e mut Event>) {
        let mut state = self.lock();
        let QueueState { waiting, disk, unjournaled, .. } = &mut *state;
        let Some(disk) = disk.as_mut() else { return };
        disk.spill_failed = None;
        let waits = waiting.iter_mut().map(|event| &mut **event);
        for event in held.map(|event| &mut *event).chain(waits) {
            if matches!(event.kept, Kept::Journal(_)) && !disk.keeps(event.kept) {
                event.kept = Kept::Memory;
                *unjournaled += 1;
                disk.events -= 1;
            }
        }
        disk.forget_unsynced();
        state.check_balance();
    }

    /// Counts all waiting events that nothing else keeps as lost at exit; the rest is held. Their waiters are
    /// completed.
    pub(crate) fn lose_waiting(&self) {
        let mut state = self.lock();
        state.closed = true;
        let QueueState { waiting, replays, disk, .. } = &mut *state;
        let all: Vec<_> = waiting.drain(..).chain(replays.drain(..)).collect();
        let keeps = |kept| kept == Kept::DeadLetter || disk.as_ref().is_some_and(|disk| disk.keeps(kept));
        let lost = sum(all.iter().map(|event| &**event).filter(|event| !keeps(event.kept)));
        state.bytes -= lost.1;
        state.unjournaled -= lost.0;
        state.ledger.lost[Loss::Exit as usize] += lost.0 as u64;
        drop(state);
        give_up(all.iter().map(|event| &**event));
    }

    /// Counts as lost at exit those of these events, taken and not settled, that nothing else keeps; returns their
    /// number.
    pub(crate) fn lose_taken<'e>(&self, events: impl Iterator<Item = &'e Event>) -> usize {
        let events: Vec<&Event> = events.collect();
        let mut state = self.lock();
        let QueueState { disk, .. } = &mut *state;
        let keeps = |kept| kept == Kept::DeadLetter || disk.as_ref().is_some_and(|disk| disk.keeps(kept));
        let lost = sum(events.iter().copied().filter(|event| !keeps(event.kept)));
        state.bytes -= lost.1;
        state.taken_bytes -= lost.1;
        state.taken -= lost.0;
        state.unjournaled -= lost.0;
        state.ledger.lost[Loss::Exit as usize] += lost.0 as u64;
        drop(state);
        give_up(events.into_iter());
        lost.0
    }

    /// Counts the events of the journal as lost: it no longer exists.
    pub(crate) fn lose_journal(&self) {
        let mut state = self.lock();
        let QueueState { disk, ledger, .. } = &mut *state;
        if let Some(disk) = disk {
            ledger.lost[Loss::Exit as usize] += std::mem::take(&mut disk.events) as u64;
        }
    }
}

/// The holder of the original of a copy being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeldBy {
    /// Delivery took it.
    Delivery,
    /// It waits in the queue.
    Queue,
}

/// The number of events, and their cost.
fn sum<'e>(events: impl Iterator<Item = &'e Event>) -> (usize, usize) {
    events.fold((0, 0), |(count, cost), event| (count + 1, cost + event.cost()))
}

/// Completes the waiters of events that have no further outcome in this process.
fn give_up<'e>(events: impl Iterator<Item = &'e Event>) {
    let waiters = events.filter_map(|event| event.waiter.clone());
    complete_all(waiters.filter(|waiter| waiter.outcome().is_none()).map(|waiter| (waiter, Outcome::Failed)));
}
