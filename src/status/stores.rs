//! The contents of the stores of letters, counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// The contents of a store, and the fate of letters since the start, counted for metrics and `/status`.
#[derive(Debug, Default)]
pub(crate) struct StoreCounts {
    pub(crate) events: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) capacity: u64,
    pub(crate) kept: AtomicU64,
    pub(crate) returned: AtomicU64,
    pub(crate) dropped: AtomicU64,
}

impl StoreCounts {
    /// Letters on disk.
    pub(crate) fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// Bytes on disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The most bytes.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Letters written since the start.
    pub(crate) fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }

    /// The letters among them whose events were replayed and refused again.
    pub(crate) fn returned(&self) -> u64 {
        self.returned.load(Ordering::Relaxed)
    }

    /// Letters that were dropped or could not be kept since the start.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Counts letters that could not be kept.
    pub(crate) fn drop_some(&self, count: u64) {
        self.dropped.fetch_add(count, Ordering::Relaxed);
    }
}
