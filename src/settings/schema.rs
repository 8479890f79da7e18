//! The description of the settings as JSON Schema: kinds and limits as the parts note them while they read, defaults and
//! meanings from `config/default.toml`.

use std::collections::BTreeMap;

use figment::value::{Tag, Value as Default};
use serde_json::{Value, json};

use crate::settings::defaults;
use crate::settings::reading::Reading;
use crate::settings::section::Section;

impl Section<'_> {
    /// Notes the kind of a key, unless it is noted already.
    pub(super) fn note(&self, key: &str, schema: impl FnOnce() -> Value) {
        self.reading.schemas.borrow_mut().entry(self.dotted(key)).or_insert_with(schema);
    }

    /// Notes a kind that has a name.
    pub(super) fn note_kind(&self, key: &str, name: &str) {
        self.note(key, || json!({ "$ref": format!("#/$defs/{name}") }));
    }

    /// Adds to the description of a key, or of the table itself if the key is empty. The kind of a key is noted when it
    /// is first read.
    pub(crate) fn describe(&self, key: &str, schema: Value) {
        let path = if key.is_empty() { self.path.clone() } else { self.dotted(key) };
        merge(self.reading.schemas.borrow_mut().entry(path).or_default(), schema);
    }
}

/// Returns the JSON Schema of all that `read` reads.
pub(crate) fn describe(read: impl FnOnce(Section<'_>)) -> Value {
    let defaults = defaults::table();
    let reading = Reading { is_description: true, ..Reading::default() };
    read(Section::top(&reading, defaults.clone()));
    let (defaults, meanings) = (Default::Dict(Tag::Default, defaults), meanings());
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of plextrac-bridge, as TOML",
        "description": "Limits that only several settings together have are checked by `plextrac-bridge check`.",
        "type": "object",
        "additionalProperties": false,
        "$defs": {
            "duration": { "type": "string", "pattern": "^ *[0-9]+ *(ms|s|m|h) *$" },
            "size": { "type": "string", "pattern": "^ *[0-9]+ *(B|KiB|MiB|GiB) *$" },
            "address": { "type": "string", "pattern": r"^ *([0-9.]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5} *$" },
            "file": { "description": "A path; a relative one starts at the working directory.", "type": "string" },
            "secret": { "description": "A secret; better in a file.", "type": "string", "writeOnly": true },
        },
    });
    for (path, note) in reading.schemas.take() {
        let place = path.split('.').fold(&mut schema, |table, name| below(table, name));
        merge(place, note);
        if let Some(meaning) = meanings.get(&path) {
            place["description"] = json!(meaning);
        }
        let default = defaults.find_ref(&path).filter(|default| default.as_dict().is_none_or(BTreeMap::is_empty));
        if let Some(default) = default {
            place["default"] = json!(default);
        }
    }
    schema
}

/// The schema of a key in the schema of its table. A source can have any name.
fn below<'s>(table: &'s mut Value, name: &str) -> &'s mut Value {
    match name.strip_suffix("[0]") {
        Some(list) => &mut table["properties"][list]["items"],
        None if name == "plextrac" => &mut table["patternProperties"]["^[a-z][a-z0-9_]*$"],
        None => &mut table["properties"][name],
    }
}

/// Adds what one schema says to another.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (Value::Array(into), Value::Array(from)) => into.extend(from),
        (into, from) => *into = from,
    }
}

/// The comment behind each key and table of `config/default.toml`.
fn meanings() -> BTreeMap<String, &'static str> {
    let mut table = String::new();
    let mut meanings = BTreeMap::new();
    for line in defaults::TEXT.lines().filter(|line| !line.starts_with('#')) {
        let (setting, meaning) = line.split_once(" # ").unwrap_or((line, ""));
        let path = if let Some(name) = setting.trim().strip_prefix('[') {
            name.trim_end_matches(']').clone_into(&mut table);
            table.clone()
        } else {
            let key = setting.split(' ').next().unwrap_or_default();
            if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
        };
        if !meaning.is_empty() {
            meanings.insert(path, meaning);
        }
    }
    meanings
}
