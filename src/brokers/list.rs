//! The list of brokers: a new one is its feature in Cargo.toml and its line in the table here.

use std::path::Path;

use crate::brokers::{Broker, HeaderStyle, Headers, Router, Terms};
use crate::settings::Section;

macro_rules! brokers {
    ($($(#[cfg(feature = $feature:literal)])? $name:literal $module:ident $broker:ident,)*) => {
        /// The names of all brokers, as in `[broker.NAME]`.
        pub(crate) const NAMES: [&str; 4] = [$($name),*];

        /// The names of those that this program was built with.
        pub(crate) const BUILT_IN: &[&str] = &[$($(#[cfg(feature = $feature)])? $name),*];

        /// The settings of the one broker in use.
        #[derive(Clone, Debug)]
        pub(crate) enum Settings {
            $($(#[cfg(feature = $feature)])? $broker(Box<super::$module::Settings>),)*
        }

        impl Settings {
            /// Reads the table of the broker of this name; none for a name that is not built in.
            pub(crate) fn read(name: &str, section: &mut Section<'_>) -> Option<Self> {
                Some(match name {
                    $($(#[cfg(feature = $feature)])?
                    $name => Self::$broker(Box::new(super::$module::Settings::read(section))),)*
                    _ => return None,
                })
            }

            /// The name of the table.
            pub(crate) fn name(&self) -> &'static str {
                match self {
                    $($(#[cfg(feature = $feature)])? Self::$broker(_) => $name,)*
                }
            }

            /// Its routes.
            pub(crate) fn router(&self) -> &Router {
                match self {
                    $($(#[cfg(feature = $feature)])? Self::$broker(settings) => &settings.router,)*
                }
            }

            /// The names of its headers.
            pub(crate) fn headers(&self, style: HeaderStyle) -> Headers {
                match self {
                    $($(#[cfg(feature = $feature)])? Self::$broker(_) => super::$module::Settings::headers(style),)*
                }
            }

            /// The keys that say where events go.
            #[must_use]
            pub(crate) fn routing_keys(&self) -> Vec<String> {
                let keys = self.router().keys();
                let more: &[&str] = match self {
                    #[cfg(feature = "nats")]
                    Self::Nats(_) => &["stream_subjects"],
                    _ => &[],
                };
                keys.iter().chain(more).map(|key| format!("broker.{}.{key}", self.name())).collect()
            }

            /// The broker that these settings describe; nothing is connected yet.
            #[must_use]
            pub(crate) fn broker(&self, terms: &Terms) -> Box<dyn Broker> {
                match self {
                    $($(#[cfg(feature = $feature)])?
                    Self::$broker(settings) => Box::new(super::$module::$broker::new(settings, terms)),)*
                }
            }
        }
    };
}

brokers! {
    #[cfg(feature = "kafka")]
    "kafka" kafka Kafka,
    #[cfg(feature = "rabbitmq")]
    "rabbitmq" rabbitmq Rabbitmq,
    #[cfg(feature = "nats")]
    "nats" nats Nats,
    "file" file File,
}

impl Settings {
    /// Notes the directory that a start creates before it connects.
    pub(crate) fn created_before(&mut self, directory: Option<&Path>) {
        #[cfg_attr(
            not(any(feature = "kafka", feature = "rabbitmq", feature = "nats")),
            expect(irrefutable_let_patterns, reason = "there is no other broker")
        )]
        if let Self::File(settings) = self {
            settings.created_before(directory);
        }
    }

    /// Whether both are of the same broker, so that one can take over from the other.
    #[must_use]
    pub(crate) fn is_same_broker(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}
