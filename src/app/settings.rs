//! All settings: each part's own table, and the rules that hold between the tables.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::app::resources;
use crate::brokers::{self, Headers, Terms};
use crate::ingress::{self, Source};
use crate::process::{logs, shutdown};
use crate::queue::{self, Ack, Mode, journal};
use crate::settings::{
    Findings, Fingerprint, Flags, Layers, Section, SettingsError, describe, load_layers, nearest,
};
use crate::status::Limits;
use crate::{admin, delivery};

/// All settings, checked.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The promise of a 200, and how long a sender waits for it.
    pub(crate) mode: Mode,
    /// The directory for state, if there is one.
    pub(crate) state_directory: Option<PathBuf>,
    /// `[ingress]`.
    pub(crate) ingress: ingress::Settings,
    /// `[sources.*]`.
    pub(crate) sources: Vec<Source>,
    /// `[buffer]`.
    pub(crate) buffer: Limits,
    /// `[journal]`.
    pub(crate) journal: journal::Settings,
    /// `[deduplication]`.
    pub(crate) deduplication: ingress::DeduplicationSettings,
    /// `[publish]`.
    pub(crate) publish: delivery::Settings,
    /// `[broker.*]`.
    pub(crate) broker: brokers::Settings,
    /// `[dead_letters]`.
    pub(crate) dead_letters: delivery::DeadLetterLimit,
    /// `[invalid]`.
    pub(crate) invalid: ingress::InvalidSettings,
    /// `[admin]`.
    pub(crate) admin: admin::Settings,
    /// `[log]`.
    pub(crate) log: logs::Settings,
    /// `[shutdown]`.
    pub(crate) shutdown: shutdown::Settings,
    /// The fingerprint of the sources, for comparison with another reading.
    pub(crate) fingerprint: Fingerprint,
    /// The layers that they were read from.
    pub(crate) layers: Layers,
}

impl Settings {
    /// The first problem that only several tables together have, also those of two readings.
    pub(crate) fn contradiction(&self) -> Option<String> {
        let ingress = &self.ingress;
        let journal = self.state_directory.as_ref().and_then(|_| self.journal.problem(ingress.max_body));
        if let Some(text) = self.admin.listen.and_then(|admin| collision(ingress.listen, admin)) {
            return Some(text);
        }
        if self.buffer.bytes < ingress.max_body + crate::event::EVENT_OVERHEAD {
            let text = "`buffer.max_bytes` is below `ingress.max_body` + 512 B: the largest event would never fit";
            return Some(text.to_owned());
        }
        self.dead_letters.problem(ingress.max_body).or(journal)
    }

    /// The problem if the journal has less room than the mode may need, even while it is empty.
    pub(crate) fn journal_problem(&self) -> Option<String> {
        self.state_directory.as_ref()?;
        match self.mode.ack {
            Ack::Journaled => self.journal.stops_for_one(self.ingress.max_body),
            Ack::Buffered | Ack::Published => self.spill_problem(self.journal.room()),
        }
    }

    /// The problem if a stop may need more than so many bytes of the journal.
    pub(crate) fn spill_problem(&self, room: u64) -> Option<String> {
        let needed = self.buffer.bytes as u64;
        (room < needed).then(|| {
            format!(
                "the journal has room for {room} bytes of the {needed} that the buffer may hold at a stop: raise \
                 `journal.max_bytes`, or what is not delivered within `shutdown.grace` may be lost"
            )
        })
    }

    /// The headers of what is published.
    pub(crate) fn headers(&self) -> Headers {
        self.broker.headers(self.publish.headers)
    }

    /// The settings that every broker gets beside its own.
    pub(crate) fn terms(&self) -> Terms {
        Terms {
            max_in_flight: self.publish.max_in_flight,
            max_body: self.ingress.max_body,
            headers: self.headers(),
            retry_max: self.publish.retry_max,
            awaited: self.mode.ack == Ack::Published,
            state_directory: self.state_directory.clone(),
            only_source: self.only_source(),
        }
    }

    /// The name of the source, if there is only one.
    pub(crate) fn only_source(&self) -> Option<Arc<str>> {
        match self.sources.as_slice() {
            [source] => Some(source.name.clone()),
            _ => None,
        }
    }
}

/// The reason why not both addresses can be listened on.
fn collision(ingress: SocketAddr, admin: SocketAddr) -> Option<String> {
    // `[::]` takes IPv4 as well.
    let takes = |one: IpAddr, other: IpAddr| one.is_unspecified() && (one.is_ipv6() || other.is_ipv4());
    if ingress.port() != admin.port() || ingress.port() == 0 {
        None
    } else if ingress == admin {
        Some("`ingress.listen` and `admin.listen` are the same address; the admin port needs its own".to_owned())
    } else if takes(ingress.ip(), admin.ip()) || takes(admin.ip(), ingress.ip()) {
        Some(format!(
            "`ingress.listen` ({ingress}) and `admin.listen` ({admin}) collide: one is every address of the machine; the \
             admin port needs another port"
        ))
    } else {
        None
    }
}

/// Reads the settings of this process.
///
/// # Errors
/// All problems at once.
pub(crate) fn load(flags: &Flags) -> Result<(Settings, Findings), SettingsError> {
    load_from(Layers::of_process(flags)?, std::env::var("STATE_DIRECTORY").ok())
}

/// Reads the settings of these layers, and the files that they name; `systemd_state` is systemd's `STATE_DIRECTORY`.
///
/// # Errors
/// All problems at once.
pub(crate) fn load_from(
    layers: Layers,
    systemd_state: Option<String>,
) -> Result<(Settings, Findings), SettingsError> {
    let (settings, mut fingerprint, mut findings) = load_layers(&layers, |top| read(top, systemd_state))?;
    if let (Some(path), Some("")) = (&settings.state_directory, fingerprint.text(STATE_DIRECTORY)) {
        fingerprint.show(STATE_DIRECTORY, &path.to_string_lossy(), "environment variable STATE_DIRECTORY");
    }
    let settings = Settings { fingerprint, layers, ..settings };
    findings.warnings.extend(resources::too_few_files(&settings.ingress));
    if settings.state_directory.is_some() {
        findings.warnings.extend(settings.invalid.problem(settings.ingress.max_body));
    }
    Ok((settings, findings))
}

const STATE_DIRECTORY: &str = "state_directory";
const SOURCE_LINES: &str =
    "[sources.plextrac]\n  secret_file = \"/etc/plextrac-bridge/secret\"   # what PlexTrac's webhook form has";
const BROKER_LINES: &str = "[broker.kafka]\n  bootstrap_servers = \"localhost:9092\"   # or [broker.rabbitmq], [broker.nats], [broker.file]";

/// The JSON Schema of the settings.
pub(crate) fn schema() -> Value {
    describe(|top| drop(read(top, None)))
}

/// Reads every part; none if a source or the broker is missing (a problem then).
fn read(mut top: Section<'_>, systemd_state: Option<String>) -> Option<Settings> {
    let words = [("buffered", Ack::Buffered), ("journaled", Ack::Journaled), ("published", Ack::Published)];
    let ack = top.choice("ack", &words);
    let state_directory = read_state_directory(&mut top, ack, systemd_state);
    let ingress = part(&mut top, "ingress", ingress::Settings::read);
    let sources = read_sources(&mut top);
    let buffer = part(&mut top, "buffer", queue::limits);
    let journal = part(&mut top, "journal", journal::Settings::read).for_bodies(ingress.max_body);
    let deduplication = part(&mut top, "deduplication", ingress::DeduplicationSettings::read);
    let publish = part(&mut top, "publish", delivery::Settings::read);
    let broker = read_broker(&mut top);
    let dead_letters = part(&mut top, "dead_letters", delivery::DeadLetterLimit::read);
    let invalid = part(&mut top, "invalid", ingress::InvalidSettings::read);
    let admin = part(&mut top, "admin", admin::Settings::read);
    let log = part(&mut top, "log", logs::Settings::read);
    let shutdown = part(&mut top, "shutdown", shutdown::Settings::read);
    top.finish();
    let settings = Settings {
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
        fingerprint: Fingerprint::default(),
        layers: Layers::default(),
    };
    if top.is_sound()
        && let Some(text) = settings.contradiction()
    {
        top.general(text);
    }
    Some(settings)
}

fn read_state_directory(top: &mut Section<'_>, ack: Ack, systemd_state: Option<String>) -> Option<PathBuf> {
    let directory = top.path(STATE_DIRECTORY).or_else(|| {
        // systemd separates several with colons.
        let first = systemd_state?.split(':').next()?.to_owned();
        Some(PathBuf::from(first)).filter(|path| !path.as_os_str().is_empty())
    });
    if let Some(path) = &directory {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let is_missing = |path: &Path| path.try_exists().is_ok_and(|exists| !exists);
        if is_missing(path) && is_missing(parent) {
            let (path, parent) = (path.display(), parent.display());
            top.problem(STATE_DIRECTORY, format_args!("neither {path} nor its parent exists; create {parent}"));
        } else if path.try_exists().unwrap_or_default() && !path.is_dir() {
            top.problem(STATE_DIRECTORY, format_args!("{} is not a directory", path.display()));
        }
    } else if ack == Ack::Journaled {
        let text = "\"journaled\" needs a `state_directory` for its journal; set one, or take \"buffered\"";
        top.problem("ack", text);
    }
    directory
}

fn part<T>(top: &mut Section<'_>, key: &str, read: impl FnOnce(&mut Section<'_>) -> T) -> T {
    let mut section = top.section(key);
    let value = read(&mut section);
    section.finish();
    value
}

fn read_sources(top: &mut Section<'_>) -> Vec<Source> {
    let mut section = top.section("sources");
    let names = section.tables();
    top.describe("sources", json!({ "minProperties": 1 }));
    if names.is_empty() {
        top.general(format_args!("no source of webhooks; add:\n\n  {SOURCE_LINES}\n"));
    }
    let mut sources = Vec::new();
    let mut paths = BTreeMap::new();
    for name in names {
        let mut table = section.section(&name);
        if !ingress::is_source_name(&name) {
            section.problem(&name, "a source's name starts with a-z and continues with a-z, 0-9 and _");
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
    let names = section.tables();
    top.describe("broker", json!({ "minProperties": 1, "maxProperties": 1 }));
    if names.is_empty() {
        top.general(format_args!("no broker; add one:\n\n  {BROKER_LINES}\n"));
    }
    if names.len() > 1 {
        let given = names.iter().map(|name| section.given_at(name)).collect::<Vec<_>>().join(", ");
        top.general(format_args!("several brokers: {given}; keep one, and remove the others"));
    }
    let mut broker = None;
    for name in names {
        let mut table = section.section(&name);
        if let Some(settings) = brokers::Settings::read(&name, &mut table) {
            broker = Some(settings);
            table.finish();
        } else if brokers::NAMES.contains(&&*name) {
            section.problem(
                &name,
                format_args!(
                    "this program was built without the feature `{name}` (brokers: {}); install a release, or build one \
                     that has all brokers with `cargo build --release`",
                    brokers::BUILT_IN.join(", ")
                ),
            );
        } else {
            let near = nearest(&name, brokers::NAMES.into_iter());
            let hint = near.map(|near| format!("; did you mean [broker.{near}]?")).unwrap_or_default();
            section.problem(&name, format_args!("no such broker{hint}; there are {}", brokers::NAMES.join(", ")));
        }
    }
    section.finish();
    broker
}
