//! What every test stands on: the real daemon, its settings, a client in plain sight.

mod bridge;
mod daemon;
mod http;
mod node;
mod payload;
mod program;
mod raw;
mod setup;
mod sign;
mod table;
mod wait;

pub(crate) use bridge::{Arrived, Bridge, Counters, short};
pub(crate) use daemon::{Daemon, Stopped};
pub(crate) use http::{Answer, Client, get};
pub(crate) use node::node_signs;
pub(crate) use payload::{Payload, UNICODE};
pub(crate) use program::{Ended, Program};
pub(crate) use raw::{plain, rest, statuses, until_closed, until_closed_by_both};
pub(crate) use setup::{PATH, SECRET, Setup};
pub(crate) use sign::sign;
pub(crate) use table::Table;
pub(crate) use wait::{LIMIT, wait_for, wait_until};
