//! A broker's table of the settings, written by hand when a test needs a special one.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// `[broker.NAME]` and its routes.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    name: &'static str,
    settings: BTreeMap<String, String>,
    routes: Vec<Vec<(String, String)>>,
}

impl Table {
    /// An empty table of this broker.
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, settings: BTreeMap::new(), routes: Vec::new() }
    }

    /// Sets a text.
    pub(crate) fn text(self, key: &str, value: impl AsRef<str>) -> Self {
        let value = quoted(value.as_ref());
        self.raw(key, value)
    }

    /// Sets anything else, as TOML.
    pub(crate) fn raw(mut self, key: &str, value: impl Into<String>) -> Self {
        self.settings.insert(key.to_owned(), value.into());
        self
    }

    /// Takes a setting away.
    pub(crate) fn without(mut self, key: &str) -> Self {
        self.settings.remove(key);
        self
    }

    /// Adds a route.
    pub(crate) fn route(mut self, settings: &[(&str, &str)]) -> Self {
        self.routes.push(settings.iter().map(|(key, value)| ((*key).to_owned(), quoted(value))).collect());
        self
    }

    /// The lines of the settings' file.
    pub(crate) fn toml(&self) -> String {
        let mut toml = format!("[broker.{}]\n", self.name);
        for (key, value) in &self.settings {
            writeln!(toml, "{key} = {value}").expect("a String takes everything");
        }
        for route in &self.routes {
            writeln!(toml, "[[broker.{}.routes]]", self.name).expect("a String takes everything");
            for (key, value) in route {
                writeln!(toml, "{key} = {value}").expect("a String takes everything");
            }
        }
        toml
    }
}

/// A basic string of TOML: JSON's escapes are its escapes.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
