//! plextrac-bridge: PlexTrac's webhooks in, verified and validated; messages out to Kafka, RabbitMQ or NATS.
//!
//! # The path of an event
//! ```text
//!  ingress threads (one per core)                       delivery task (one)
//!  accept -> verify -> validate -> enqueue -> 200       publish -> settle
//!                                     |                    ^
//!                                     +-- bounded buffer --+     (or the journal)
//! ```
//! The same six words name files, functions, metrics and logs. From enqueue on no count and no settlement depends on
//! the request's future, which hyper drops when the sender disconnects.
//!
//! # The map
//! | module | decides | begin with |
//! |---|---|---|
//! | `main`, [`cli`] | the arguments, the commands and their exit codes | `cli/mod.rs`, `cli/serve.rs` |
//! | `app` | which parts exist and their threads, the settings as a whole, what a reload changes, the order of stopping | `app/app.rs` |
//! | `ingress` | whether a request is accepted: connections and time-outs, signature, payload, duplicates, the answer; bodies kept as invalid | `ingress/handle.rs` |
//! | `delivery` | what is sent when: the ring of unsettled messages, retry and back-off, dead-lettering, settling, the backlog at start, the spill at the stop | `delivery/publish.rs` |
//! | `admin` | health, readiness, `/status`, the page | `admin/server.rs` |
//! | `dead_letters` | the line format, files and limits of both stores; requests about them, their socket, replay and drop | `dead_letters/store.rs`, `dead_letters/replay.rs` |
//! | `queue` | whether there is room, and the counts, under its one lock; the journal on disk and its writer | `queue/buffer.rs`, `queue/journal/format.rs` |
//! | `brokers` | the contract of a broker and its four kinds; addresses, keys and headers | `brokers/contract.rs` |
//! | `status` | nothing: it holds the state that the bridge reports, above all the ledger | `status/status.rs`, `status/ledger.rs` |
//! | `metrics` | the names of all series | `metrics.rs` |
//! | `event` | the event and the message made of it, how its payload deviates from the documented one, the request that waits for it | `event/event.rs` |
//! | `settings` | how files, environment and flags are merged, and how a part reads its table | `settings/load.rs`, `settings/section.rs` |
//! | `process` | log, state directory and its lock, listening sockets, systemd, phases of the stop, failpoints | `process/shutdown.rs` |
//!
//! # The rules
//! Imports point down only: `cli` to `app`; `app` to `ingress`, `delivery`, `admin`; these to `dead_letters`, it to
//! `queue`; these to `brokers`, `metrics` and `status`, these to `event`; all may use `settings` and `process`. `admin`
//! reads `status`, `metrics` and the queue alone. Ingress never sees brokers; brokers never see ingress, queue,
//! delivery or hyper, but for its client in `brokers/oauth.rs`. One owner per crate: rdkafka, lapin and async-nats only
//! in their broker; figment only in `settings`; prometheus only in `metrics`. A test keeps these rules.
//!
//! A new broker is a feature, a file (or folder) with `Settings`, a `Broker` and a `Session` (`brokers/contract.rs`), its
//! line in `brokers/list.rs`, its table in `config/default.toml`, and its rig in the conformance tests.

#![cfg_attr(
    not(all(feature = "kafka", feature = "rabbitmq", feature = "nats")),
    expect(dead_code, reason = "each network broker uses a part of the contract that no other does")
)]

mod admin;
mod app;
#[doc(hidden)]
#[path = "../benches/stages.rs"]
pub mod bench;
mod brokers;
pub mod cli;
mod dead_letters;
mod delivery;
mod event;
mod ingress;
mod metrics;
mod process;
mod queue;
mod settings;
mod status;
