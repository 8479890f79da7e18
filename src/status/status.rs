//! The state that the bridge reports, as one object: each part writes its own, admin and metrics read all of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;

use crate::process::logs::Throttle;
use crate::status::deviating::Deviating;
use crate::status::refused_requests::Recent;
use crate::status::time::timestamp;
use crate::status::{BrokerStatus, Heartbeats, UnknownPaths};

/// The state that the bridge reports, beside what the queue counts under its lock.
#[derive(Debug, Default)]
pub(crate) struct Status {
    /// The threads that must not stall.
    pub(crate) heartbeats: Heartbeats,
    /// The settings in force, and the results of their reloads.
    pub(crate) reloads: Mutex<Reloads>,
    /// The senders' connections.
    pub(crate) connections: Mutex<ConnectionCounts>,
    /// The sources and the certificate.
    pub(crate) ingress: Mutex<IngressStatus>,
    /// The observations about each source, by its name; none is ever removed, so that counters never fall.
    pub(crate) observed: Mutex<BTreeMap<Arc<str>, Arc<Observed>>>,
    /// The most recent unknown paths.
    pub(crate) unknown_paths: UnknownPaths,
    /// The broker's name.
    pub(crate) broker_name: &'static str,
    /// The broker, as delivery sees it.
    pub(crate) broker: BrokerStatus,
    /// The dead letters, if there is a state directory.
    pub(crate) dead_letters: Option<Arc<Mutex<StoreCounts>>>,
    /// The bodies kept as invalid, if there is a state directory.
    pub(crate) invalid: Option<Arc<Mutex<StoreCounts>>>,
}

impl Status {
    /// The observations about a source.
    pub(crate) fn observed(&self, source: &Arc<str>) -> Arc<Observed> {
        self.observed.lock().entry(source.clone()).or_default().clone()
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
    /// The most bytes: `max_bytes` of its table in force.
    pub(crate) capacity: u64,
    /// Letters written since the start.
    pub(crate) kept: u64,
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
    /// Whether it requires a signature.
    pub(crate) is_signed: bool,
    /// The ids of its secrets.
    pub(crate) secrets: Vec<Arc<str>>,
    /// The observations.
    pub(crate) observed: Arc<Observed>,
}

/// Observations of one source beside the ledger, for the log and for `/status`; they are kept across reloads.
#[derive(Debug)]
pub(crate) struct Observed {
    /// The last refusals.
    pub(crate) recent: Recent,
    /// The deviations of accepted payloads from the documented one.
    pub(crate) deviating: Deviating,
    /// The rate limit for lines about connection tests.
    pub(crate) tests: Throttle,
    /// The rate limit for lines about bodies that cannot be kept.
    pub(crate) unkept: Throttle,
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            recent: Recent::default(),
            deviating: Deviating::default(),
            tests: Throttle::new("connection tests", 1, Duration::from_secs(1)),
            unkept: Throttle::new("signed bodies that cannot be kept", 1, Duration::from_secs(10)),
        }
    }
}

/// The last reload. Keys, never values.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Reload {
    /// The time of the reload.
    #[serde(rename = "timestamp_seconds", serialize_with = "timestamp")]
    pub(crate) at: SystemTime,
    /// The keys that changed since the previous load.
    pub(crate) changed: Vec<String>,
    /// The keys that differ from the start and need a restart to take effect.
    pub(crate) needs_restart: Vec<String>,
    /// The reason why everything stayed as it was, if it did, or still stays since a reload was asked for.
    pub(crate) error: Option<String>,
}

/// The trigger of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// An operator asked for it: everything was read.
    Asked,
    /// The files of secrets and certificates alone were read.
    Files,
}

/// The settings in force, and all reloads since the start.
#[derive(Debug, Default)]
pub(crate) struct Reloads {
    /// The last reload.
    pub(crate) last: Option<Reload>,
    /// The error of the last reload that was asked for. What was refused then is not in force until one succeeds, however
    /// often files alone are read meanwhile.
    refused: Option<String>,
    /// The number of successful reloads.
    pub(crate) good: u64,
    /// The number of failed reloads.
    pub(crate) bad: u64,
    /// The settings in force, with the origin of each.
    pub(crate) in_force: Value,
}

impl Reloads {
    /// Records a reload.
    pub(crate) fn note(&mut self, mut reload: Reload, trigger: Trigger) {
        *(if reload.error.is_some() { &mut self.bad } else { &mut self.good }) += 1;
        match trigger {
            Trigger::Asked => self.refused.clone_from(&reload.error),
            Trigger::Files => reload.error = reload.error.or_else(|| self.refused.clone()),
        }
        self.last = Some(reload);
    }
}
