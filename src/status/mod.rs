//! The state that the bridge reports through admin and metrics: counts, the broker, the sources, refusals, deviations,
//! reloads, heartbeats.

mod broker;
mod deviating;
mod heartbeat;
mod ledger;
mod reasons;
mod refused_requests;
mod status;
mod time;

pub(crate) use broker::{BrokerSnapshot, BrokerStatus, ConnectionState, WaitingAddress};
pub(crate) use deviating::{DeviatingEvents, EventName};
pub(crate) use heartbeat::{Heartbeat, Heartbeats};
pub(crate) use ledger::{
    JournalState, Ledger, Limits, MOST_EVENTS, MOST_PAIRS, PairBook, Snapshot, SourceBook, Totals,
};
pub(crate) use reasons::{Decision, ErrorKind, KeptReason, Loss, Reason, RefusalReason};
pub(crate) use refused_requests::{RecentRefusal, RequestKind, UnknownPaths, meant};
pub(crate) use status::{IngressStatus, Observed, Reload, Reloads, SourceStatus, Status, StoreCounts, Trigger};
pub(crate) use time::unix_seconds;
