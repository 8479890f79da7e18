//! The successor: the broker that replaces the current one, once a reload has changed routes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::brokers::Broker;

/// The slot in which it waits for the delivery task, which replaces the broker when nothing is in flight.
#[derive(Default)]
pub(crate) struct Successor {
    broker: Mutex<Option<Box<dyn Broker>>>,
    came: Notify,
}

impl Successor {
    /// Replaces the pending broker, if any, by the same broker in the same place, with other routes. Events accepted
    /// from now on use them.
    pub(crate) fn put(&self, broker: Box<dyn Broker>) {
        *self.lock() = Some(broker);
        self.came.notify_one();
    }

    /// Whether one is pending.
    pub(super) fn waits(&self) -> bool {
        self.lock().is_some()
    }

    /// Takes the pending broker.
    pub(super) fn take(&self) -> Option<Box<dyn Broker>> {
        self.lock().take()
    }

    /// Resolves while one is pending. Only for one task at a time.
    pub(super) async fn come(&self) {
        while !self.waits() {
            self.came.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<dyn Broker>>> {
        self.broker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
