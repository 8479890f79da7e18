//! The environment as a layer of the settings: `PLEXTRAC_BRIDGE__INGRESS__LISTEN` is `ingress.listen`.
//!
//! Every value stays text until a setting needs another type, so that a password of digits stays a password.

use figment::value::{Dict, Map, Tag, Value};
use figment::{Error, Metadata, Profile, Provider};

/// The layer's name in figment's metadata.
pub(super) const NAME: &str = "environment";

/// The prefix. It ends in two underscores, because Kubernetes injects `PLEXTRAC_BRIDGE_PORT` and the like for a service
/// of that name.
pub(crate) const PREFIX: &str = "PLEXTRAC_BRIDGE__";

/// The variable that sets a dotted key.
pub(super) fn variable(dotted: &str) -> String {
    format!("{PREFIX}{}", dotted.to_uppercase().replace('.', "__"))
}

/// The variables of this process that start with the prefix.
pub(super) struct Environment(pub(super) Vec<(String, String)>);

impl Provider for Environment {
    fn metadata(&self) -> Metadata {
        Metadata::named(NAME)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        let mut top = Dict::new();
        for (name, text) in &self.0 {
            let Some(path) = name.strip_prefix(PREFIX) else { continue };
            if text.is_empty() {
                continue;
            }
            let lower = path.to_lowercase();
            let keys: Vec<&str> = lower.split("__").collect();
            insert(&mut top, &keys, text);
        }
        Ok(Profile::Default.collect(top))
    }
}

fn insert(table: &mut Dict, keys: &[&str], text: &str) {
    match keys {
        [] => {}
        [last] => {
            table.insert((*last).to_owned(), Value::String(Tag::Default, text.to_owned()));
        }
        [first, rest @ ..] => {
            let below = table.entry((*first).to_owned()).or_insert_with(|| Value::Dict(Tag::Default, Dict::new()));
            if !matches!(below, Value::Dict(..)) {
                *below = Value::Dict(Tag::Default, Dict::new());
            }
            if let Value::Dict(_, below) = below {
                insert(below, rest, text);
            }
        }
    }
}
