//! Clusters as they are run: addresses that answer nothing, domains, private inboxes, logins of every kind.

mod check;
mod nats;
mod own;
mod rights;
mod rotation;
mod silent;
mod streams;
mod tokens;
