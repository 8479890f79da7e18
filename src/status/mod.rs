//! The state that the bridge reports through admin and metrics: counts, the broker, refusals, deviations, reloads,
//! heartbeats.

mod broker;
mod deviating;
mod heartbeat;
mod ledger;
mod observed;
mod reasons;
mod refusals;
mod reloads;

pub(crate) use broker::{BrokerStatus, ConnectionState, WaitingAddress};
pub(crate) use deviating::{DeviatingEvents, EventName};
pub(crate) use heartbeat::{Heartbeat, stalled};
pub(crate) use ledger::{
    JournalState, Ledger, Limits, MOST_EVENTS, MOST_PAIRS, PairBook, Snapshot, SourceBook, Totals,
};
pub(crate) use observed::Observed;
pub(crate) use reasons::{Decision, ErrorKind, KeptReason, Loss, Reason, RefusalReason};
pub(crate) use refusals::{RecentRefusal, RequestKind, UnknownPath, UnknownPaths, meant};
pub(crate) use reloads::{Reload, Reloads};
