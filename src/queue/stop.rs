//! The queue's side of the stop: events that only memory keeps are written to the journal; what is kept nowhere at the
//! end is lost.
//!
//! Whether a copy is written is unknown until the writer reports it; until then its event may be delivered and settled like
//! any other. If the writer reports an error, or the process ends without an answer, only memory keeps the event.

use std::sync::Arc;

use crate::event::{Event, Outcome, Waiter, complete_all};
use crate::queue::Buffer;
use crate::queue::buffer::QueueState;
use crate::queue::disk::{AppendReason, Disk, Incoming};
use crate::status::Loss;

/// The result of [`Buffer::spill`].
#[derive(Debug)]
pub(crate) enum SpillResult {
    /// Nothing is left to spill, or there is no journal.
    Done,
    /// Some are being written: the waiter reports when they are, then call again.
    Waits(Arc<Waiter>),
    /// The journal does not accept them.
    Refused(String),
}

impl Buffer {
    /// Refuses new events from now on.
    pub(crate) fn drain(&self) {
        self.lock().draining = true;
        self.ready.notify_one();
    }

    /// Puts copies of events that only memory keeps into the journal, oldest first: those that delivery holds, then
    /// those that wait. At most about `bytes` of them at once.
    pub(crate) fn spill<'e>(&self, held: impl Iterator<Item = &'e Event>, bytes: usize) -> SpillResult {
        let mut state = self.lock();
        // A withdrawn event is not written, and must not precede those that are.
        state.sweep();
        let QueueState { waiting, disk, .. } = &mut *state;
        let Some(disk) = disk else { return SpillResult::Done };
        // One that delivery holds may be withdrawn: it will release it.
        let is_wanted = |event: &&Event| {
            disk.is_unwritten(event.kept) && !event.waiter.as_ref().is_some_and(|waiter| waiter.is_withdrawn())
        };
        let mut events: Vec<&Event> = held.filter(is_wanted).collect();
        events.sort_unstable_by_key(|event| event.kept.number());
        events.extend(waiting.iter().map(|event| &**event).filter(is_wanted));
        if events.is_empty() {
            return SpillResult::Done;
        }
        if let Some(text) = &disk.failed {
            return SpillResult::Refused(text.clone());
        }
        let mut spilled = 0;
        for event in events {
            let is_copied = spilled < bytes
                && event.kept.number().is_some_and(|number| disk.copy(number, Box::new(event.clone())));
            if !is_copied {
                break;
            }
            spilled += event.cost();
        }
        if spilled == 0 {
            let no_room = || disk.no_space.clone().unwrap_or_else(|| "the journal is full".to_owned());
            return SpillResult::Refused(no_room());
        }
        let written = Waiter::new(None);
        if let Some(Incoming { entry: AppendReason::Copy { waiter, .. }, .. }) = disk.incoming.last_mut() {
            *waiter = Some(written.clone());
        }
        disk.wakes_writer();
        self.work.notify_one();
        SpillResult::Waits(written)
    }

    /// Whether this process may end without losing any of these events.
    pub(crate) fn keeps<'e>(&self, mut events: impl Iterator<Item = &'e Event>) -> bool {
        let state = self.lock();
        events.all(|event| is_kept(state.disk.as_ref(), event))
    }

    /// Counts all waiting events that nothing else keeps as lost at exit; the rest is held. Their waiters are
    /// completed.
    pub(crate) fn lose_waiting(&self) {
        let mut state = self.lock();
        state.closed = true;
        let QueueState { waiting, replays, .. } = &mut *state;
        let all: Vec<_> = waiting.drain(..).chain(replays.drain(..)).collect();
        let (_, cost) = lose(&mut state, all.iter().map(|event| &**event));
        state.bytes -= cost;
        drop(state);
        give_up(all.iter().map(|event| &**event));
    }

    /// Counts as lost at exit those of these events, taken and not settled, that nothing else keeps; returns their
    /// number.
    pub(crate) fn lose_taken<'e>(&self, events: impl Iterator<Item = &'e Event>) -> usize {
        let events: Vec<&Event> = events.collect();
        let mut state = self.lock();
        let (count, cost) = lose(&mut state, events.iter().copied());
        state.give_back(count, cost);
        drop(state);
        give_up(events.into_iter());
        count
    }

    /// Counts the events of the journal as lost: it no longer exists.
    pub(crate) fn lose_journal(&self) {
        let mut state = self.lock();
        let QueueState { disk, ledger, held, .. } = &mut *state;
        if let Some(disk) = disk {
            let lost = std::mem::take(&mut disk.events) as u64;
            *held -= lost;
            ledger.lost[Loss::Exit as usize] += lost;
        }
    }
}

fn is_kept(disk: Option<&Disk>, event: &Event) -> bool {
    disk.map_or(event.kept.number().is_none(), |disk| disk.keeps(event.kept))
}

/// Counts those of these events as lost that nothing else keeps; returns their number and their cost.
fn lose<'e>(state: &mut QueueState, events: impl Iterator<Item = &'e Event>) -> (usize, usize) {
    let lost = events.filter(|event| !is_kept(state.disk.as_ref(), event));
    let (count, cost) = lost.fold((0, 0), |(count, cost), event| (count + 1, cost + event.cost()));
    state.held -= count as u64;
    state.ledger.lost[Loss::Exit as usize] += count as u64;
    (count, cost)
}

/// Completes the waiters of events that have no further outcome in this process.
fn give_up<'e>(events: impl Iterator<Item = &'e Event>) {
    let waiters = events.filter_map(|event| event.waiter.clone());
    complete_all(waiters.filter(|waiter| waiter.outcome().is_none()).map(|waiter| (waiter, Outcome::Failed)));
}
