//! The list of brokers: a new one is its name, its variant, and one line for each of the two things done with it.

use crate::brokers::{Broker, Terms, file, kafka, nats, rabbitmq};
use crate::settings::Section;

/// The names of all brokers, as in `[broker.NAME]`.
pub const NAMES: [&str; 4] = ["kafka", "rabbitmq", "nats", "file"];

/// The settings of the one broker in use.
#[derive(Clone, Debug)]
pub enum Settings {
    /// `[broker.kafka]`
    Kafka(Box<kafka::Settings>),
    /// `[broker.rabbitmq]`
    Rabbitmq(Box<rabbitmq::Settings>),
    /// `[broker.nats]`
    Nats(Box<nats::Settings>),
    /// `[broker.file]`
    File(Box<file::Settings>),
}

impl Settings {
    /// Reads the table of the broker of this name; none for a name that is not in the list.
    pub fn read(name: &str, section: &mut Section<'_>) -> Option<Self> {
        Some(match name {
            "kafka" => Self::Kafka(Box::new(kafka::Settings::read(section))),
            "rabbitmq" => Self::Rabbitmq(Box::new(rabbitmq::Settings::read(section))),
            "nats" => Self::Nats(Box::new(nats::Settings::read(section))),
            "file" => Self::File(Box::new(file::Settings::read(section))),
            _ => return None,
        })
    }

    /// The broker that these settings describe; nothing is connected yet.
    #[must_use]
    pub fn broker(&self, terms: &Terms) -> Box<dyn Broker> {
        match self {
            Self::Kafka(settings) => Box::new(kafka::Kafka::new(settings, terms)),
            Self::Rabbitmq(settings) => Box::new(rabbitmq::Rabbitmq::new(settings, terms)),
            Self::Nats(settings) => Box::new(nats::Nats::new(settings, terms)),
            Self::File(settings) => Box::new(file::File::new(settings, terms)),
        }
    }
}
