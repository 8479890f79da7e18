//! The phases of stopping, told to every part at once: serve, leave (unready, still serving), close, drain.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::settings::Section;

/// `[shutdown]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Unready, still serving.
    pub(crate) delay: Duration,
    /// Everything after that.
    pub(crate) grace: Duration,
}

impl Settings {
    /// Reads `[shutdown]`.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        Self { delay: section.duration("delay"), grace: section.duration("grace") }
    }
}

/// Where the stop stands; it only goes forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not stopping.
    Serving,
    /// Unready, but everything is still served: balancers look elsewhere meanwhile.
    Leaving,
    /// No new connections, no new requests; those begun are finished.
    Closing,
    /// Nothing comes any more: deliver what is held, until the deadline.
    Draining,
}

#[derive(Clone, Copy, Debug)]
struct Stop {
    phase: Phase,
    deadline: Option<Instant>,
}

/// The one who tells.
#[derive(Debug)]
pub(crate) struct Stopper(watch::Sender<Stop>);

/// One who listens.
#[derive(Clone, Debug)]
pub(crate) struct Drain(watch::Receiver<Stop>);

/// Both ends.
#[must_use]
pub(crate) fn channel() -> (Stopper, Drain) {
    let (sender, receiver) = watch::channel(Stop { phase: Phase::Serving, deadline: None });
    (Stopper(sender), Drain(receiver))
}

impl Stopper {
    /// Goes on to a phase.
    pub(crate) fn enter(&self, phase: Phase) {
        self.0.send_modify(|stop| stop.phase = phase);
    }

    /// Sets when all must be over; only ever earlier.
    pub(crate) fn deadline(&self, at: Instant) {
        self.0.send_modify(|stop| stop.deadline = Some(stop.deadline.map_or(at, |deadline| deadline.min(at))));
    }

    /// For how long all should have been over.
    #[must_use]
    pub(crate) fn overdue(&self) -> Duration {
        self.0.borrow().deadline.map_or(Duration::ZERO, |deadline| deadline.elapsed())
    }
}

impl Drain {
    /// Where the stop stands.
    #[must_use]
    pub(crate) fn phase(&self) -> Phase {
        self.0.borrow().phase
    }

    /// Whether nothing comes any more.
    #[must_use]
    pub(crate) fn has_begun(&self) -> bool {
        self.phase() == Phase::Draining
    }

    /// Waits until a phase is reached.
    pub(crate) async fn reached(&self, phase: Phase) {
        let mut receiver = self.0.clone();
        // The stopper lives as long as the program; without it nothing is ever stopped.
        if receiver.wait_for(|stop| stop.phase as u8 >= phase as u8).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until nothing comes any more.
    pub(crate) async fn begun(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Waits for the deadline, which may be moved forward meanwhile.
    pub(crate) async fn deadline(&self) {
        let mut receiver = self.0.clone();
        loop {
            let deadline = receiver.borrow_and_update().deadline;
            let passed = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = passed => return,
                changed = receiver.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
            }
        }
    }

    /// How much time is left; none while there is no deadline.
    #[must_use]
    pub(crate) fn remaining(&self) -> Option<Duration> {
        let deadline = self.0.borrow().deadline?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }
}
