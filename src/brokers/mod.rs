//! What a broker is to the bridge: the contract that every broker keeps, and the list of them.

mod contract;
pub mod file;
mod headers;
pub mod kafka;
mod list;
pub mod nats;
pub mod rabbitmq;
mod routes;

pub use contract::{
    Broker, ConnectError, ErrorKind, Finding, Handed, Refusal, RefusalReason, Session, SessionError, Suspect,
    Terms, Ticket, Topology, Verdict,
};
pub use headers::{Encoding, HeaderStyle, Headers, LARGEST_HEADERS};
pub use list::{NAMES, Settings};
pub use routes::{Legal, Route, Router, Shape};
