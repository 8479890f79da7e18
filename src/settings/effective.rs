//! The settings in force with the origin of each, for operators: no secret is among the values.

use std::collections::BTreeMap;

use figment::value::{Dict, Value};
use serde_json::json;

use crate::settings::defaults::leaves;
use crate::settings::reading::{Reading, Schemas};
use crate::settings::redact;

/// A value in force, and its origin.
#[derive(Clone, Debug)]
pub(crate) struct Effective {
    /// The value; "[secret]" in place of one.
    pub(crate) value: serde_json::Value,
    /// "default", a file, a variable or a flag.
    pub(crate) origin: String,
}

/// All settings in force, by dotted key.
pub(crate) type EffectiveSettings = BTreeMap<String, Effective>;

/// The settings in force as JSON.
pub(crate) fn to_json(settings: &EffectiveSettings) -> serde_json::Value {
    let shown = |setting: &Effective| json!({ "value": setting.value, "origin": setting.origin });
    settings.iter().map(|(key, setting)| (key.clone(), shown(setting))).collect()
}

/// The values of a table that was read.
pub(super) fn effective(reading: &Reading, table: &Dict) -> EffectiveSettings {
    let schemas = reading.schemas.borrow();
    let setting = |(path, value): (String, &Value)| {
        let origin = reading.origin(&path, value.tag()).unwrap_or_else(|| "default".to_owned());
        let value = shown(&schemas, &path, value);
        (path, Effective { value, origin })
    };
    leaves(table).into_iter().map(setting).collect()
}

/// A value without secrets: of a key that is one, or that no part knows, nothing; of a URL neither user nor query.
fn shown(schemas: &Schemas, path: &str, value: &Value) -> serde_json::Value {
    let is_secret = schemas.get(path).is_none_or(|schema| schema["$ref"] == "#/$defs/secret");
    match value {
        Value::Array(_, items) => items.iter().map(|item| shown_item(schemas, path, item)).collect(),
        Value::Dict(..) => json!({}),
        Value::String(_, text) if text.is_empty() => json!(""),
        _ if is_secret => json!("[secret]"),
        Value::String(_, text) if text.contains("://") => json!(redact(text)),
        value => json!(value),
    }
}

/// An item of a list: a table, or a value of the list's kind.
fn shown_item(schemas: &Schemas, path: &str, item: &Value) -> serde_json::Value {
    match item {
        Value::Dict(_, table) => table
            .iter()
            .map(|(key, value)| (key.clone(), shown(schemas, &format!("{path}[0].{key}"), value)))
            .collect(),
        item => shown(schemas, path, item),
    }
}
