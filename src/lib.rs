//! plextrac-bridge: PlexTrac's webhooks in, verified and validated; messages out to Kafka, RabbitMQ or NATS.
//!
//! # The way of an event
//! ```text
//!  ingress threads (one per core)                       delivery task (one)
//!  accept -> verify -> validate -> enqueue -> 200       publish -> settle
//!                                     |                    ^
//!                                     +-- bounded buffer --+     (or the journal)
//! ```
//! The same six words name files, functions, metrics and logs. From enqueue on nothing that counts or settles lives
//! in the request's future, which hyper drops when the sender leaves.
//!
//! # The map
//! | module | owns |
//! |---|---|
//! | [`app`] | the parts, their threads, reloads, memory, the order of stopping: the only file that knows all parts |
//! | [`ingress`] | accept, verify, validate, deduplicate, the answer |
//! | [`delivery`] | the ring of unsettled messages, retry and back-off, dead letters, settling |
//! | [`admin`] | health, metrics, status, the page |
//! | [`queue`] | the bounded buffer, under its one lock the books; the journal, its writer's thread, its bookkeeping |
//! | [`brokers`] | the contract of a broker, its four kinds, headers, routes |
//! | [`message`] [`deviation`] | the event and the message it becomes; how its payload departs from the documented one |
//! | [`template`] [`secret`] | addresses and keys; what is never shown |
//! | [`accounting`] [`metrics`] [`logs`] | the books and their words; the series; the lines |
//! | [`letters`] [`state`] | what is kept for a person to look at, and requests about it; the state directory |
//! | [`shutdown`] [`pulse`] [`ticket`] | the phases of stopping; signs of life; the one who waits for an event |
//! | [`systemd`] | states, signs of life and passed sockets between the bridge and systemd |
//! | [`failpoint`] | where a test makes the disk fail or the process die |
//! | [`settings`] | `section`, which every part reads its own table from, and `load`, which stands on all parts |
//!
//! # The rules
//! Imports point down only: `app` to `ingress`, `delivery`, `admin`; these to `queue` and `brokers`; these to the ground:
//! `message`, `deviation`, `template`, `accounting`, `metrics`, `secret`, `logs`, `letters`, `state`, `shutdown`, `pulse`, `ticket`,
//! `failpoint`, `systemd`, and what `settings` offers to all. Two exceptions: `admin` reads the views that `ingress` and `delivery`
//! offer, and `settings::load` gathers what every part declares. Ingress never sees brokers; brokers never see ingress,
//! queue, delivery or hyper. One owner per crate: rdkafka, lapin and async-nats only in their broker; figment only in
//! `settings`; prometheus only in `metrics`. A test keeps these rules.
//!
//! A new broker is one file (or folder) with `Settings`, a [`brokers::Broker`] and a [`brokers::Session`], its lines in
//! `brokers/list.rs`, its table in `config/default.toml`, and its rig in the conformance tests.

pub mod accounting;
pub mod admin;
pub mod app;
pub mod brokers;
pub mod delivery;
pub mod deviation;
pub mod failpoint;
pub mod ingress;
pub mod letters;
pub mod logs;
pub mod message;
pub mod metrics;
pub mod pulse;
pub mod queue;
pub mod secret;
pub mod settings;
pub mod shutdown;
pub mod state;
pub mod systemd;
pub mod template;
pub mod ticket;
