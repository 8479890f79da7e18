//! The stop's first step: events that only memory keeps are written to the journal, a piece at a time.
//!
//! A disk that does not answer in time has neither written nor refused: delivery continues meanwhile, and the next call
//! finds out how the write ended. Only an error, or the end of the process, means that the journal does not have them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::delivery::ring::Ring;
use crate::delivery::settle::Settler;
use crate::event::{Event, Outcome, Waiter};
use crate::queue::{Buffer, SpillResult};

/// The number of bytes written at once.
const BYTES: usize = 1 << 20;

/// The time that delivery waits for the writes before it continues beside them.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// The time that the end waits for a write in progress, beyond the stop's deadline.
pub(super) const LAST: Duration = Duration::from_secs(4);

/// The progress of the spill.
#[derive(Clone, Debug, Default)]
pub(super) enum Spill {
    /// The stop has not begun.
    #[default]
    NotBegun,
    /// A piece is being written; its waiter has the outcome.
    Writing(Arc<Waiter>),
    /// Everything is written, or the journal accepts no more.
    Over,
}

/// The events that delivery holds, oldest first.
pub(super) struct Unsettled<'d> {
    pub(super) settler: &'d mut Settler,
    pub(super) ring: &'d mut Ring,
    pub(super) taken: &'d mut VecDeque<Box<Event>>,
}

impl Unsettled<'_> {
    fn events(&mut self) -> impl Iterator<Item = &mut Event> {
        let refused = self.settler.refused_events();
        refused.chain(self.ring.events()).chain(self.taken.iter_mut().map(|event| &mut **event))
    }
}

impl Spill {
    /// Whether nothing more is to be written.
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Over)
    }

    /// Waits until [`Spill::advance`] has something to do.
    pub(super) async fn news(self) {
        match self {
            Self::NotBegun => {}
            Self::Writing(waiter) => {
                waiter.wait().await;
            }
            Self::Over => std::future::pending().await,
        }
    }

    /// Continues writing. The first time it waits briefly for the disk, so that as much as possible is kept before
    /// anything else; afterwards it collects finished writes, and returns.
    pub(super) async fn advance(&mut self, queue: &Buffer, held: &mut Unsettled<'_>) {
        let limit = if matches!(self, Self::NotBegun) { FIRST_WAIT } else { Duration::ZERO };
        self.advance_until(queue, held, Instant::now() + limit).await;
    }

    /// Waits for the writes in progress at the end; events with an unknown outcome count as in memory only.
    pub(super) async fn finish(&mut self, queue: &Buffer, held: &mut Unsettled<'_>) {
        self.advance_until(queue, held, Instant::now() + LAST).await;
        if !self.is_over() {
            self.give_up(queue, held, "the disk does not answer; it may have been written nevertheless");
        }
    }

    async fn advance_until(&mut self, queue: &Buffer, held: &mut Unsettled<'_>, until: Instant) {
        loop {
            match self {
                Self::Over => return,
                Self::NotBegun if !queue.has_journal() => {
                    *self = Self::Over;
                    return;
                }
                Self::NotBegun => {}
                Self::Writing(waiter) => match timeout_at(until, waiter.wait()).await {
                    Ok(Outcome::Kept) => {}
                    Ok(_) => return self.give_up(queue, held, "it could not be written"),
                    // Unknown: neither written nor refused.
                    Err(_) => return,
                },
            }
            match queue.spill(held.events(), BYTES) {
                SpillResult::Done => *self = Self::Over,
                SpillResult::Waits(waiter) => *self = Self::Writing(waiter),
                SpillResult::Refused(text) => self.give_up(queue, held, &text),
            }
        }
    }

    fn give_up(&mut self, queue: &Buffer, held: &mut Unsettled<'_>, problem: &str) {
        *self = Self::Over;
        tracing::error!(
            "cannot write everything that is held to the journal; what is not delivered before the end is lost: {problem}"
        );
        queue.undo_spill(held.events());
    }
}
