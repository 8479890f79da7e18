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

/// The number of lost events whose ids the log has.
const NAMED: usize = 100;

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

    /// The end of delivery: counts as lost at exit what nothing else keeps, of `taken` (which delivery took and has not
    /// settled) and of what waits, and logs the ids; the rest is held. The waiters of all are completed. Returns the number
    /// that is lost.
    pub(crate) fn lose<'e>(&self, taken: impl Iterator<Item = &'e Event>) -> usize {
        let mut state = self.lock();
        state.closed = true;
        let QueueState { waiting, replays, disk, .. } = &mut *state;
        let waiting: Vec<_> = waiting.drain(..).chain(replays.drain(..)).collect();
        let mut all: Vec<&Event> = taken.collect();
        let taken = all.len();
        all.extend(waiting.iter().map(|event| &**event));
        let is_lost = |event: &&&Event| !is_kept(disk.as_ref(), event);
        let lost: Vec<&Event> = all.iter().filter(is_lost).copied().collect();
        let lost_taken = all[..taken].iter().filter(is_lost).count();
        let cost = |events: &[&Event]| events.iter().map(|event| event.cost()).sum::<usize>();
        state.give_back(lost_taken, cost(&lost[..lost_taken]));
        state.bytes -= cost(&lost[lost_taken..]);
        state.held -= lost.len() as u64;
        state.ledger.lost[Loss::Exit as usize] += lost.len() as u64;
        drop(state);
        if !lost.is_empty() {
            let ids: Vec<&str> = lost.iter().take(NAMED).map(|event| event.id()).collect();
            let (ids, more) = (ids.join(" "), lost.len() - ids.len());
            tracing::error!(lost = lost.len(), ids, more, "lost at the end: these events are only in memory");
        }
        let waiters = all.iter().filter_map(|event| event.waiter.clone());
        complete_all(waiters.filter(|waiter| waiter.outcome().is_none()).map(|waiter| (waiter, Outcome::Failed)));
        lost.len()
    }

    /// Counts the events of the journal as lost: it no longer exists.
    pub(crate) fn lose_journal(&self) {
        let mut state = self.lock();
        let QueueState { disk, ledger, held, .. } = &mut *state;
        if let Some(disk) = disk {
            let lost = std::mem::take(&mut disk.events) as u64;
            *held -= lost;
            ledger.lost[Loss::Exit as usize] += lost;
            if lost > 0 {
                tracing::error!(lost, "the journal is missing, and with it the events that it kept");
            }
        }
    }
}

fn is_kept(disk: Option<&Disk>, event: &Event) -> bool {
    disk.map_or(event.kept.number().is_none(), |disk| disk.keeps(event.kept))
}
