//! From the queue to the broker: publish (the ring), settle, dead letters.

mod backlog;
mod backoff;
mod dead_letters;
mod pairs;
mod publish;
mod requests;
mod ring;
#[cfg(test)]
mod scripted;
mod selection;
mod settings;
mod settle;
mod spill;
mod successor;
mod view;
mod window;

pub use backlog::BacklogReader;
pub use publish::{Delivery, Parts};
pub use requests::{Invalid, Rebuilder, Requests, Stores};
pub use settings::{DeadLetterLimit, Settings};
pub use successor::Successor;
pub use view::{BrokerState, BrokerView, LastError, View};
