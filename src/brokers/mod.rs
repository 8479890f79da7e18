//! What a broker is to the bridge: the contract that every broker keeps, and the list of them.

mod contract;
mod dial;
pub(crate) mod file;
mod headers;
pub(crate) mod kafka;
mod list;
pub(crate) mod nats;
pub(crate) mod rabbitmq;
mod routes;
mod template;

pub(crate) use contract::{
    Broker, Cause, ConnectError, ErrorKind, Finding, Position, Refusal, RefusalReason, Sent, Sequence, Session,
    SessionError, Terms, Topology, Verdict,
};
pub(crate) use headers::{Encoding, HeaderStyle, Headers, LARGEST_HEADERS};
pub(crate) use list::{NAMES, Settings};
pub(crate) use routes::{Route, Router, TemplateNames};
