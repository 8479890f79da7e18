//! The suite: the real daemon, through its outside alone.

// Answers, bodies, framing, connections, sources: the contract with the sender.
#[cfg(test)]
mod http;

// The rules of the house, kept by reading src/.
#[cfg(test)]
mod layers;

// Bodies and signatures made by Node.
#[cfg(test)]
mod signatures;

// Daemon, settings, client.
#[cfg(test)]
mod support;
