//! The brokers: the contract that each of them keeps, and their list.

mod contract;
mod dial;
mod file;
mod headers;
#[cfg(feature = "kafka")]
mod kafka;
mod list;
#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
mod look;
#[cfg(feature = "nats")]
mod nats;
#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
mod oauth;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
mod routes;
mod template;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod tls;

pub(crate) use contract::*;
pub(crate) use headers::*;
pub(crate) use list::{BUILT_IN, NAMES, Settings};
pub(crate) use routes::*;
