//! `config/default.toml`, compiled in: the only place of defaults; and tables as layers.

use figment::providers::{Format as _, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Error, Metadata, Profile, Provider};

/// The text of the reference.
pub(crate) const TEXT: &str = include_str!("../../config/default.toml");

/// The whole reference as a table.
///
/// # Panics
/// If `config/default.toml` is not TOML: a test reads it.
pub(super) fn table() -> Dict {
    let mut data = Toml::string(TEXT).data().expect("config/default.toml is TOML");
    data.remove(&Profile::Default).unwrap_or_default()
}

/// Every value of a table by its dotted key; an empty table is one.
pub(super) fn leaves(table: &Dict) -> Vec<(String, &Value)> {
    fn below<'t>(path: &str, table: &'t Dict, leaves: &mut Vec<(String, &'t Value)>) {
        for (key, value) in table {
            match value {
                Value::Dict(_, table) if !table.is_empty() => below(&format!("{path}{key}."), table, leaves),
                value => leaves.push((format!("{path}{key}"), value)),
            }
        }
    }
    let mut leaves = Vec::new();
    below("", table, &mut leaves);
    leaves
}

/// The name of this layer, which tells a default from a value that a user wrote.
pub(super) const NAME: &str = "defaults";

/// The name of the layer of flags.
pub(super) const FLAGS: &str = "flags";

/// A table as a layer of this name.
pub(super) struct Layer(pub(super) &'static str, pub(super) Dict);

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.0)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Ok(Profile::Default.collect(self.1.clone()))
    }
}
