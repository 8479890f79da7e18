//! Kafka, by an idempotent producer that keeps order and retries by itself; the only user of rdkafka.
//!
//! `settings` and `properties` read and check, `client` is one producer with what it reports, `topology` looks for
//! and creates topics, `record` knows sizes, `connect` makes sessions, `session` hands over and judges, `batch` says
//! how much at once, `questions` asks before a topic counts as missing.

mod batch;
mod client;
mod connect;
mod properties;
mod questions;
mod record;
mod session;
mod settings;
#[cfg(test)]
mod tests;
mod topology;

pub(crate) use connect::Kafka;
pub(crate) use settings::Settings;
