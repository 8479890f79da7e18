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
//! Each folder, and under it the files that decide something. What is not named here declares, reads settings, or helps.
//!
//! **`cli`**: the arguments, the commands and their exit codes (`mod`; success or failure: each command).
//! - `explain`, `check`, `send`, `dead_letters/`: what each command prints.
//!
//! **`app`**: which parts exist, and their threads.
//! - `app`: the order of starting and of stopping at SIGTERM. `reload`: what a reload changes, and what needs a restart.
//! - `settings`: the rules between the tables. `journal`: what of the journal is recalled. `resources`: memory, open files.
//!
//! **`ingress`**: whether a request is accepted.
//! - `handle`: the steps of one request, in order. `reply`: status and body of each answer.
//! - `accept`: which connections are served. `connections`: which idle one makes room. `connection_task`: the time-outs of one and
//!   its end. `connection`, `head`: its bytes. `not_http`: what is no request.
//! - `body`: too large, too slow, too many at once. `verify`: whether the signature is right.
//! - `validate`: what is an event, what a probe, how a payload deviates. `deduplicate`: what is a duplicate.
//! - `invalid`: which bodies are kept. `rebuild`: a body without a request: explained, or published again.
//! - `client`: which address is believed. `tls`: certificates, and who needs one. `current`: what a reload replaces.
//!
//! **`delivery`**: what is sent when, and what becomes of it.
//! - `publish`: the loop: what is handed over, what follows from each verdict. `window`, `pace`: how many at once, how often.
//! - `ring`, `address_queue`: order: which message is next, which waits for another. `overtaken`: counts what came late.
//! - `refusals`: what a refusal leads to: parked, dead letter, or everything waits. `suspects`: when an address is blamed for what
//!   the broker says of itself. `destinations`: states of the addresses, when their time is over. `backoff`: how long waits are.
//! - `address_queue`: what leaves memory for the journal alone. `unloaded`: when it is read back, or written again.
//! - `settle`: how events end, dead letters that cannot be written. `watch`: when an address is stalled, what is shown as waiting.
//! - `connection`: what follows from a lost session. `successor`: how a reload's broker takes over.
//! - `backlog`, `spill`: what is read at the start and written at the stop.
//!
//! **`admin`**: `health`: whether `/readyz` and `/livez` are good. `status`: the text of `/status`. `server`: who may ask.
//!
//! **`dead_letters`**: both stores. `letter`: the line of a letter. `store`: files, limits, what is dropped. `selection`, `filter`:
//! which letters a request means. `replay`: what it does with them. `control`: the socket.
//!
//! **`queue`**: whether there is room, and the counts, under one lock.
//! - `buffer`: room in memory (what one event takes: `event`), 503, what is taken next. `mode`: what a 200 promises. `writer`: when
//!   the journal is synced, and which events it alone keeps because memory is full.
//! - `disk`, `parked`: how far the journal is settled, which records are written again. `stop`: what is kept at the end.
//! - `journal/segments`: which segment is used, recycled, deleted. `journal/open`: what damage at a start means. `journal/scan`:
//!   where reading goes on after damage. `journal/renewals`: the order of events after a crash. `journal/format`, `record`: the bytes.
//!
//! **`brokers`**: `contract`: the four kinds of refusal. `routes`, `template`: address and key. `headers`: CloudEvents.
//! - in each: `codes` or `loss`: who is to blame for an error code (Kafka: `session` looks closer at some). `session`: when a session
//!   is lost. `topology`: what is created.
//! - `kafka/properties`: the settings of librdkafka, the partitioner among them. `kafka/batch`, `silence`, `times`: batches, stuck
//!   topics, time stamps. `rabbitmq/returns`, `tries`: which message came back, what is tried apart. `nats/progress`: what a gap,
//!   silence or "no responders" means.
//! - `dial`: which address of a host, when the next one is tried. `oauth`: when a token is renewed. `list`: which brokers exist.
//!
//! **`status`**: holds what is reported, and decides two things: `ledger`: the sums. `heartbeat`: when a thread counts as stalled.
//! `reasons` has the names of all reasons.
//!
//! **`metrics`**: the names and help texts of all series. **`event`**: `event`: the event, its id, its cost in memory, the message made
//! of it. `deviation`: the names of deviations. `waiter`: how a request waits.
//!
//! **`settings`**: `load`: which of file, environment and flag wins. `section`: how a value is read. `units`: durations and sizes.
//! `secret`: how a secret is read, and that it is never shown. `config/default.toml` has the defaults.
//!
//! **`process`**: `shutdown`: the phases of the stop. `logs`: the log and its limits. `state_directory`: its lock, how directories are
//! made safe. `systemd`: when the watchdog is fed. `exhausted`: which errors pass by themselves. `failpoint`: faults for tests.
//!
//! # The rules
//! Imports point down only: `cli` to `app`; `app` to `ingress`, `delivery`, `admin`; these to `dead_letters`, it to
//! `queue`; these to `brokers`, these to `metrics`, it to `status`, it to `event`; all may use `settings` and `process`. `admin`
//! reads `status`, `metrics` and the queue alone. Ingress never sees brokers; brokers never see ingress, queue,
//! delivery or hyper, but for its client in `brokers/oauth.rs`. One owner per crate: rdkafka, lapin and async-nats only
//! in their broker; figment only in `settings`; prometheus only in `metrics`. Between files, too, no imports form a
//! circle. A test keeps these rules.
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
