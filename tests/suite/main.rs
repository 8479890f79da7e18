//! The suite: the real daemon, through its outside alone.

// Answers, bodies, framing, connections, sources: the contract with the sender.
#[cfg(test)]
mod http;

// Daemon, settings, client.
#[cfg(test)]
mod support;
