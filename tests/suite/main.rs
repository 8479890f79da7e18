//! The suite: the real daemon against real brokers, through its outside alone.
//!
//! `make test` installs the brokers and runs it. `SUITE_LONG=1` runs the long forms. A missing broker is a failure.

// The admin port: metrics, health, status, the page.
#[cfg(test)]
mod admin;

// Clusters of three: nodes that die, hang and restart, leaders that move, addresses that take nothing.
#[cfg(test)]
mod cluster;

// The commands beside `serve`: what they print, their exit codes.
#[cfg(test)]
mod commands;

// One set of cases for every broker: bodies, headers, addresses, order, refusals, faults, the end.
#[cfg(test)]
mod conformance;

// What dashboard and alerts ask Prometheus for is what the daemon exposes.
#[cfg(test)]
mod dashboards;

// What the broker refused and what was invalid: listed, shown, replayed, dropped, with a daemon and without.
#[cfg(test)]
mod dead_letters;

// Equal requests: the window, the limit, all at once, what is no duplicate.
#[cfg(test)]
mod duplicates;

// The consumers in examples/, run against the bridge and real brokers.
#[cfg(test)]
mod examples;

// What the program prints for others: schemas, completions, manual pages.
#[cfg(test)]
mod generated;

// What a correct signature makes genuine: published or kept, and its departures from the documented payload reported.
#[cfg(test)]
mod genuine;

// The glossary against the code: one meaning per type name; pages name files that exist.
#[cfg(test)]
mod glossary;

// The contract with the sender, through raw sockets: answers, bodies, framing, connections, sources.
#[cfg(test)]
mod http;

// What was accepted survives crashes, damage, full and failing disks, restarts, stepped clocks.
#[cfg(test)]
mod journal;

// The daemon in a pod: variables of services, and those that take back what the image sets.
#[cfg(test)]
mod kubernetes;

// The rules of the house, kept by reading src/.
#[cfg(test)]
mod layers;

// Requests that come drop by drop or stop half-way, and what is counted for them.
#[cfg(test)]
mod limits;

// The admin page in a real browser.
#[cfg(test)]
mod page;

// Everything that is known of the sender's payloads, made by Node, on files and on every broker.
#[cfg(test)]
mod payloads;

// The mode `published`: 200 for what the broker confirmed, time-outs, senders that leave or ask twice.
#[cfg(test)]
mod published;

// Settings read again by a running daemon: secrets and certificates under load, bad files, what needs a restart.
#[cfg(test)]
mod reload;

// Two bridges on one broker: repeats, order and accounting of each, and of both together.
#[cfg(test)]
mod scaling;

// The documents in docs/schema/: they say of payloads and headers what the bridge does.
#[cfg(test)]
mod schema;

// No secret in logs, errors, status, metrics or on the page.
#[cfg(test)]
mod secrets;

// Senders that leave, stall, flood or stay silent; descriptors that run out.
#[cfg(test)]
mod senders;

// Settings, good and bad: files, environment, secrets, every message.
#[cfg(test)]
mod settings;

// Bodies and signatures made by Node.
#[cfg(test)]
mod signatures;

// Faults of every kind on each real broker under steady load, for as long as is asked: `make soak`.
#[cfg(test)]
mod soak;

// The stop: what is not settled is written to the journal and delivered by the next start.
#[cfg(test)]
mod spill;

// What systemd and the daemon tell each other, passed sockets, restarts behind them.
#[cfg(test)]
mod systemd;

// HTTPS and client certificates, with clients that are not ours; pairs that are no pairs.
#[cfg(test)]
mod tls;

// Daemon, brokers, proxy, load, oracle.
#[cfg(test)]
mod support;
