//! The waiter of an event whose outcome a request waits for: one atomic state, and the wake list to notify.
//!
//! Events are settled in batches, by the journal's writer or delivery, each on a thread of its own. Each waiting thread
//! has a [`WakeList`] and is woken once per batch, not once per event.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The outcome of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The promise of the mode was kept: it is in the journal, or confirmed.
    Kept,
    /// It was refused and is a dead letter, with which that promise is kept too.
    DeadLettered,
    /// It could not be kept.
    Failed,
    /// The sender gave up before it was sent.
    Withdrawn,
}

impl Outcome {
    /// Whether the promise of the mode was kept.
    pub(crate) fn is_kept(self) -> bool {
        match self {
            Self::Kept | Self::DeadLettered => true,
            Self::Failed | Self::Withdrawn => false,
        }
    }
}

const WAITING: u8 = 0;
const SENT: u8 = 1;
const KEPT: u8 = 2;
const FAILED: u8 = 3;
const WITHDRAWN: u8 = 4;
const DEAD_LETTERED: u8 = 5;

/// The state of one event that a request waits for.
#[derive(Debug)]
pub(crate) struct Waiter {
    state: AtomicU8,
    wakes: Option<Arc<WakeList>>,
    ended: Notify,
}

impl Waiter {
    /// Creates a waiter for a request on the thread of this list; without a list, it is woken directly.
    pub(crate) fn new(wakes: Option<Arc<WakeList>>) -> Arc<Self> {
        Arc::new(Self { state: AtomicU8::new(WAITING), wakes, ended: Notify::new() })
    }

    /// Notes that the event was passed to the broker's client; false if it was withdrawn before.
    pub(crate) fn send(&self) -> bool {
        let sent = self.state.compare_exchange(WAITING, SENT, Ordering::AcqRel, Ordering::Acquire);
        sent != Err(WITHDRAWN)
    }

    /// Notes that the broker did not take the event: it may be withdrawn again.
    pub(crate) fn unsend(&self) {
        let _ = self.state.compare_exchange(SENT, WAITING, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Withdraws the event; false if it was sent, or has an outcome.
    pub(crate) fn withdraw(&self) -> bool {
        let withdrawn =
            self.state.compare_exchange(WAITING, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if withdrawn {
            self.ended.notify_waiters();
        }
        withdrawn
    }

    /// Whether it was withdrawn.
    pub(crate) fn is_withdrawn(&self) -> bool {
        self.state.load(Ordering::Acquire) == WITHDRAWN
    }

    /// The outcome, if there is one.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        match self.state.load(Ordering::Acquire) {
            KEPT => Some(Outcome::Kept),
            DEAD_LETTERED => Some(Outcome::DeadLettered),
            FAILED => Some(Outcome::Failed),
            WITHDRAWN => Some(Outcome::Withdrawn),
            _ => None,
        }
    }

    /// Waits for the outcome. Any number may wait; cancel-safe.
    pub(crate) async fn wait(&self) -> Outcome {
        let ended = self.ended.notified();
        tokio::pin!(ended);
        loop {
            // Enlisted before the state is read: an outcome in between is not missed.
            ended.as_mut().enable();
            if let Some(outcome) = self.outcome() {
                return outcome;
            }
            ended.as_mut().await;
            ended.set(self.ended.notified());
        }
    }

    fn set(&self, outcome: Outcome) {
        let state = match outcome {
            Outcome::Kept => KEPT,
            Outcome::DeadLettered => DEAD_LETTERED,
            Outcome::Failed => FAILED,
            Outcome::Withdrawn => WITHDRAWN,
        };
        self.state.store(state, Ordering::Release);
    }
}

/// Completes a batch of waiters; each waiting thread is woken once.
pub(crate) fn complete_all(waiters: impl IntoIterator<Item = (Arc<Waiter>, Outcome)>) {
    let mut lists: Vec<Arc<WakeList>> = Vec::new();
    for (waiter, outcome) in waiters {
        waiter.set(outcome);
        let Some(wakes) = waiter.wakes.clone() else {
            waiter.ended.notify_waiters();
            continue;
        };
        wakes.ended.lock().push(waiter);
        if !lists.iter().any(|known| Arc::ptr_eq(known, &wakes)) {
            lists.push(wakes);
        }
    }
    for wakes in lists {
        wakes.news.notify_one();
    }
}

/// The completed waiters of one thread that are not woken yet.
#[derive(Debug, Default)]
pub(crate) struct WakeList {
    ended: Mutex<Vec<Arc<Waiter>>>,
    news: Notify,
}

impl WakeList {
    /// Wakes the tasks that wait on this thread, for ever; runs on that thread.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            self.news.notified().await;
            let ended = std::mem::take(&mut *self.ended.lock());
            for waiter in ended {
                waiter.ended.notify_waiters();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_either_sent_or_withdrawn() {
        let waiter = Waiter::new(None);
        assert!(waiter.send() && waiter.send(), "again after a lost session");
        assert!(!waiter.withdraw());
        waiter.unsend();
        assert!(waiter.withdraw() && !waiter.send(), "the broker did not take it");
        waiter.unsend();
        assert!(waiter.is_withdrawn());
        let waiter = Waiter::new(None);
        assert!(waiter.withdraw() && !waiter.send());
        assert_eq!(waiter.outcome(), Some(Outcome::Withdrawn));
    }

    #[tokio::test]
    async fn wakes_all_who_wait_once_it_has_ended() {
        let wakes = Arc::new(WakeList::default());
        let delivering = tokio::spawn(wakes.clone().run());
        let waiter = Waiter::new(Some(wakes));
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let waiter = waiter.clone();
                tokio::spawn(async move { waiter.wait().await })
            })
            .collect();
        tokio::task::yield_now().await;
        complete_all([(waiter.clone(), Outcome::Kept)]);
        for waiter in waiting {
            assert_eq!(waiter.await.unwrap(), Outcome::Kept);
        }
        assert_eq!(waiter.wait().await, Outcome::Kept, "also for a late caller");
        delivering.abort();
    }
}
