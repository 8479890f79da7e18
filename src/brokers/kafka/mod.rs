//! Kafka, by an idempotent producer that keeps order and retries by itself; the only user of rdkafka.
//!
//! `settings`, `security` and `properties` read and check, `client` is one producer with what it reports, `topology` looks
//! for and creates topics, `record` knows sizes and `times` the times of records, `connect` makes sessions, `session` hands
//! over and judges by the table in `codes`, `batch` says how much at once, `topics` asks before a topic counts as missing,
//! `silence` looks why a topic gives no answer, `rights` what a login may
//! not do.

mod batch;
mod client;
mod codes;
mod connect;
mod properties;
mod record;
mod rights;
mod security;
mod session;
mod settings;
mod silence;
#[cfg(test)]
mod tests;
mod times;
mod topics;
mod topology;

pub(crate) use connect::Kafka;
pub(crate) use settings::Settings;
