//! The list of brokers: a new one is its feature in Cargo.toml and its line in the table here.

use std::fmt;
use std::sync::Arc;

use crate::brokers::{Broker, HeaderStyle, Headers, Router, Terms};
use crate::settings::Section;

/// The settings of the one broker in use.
#[derive(Clone)]
pub(crate) struct Settings {
    /// The name of the table.
    pub(crate) name: &'static str,
    /// Its routes.
    pub(crate) router: Router,
    headers: fn(HeaderStyle) -> Headers,
    make: Arc<MakeBroker>,
}

type MakeBroker = dyn Fn(&Terms) -> Box<dyn Broker> + Send + Sync;

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

macro_rules! brokers {
    ($($(#[cfg(feature = $feature:literal)])? $name:literal $module:ident $broker:ident,)*) => {
        /// The names of all brokers, as in `[broker.NAME]`.
        pub(crate) const NAMES: [&str; 4] = [$($name),*];

        /// The names of those that this program was built with.
        pub(crate) const BUILT_IN: &[&str] = &[$($(#[cfg(feature = $feature)])? $name),*];

        impl Settings {
            /// Reads the table of the broker of this name; none for a name that is not built in.
            pub(crate) fn read(name: &str, section: &mut Section<'_>) -> Option<Self> {
                match name {
                    $($(#[cfg(feature = $feature)])?
                    $name => {
                        let settings = super::$module::Settings::read(section);
                        Some(Self {
                            name: $name,
                            router: settings.router.clone(),
                            headers: super::$module::Settings::headers,
                            make: Arc::new(move |terms| Box::new(super::$module::$broker::new(&settings, terms))),
                        })
                    })*
                    _ => None,
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
    /// The names of its headers.
    pub(crate) fn headers(&self, style: HeaderStyle) -> Headers {
        (self.headers)(style)
    }

    /// The broker that these settings describe; nothing is connected yet.
    #[must_use]
    pub(crate) fn broker(&self, terms: &Terms) -> Box<dyn Broker> {
        (self.make)(terms)
    }
}
