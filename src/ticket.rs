//! The ticket of an event that somebody waits for: one atomic state, and who is told when it ends.
//!
//! Whoever settles events (the journal's writer, delivery) does so in batches, on a thread of its own. Each waiting
//! thread has a [`Mailbox`] and is woken once per batch, not once per event.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What the mode promises has happened: it is in the journal, or confirmed, or a dead letter.
    Kept,
    /// It could not be kept.
    Failed,
    /// Its sender gave up before it was sent.
    Withdrawn,
}

const WAITING: u8 = 0;
const SENT: u8 = 1;
const KEPT: u8 = 2;
const FAILED: u8 = 3;
const WITHDRAWN: u8 = 4;

/// The state of one event that somebody waits for.
#[derive(Debug)]
pub struct Ticket {
    state: AtomicU8,
    home: Option<Arc<Mailbox>>,
    ended: Notify,
}

impl Ticket {
    /// A ticket for somebody on the thread of this mailbox; without one, waiters are woken directly.
    #[must_use]
    pub fn new(home: Option<Arc<Mailbox>>) -> Arc<Self> {
        Arc::new(Self { state: AtomicU8::new(WAITING), home, ended: Notify::new() })
    }

    /// Notes that the event is given to the broker's client; false where it was withdrawn before.
    #[must_use]
    pub fn send(&self) -> bool {
        let sent = self.state.compare_exchange(WAITING, SENT, Ordering::AcqRel, Ordering::Acquire);
        sent != Err(WITHDRAWN)
    }

    /// Takes the event back; false where it was sent, or has ended.
    #[must_use]
    pub fn withdraw(&self) -> bool {
        let withdrawn =
            self.state.compare_exchange(WAITING, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if withdrawn {
            self.ended.notify_waiters();
        }
        withdrawn
    }

    /// Whether it was taken back.
    #[must_use]
    pub fn is_withdrawn(&self) -> bool {
        self.state.load(Ordering::Acquire) == WITHDRAWN
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        match self.state.load(Ordering::Acquire) {
            KEPT => Some(Outcome::Kept),
            FAILED => Some(Outcome::Failed),
            WITHDRAWN => Some(Outcome::Withdrawn),
            _ => None,
        }
    }

    /// Waits for the end. Any number may wait; cancel-safe.
    pub async fn wait(&self) -> Outcome {
        let ended = self.ended.notified();
        tokio::pin!(ended);
        loop {
            // Enlisted before the look at the state: an end in between is not missed.
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
            Outcome::Failed => FAILED,
            Outcome::Withdrawn => WITHDRAWN,
        };
        self.state.store(state, Ordering::Release);
    }
}

/// Ends a batch of tickets; each thread that waits for some is woken once.
pub fn end(tickets: impl IntoIterator<Item = (Arc<Ticket>, Outcome)>) {
    let mut homes: Vec<Arc<Mailbox>> = Vec::new();
    for (ticket, outcome) in tickets {
        ticket.set(outcome);
        let Some(home) = ticket.home.clone() else {
            ticket.ended.notify_waiters();
            continue;
        };
        home.ended.lock().unwrap_or_else(PoisonError::into_inner).push(ticket);
        if !homes.iter().any(|known| Arc::ptr_eq(known, &home)) {
            homes.push(home);
        }
    }
    for home in homes {
        home.news.notify_one();
    }
}

/// Where a thread finds the tickets that have ended.
#[derive(Debug, Default)]
pub struct Mailbox {
    ended: Mutex<Vec<Arc<Ticket>>>,
    news: Notify,
}

impl Mailbox {
    /// Wakes those who wait on this thread, for ever; runs on that thread.
    pub async fn deliver(self: Arc<Self>) {
        loop {
            self.news.notified().await;
            let ended = std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner));
            for ticket in ended {
                ticket.ended.notify_waiters();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_either_sent_or_withdrawn() {
        let ticket = Ticket::new(None);
        assert!(ticket.send() && ticket.send(), "again after a lost session");
        assert!(!ticket.withdraw());
        let ticket = Ticket::new(None);
        assert!(ticket.withdraw() && !ticket.send());
        assert_eq!(ticket.outcome(), Some(Outcome::Withdrawn));
    }

    #[tokio::test]
    async fn wakes_all_who_wait_once_it_has_ended() {
        let mailbox = Arc::new(Mailbox::default());
        let delivering = tokio::spawn(mailbox.clone().deliver());
        let ticket = Ticket::new(Some(mailbox));
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let ticket = ticket.clone();
                tokio::spawn(async move { ticket.wait().await })
            })
            .collect();
        tokio::task::yield_now().await;
        end([(ticket.clone(), Outcome::Kept)]);
        for waiter in waiting {
            assert_eq!(waiter.await.unwrap(), Outcome::Kept);
        }
        assert_eq!(ticket.wait().await, Outcome::Kept, "also for one who comes late");
        delivering.abort();
    }
}
