//! The phases of stopping, announced to every part at once: serve, leave (unready, still serving), close, drain.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::settings::Section;

/// `[shutdown]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// The time for which the bridge is unready and still serves.
    pub(crate) delay: Duration,
    /// The time for everything after that.
    pub(crate) grace: Duration,
}

impl Settings {
    /// Reads `[shutdown]`.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        Self { delay: section.duration("delay"), grace: section.duration("grace") }
    }
}

/// The time beyond the deadline that all waits for a disk share.
const OVERTIME: Duration = Duration::from_secs(5);

/// The part of it that is left for the end of the journal, once delivery has ended.
const LAST: Duration = Duration::from_secs(1);

/// The phases of the stop; they only advance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not stopping.
    Serving,
    /// Unready, but everything is still served, while balancers switch to other instances.
    Leaving,
    /// No new connections, no new requests; those that have begun are finished.
    Closing,
    /// No more requests arrive: deliver what is held, until the deadline.
    Draining,
}

#[derive(Clone, Copy, Debug)]
struct Stop {
    phase: Phase,
    deadline: Option<Instant>,
}

impl Stop {
    fn overtime(self) -> Duration {
        OVERTIME.saturating_sub(self.deadline.map_or(Duration::ZERO, |deadline| deadline.elapsed()))
    }
}

/// The sending end: announces phases and the deadline.
#[derive(Debug)]
pub(crate) struct Stopper(watch::Sender<Stop>);

/// The receiving end.
#[derive(Clone, Debug)]
pub(crate) struct Drain(watch::Receiver<Stop>);

/// Creates both ends.
pub(crate) fn channel() -> (Stopper, Drain) {
    let (sender, receiver) = watch::channel(Stop { phase: Phase::Serving, deadline: None });
    (Stopper(sender), Drain(receiver))
}

impl Stopper {
    /// Advances to a phase.
    pub(crate) fn enter(&self, phase: Phase) {
        self.0.send_modify(|stop| stop.phase = phase);
    }

    /// Sets the deadline for everything; it can only become earlier.
    pub(crate) fn deadline(&self, at: Instant) {
        self.0.send_modify(|stop| stop.deadline = Some(stop.deadline.map_or(at, |deadline| deadline.min(at))));
    }

    /// The time that the end may wait for a disk now; however many wait, none does so 5 s after the deadline.
    pub(crate) fn overtime(&self) -> Duration {
        self.0.borrow().overtime()
    }
}

impl Drain {
    /// The current phase.
    pub(crate) fn phase(&self) -> Phase {
        self.0.borrow().phase
    }

    /// Whether no more requests arrive.
    pub(crate) fn has_begun(&self) -> bool {
        self.phase() == Phase::Draining
    }

    /// Waits until a phase is reached.
    pub(crate) async fn reached(&self, phase: Phase) {
        let mut receiver = self.0.clone();
        // The stopper exists as long as the program; without it nothing is ever stopped.
        if receiver.wait_for(|stop| stop.phase as u8 >= phase as u8).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until no more requests arrive.
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

    /// The time that delivery may wait for a disk at its end.
    pub(crate) fn overtime(&self) -> Duration {
        self.0.borrow().overtime().saturating_sub(LAST)
    }

    /// The time left; none if there is no deadline.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        let deadline = self.0.borrow().deadline?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }
}
