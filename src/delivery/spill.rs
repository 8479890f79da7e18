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

/// The time after which a piece is tried again that the journal did not take: delivery frees segments meanwhile.
const RETRY: Duration = Duration::from_secs(1);

/// The progress of the spill.
#[derive(Clone, Debug, Default)]
pub(super) enum Spill {
    /// The stop has not begun.
    #[default]
    NotBegun,
    /// A piece is being written; its waiter has the outcome.
    Writing(Arc<Waiter>),
    /// The journal did not take a piece; it is tried again at this time.
    Refused(Instant),
    /// Everything is written.
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
            // Delivery looks once a second by itself; a connection that takes longer must not be given up for this.
            Self::Refused(_) | Self::Over => std::future::pending().await,
        }
    }

    /// Continues writing. The first time it waits briefly for the disk, so that as much as possible is kept before anything
    /// else; afterwards it collects finished writes, and returns. `held` gives the events that delivery has.
    pub(super) async fn go_on<'e, E: Iterator<Item = &'e Event>>(&mut self, queue: &Buffer, held: impl Fn() -> E) {
        let limit = if matches!(self, Self::NotBegun) { FIRST_WAIT } else { Duration::ZERO };
        self.advance(queue, Instant::now() + limit, held).await;
    }

    /// Tries once more at the end, and waits for the writes in progress; without an answer only memory keeps the events.
    pub(super) async fn finish<'e, E: Iterator<Item = &'e Event>>(
        &mut self,
        queue: &Buffer,
        until: Instant,
        held: impl Fn() -> E,
    ) {
        if matches!(self, Self::Refused(_)) {
            *self = Self::NotBegun;
        }
        self.advance(queue, until, held).await;
        if matches!(self, Self::Writing(_)) {
            report("the disk does not answer; it may have been written nevertheless");
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
                Self::Refused(again) if Instant::now() < *again => return,
                Self::NotBegun | Self::Refused(_) => {}
                Self::Writing(waiter) => match timeout_at(until, waiter.wait()).await {
                    Ok(Outcome::Kept) => {}
                    Ok(_) => return self.refused("it could not be written"),
                    // Unknown: neither written nor refused.
                    Err(_) => return,
                },
            }
            match queue.spill(held(), BYTES) {
                SpillResult::Done => *self = Self::Over,
                SpillResult::Waits(waiter) => *self = Self::Writing(waiter),
                SpillResult::Refused(text) => return self.refused(&text),
            }
        }
    }

    fn refused(&mut self, problem: &str) {
        if !matches!(self, Self::Refused(_)) {
            report(problem);
        }
        *self = Self::Refused(Instant::now() + RETRY);
    }
}

fn report(problem: &str) {
    tracing::error!(
        "cannot write everything that is held to the journal; what is neither delivered nor written before the end is lost: \
         {problem}"
    );
}
