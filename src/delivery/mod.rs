//! Delivery, from the queue to the broker: publish (the ring), settle, dead letters.

mod address_queue;
mod backlog;
mod backoff;
mod connection;
mod destinations;
mod disk_read;
mod entry;
mod overtaken;
mod pace;
mod pairs;
mod portion;
mod publish;
mod refusals;
mod ring;
mod settings;
mod settle;
mod spill;
mod successor;
mod suspects;
#[cfg(test)]
mod tests;
mod unloaded;
mod watch;
mod window;

pub(crate) use backlog::BacklogReader;
pub(crate) use publish::{Delivery, Parts};
pub(crate) use settings::{DeadLetterLimit, Settings};
pub(crate) use successor::{Change, RoutedBroker, Successor};
