//! The stop's first step: events that only memory keeps are written to the journal, a piece at a time.
//!
//! A disk that does not answer in time has neither written nor refused: delivery continues meanwhile, and the next call
//! finds out how the write ended. Only an error, or the end of the process, means that the journal does not have them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::delivery::publish::Delivery;
use crate::event::{Outcome, Waiter};
use crate::queue::SpillResult;

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

    /// Waits until [`Delivery::spill`] has something to do.
    pub(super) async fn news(self) {
        match self {
            Self::NotBegun => {}
            Self::Writing(waiter) => {
                waiter.wait().await;
            }
            Self::Over => std::future::pending().await,
        }
    }
}

impl Delivery {
    /// Once the bridge stops: continues writing. The first time it waits briefly for the disk, so that as much as possible
    /// is kept before anything else; afterwards it collects finished writes, and returns.
    pub(super) async fn spill(&mut self) {
        if self.drain.has_begun() {
            let limit = if matches!(self.spill, Spill::NotBegun) { FIRST_WAIT } else { Duration::ZERO };
            self.spill_until(Instant::now() + limit).await;
        }
    }

    /// Waits for the writes in progress at the end; without an answer only memory keeps the events.
    pub(super) async fn finish_spill(&mut self) {
        self.spill_until(Instant::now() + self.drain.overtime()).await;
        if !self.spill.is_over() {
            self.give_up_spill("the disk does not answer; it may have been written nevertheless");
        }
    }

    async fn spill_until(&mut self, until: Instant) {
        loop {
            match &self.spill {
                Spill::Over => return,
                Spill::NotBegun => {}
                Spill::Writing(waiter) => match timeout_at(until, waiter.wait()).await {
                    Ok(Outcome::Kept) => {}
                    Ok(_) => return self.give_up_spill("it could not be written"),
                    // Unknown: neither written nor refused.
                    Err(_) => return,
                },
            }
            match self.queue.spill(self.unsettled(), BYTES) {
                SpillResult::Done => self.spill = Spill::Over,
                SpillResult::Waits(waiter) => self.spill = Spill::Writing(waiter),
                SpillResult::Refused(text) => self.give_up_spill(&text),
            }
        }
    }

    fn give_up_spill(&mut self, problem: &str) {
        self.spill = Spill::Over;
        tracing::error!(
            "cannot write everything that is held to the journal; what is not delivered before the end is lost: {problem}"
        );
    }
}
