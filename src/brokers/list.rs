//! The list of brokers: a new one is its name, its variant, and one line for each thing done with it.

use crate::brokers::{Broker, Terms, file, kafka, nats, rabbitmq};
use crate::settings::Section;

/// The names of all brokers, as in `[broker.NAME]`.
pub(crate) const NAMES: [&str; 4] = ["kafka", "rabbitmq", "nats", "file"];

/// The settings of the one broker in use.
#[derive(Clone, Debug)]
pub(crate) enum Settings {
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
    pub(crate) fn read(name: &str, section: &mut Section<'_>) -> Option<Self> {
        Some(match name {
            "kafka" => Self::Kafka(Box::new(kafka::Settings::read(section))),
            "rabbitmq" => Self::Rabbitmq(Box::new(rabbitmq::Settings::read(section))),
            "nats" => Self::Nats(Box::new(nats::Settings::read(section))),
            "file" => Self::File(Box::new(file::Settings::read(section))),
            _ => return None,
        })
    }

    /// The name of the table.
    fn name(&self) -> &'static str {
        match self {
            Self::Kafka(_) => "kafka",
            Self::Rabbitmq(_) => "rabbitmq",
            Self::Nats(_) => "nats",
            Self::File(_) => "file",
        }
    }

    /// The keys that say where events go: what [`Settings::reroute`] takes over.
    #[must_use]
    pub(crate) fn routing_keys(&self) -> Vec<String> {
        let keys = match self {
            Self::Kafka(settings) => settings.router.keys(),
            Self::Rabbitmq(settings) => settings.router.keys(),
            Self::Nats(settings) => settings.routing_keys(),
            Self::File(settings) => settings.router.keys(),
        };
        keys.into_iter().map(|key| format!("broker.{}.{key}", self.name())).collect()
    }

    /// Whether both are of the same broker, so that one can take over the other's routes.
    #[must_use]
    pub(crate) fn is_same_broker(&self, other: &Self) -> bool {
        self.name() == other.name()
    }

    /// Takes over where events go from settings of the same broker, and nothing else; nothing at all from another one's.
    pub(crate) fn reroute(&mut self, read: Self) {
        match (self, read) {
            (Self::Kafka(settings), Self::Kafka(read)) => settings.router = read.router,
            (Self::Rabbitmq(settings), Self::Rabbitmq(read)) => settings.router = read.router,
            (Self::Nats(settings), Self::Nats(read)) => settings.reroute(*read),
            (Self::File(settings), Self::File(read)) => settings.router = read.router,
            _ => {}
        }
    }

    /// What is wrong where the routes of one reading meet the rest of another.
    #[must_use]
    pub(crate) fn contradiction(&self) -> Option<String> {
        match self {
            Self::Nats(settings) => {
                settings.contradiction().map(|text| format!("`broker.nats.stream_subjects`: {text}"))
            }
            _ => None,
        }
    }

    /// The broker that these settings describe; nothing is connected yet.
    #[must_use]
    pub(crate) fn broker(&self, terms: &Terms) -> Box<dyn Broker> {
        match self {
            Self::Kafka(settings) => Box::new(kafka::Kafka::new(settings, terms)),
            Self::Rabbitmq(settings) => Box::new(rabbitmq::Rabbitmq::new(settings, terms)),
            Self::Nats(settings) => Box::new(nats::Nats::new(settings, terms)),
            Self::File(settings) => Box::new(file::File::new(settings, terms)),
        }
    }
}
