//! One table of the settings, read key by key: every wrong value and every unknown key becomes a problem, and all
//! problems are reported at once. It knows layers and kinds of values, not the meaning of keys.
//!
//! Length: a method for each kind of value, and one for each kind of message.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use figment::providers::{Format, Toml};
use figment::value::{Dict, Tag, Value};
use figment::{Profile, Provider};
use serde_json::json;

use crate::settings::defaults::leaves;
use crate::settings::reading::Reading;
use crate::settings::{Secret, environment, nearest, units};

/// One table while it is being read.
pub(crate) struct Section<'a> {
    pub(super) reading: &'a Reading,
    pub(super) path: String,
    pub(super) table: Dict,
    known: BTreeSet<String>,
}

impl<'a> Section<'a> {
    /// The top table of the merged settings.
    pub(super) fn top(reading: &'a Reading, table: Dict) -> Self {
        Self { reading, path: String::new(), table, known: BTreeSet::new() }
    }

    fn below(&self, path: String, table: Dict) -> Section<'a> {
        Section { path, table, known: BTreeSet::new(), ..*self }
    }

    pub(super) fn dotted(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The place of a value, for the operator: the key in a file, or the variable.
    fn place(&self, key: &str, tag: Tag) -> String {
        let dotted = self.dotted(key);
        match self.reading.origin(&dotted, tag) {
            Some(origin) if self.reading.is_from_environment(tag) || origin.starts_with("--") => origin,
            Some(origin) => format!("`{dotted}` in {origin}"),
            None => format!("`{dotted}`"),
        }
    }

    /// Adds a problem with a key that cannot be given beside another one: says where that is given.
    pub(crate) fn contradiction(&mut self, key: &str, other: &str, advice: &str) {
        let other = self.given_at(other);
        self.problem(key, format_args!("{other} is given, too; {advice}"));
    }

    /// The place where a value or a table is given: its name in the file, or the (first) variable that
    /// gives it.
    pub(crate) fn given_at(&self, key: &str) -> String {
        let below = match self.table.get(key) {
            Some(Value::Dict(_, table)) => leaves(table),
            value => return self.place(key, value.map_or(Tag::Default, Value::tag)),
        };
        match below.into_iter().find(|(_, value)| !self.reading.is_default(value.tag())) {
            Some((path, value)) if self.reading.is_from_environment(value.tag()) => {
                self.place(&format!("{key}.{path}"), value.tag())
            }
            Some((_, value)) => self.place(key, value.tag()),
            None => self.place(key, Tag::Default),
        }
    }

    /// The path of an unknown key that a variable gives: one for a whole unknown table is nested one or more levels
    /// deeper.
    fn unknown_of_variable(&self, key: &str) -> Option<(String, Tag)> {
        let (mut path, mut value) = (key.to_owned(), self.table.get(key));
        while let Some(Value::Dict(_, inner)) = value {
            let Some((name, below)) = inner.iter().next() else { break };
            path = format!("{path}.{name}");
            value = Some(below);
        }
        let tag = value.map_or(Tag::Default, Value::tag);
        self.reading.is_from_environment(tag).then_some((path, tag))
    }

    /// Whether nothing but the defaults gives this key.
    #[must_use]
    pub(crate) fn is_default(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(|value| self.reading.is_default(value.tag()))
    }

    fn at(&self, key: &str, text: impl Display) -> String {
        let tag = self.table.get(key).map_or(Tag::Default, Value::tag);
        format!("{}: {text}", self.place(key, tag))
    }

    /// Adds a problem with this key's value; the text follows "where: ".
    pub(crate) fn problem(&mut self, key: &str, text: impl Display) {
        self.general(self.at(key, text));
    }

    /// Adds a warning about this key's value.
    pub(crate) fn warning(&mut self, key: &str, text: impl Display) {
        self.reading.problems.borrow_mut().warnings.push(self.at(key, text));
    }

    /// Adds a note about this key's value.
    pub(crate) fn remark(&mut self, key: &str, text: impl Display) {
        self.reading.problems.borrow_mut().notes.push(self.at(key, text));
    }

    /// Adds a problem that belongs to no single key.
    pub(crate) fn general(&mut self, text: impl Display) {
        self.reading.problems.borrow_mut().errors.push(text.to_string());
    }

    /// Whether there are no errors so far.
    #[must_use]
    pub(crate) fn is_sound(&self) -> bool {
        self.reading.problems.borrow().errors.is_empty()
    }

    pub(super) fn value(&mut self, key: &str) -> Option<Value> {
        self.known.insert(key.to_owned());
        self.table.get(key).cloned()
    }

    /// The value of a key. In a variable, anything that is not text is written as TOML: a number, `true`, a list.
    fn typed(&mut self, key: &str) -> Option<Value> {
        let value = self.value(key)?;
        match &value {
            Value::String(tag, text) if self.reading.is_from_environment(*tag) => {
                Some(parse(*tag, text).unwrap_or(value))
            }
            _ => Some(value),
        }
    }

    fn wrong(&mut self, key: &str, wanted: &str, value: &Value) {
        self.problem(key, format_args!("expected {wanted}, found {}", shown(value)));
    }

    /// Does the same as [`Section::wrong`] for a value that may hold a secret: reports its kind, never the value.
    fn wrong_kind(&mut self, key: &str, wanted: &str, value: &Value) {
        self.problem(key, format_args!("expected {wanted}, found {}", kind(value)));
    }

    /// Reads a value; `instead` replaces a wrong one, so that one mistake is reported once, and a missing one.
    fn read<T>(
        &mut self,
        key: &str,
        value: Option<Value>,
        wanted: &str,
        instead: T,
        read: impl Fn(&Value) -> Option<T>,
    ) -> T {
        let Some(value) = value else { return instead };
        read(&value).unwrap_or_else(|| {
            self.wrong(key, wanted, &value);
            instead
        })
    }

    /// A text; empty if it is missing or wrong.
    pub(crate) fn text(&mut self, key: &str) -> String {
        self.note(key, || json!({ "type": "string" }));
        let value = self.value(key);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        self.read(key, value, "a text in quotes", String::new(), text)
    }

    /// `true` or `false`.
    pub(crate) fn flag(&mut self, key: &str) -> bool {
        self.note(key, || json!({ "type": "boolean" }));
        let value = self.typed(key);
        self.read(key, value, "true or false", false, Value::to_bool)
    }

    /// A whole number within the range, both ends included.
    pub(crate) fn integer(&mut self, key: &str, least: i64, most: i64) -> i64 {
        let (mut schema, mut range) = (json!({ "type": "integer", "minimum": least }), format!("at least {least}"));
        if most < i64::MAX {
            schema["maximum"] = json!(most);
            range = format!("{least} to {most}");
        }
        self.note(key, || schema);
        let value = self.typed(key);
        let wanted = match value.as_ref().and_then(Value::to_i128) {
            Some(_) => format!("a whole number, {range}"),
            None => "a whole number".to_owned(),
        };
        let within = |number: &i64| (least..=most).contains(number);
        self.read(key, value, &wanted, least, |value| i64::try_from(value.to_i128()?).ok().filter(within))
    }

    /// A number of things, at least `least`.
    pub(crate) fn count(&mut self, key: &str, least: usize) -> usize {
        let least = i64::try_from(least).unwrap_or(i64::MAX);
        usize::try_from(self.integer(key, least, i64::MAX)).unwrap_or(usize::MAX)
    }

    /// An address with a port; none if it is wrong.
    pub(crate) fn address(&mut self, key: &str) -> Option<SocketAddr> {
        self.note_kind(key, "address");
        let wanted = "an IP address with a port, such as \"127.0.0.1:8080\" or \"[::]:8080\"";
        self.measure(key, wanted, None, |text| text.parse().ok().map(Some))
    }

    /// An address, or none if it is empty.
    pub(crate) fn optional_address(&mut self, key: &str) -> Option<SocketAddr> {
        self.note(key, || json!({ "anyOf": [{ "$ref": "#/$defs/address" }, { "const": "" }] }));
        if self.is_blank(key) { Some(self.text(key)).and(None) } else { self.address(key) }
    }

    /// A duration such as "5s".
    pub(crate) fn duration(&mut self, key: &str) -> Duration {
        self.note_kind(key, "duration");
        let wanted = "a duration such as \"500ms\", \"5s\", \"10m\" or \"1h\"";
        self.measure(key, wanted, Duration::from_secs(1), units::duration)
    }

    /// A size in bytes such as "64MiB".
    pub(crate) fn size(&mut self, key: &str) -> usize {
        self.note_kind(key, "size");
        self.measure(key, "a size such as \"512B\", \"256KiB\", \"64MiB\" or \"1GiB\"", 1 << 20, units::size)
    }

    /// Reads a text with a unit.
    fn measure<T>(&mut self, key: &str, wanted: &str, instead: T, read: impl Fn(&str) -> Option<T>) -> T {
        let value = self.value(key);
        self.read(key, value, wanted, instead, |value| read(value.as_str()?.trim()))
    }

    /// One of several words.
    ///
    /// # Panics
    /// If `words` is empty.
    pub(crate) fn choice<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> T {
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        self.note(key, || json!({ "enum": names }));
        let value = self.value(key);
        let text = value.as_ref().and_then(Value::as_str);
        if let Some((_, found)) = words.iter().find(|(word, _)| Some(*word) == text) {
            return *found;
        }
        if let Some(value) = &value {
            let list = names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
            let near = text.and_then(|text| nearest(text, names.iter().copied()));
            let hint = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
            self.problem(key, format_args!("expected one of {list}, found {}{hint}", shown(value)));
        }
        words[0].1
    }

    /// A list of texts.
    pub(crate) fn texts(&mut self, key: &str) -> Vec<String> {
        self.note(key, || json!({ "type": "array", "items": { "type": "string" } }));
        let Some(value) = self.typed(key) else { return Vec::new() };
        let Some(items) = value.as_array() else {
            self.wrong_kind(key, "a list such as [\"a\", \"b\"]", &value);
            return Vec::new();
        };
        let texts: Option<Vec<String>> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
        texts.unwrap_or_else(|| {
            self.problem(key, "expected a list of texts, found a list with something else in it");
            Vec::new()
        })
    }

    /// A table below this one.
    #[must_use]
    pub(crate) fn section(&mut self, key: &str) -> Section<'a> {
        self.note(key, || json!({ "type": "object", "additionalProperties": false }));
        let table = match self.value(key) {
            Some(Value::Dict(_, table)) => table,
            Some(other) => {
                self.wrong_kind(key, "a table", &other);
                Dict::new()
            }
            None => Dict::new(),
        };
        self.below(self.dotted(key), table)
    }

    /// The list of tables under this key (`[[...]]`), which only a file can contain.
    pub(crate) fn sections(&mut self, key: &str) -> Vec<Section<'a>> {
        let (dotted, one) = (self.dotted(key), format!("{key}[0]"));
        self.note(key, || json!({ "type": "array" }));
        self.note(&one, || json!({ "type": "object", "additionalProperties": false }));
        let Some(value) = self.value(key).filter(|_| !self.reading.is_description) else {
            let one = self.below(self.dotted(&one), Dict::new());
            return Vec::from_iter(Some(one).filter(|_| self.reading.is_description));
        };
        let mut sections = Vec::new();
        match value {
            value if self.reading.is_from_environment(value.tag()) => self.refuse_variable(key, &dotted),
            Value::Array(_, items) => {
                for (index, item) in items.into_iter().enumerate() {
                    match item {
                        Value::Dict(_, table) => sections.push(self.below(format!("{dotted}[{index}]"), table)),
                        _ => self.problem(key, "expected tables, found something else in the list"),
                    }
                }
            }
            other => self.wrong_kind(key, "a list of tables", &other),
        }
        sections
    }

    fn refuse_variable(&mut self, key: &str, dotted: &str) {
        self.problem(key, format_args!("`{dotted}` is set in the file only"));
    }

    /// A table of free keys; texts, numbers and flags are returned as texts, and count as secrets.
    pub(crate) fn free(&mut self, key: &str) -> Vec<(String, Secret)> {
        let kinds = || json!({ "type": ["string", "number", "boolean", "object"] });
        self.note(key, || json!({ "type": "object", "additionalProperties": kinds() }));
        let mut pairs = Vec::new();
        match self.value(key) {
            // TOML reads `a.b = 1` as a table in a table: such names are joined with dots.
            Some(Value::Dict(_, table)) => {
                for (name, value) in leaves(&table) {
                    pairs.extend(self.free_text(key, &name, value).map(|text| (name, Secret::new(text))));
                }
            }
            Some(_) => self.problem(key, "expected a table"),
            None => {}
        }
        pairs
    }

    fn free_text(&mut self, key: &str, name: &str, value: &Value) -> Option<String> {
        match value {
            value if self.reading.is_from_environment(value.tag()) => self.refuse_variable(key, &self.dotted(key)),
            Value::String(_, text) => return Some(text.clone()),
            Value::Bool(_, flag) => return Some(flag.to_string()),
            Value::Num(_, number) => {
                let whole = number.to_i128().map(|number| number.to_string());
                return whole.or_else(|| Some(number.to_f64()?.to_string()));
            }
            Value::Dict(..) => {}
            _ => {
                let dotted = self.dotted(key);
                self.general(format_args!("`{dotted}.{name}`: expected a text, a number, true or false"));
            }
        }
        None
    }

    /// The names of the keys in this table.
    #[must_use]
    pub(crate) fn keys(&self) -> Vec<String> {
        self.table.keys().cloned().collect()
    }

    /// The names of the tables in this one; reports the variables that name none, because they have one underscore in
    /// place of two.
    pub(crate) fn tables(&mut self) -> Vec<String> {
        let mut names = self.keys();
        names.retain(|name| {
            let meant = match self.table.get(name) {
                Some(Value::String(tag, _)) if self.reading.is_from_environment(*tag) => {
                    environment::same_letters(&self.dotted(name))
                }
                _ => None,
            };
            if let Some(meant) = &meant {
                self.known.insert(name.clone());
                self.problem(name, format_args!("unknown key; did you mean {meant}?"));
            }
            meant.is_none()
        });
        names
    }

    /// Whether file or environment (or the defaults) have this key.
    #[must_use]
    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether a key is missing, or has an empty text or list.
    #[must_use]
    pub(crate) fn is_blank(&self, key: &str) -> bool {
        self.table.get(key).is_none_or(|value| {
            value.as_str().is_some_and(str::is_empty) || value.as_array().is_some_and(<[Value]>::is_empty)
        })
    }

    /// Reports every key that was not read, with the nearest known name.
    pub(crate) fn finish(&mut self) {
        for key in self.table.keys().filter(|key| !self.known.contains(*key)) {
            let variable = self.unknown_of_variable(key);
            let whole =
                || variable.as_ref().and_then(|(path, _)| environment::nearest_variable(&self.dotted(path)));
            let hint = match nearest(key, self.known.iter().map(String::as_str)) {
                Some(near) => format!("; did you mean `{}`?", self.dotted(near)),
                None => match whole() {
                    Some(whole) => format!("; did you mean {whole}?"),
                    None => format!("; known here: {}", self.known.iter().cloned().collect::<Vec<_>>().join(", ")),
                },
            };
            let place = match &variable {
                Some((path, tag)) => self.place(path, *tag),
                None => self.place(key, self.table.get(key).map_or(Tag::Default, Value::tag)),
            };
            let text = format!("{place}: unknown key{hint}");
            self.reading.problems.borrow_mut().errors.push(text);
        }
    }
}

/// The kind of a value.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(..) => "a text",
        Value::Bool(..) => "true or false",
        Value::Num(..) => "a number",
        Value::Array(..) => "a list",
        Value::Dict(..) => "a table",
        _ => "nothing",
    }
}

/// A value as a problem shows it: its kind where it is long.
fn shown(value: &Value) -> String {
    match value {
        Value::String(_, text) => format!("{text:?}"),
        Value::Bool(_, flag) => flag.to_string(),
        Value::Num(_, number) => match (number.to_i128(), number.to_f64()) {
            (Some(whole), _) => whole.to_string(),
            (None, Some(fraction)) => fraction.to_string(),
            (None, None) => kind(value).to_owned(),
        },
        _ => kind(value).to_owned(),
    }
}

/// Reads a variable's text as a TOML value.
fn parse(tag: Tag, text: &str) -> Option<Value> {
    let parsed = Toml::string(&format!("value = {text}")).data().ok()?;
    Some(match parsed.get(&Profile::Default)?.get("value")?.clone() {
        Value::Bool(_, flag) => Value::Bool(tag, flag),
        Value::Num(_, number) => Value::Num(tag, number),
        Value::Array(_, items) => Value::Array(tag, items),
        other => other,
    })
}
