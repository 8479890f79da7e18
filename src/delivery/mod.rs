//! From the queue to the broker: publish (the ring), settle, dead letters.

mod dead_letters;
mod pairs;
mod publish;
mod ring;
mod settings;
mod settle;
mod view;

pub use dead_letters::{DeadLetters, Store};
pub use publish::Delivery;
pub use settings::{DeadLetterLimit, Settings};
pub use view::{BrokerState, BrokerView, LastError, View};
