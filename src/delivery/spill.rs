//! The stop's first step: events that only memory keeps are written to the journal, a piece at a time.
//!
//! A disk that does not answer in time has neither written nor refused: delivery continues meanwhile, and the next call
//! finds out how the write ended. Only an error, or the end of the process, means that the journal does not have them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::event::{Event, Outcome, Waiter};
use crate::queue::{Buffer, SpillResult};

/// The number of bytes written at once.
const BYTES: usize = 1 << 20;

/// The time that delivery waits for the writes before it continues beside them.
const FIRST_WAIT: Duration = Duration::from_secs(1);

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

impl Spill {
    /// Whether nothing more is to be written.
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Over)
    }

    /// Waits until [`Spill::go_on`] has something to do.
    pub(super) async fn news(self) {
        match self {
            Self::NotBegun => {}
            Self::Writing(waiter) => {
                waiter.wait().await;
            }
            Self::Over => std::future::pending().await,
        }
    }

    /// Continues writing. The first time it waits briefly for the disk, so that as much as possible is kept before anything
    /// else; afterwards it collects finished writes, and returns. `held` gives the events that delivery has.
    pub(super) async fn go_on<'e, E: Iterator<Item = &'e Event>>(&mut self, queue: &Buffer, held: impl Fn() -> E) {
        let limit = if matches!(self, Self::NotBegun) { FIRST_WAIT } else { Duration::ZERO };
        self.advance(queue, Instant::now() + limit, held).await;
    }

    /// Waits for the writes in progress at the end; without an answer only memory keeps the events.
    pub(super) async fn finish<'e, E: Iterator<Item = &'e Event>>(
        &mut self,
        queue: &Buffer,
        until: Instant,
        held: impl Fn() -> E,
    ) {
        self.advance(queue, until, held).await;
        if !self.is_over() {
            self.give_up("the disk does not answer; it may have been written nevertheless");
        }
    }

    async fn advance<'e, E: Iterator<Item = &'e Event>>(
        &mut self,
        queue: &Buffer,
        until: Instant,
        held: impl Fn() -> E,
    ) {
        loop {
            match self {
                Self::Over => return,
                Self::NotBegun => {}
                Self::Writing(waiter) => match timeout_at(until, waiter.wait()).await {
                    Ok(Outcome::Kept) => {}
                    Ok(_) => return self.give_up("it could not be written"),
                    // Unknown: neither written nor refused.
                    Err(_) => return,
                },
            }
            match queue.spill(held(), BYTES) {
                SpillResult::Done => *self = Self::Over,
                SpillResult::Waits(waiter) => *self = Self::Writing(waiter),
                SpillResult::Refused(text) => self.give_up(&text),
            }
        }
    }

    fn give_up(&mut self, problem: &str) {
        *self = Self::Over;
        tracing::error!(
            "cannot write everything that is held to the journal; what is not delivered before the end is lost: {problem}"
        );
    }
}
