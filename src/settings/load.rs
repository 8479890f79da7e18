//! From files, environment and flags to [`Settings`]: the layers, then every part's own reading.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::providers::{Format as _, Toml};
use figment::value::{Dict, Value};
use figment::{Figment, Profile, Provider as _};

use crate::accounting::Limits;
use crate::admin;
use crate::brokers::{self, Terms};
use crate::delivery;
use crate::ingress::{self, Source};
use crate::logs;
use crate::queue::{self, Ack, Mode, journal};
use crate::settings::defaults::{self, Defaults};
use crate::settings::environment::{Environment, PREFIX};
use crate::settings::section::{Problems, Section, nearest};
use crate::settings::written::Written;
use crate::shutdown;

/// The file that is read where `--config` names none, if it exists.
pub const DEFAULT_FILE: &str = "/etc/plextrac-bridge/config.toml";

/// What the command line adds to file and environment.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--log-level`.
    pub log_level: Option<String>,
    /// `--log-format`.
    pub log_format: Option<String>,
}

/// All settings, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `ack`, and how long a sender waits for it.
    pub mode: Mode,
    /// Where state is kept, if anywhere.
    pub state_directory: Option<PathBuf>,
    /// `[ingress]`.
    pub ingress: ingress::Settings,
    /// `[sources.*]`.
    pub sources: Vec<Source>,
    /// `[buffer]`.
    pub buffer: Limits,
    /// `[journal]`.
    pub journal: journal::Settings,
    /// `[deduplication]`.
    pub deduplication: ingress::DeduplicationSettings,
    /// `[publish]`.
    pub publish: delivery::Settings,
    /// `[broker.*]`.
    pub broker: brokers::Settings,
    /// `[dead_letters]`.
    pub dead_letters: delivery::DeadLetterLimit,
    /// `[invalid]`.
    pub invalid: ingress::InvalidSettings,
    /// `[admin]`.
    pub admin: admin::Settings,
    /// `[log]`.
    pub log: logs::Settings,
    /// `[shutdown]`.
    pub shutdown: shutdown::Settings,
    /// What they were read from, for comparison with another reading.
    pub written: Written,
}

impl Settings {
    /// What is wrong where parts of two readings, each right by itself, are put together.
    #[must_use]
    pub fn contradiction(&self) -> Option<String> {
        too_small(&self.buffer, &self.ingress).map(str::to_owned).or_else(|| self.broker.contradiction())
    }

    /// What every broker is told beside its own settings.
    #[must_use]
    pub fn terms(&self) -> Terms {
        Terms {
            max_in_flight: self.publish.max_in_flight,
            max_body: self.ingress.max_body,
            headers: self.publish.headers,
            retry_max: self.publish.retry_max,
        }
    }
}

/// Everything that is wrong with the settings.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct SettingsError(pub Vec<String>);

/// Reads the settings of this process: the settings and the warnings.
///
/// # Errors
/// All problems at once.
pub fn load(flags: &Flags) -> Result<(Settings, Vec<String>), SettingsError> {
    let mut variables = Vec::new();
    let mut unreadable = Vec::new();
    for (name, value) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with(PREFIX) {
            match value.into_string() {
                Ok(value) => variables.push((name, value)),
                Err(_) => unreadable.push(format!("environment variable {name}: not UTF-8")),
            }
        }
    }
    if !unreadable.is_empty() {
        return Err(SettingsError(unreadable));
    }
    load_from(flags, variables, std::env::var("STATE_DIRECTORY").ok())
}

/// Reads the settings with these variables; `systemd_state` is systemd's `STATE_DIRECTORY`.
///
/// # Errors
/// All problems at once.
pub fn load_from(
    flags: &Flags,
    mut variables: Vec<(String, String)>,
    systemd_state: Option<String>,
) -> Result<(Settings, Vec<String>), SettingsError> {
    variables.sort();
    let mut user = Figment::new();
    let file = file(flags)?;
    if let Some(path) = file {
        user = user.merge(Toml::file_exact(path));
    }
    user = user.merge(Environment(variables));
    let given = user.data().map_err(|error| SettingsError(syntax(error, file)))?;
    let mut given = given.get(&Profile::Default).cloned().unwrap_or_default();
    for (key, value) in [("level", &flags.log_level), ("format", &flags.log_format)] {
        if let Some(value) = value {
            set(&mut given, "log", key, value);
        }
    }
    let flag_layer = Defaults(only(&given, "log"));
    let figment = Figment::new().merge(Defaults(base(&given))).merge(user);
    let figment =
        if flags.log_level.is_some() || flags.log_format.is_some() { figment.merge(flag_layer) } else { figment };
    let merged = figment.data().map_err(|error| SettingsError(syntax(error, file)))?;
    let merged = merged.get(&Profile::Default).cloned().unwrap_or_default();
    let problems = RefCell::new(Problems::default());
    let files = RefCell::default();
    let settings = read(Section::top(&figment, merged.clone(), &problems, &files), systemd_state);
    let Problems { mut errors, warnings } = problems.into_inner();
    if !errors.is_empty() && file.is_none() {
        errors.insert(
            0,
            format!("no file of settings was read: --config names none, and there is no {DEFAULT_FILE}"),
        );
    }
    match settings {
        Some(settings) if errors.is_empty() => {
            let written = Written::new(&merged, files.into_inner());
            Ok((Settings { written, ..settings }, warnings))
        }
        _ => Err(SettingsError(errors)),
    }
}

fn file(flags: &Flags) -> Result<Option<&Path>, SettingsError> {
    let Some(path) = &flags.config else {
        let default = Path::new(DEFAULT_FILE);
        return Ok(default.exists().then_some(default));
    };
    match std::fs::File::open(path).and_then(|file| file.metadata()) {
        Ok(metadata) if metadata.is_file() => Ok(Some(path)),
        Ok(_) => Err(SettingsError(vec![format!("--config {}: not a file", path.display())])),
        Err(error) => Err(SettingsError(vec![format!("--config {}: cannot read it: {error}", path.display())])),
    }
}

/// What is wrong with the file's TOML: where it stands, without the line itself, which may hold a secret.
fn syntax(error: figment::Error, file: Option<&Path>) -> Vec<String> {
    let file = file.map_or_else(|| "settings".to_owned(), |path| path.display().to_string());
    error.into_iter().map(|error| format!("{file}: {}", without_quotation(&error.kind.to_string()))).collect()
}

/// TOML's errors: a line that ends in the place, the quoted lines (`2 | key = ...`, `  |  ^`), then what is wrong.
fn without_quotation(text: &str) -> String {
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    let place = first.strip_prefix("TOML parse error at ").unwrap_or(first);
    let quoted = |line: &str| line.trim_start_matches(|c: char| c == ' ' || c.is_ascii_digit()).starts_with('|');
    let wrong: Vec<&str> = lines.filter(|line| !quoted(line)).map(str::trim).collect();
    if wrong.is_empty() { place.to_owned() } else { format!("{place}: {}", wrong.join(", ")) }
}

/// The defaults that apply: the templates only where file or environment name such a table.
fn base(given: &Dict) -> Dict {
    let mut base = defaults::table();
    let has_tls = matches!(given.get("ingress"), Some(Value::Dict(_, ingress)) if ingress.contains_key("tls"));
    if let Some(Value::Dict(_, ingress)) = base.get_mut("ingress").filter(|_| !has_tls) {
        ingress.remove("tls");
    }
    for (group, template) in [("sources", Some("plextrac")), ("broker", None)] {
        let templates = match base.remove(group) {
            Some(Value::Dict(_, templates)) => templates,
            _ => Dict::new(),
        };
        let Some(Value::Dict(tag, named)) = given.get(group) else { continue };
        let mut filled = Dict::new();
        for name in named.keys() {
            if let Some(defaults) = templates.get(template.unwrap_or(name)) {
                filled.insert(name.clone(), defaults.clone());
            }
        }
        base.insert(group.to_owned(), Value::Dict(*tag, filled));
    }
    base
}

fn set(table: &mut Dict, section: &str, key: &str, text: &str) {
    let entry = table.entry(section.to_owned()).or_insert_with(|| Value::from(Dict::new()));
    if let Value::Dict(_, below) = entry {
        below.insert(key.to_owned(), Value::from(text));
    }
}

fn only(table: &Dict, section: &str) -> Dict {
    table.get(section).map(|value| Dict::from([(section.to_owned(), value.clone())])).unwrap_or_default()
}

const SOURCE_LINES: &str =
    "[sources.plextrac]\n  secret_file = \"/etc/plextrac-bridge/secret\"   # what PlexTrac's webhook form has";
const BROKER_LINES: &str = "[broker.kafka]\n  bootstrap_servers = \"localhost:9092\"   # or [broker.rabbitmq], [broker.nats], [broker.file]";

/// Reads every part; none where a source or the broker is missing (a problem then).
fn read(mut top: Section<'_>, systemd_state: Option<String>) -> Option<Settings> {
    let words = [("buffered", Ack::Buffered), ("journaled", Ack::Journaled), ("published", Ack::Published)];
    let ack = top.choice("ack", &words);
    let state_directory = top.path("state_directory").or_else(|| {
        // systemd separates several with colons.
        let first = systemd_state?.split(':').next()?.to_owned();
        Some(PathBuf::from(first)).filter(|path| !path.as_os_str().is_empty())
    });
    if let Some(path) = &state_directory {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !path.is_dir() && !parent.is_dir() {
            top.problem(
                "state_directory",
                format_args!("neither {} nor its parent exists; create {}", path.display(), parent.display()),
            );
        }
    }
    let ingress = part(&mut top, "ingress", ingress::Settings::read);
    let sources = read_sources(&mut top);
    let buffer = part(&mut top, "buffer", queue::limits);
    let journal = part(&mut top, "journal", journal::Settings::read);
    let deduplication = part(&mut top, "deduplication", ingress::DeduplicationSettings::read);
    let publish = part(&mut top, "publish", delivery::Settings::read);
    let broker = read_broker(&mut top);
    let dead_letters = part(&mut top, "dead_letters", delivery::DeadLetterLimit::read);
    let invalid = part(&mut top, "invalid", ingress::InvalidSettings::read);
    let admin = part(&mut top, "admin", admin::Settings::read);
    let log = part(&mut top, "log", logs::Settings::read);
    let shutdown = part(&mut top, "shutdown", shutdown::Settings::read);
    if top.is_sound() && admin.listen.is_some_and(|address| address == ingress.listen && address.port() != 0) {
        top.general("`ingress.listen` and `admin.listen` are the same address; the admin port needs its own");
    }
    if top.is_sound()
        && let Some(text) = too_small(&buffer, &ingress)
    {
        top.general(text);
    }
    if top.is_sound()
        && let Some(text) = dead_letters.problem(ingress.max_body)
    {
        top.general(text);
    }
    if ack == Ack::Journaled && state_directory.is_none() {
        top.problem(
            "ack",
            "\"journaled\" needs a `state_directory` for its journal; set one, or take \"buffered\"",
        );
    }
    if top.is_sound()
        && state_directory.is_some()
        && let Some(text) = journal.problem(ingress.max_body)
    {
        top.general(text);
    }
    top.finish();
    Some(Settings {
        mode: Mode { ack, timeout: publish.timeout },
        state_directory,
        journal,
        deduplication,
        ingress,
        sources,
        buffer,
        publish,
        broker: broker?,
        dead_letters,
        invalid,
        admin,
        log,
        shutdown,
        written: Written::default(),
    })
}

fn too_small(buffer: &Limits, ingress: &ingress::Settings) -> Option<&'static str> {
    (buffer.bytes < ingress.max_body + crate::message::EVENT_OVERHEAD)
        .then_some("`buffer.max_bytes` is below `ingress.max_body` + 512 B: the largest event would never fit")
}

fn part<T>(top: &mut Section<'_>, key: &str, read: impl FnOnce(&mut Section<'_>) -> T) -> T {
    let mut section = top.section(key);
    let value = read(&mut section);
    section.finish();
    value
}

fn read_sources(top: &mut Section<'_>) -> Vec<Source> {
    let mut section = top.section("sources");
    let names = section.keys();
    if names.is_empty() {
        top.general(format_args!("no source of webhooks; add:\n\n  {SOURCE_LINES}\n"));
    }
    let mut sources = Vec::new();
    let mut paths = BTreeMap::new();
    for name in names {
        let mut table = section.section(&name);
        if !ingress::is_source_name(&name) {
            section.problem(&name, "a source's name starts with a-z and goes on with a-z, 0-9 and _");
        }
        let source = ingress::read_source(&name, &mut table);
        if let Some(other) = paths.insert(source.path.clone(), name.clone()) {
            table.problem("path", format_args!("the source {other:?} has the path {:?} already", source.path));
        }
        table.finish();
        sources.push(source);
    }
    section.finish();
    sources
}

fn read_broker(top: &mut Section<'_>) -> Option<brokers::Settings> {
    let mut section = top.section("broker");
    let names = section.keys();
    if names.is_empty() {
        top.general(format_args!("no broker; add one:\n\n  {BROKER_LINES}\n"));
    }
    if names.len() > 1 {
        top.general(format_args!(
            "several brokers ({}); keep one: add it as\n\n  {BROKER_LINES}\n",
            names.iter().map(|name| format!("[broker.{name}]")).collect::<Vec<_>>().join(", ")
        ));
    }
    let mut broker = None;
    for name in names {
        let mut table = section.section(&name);
        if let Some(settings) = brokers::Settings::read(&name, &mut table) {
            broker = Some(settings);
            table.finish();
        } else {
            let near = nearest(&name, brokers::NAMES.into_iter());
            let hint = near.map(|near| format!("; did you mean [broker.{near}]?")).unwrap_or_default();
            section.problem(&name, format_args!("no such broker{hint}; there are {}", brokers::NAMES.join(", ")));
        }
    }
    section.finish();
    broker
}
