//! One table of the settings, read key by key: every wrong value and every unknown key becomes a problem, and all
//! problems are reported at once. It knows files and variables, not the meaning of keys.
//!
//! Length: it reads every kind of value that a setting can have, with its messages.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::providers::{Format, Toml};
use figment::value::{Dict, Tag, Value};
use figment::{Figment, Profile, Provider};
use serde_json::json;

use crate::settings::environment;
use crate::settings::fingerprint::{FileDigest, FileDigests};
use crate::settings::schema::{Schemas, merge};
use crate::settings::{Secret, defaults, units};

/// The length below which a secret causes a warning: 16 bytes are the least that cannot be guessed.
const SHORT_SECRET: usize = 16;

/// Shown in place of a value that might be a secret rather than a path.
const UNSHOWN: &str =
    "the file of that name, which is not shown: it may be the secret itself, or an address with one";

/// Errors and warnings, in the order in which they were found.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    /// Problems that prevent the start.
    pub(crate) errors: Vec<String>,
    /// Problems that are logged at the start and shown by `check`.
    pub(crate) warnings: Vec<String>,
    /// Facts that an operator may not expect, shown likewise.
    pub(crate) notes: Vec<String>,
}

/// One reading of the merged settings: what its sections find.
#[derive(Default)]
pub(super) struct Reading {
    /// The origin of each value.
    pub(super) figment: Figment,
    pub(super) problems: RefCell<Problems>,
    pub(super) files: RefCell<FileDigests>,
    /// The kinds and limits of the keys.
    pub(super) schemas: RefCell<Schemas>,
    /// Whether every table and list exists only to be described.
    pub(super) is_description: bool,
}

/// One table while it is being read.
pub(crate) struct Section<'a> {
    reading: &'a Reading,
    path: String,
    table: Dict,
    known: BTreeSet<String>,
}

impl<'a> Section<'a> {
    /// The top table of the merged settings.
    pub(super) fn top(reading: &'a Reading, table: Dict) -> Self {
        Self { reading, path: String::new(), table, known: BTreeSet::new() }
    }

    /// Notes the kind of a key, unless it is noted already.
    fn note(&self, key: &str, schema: impl FnOnce() -> serde_json::Value) {
        self.reading.schemas.borrow_mut().entry(self.dotted(key)).or_insert_with(schema);
    }

    /// Notes a kind that has a name.
    fn note_kind(&self, key: &str, name: &str) {
        self.note(key, || json!({ "$ref": format!("#/$defs/{name}") }));
    }

    /// Adds to the description of a key, or of the table itself if the key is empty. The kind of a key is noted when it
    /// is first read.
    pub(crate) fn describe(&self, key: &str, schema: serde_json::Value) {
        let path = if key.is_empty() { self.path.clone() } else { self.dotted(key) };
        merge(self.reading.schemas.borrow_mut().entry(path).or_default(), schema);
    }

    fn dotted(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The place of a value, for the operator: the key in a file, or the variable.
    fn place(&self, key: &str, tag: Tag) -> String {
        let dotted = self.dotted(key);
        match self.reading.origin(&dotted, tag) {
            Some(origin) if self.is_from_environment(tag) || origin.starts_with("--") => origin,
            Some(origin) => format!("`{dotted}` in {origin}"),
            None => format!("`{dotted}`"),
        }
    }

    fn is_from_environment(&self, tag: Tag) -> bool {
        self.reading.figment.get_metadata(tag).is_some_and(|metadata| metadata.name == environment::NAME)
    }

    /// Whether nothing but the defaults gives this key.
    #[must_use]
    pub(crate) fn is_default(&self, key: &str) -> bool {
        let metadata = self.table.get(key).and_then(|value| self.reading.figment.get_metadata(value.tag()));
        metadata.is_some_and(|metadata| metadata.name == defaults::NAME)
    }

    /// Adds a problem with this key's value; the text follows "where: ".
    pub(crate) fn problem(&mut self, key: &str, text: impl std::fmt::Display) {
        let tag = self.table.get(key).map_or(Tag::Default, Value::tag);
        let place = self.place(key, tag);
        self.reading.problems.borrow_mut().errors.push(format!("{place}: {text}"));
    }

    /// Adds a warning about this key's value.
    pub(crate) fn warning(&mut self, key: &str, text: impl std::fmt::Display) {
        let tag = self.table.get(key).map_or(Tag::Default, Value::tag);
        let place = self.place(key, tag);
        self.reading.problems.borrow_mut().warnings.push(format!("{place}: {text}"));
    }

    /// Adds a note about this key's value.
    pub(crate) fn remark(&mut self, key: &str, text: impl std::fmt::Display) {
        let tag = self.table.get(key).map_or(Tag::Default, Value::tag);
        let place = self.place(key, tag);
        self.reading.problems.borrow_mut().notes.push(format!("{place}: {text}"));
    }

    /// Adds a problem that belongs to no single key.
    pub(crate) fn general(&mut self, text: impl std::fmt::Display) {
        self.reading.problems.borrow_mut().errors.push(text.to_string());
    }

    /// Whether there are no errors so far.
    #[must_use]
    pub(crate) fn is_sound(&self) -> bool {
        self.reading.problems.borrow().errors.is_empty()
    }

    fn value(&mut self, key: &str) -> Option<Value> {
        self.known.insert(key.to_owned());
        self.table.get(key).cloned()
    }

    /// The value of a key. In a variable, anything that is not text is written as TOML: a number, `true`, a list.
    fn typed(&mut self, key: &str) -> Option<Value> {
        let value = self.value(key)?;
        match &value {
            Value::String(tag, text) if self.is_from_environment(*tag) => Some(parse(*tag, text).unwrap_or(value)),
            _ => Some(value),
        }
    }

    fn wrong(&mut self, key: &str, wanted: &str, value: &Value) {
        let found = match value {
            Value::String(_, text) => format!("{text:?}"),
            Value::Bool(_, flag) => flag.to_string(),
            Value::Num(_, number) => number.to_i128().map_or_else(|| "a number".to_owned(), |n| n.to_string()),
            Value::Array(..) => "a list".to_owned(),
            Value::Dict(..) => "a table".to_owned(),
            _ => "nothing".to_owned(),
        };
        self.problem(key, format_args!("expected {wanted}, found {found}"));
    }

    /// Does the same as [`Section::wrong`] for a value that may hold a secret: reports its kind, never the value.
    fn wrong_kind(&mut self, key: &str, wanted: &str, value: &Value) {
        let found = match value {
            Value::String(..) => "a text",
            Value::Bool(..) => "true or false",
            Value::Num(..) => "a number",
            Value::Array(..) => "a list",
            _ => "something else",
        };
        self.problem(key, format_args!("expected {wanted}, found {found}"));
    }

    /// A text; empty if it is missing or wrong.
    pub(crate) fn text(&mut self, key: &str) -> String {
        self.note(key, || json!({ "type": "string" }));
        match self.value(key) {
            Some(Value::String(_, text)) => text,
            Some(other) => {
                self.wrong(key, "a text in quotes", &other);
                String::new()
            }
            None => String::new(),
        }
    }

    /// `true` or `false`.
    pub(crate) fn flag(&mut self, key: &str) -> bool {
        self.note(key, || json!({ "type": "boolean" }));
        match self.typed(key) {
            Some(Value::Bool(_, flag)) => flag,
            Some(other) => {
                self.wrong(key, "true or false", &other);
                false
            }
            None => false,
        }
    }

    /// A whole number within the range, both ends included.
    pub(crate) fn integer(&mut self, key: &str, least: i64, most: i64) -> i64 {
        self.note(key, || match most {
            i64::MAX => json!({ "type": "integer", "minimum": least }),
            most => json!({ "type": "integer", "minimum": least, "maximum": most }),
        });
        let Some(value) = self.typed(key) else { return least };
        let number = match &value {
            Value::Num(_, number) => number.to_i128(),
            _ => None,
        };
        match number {
            Some(number) if (i128::from(least)..=i128::from(most)).contains(&number) => {
                i64::try_from(number).unwrap_or(least)
            }
            Some(_) => {
                let range =
                    if most == i64::MAX { format!("at least {least}") } else { format!("{least} to {most}") };
                self.wrong(key, &format!("a whole number, {range}"), &value);
                least
            }
            None => {
                self.wrong(key, "a whole number", &value);
                least
            }
        }
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
        self.measure(
            key,
            "a duration such as \"500ms\", \"5s\", \"10m\" or \"1h\"",
            Duration::from_secs(1),
            units::duration,
        )
    }

    /// A size in bytes such as "64MiB".
    pub(crate) fn size(&mut self, key: &str) -> usize {
        self.note_kind(key, "size");
        self.measure(key, "a size such as \"512B\", \"256KiB\", \"64MiB\" or \"1GiB\"", 1 << 20, units::size)
    }

    /// Reads a text with a unit; `instead` replaces a wrong value, so that one mistake is reported once.
    fn measure<T>(&mut self, key: &str, wanted: &str, instead: T, read: impl Fn(&str) -> Option<T>) -> T {
        let Some(value) = self.value(key) else { return instead };
        let measured = match &value {
            Value::String(_, text) => read(text.trim()),
            _ => None,
        };
        measured.unwrap_or_else(|| {
            self.wrong(key, wanted, &value);
            instead
        })
    }

    /// One of several words.
    ///
    /// # Panics
    /// If `words` is empty.
    pub(crate) fn choice<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> T {
        self.note(key, || json!({ "enum": words.iter().map(|(word, _)| *word).collect::<Vec<_>>() }));
        let value = self.value(key);
        let found = match &value {
            Some(Value::String(_, text)) => words.iter().find(|(word, _)| word == text),
            _ => None,
        };
        if let (None, Some(value)) = (found, &value) {
            let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let near = match value {
                Value::String(_, text) => nearest(text, names.iter().copied()),
                _ => None,
            };
            let list = names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
            let hint = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
            self.wrong(key, &format!("one of {list}"), value);
            if let Some(last) = self.reading.problems.borrow_mut().errors.last_mut() {
                last.push_str(&hint);
            }
        }
        found.unwrap_or(&words[0]).1
    }

    /// A list of texts.
    pub(crate) fn texts(&mut self, key: &str) -> Vec<String> {
        self.note(key, || json!({ "type": "array", "items": { "type": "string" } }));
        let Some(value) = self.typed(key) else { return Vec::new() };
        let Value::Array(_, items) = &value else {
            self.wrong_kind(key, "a list such as [\"a\", \"b\"]", &value);
            return Vec::new();
        };
        let texts: Option<Vec<String>> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
        texts.unwrap_or_else(|| {
            self.problem(key, "expected a list of texts, found a list with something else in it");
            Vec::new()
        })
    }

    /// A path; none if it is empty.
    pub(crate) fn path(&mut self, key: &str) -> Option<PathBuf> {
        self.note_kind(key, "file");
        Some(self.text(key)).filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    /// A path of a file that can be read now; none if it is empty or unreadable (a problem then).
    pub(crate) fn readable_file(&mut self, key: &str) -> Option<PathBuf> {
        let path = self.path(key)?;
        match std::fs::File::open(&path).and_then(|file| file.metadata()) {
            Ok(metadata) if metadata.is_file() => self.file(key).map(|_| path),
            Ok(_) => {
                self.problem(key, format_args!("{} is not a file", path.display()));
                None
            }
            Err(error) => {
                self.problem(key, format_args!("cannot read {}: {error}", path.display()));
                None
            }
        }
    }

    /// Records the content of a file, so that changes can be detected.
    fn note_file(&self, key: &str, path: &Path, content: &[u8]) {
        self.reading.files.borrow_mut().insert(self.dotted(key), FileDigest::of(path, content));
    }

    /// A file that must be given, and its content; `what` describes it.
    pub(crate) fn needed_file(&mut self, key: &str, what: &str) -> Option<(PathBuf, Vec<u8>)> {
        let found = self.file(key);
        self.describe("", json!({ "required": [key] }));
        if self.is_blank(key) {
            self.problem(key, format_args!("empty; name a file with {what}"));
        }
        found
    }

    /// A file and its content; none if it is not given or unreadable (a problem then).
    pub(crate) fn file(&mut self, key: &str) -> Option<(PathBuf, Vec<u8>)> {
        let path = self.path(key)?;
        match std::fs::read(&path) {
            Ok(content) => {
                self.note_file(key, &path, &content);
                self.warn_of_joined_blocks(key, &path, &content);
                Some((path, content))
            }
            Err(error) => {
                self.problem(key, format_args!("cannot read {}: {error}", path.display()));
                None
            }
        }
    }

    /// A secret, given directly or in the file that `<key>_file` names; none if both are empty.
    pub(crate) fn secret(&mut self, key: &str) -> Option<Secret> {
        let file_key = format!("{key}_file");
        self.secret_from(key, &file_key)
    }

    /// Does the same as [`Section::secret`], with the name of the file's key.
    pub(crate) fn secret_from(&mut self, key: &str, file_key: &str) -> Option<Secret> {
        self.note_kind(key, "secret");
        self.describe("", json!({ "allOf": [{ "not": { "required": [key, file_key] } }] }));
        let place = match self.value(key) {
            Some(Value::String(_, text)) => Some(text).filter(|text| !text.is_empty()),
            Some(_) => {
                // Never show the value: it is the secret.
                self.problem(key, "expected a text in quotes");
                None
            }
            None => None,
        };
        let path = self.path(file_key);
        match (place, path) {
            // A file overrides a default; only two values that the user wrote contradict each other.
            (Some(_), Some(path)) if self.is_default(key) => self.secret_file(file_key, &path),
            (Some(_), Some(_)) => {
                let both =
                    format!("`{}` and `{}` are both given; keep one", self.dotted(key), self.dotted(file_key));
                self.problem(file_key, both);
                None
            }
            (Some(text), None) => self.secret_value(key, &text),
            (None, Some(path)) => self.secret_file(file_key, &path),
            (None, None) => None,
        }
    }

    /// A secret that is given in a file only; none if the key is empty.
    pub(crate) fn secret_in_file(&mut self, key: &str) -> Option<Secret> {
        let path = self.path(key)?;
        self.secret_file(key, &path)
    }

    /// A secret given directly. In a file of settings a line break is written on purpose.
    fn secret_value(&mut self, key: &str, text: &str) -> Option<Secret> {
        let tag = self.table.get(key).map_or(Tag::Default, Value::tag);
        let read = if self.is_from_environment(tag) {
            Secret::read(text)
        } else {
            Secret::doubt(text).map(|doubt| (Secret::new(text), doubt))
        };
        match read {
            Ok((secret, doubt)) => {
                if let Some(doubt) = doubt {
                    self.warning(key, doubt);
                }
                Some(secret)
            }
            Err(wrong) => {
                self.problem(key, format_args!("the secret {wrong}"));
                None
            }
        }
    }

    fn secret_file(&mut self, key: &str, path: &Path) -> Option<Secret> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                let shown = if is_surely_a_path(path) { path.display().to_string() } else { UNSHOWN.to_owned() };
                self.problem(key, format_args!("cannot read {shown}: {error}"));
                return None;
            }
        };
        self.note_file(key, path, text.as_bytes());
        match Secret::read(&text) {
            Ok((secret, doubt)) => {
                if let Some(doubt) = doubt {
                    self.warning(key, format_args!("{}: {doubt}", path.display()));
                }
                self.warn_if_world_readable(key, path);
                Some(secret)
            }
            Err(wrong) => {
                self.problem(key, format_args!("{} {wrong}", path.display()));
                None
            }
        }
    }

    /// Warns about a block of PEM that does not begin a line: readers skip it.
    fn warn_of_joined_blocks(&mut self, key: &str, path: &Path, content: &[u8]) {
        const BEGIN: &[u8] = b"-----BEGIN ";
        let is_inside = |line: &[u8]| line.windows(BEGIN.len()).skip(1).any(|part| part == BEGIN);
        let line = content.split(|byte| *byte == b'\n').position(is_inside);
        if let Some(at) = line {
            let text = "`-----BEGIN` does not start the line, so that what follows is not read: put a line break before it";
            self.warning(key, format_args!("{}, line {}: {text}", path.display(), at + 1));
        }
    }

    /// Warns about a file of secrets that all users of the machine can read.
    pub(crate) fn warn_if_world_readable(&mut self, key: &str, path: &Path) {
        use std::os::unix::fs::PermissionsExt as _;
        if std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0) {
            self.warning(key, format_args!("{} can be read by all users; chmod o-r it", path.display()));
        }
    }

    /// Warns about a secret that can be guessed.
    pub(crate) fn warn_if_short(&mut self, key: &str, secret: &Secret) {
        if secret.reveal().len() < SHORT_SECRET {
            self.warning(key, format_args!("the secret is shorter than {SHORT_SECRET} bytes"));
        }
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
        let one = format!("{key}[0]");
        self.note(key, || json!({ "type": "array" }));
        self.note(&one, || json!({ "type": "object", "additionalProperties": false }));
        if self.reading.is_description {
            self.value(key);
            return vec![self.below(self.dotted(&one), Dict::new())];
        }
        let Some(value) = self.value(key) else { return Vec::new() };
        let dotted = self.dotted(key);
        match value {
            Value::Array(tag, _) | Value::String(tag, _) | Value::Dict(tag, _) if self.is_from_environment(tag) => {
                self.problem(key, format_args!("`{dotted}` is set in the file only"));
                Vec::new()
            }
            Value::Array(_, items) => {
                let mut sections = Vec::new();
                for (index, item) in items.into_iter().enumerate() {
                    if let Value::Dict(_, table) = item {
                        sections.push(self.below(format!("{dotted}[{index}]"), table));
                    } else {
                        self.problem(key, "expected tables, found something else in the list");
                    }
                }
                sections
            }
            other => {
                self.wrong_kind(key, "a list of tables", &other);
                Vec::new()
            }
        }
    }

    /// A table of free keys; texts, numbers and flags are returned as texts, and count as secrets.
    pub(crate) fn free(&mut self, key: &str) -> Vec<(String, Secret)> {
        let kinds = || json!({ "type": ["string", "number", "boolean", "object"] });
        self.note(key, || json!({ "type": "object", "additionalProperties": kinds() }));
        let dotted = self.dotted(key);
        let table = match self.value(key) {
            Some(Value::Dict(_, table)) => table,
            Some(_) => {
                self.problem(key, "expected a table");
                return Vec::new();
            }
            None => return Vec::new(),
        };
        let mut pairs = Vec::new();
        self.flatten(&dotted, "", &table, &mut pairs);
        pairs
    }

    /// Joins names with dots, because TOML reads `a.b = 1` as a table in a table.
    fn flatten(&mut self, dotted: &str, prefix: &str, table: &Dict, pairs: &mut Vec<(String, Secret)>) {
        for (name, value) in table {
            let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            if self.is_from_environment(value.tag()) {
                let key = dotted.rsplit('.').next().unwrap_or(dotted).to_owned();
                self.problem(&key, format_args!("`{dotted}` is set in the file only"));
                continue;
            }
            match value {
                Value::String(_, text) => pairs.push((name, Secret::new(text.as_str()))),
                Value::Bool(_, flag) => pairs.push((name, Secret::new(flag.to_string()))),
                Value::Num(_, number) => {
                    let text = number
                        .to_i128()
                        .map(|number| number.to_string())
                        .or_else(|| number.to_f64().map(|number| number.to_string()));
                    pairs.push((name, Secret::new(text.unwrap_or_default())));
                }
                Value::Dict(_, inner) => self.flatten(dotted, &name, inner, pairs),
                _ => {
                    let text = format!("`{dotted}.{name}`: expected a text, a number, true or false");
                    self.reading.problems.borrow_mut().errors.push(text);
                }
            }
        }
    }

    fn below(&self, path: String, table: Dict) -> Section<'a> {
        Section { path, table, known: BTreeSet::new(), ..*self }
    }

    /// The names of the keys in this table.
    #[must_use]
    pub(crate) fn keys(&self) -> Vec<String> {
        self.table.keys().cloned().collect()
    }

    /// Whether file or environment (or the defaults) have this key.
    #[must_use]
    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether a key is missing, or has an empty text or list.
    #[must_use]
    pub(crate) fn is_blank(&self, key: &str) -> bool {
        match self.table.get(key) {
            None => true,
            Some(Value::String(_, text)) => text.is_empty(),
            Some(Value::Array(_, items)) => items.is_empty(),
            Some(_) => false,
        }
    }

    /// Reports every key that was not read, with the nearest known name.
    pub(crate) fn finish(&mut self) {
        let unknown: Vec<String> = self.table.keys().filter(|key| !self.known.contains(*key)).cloned().collect();
        for key in unknown {
            let near = nearest(&key, self.known.iter().map(String::as_str)).map(str::to_owned);
            let hint = match near {
                Some(near) => format!("; did you mean `{}`?", self.dotted(&near)),
                None => format!("; known here: {}", self.known.iter().cloned().collect::<Vec<_>>().join(", ")),
            };
            // A variable for a whole unknown table is nested one or more levels deeper.
            let mut place = key.clone();
            let mut value = self.table.get(&key);
            while let Some(Value::Dict(_, inner)) = value {
                let Some((name, below)) = inner.iter().next() else { break };
                if !self.is_from_environment(below.tag()) && !matches!(below, Value::Dict(..)) {
                    break;
                }
                place = format!("{place}.{name}");
                value = Some(below);
            }
            let tag = value.map_or(Tag::Default, Value::tag);
            let place = if self.is_from_environment(tag) { self.place(&place, tag) } else { self.place_of(&key) };
            self.reading.problems.borrow_mut().errors.push(format!("{place}: unknown key{hint}"));
        }
    }

    fn place_of(&self, key: &str) -> String {
        let mut value = self.table.get(key);
        while let Some(Value::Dict(_, inner)) = value {
            let Some(below) = inner.values().next() else { break };
            value = Some(below);
        }
        self.place(key, value.map_or(Tag::Default, Value::tag))
    }
}

/// Whether the text cannot be a secret that was given in place of the name of its file.
fn is_surely_a_path(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let is_rooted = ["/", "./", "../"].iter().any(|start| text.starts_with(start));
    let is_in_a_directory = path.parent().is_some_and(Path::is_dir);
    let is_plain = !text.contains(['@', '+', '=']) && !text.contains("://");
    text.len() < SHORT_SECRET || (is_plain && (is_rooted || is_in_a_directory))
}

/// Reads a variable's text as a TOML value.
fn parse(tag: Tag, text: &str) -> Option<Value> {
    let parsed = Toml::string(&format!("value = {text}")).data().ok()?;
    let mut value = parsed.get(&Profile::Default)?.get("value")?.clone();
    value = match value {
        Value::Bool(_, flag) => Value::Bool(tag, flag),
        Value::Num(_, number) => Value::Num(tag, number),
        Value::Array(_, items) => Value::Array(tag, items),
        other => other,
    };
    Some(value)
}

/// The word nearest to a mistyped one, if it is near enough.
pub(crate) fn nearest<'n>(typed: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    names
        .map(|name| (strsim::damerau_levenshtein(typed, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len().min(typed.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}
