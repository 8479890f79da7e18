//! The successor: the broker and the routes that a reload puts in place of the current ones. It connects while the old
//! session is in use, which remains with its routes if that fails.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::sleep_until;

use crate::brokers::{Broker, ConnectError, ErrorKind, Finding, Router, Session};
use crate::delivery::backoff::Backoff;

/// The time that a connected successor waits for messages in flight.
const HANDOVER: Duration = Duration::from_secs(10);

/// A broker, and the routes of the same settings.
pub(crate) struct RoutedBroker {
    /// The broker, which connects.
    pub(crate) broker: Box<dyn Broker>,
    /// The routes of the same settings.
    pub(crate) router: Router,
}

/// The part of the broker that a reload has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Its location and credentials.
    Connection,
    /// The routes, too: no event that is accepted from now on goes to an old address, if the successor connects.
    Routes,
}

/// The slot in which it waits for the delivery task.
#[derive(Default)]
pub(crate) struct Successor {
    pending: Mutex<Option<(RoutedBroker, Change)>>,
    came: Notify,
}

impl Successor {
    /// Replaces the pending broker, if any, by the same broker with other settings.
    pub(crate) fn put(&self, broker: RoutedBroker, change: Change) {
        let mut pending = self.pending.lock();
        let routes = pending.as_ref().is_some_and(|(_, change)| *change == Change::Routes);
        *pending = Some((broker, if routes { Change::Routes } else { change }));
        drop(pending);
        self.came.notify_one();
    }

    /// Whether one is pending.
    pub(super) fn waits(&self) -> bool {
        self.pending.lock().is_some()
    }

    /// Takes the pending broker.
    pub(super) fn take(&self) -> Option<(RoutedBroker, Change)> {
        self.pending.lock().take()
    }

    /// Resolves while one is pending. Only for one task at a time.
    pub(super) async fn come(&self) {
        while !self.waits() {
            self.came.notified().await;
        }
    }
}

/// A session and what its connect found.
pub(super) type Connected = (Box<dyn Session>, Vec<Finding>);

/// An attempt of the successor to connect; ended when dropped.
struct Attempt(JoinHandle<(RoutedBroker, Result<Connected, ConnectError>)>);

impl Attempt {
    fn begin(mut next: RoutedBroker) -> Self {
        Self(tokio::spawn(async move {
            let connected = next.broker.connect().await;
            (next, connected)
        }))
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Default)]
enum TakeoverStage {
    /// There is no successor.
    #[default]
    None,
    Connecting(Attempt),
    /// It could not connect, and tries again at this time.
    Failed(RoutedBroker, tokio::time::Instant),
    /// It is connected since this time, and the messages in flight on the old session are waited for.
    Ready(RoutedBroker, Connected, Instant),
}

/// The progress of a successor.
pub(super) struct Takeover {
    stage: TakeoverStage,
    /// New events wait for the first attempt: they belong to its routes.
    holds: bool,
    /// Without a session the successor and the old broker take turns.
    old_is_next: bool,
    /// The successor has other routes than those by which addresses were rendered.
    has_other_routes: bool,
    backoff: Backoff,
}

impl Takeover {
    /// No successor; one that cannot connect tries again after these times.
    pub(super) fn new(backoff: Backoff) -> Self {
        Self { stage: TakeoverStage::None, holds: false, old_is_next: false, has_other_routes: false, backoff }
    }

    /// Lets this broker connect, in place of the successor before it.
    pub(super) fn begin(&mut self, broker: RoutedBroker, change: Change) {
        let holds = match self.stage {
            TakeoverStage::None | TakeoverStage::Failed(..) => false,
            TakeoverStage::Connecting(_) => self.holds,
            // Nothing was sent by the old routes since.
            TakeoverStage::Ready(..) => self.has_other_routes,
        };
        self.holds = change == Change::Routes || holds;
        self.has_other_routes |= change == Change::Routes;
        self.stage = TakeoverStage::Connecting(Attempt::begin(broker));
        self.backoff.reset();
    }

    /// Forgets the successor, because another one is in use at once.
    pub(super) fn give_up(&mut self, change: Change) {
        (self.stage, self.holds) = (TakeoverStage::None, false);
        self.has_other_routes |= change == Change::Routes;
    }

    /// Whether a successor is in use, since the last call, whose routes are others than those before.
    pub(super) fn takes_other_routes(&mut self) -> bool {
        let is_in_use = matches!(self.stage, TakeoverStage::None);
        is_in_use && std::mem::take(&mut self.has_other_routes)
    }

    /// Whether new events wait for it.
    pub(super) fn holds(&self) -> bool {
        self.holds
    }

    /// Whether it is connected, so that nothing more is sent on the old session.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.stage, TakeoverStage::Ready(..))
    }

    /// Whether messages in flight have been waited for long enough.
    pub(super) fn is_late(&self) -> bool {
        matches!(self.stage, TakeoverStage::Ready(_, _, since) if since.elapsed() >= HANDOVER)
    }

    /// Resolves when the successor has connected, or with the error when it could not. Cancel-safe.
    pub(super) async fn news(&mut self) -> Option<ConnectError> {
        if let TakeoverStage::Failed(_, again) = &self.stage {
            sleep_until(*again).await;
            self.retry();
        }
        let TakeoverStage::Connecting(attempt) = &mut self.stage else { return std::future::pending().await };
        let ended = (&mut attempt.0).await;
        self.holds = false;
        match ended {
            Ok((broker, Ok(connected))) => self.stage = TakeoverStage::Ready(broker, connected, Instant::now()),
            Ok((broker, Err(error))) => {
                let again = tokio::time::Instant::now() + self.backoff.next();
                self.stage = TakeoverStage::Failed(broker, again);
                return Some(error);
            }
            Err(_) => {
                self.stage = TakeoverStage::None;
                return Some(ConnectError::new(ErrorKind::Connect, "the attempt to connect panicked"));
            }
        }
        None
    }

    /// Connects where there is no session: the successor, which then is in use, and in turn with it the broker before
    /// it. May be dropped at any time.
    pub(super) async fn connect(
        &mut self,
        broker: &mut Box<dyn Broker>,
        router: &mut Router,
    ) -> Result<Connected, ConnectError> {
        if matches!(self.stage, TakeoverStage::Failed(..)) {
            self.old_is_next = !self.old_is_next;
            if !self.old_is_next {
                self.retry();
            }
        }
        if matches!(self.stage, TakeoverStage::Connecting(_))
            && let Some(error) = self.news().await
        {
            return Err(error);
        }
        match std::mem::take(&mut self.stage) {
            TakeoverStage::Ready(successor, connected, _) => {
                (*broker, *router) = (successor.broker, successor.router);
                Ok(connected)
            }
            stage => {
                self.stage = stage;
                broker.connect().await
            }
        }
    }

    fn retry(&mut self) {
        self.stage = match std::mem::take(&mut self.stage) {
            TakeoverStage::Failed(broker, _) => TakeoverStage::Connecting(Attempt::begin(broker)),
            stage => stage,
        };
    }
}
