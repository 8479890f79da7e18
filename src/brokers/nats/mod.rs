//! NATS JetStream: one connection per session, its own reply inbox, acknowledgements read by us.
//!
//! The client library reconnects by itself and would send new messages before old ones; `connection` makes that
//! impossible, so that order stays with the delivery task. Nothing outside this folder names the library.

mod acknowledgement;
mod block;
mod broker;
mod codes;
mod connection;
mod dial;
mod login;
mod progress;
mod rights;
mod session;
mod settings;
mod stream;
mod subjects;
mod tls;
mod topology;

pub(crate) use broker::Nats;
pub(crate) use settings::Settings;
