//! Successor: the broker that takes over from the one in force, once a reload has changed where events go.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::brokers::Broker;

/// Where it waits for the delivery task, which lets it take over when nothing is in flight.
#[derive(Default)]
pub(crate) struct Successor {
    broker: Mutex<Option<Box<dyn Broker>>>,
    came: Notify,
}

impl Successor {
    /// This one shall take over, instead of any that still waits: the same broker in the same place, with other routes.
    /// What is accepted from now on goes where it says.
    pub(crate) fn put(&self, broker: Box<dyn Broker>) {
        *self.lock() = Some(broker);
        self.came.notify_one();
    }

    /// Whether one waits.
    pub(super) fn waits(&self) -> bool {
        self.lock().is_some()
    }

    /// The one that waits.
    pub(super) fn take(&self) -> Option<Box<dyn Broker>> {
        self.lock().take()
    }

    /// Resolves while one waits. Only for one task at a time.
    pub(super) async fn come(&self) {
        while !self.waits() {
            self.came.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<dyn Broker>>> {
        self.broker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
