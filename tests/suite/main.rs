//! The suite: the real daemon against real brokers, through its outside alone.
//!
//! `make test` installs the brokers and runs it. `SUITE_LONG=1` runs the long forms. A missing broker is a failure.

// One set of cases for every broker: bodies, headers, addresses, order, refusals, faults, the end.
#[cfg(test)]
mod conformance;

// No secret in logs, errors, status, metrics or on the page.
#[cfg(test)]
mod secrets;

// Senders that leave, stall, flood or stay silent; descriptors that run out.
#[cfg(test)]
mod senders;

// Daemon, brokers, proxy, load, oracle.
#[cfg(test)]
mod support;
