//! The suite: the real daemon against real brokers, tested from outside only.
//!
//! `make test` installs the brokers and runs it. `SUITE_LONG=1` runs the long forms. A missing broker is a failure.

// The admin port: metrics, health, status, the page.
#[cfg(test)]
mod admin;

// Clusters of three: nodes that die, hang and restart, leaders that move, addresses that take nothing.
#[cfg(test)]
mod cluster;

// The commands beside `serve`: their output and exit codes.
#[cfg(test)]
mod commands;

// One set of cases for every broker: bodies, headers, addresses, order, refusals, faults, the end.
#[cfg(test)]
mod conformance;

// Dashboard and alerts ask Prometheus only for what the daemon exposes.
#[cfg(test)]
mod dashboards;

// Refused events and invalid bodies: listed, shown, replayed, dropped, with a daemon and without.
#[cfg(test)]
mod dead_letters;

// Equal requests: the window, the limit, concurrent ones, and bodies that are no duplicates.
#[cfg(test)]
mod duplicates;

// The consumers in examples/, run against the bridge and real brokers.
#[cfg(test)]
mod examples;

// The output for other programs: schemas, completions, manual pages.
#[cfg(test)]
mod generated;

// Bodies that a correct signature makes genuine: published or kept, and their departures from the documented payload
// reported.
#[cfg(test)]
mod genuine;

// The glossary against the code: one meaning per type name; pages name files that exist.
#[cfg(test)]
mod glossary;

// The contract with the sender, through raw sockets: answers, bodies, framing, connections, sources.
#[cfg(test)]
mod http;

// Accepted events survive crashes, damage, full and failing disks, restarts, stepped clocks.
#[cfg(test)]
mod journal;

// The daemon in a pod: variables of services, and those that undo settings of the image.
#[cfg(test)]
mod kubernetes;

// The rules for the code, kept by reading src/.
#[cfg(test)]
mod layers;

// Requests that arrive byte by byte or stop half-way, and how they are counted.
#[cfg(test)]
mod limits;

// Mistakes of an operator: what `check` and the start say about them, and commands that need no sound settings.
#[cfg(test)]
mod mistakes;

// The running daemon as its operator meets it: signals, what the log says and leaves out, connections to the admin port.
#[cfg(test)]
mod operation;

// The admin page in a real browser.
#[cfg(test)]
mod page;

// Every known payload of the sender, made by Node, on files and on every broker.
#[cfg(test)]
mod payloads;

// The mode `published`: 200 for confirmed events, time-outs, senders that disconnect or send twice.
#[cfg(test)]
mod published;

// Clusters as they are run: silent addresses, domains, private inboxes, logins; and everything renewed.
#[cfg(test)]
mod reach;

// Settings read again by a running daemon: secrets and certificates under load, bad files, what needs a restart.
#[cfg(test)]
mod reload;

// Two bridges on one broker: repeats, order and accounting of each, and of both together.
#[cfg(test)]
mod scaling;

// The documents in docs/schema/: they describe payloads and headers as the bridge publishes them.
#[cfg(test)]
mod schema;

// No secret in logs, errors, status, metrics or on the page.
#[cfg(test)]
mod secrets;

// Senders that disconnect, stall, flood or stay silent; descriptors that run out.
#[cfg(test)]
mod senders;

// Settings, good and bad: files, environment, secrets, every message.
#[cfg(test)]
mod settings;

// Bodies and signatures made by Node.
#[cfg(test)]
mod signatures;

// Faults of every kind on each real broker under steady load, for as long as requested: `make soak`.
#[cfg(test)]
mod soak;

// The stop: unsettled events are written to the journal and delivered by the next start.
#[cfg(test)]
mod spill;

// The interface between systemd and the daemon, passed sockets, restarts behind them.
#[cfg(test)]
mod systemd;

// HTTPS and client certificates, with independent clients; pairs that do not match.
#[cfg(test)]
mod tls;

// Plain words in code and pages: how doc lines start, and words that no line has.
#[cfg(test)]
mod words;

// Requests about dead letters: what they touch, how they end, what stands in their way.
#[cfg(test)]
mod requests;

// Daemon, brokers, proxy, load, oracle.
#[cfg(test)]
mod support;
