//! `config/default.toml`, compiled in: the only place of defaults. Also knows which of its tables are templates.

use figment::providers::{Format as _, Toml};
use figment::value::{Dict, Map};
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

/// The defaults of a table given by its path: `["broker", "kafka"]`.
#[cfg(test)]
pub(super) fn template(path: &[&str]) -> Option<Dict> {
    let mut table = table();
    for key in path {
        match table.remove(*key) {
            Some(figment::value::Value::Dict(_, below)) => table = below,
            _ => return None,
        }
    }
    Some(table)
}

/// Every key of the reference, dotted.
pub(super) fn keys() -> Vec<String> {
    fn below(path: &str, table: &Dict, keys: &mut Vec<String>) {
        for (key, value) in table {
            let dotted = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match value {
                figment::value::Value::Dict(_, table) if !table.is_empty() => below(&dotted, table, keys),
                _ => keys.push(dotted),
            }
        }
    }
    let mut keys = Vec::new();
    below("", &table(), &mut keys);
    keys
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
