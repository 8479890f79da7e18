//! What every test stands on: the real daemon, real brokers, a proxy that breaks things, load, and the oracle.

mod bridge;
mod broker;
mod consumer;
mod daemon;
pub(crate) mod files;
mod http;
mod load;
mod node;
mod oracle;
mod payload;
mod program;
mod proxy;
mod python;
mod raw;
mod setup;
mod sign;
mod table;
mod wait;

pub(crate) use bridge::{Bridge, Counters};
pub(crate) use broker::{Broker, Kind, ports};
pub(crate) use consumer::Consumer;
pub(crate) use daemon::{Daemon, Status, Stopped, request_once};
pub(crate) use http::{Answer, Client, get};
pub(crate) use load::{Load, Note, Outcome, Sent};
pub(crate) use node::node_signs;
pub(crate) use oracle::{Delivered, Oracle, assert_books_balance};
pub(crate) use payload::{Payload, UNICODE};
pub(crate) use program::{Ended, Program};
pub(crate) use proxy::Proxy;
pub(crate) use python::{admin, cache, documented_headers, fit_the_schema, interpreter, read};
pub(crate) use raw::{plain, rest, statuses, until_closed, until_closed_by_both};
pub(crate) use setup::{PATH, SECRET, Setup, said};
pub(crate) use sign::sign;
pub(crate) use table::Table;
pub(crate) use wait::{LIMIT, heavy, long, random, unique, wait_for, wait_until};
