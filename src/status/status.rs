//! The state that the bridge reports, as one object: each part writes its own, admin and metrics read all of it.

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::metrics::Metrics;
use crate::status::{BrokerStatus, Heartbeats, Observed, Reloads, UnknownPaths};

/// The state that the bridge reports, beside what the queue counts under its lock.
#[derive(Debug, Default)]
pub(crate) struct Status {
    /// All series.
    pub(crate) metrics: Arc<Metrics>,
    /// The threads that must not stall.
    pub(crate) heartbeats: Heartbeats,
    /// The settings in force, and the results of their reloads.
    pub(crate) reloads: Mutex<Reloads>,
    /// The senders' connections.
    pub(crate) connections: Mutex<ConnectionCounts>,
    /// The sources and the certificate.
    pub(crate) ingress: Mutex<IngressStatus>,
    /// The most recent unknown paths.
    pub(crate) unknown_paths: UnknownPaths,
    /// The broker's name.
    pub(crate) broker_name: &'static str,
    /// The broker, as delivery sees it.
    pub(crate) broker: BrokerStatus,
    /// The dead letters, if there is a state directory.
    pub(crate) dead_letters: Option<Arc<Mutex<StoreCounts>>>,
    /// `dead_letters.max_bytes`.
    pub(crate) dead_letters_capacity: u64,
    /// The bodies kept as invalid, if there is a state directory.
    pub(crate) invalid: Option<Arc<Mutex<StoreCounts>>>,
}

impl Status {
    /// The observations about a source, which are kept by its name.
    pub(crate) fn observed(&self, source: &str) -> Arc<Observed> {
        let ingress = self.ingress.lock();
        let known = ingress.sources.iter().find(|known| *known.name == *source);
        known.map(|known| known.observed.clone()).unwrap_or_default()
    }
}

/// The connections of senders.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ConnectionCounts {
    /// The number of open connections.
    pub(crate) open: usize,
    /// `ingress.max_connections`.
    pub(crate) capacity: usize,
}

/// The contents of a store of letters, and the fate of letters since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StoreCounts {
    /// Letters on disk.
    pub(crate) events: u64,
    /// Bytes on disk.
    pub(crate) bytes: u64,
    /// The most bytes.
    pub(crate) capacity: u64,
    /// Letters written since the start.
    pub(crate) kept: u64,
    /// The letters among them whose events were replayed and refused again.
    pub(crate) returned: u64,
    /// Letters that were dropped or could not be kept since the start.
    pub(crate) dropped: u64,
}

/// The settings of the ingress that are reported.
#[derive(Clone, Debug, Default)]
pub(crate) struct IngressStatus {
    /// The sources.
    pub(crate) sources: Vec<SourceStatus>,
    /// The time at which the server's certificate expires, if there is one.
    pub(crate) certificate_not_after: Option<SystemTime>,
}

/// One source: what its settings say, and what was observed.
#[derive(Clone, Debug)]
pub(crate) struct SourceStatus {
    /// The number of its book in the ledger.
    pub(crate) number: usize,
    /// The name.
    pub(crate) name: Arc<str>,
    /// The path it answers.
    pub(crate) path: String,
    /// The name of its validation.
    pub(crate) validation: &'static str,
    /// The ids of its secrets; none if it requires no signature.
    pub(crate) secrets: Vec<Arc<str>>,
    /// The observations.
    pub(crate) observed: Arc<Observed>,
}
