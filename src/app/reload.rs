//! Reload: the settings are read again and checked, then everything that can change while the bridge runs is changed at
//! once; otherwise everything stays as it is. Changes are reported by name, never by value.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::MutexGuard;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::app::parts::SharedParts;
use crate::app::{Settings, resources};
use crate::delivery::{Change, RoutedBroker};
use crate::ingress;
use crate::process::logs::Level;
use crate::process::systemd;
use crate::queue::Ack;
use crate::settings::{FileWatch, Findings, Fingerprint, Layers, SettingsError, to_json};
use crate::status::{Reload, Reloads, Trigger};

/// The keys that a reload changes beside the table of the broker; a name that ends in a dot is a whole table. Everything
/// else needs a restart.
const LIVE: [&str; 16] = [
    "buffer.max_bytes",
    "buffer.max_events",
    "dead_letters.max_bytes",
    "deduplication.max_entries",
    "deduplication.window",
    "ingress.body_timeout",
    "ingress.header_timeout",
    "ingress.idle_timeout",
    "ingress.max_connections",
    "ingress.tls.",
    "ingress.trusted_proxies",
    "invalid.max_bytes",
    "log.level",
    "shutdown.delay",
    "shutdown.grace",
    "sources.",
];

/// The longest time that a larger reservation may take; a disk that hangs must not keep later reloads out.
const RESERVING: Duration = Duration::from_secs(30);

/// The table of the certificate, and of the authorities of clients.
const TLS: &str = "ingress.tls.";

/// Reads the settings: anew, or the files that these layers name.
type Load = dyn Fn(Option<Layers>) -> Result<(Settings, Findings), SettingsError> + Send + Sync;

/// The source and the triggers of reloads.
#[derive(Clone)]
pub(crate) struct Reloading {
    /// Reads the settings.
    pub(crate) load: Arc<Load>,
    /// A reload is requested.
    pub(crate) asked: Arc<Notify>,
    /// The interval at which the contents of secrets and certificates are compared.
    pub(crate) every: Duration,
    /// Changes the level of the log.
    pub(crate) level: Level,
}

/// Performs reloads, as long as the bridge serves.
pub(super) struct Reloader {
    config: Option<Reloading>,
    /// The settings in force.
    settings: Settings,
    /// The settings at the start: those that need a restart are compared with them.
    start: Fingerprint,
    watch: FileWatch,
    /// A secret or a certificate changed, and its reload failed: it is retried at each check.
    retry_pending: bool,
    parts: SharedParts,
}

impl Reloader {
    pub(super) fn new(reloading: Option<Reloading>, settings: Settings, parts: SharedParts) -> Self {
        Self {
            config: reloading,
            start: settings.fingerprint.clone(),
            watch: settings.fingerprint.watch(),
            retry_pending: false,
            settings,
            parts,
        }
    }

    fn reloads(&self) -> MutexGuard<'_, Reloads> {
        self.parts.status.reloads.lock()
    }

    /// The settings in force.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Reloads on request, and when a secret or a certificate changes. May be dropped at any time: a reload is either
    /// done or not begun.
    pub(super) async fn run(&mut self) -> Infallible {
        let Some(Reloading { load, asked, every, level }) = self.config.clone() else { return pending().await };
        loop {
            let trigger = tokio::select! {
                () = asked.notified() => Trigger::Asked,
                () = tokio::time::sleep(every) => Trigger::Files,
            };
            // Also after a request: a change seen once, good or bad, is not reported again.
            let is_changed = self.files_changed().await;
            let is_news = trigger == Trigger::Asked || is_changed;
            self.retry_pending |= is_changed;
            if !is_news && !self.retry_pending {
                continue;
            }
            if is_news {
                systemd::notify(&systemd::NotifyState::Reloading);
            }
            let load = load.clone();
            // A renewed secret must not put a half-edited settings file in force.
            let layers = (trigger == Trigger::Files).then(|| self.settings.layers.clone());
            // Files may be on a disk that hangs.
            let loaded = match spawn_blocking(move || load(layers)).await {
                Ok(loaded) => loaded.map_err(|error| error.to_string()),
                Err(_) => Err("reading them failed unexpectedly".to_owned()),
            };
            let reserved = match &loaded {
                Ok((settings, _)) => self.reserve_for_the_stop(settings).await,
                Err(_) => Ok(()),
            };
            let applied =
                reserved.and(loaded).and_then(|(settings, findings)| self.apply(settings, &findings, &level));
            match applied {
                Ok(reload) => {
                    self.retry_pending = false;
                    self.reloads().note(reload, trigger);
                }
                Err(error)
                    if is_news
                        || self.reloads().last.as_ref().is_none_or(|last| last.error.as_ref() != Some(&error)) =>
                {
                    self.reject(error, trigger);
                }
                // Same error as before; already logged.
                Err(_) => {}
            }
            if is_news {
                systemd::notify(&systemd::NotifyState::Ready);
            }
        }
    }

    async fn files_changed(&mut self) -> bool {
        let mut watch = std::mem::replace(&mut self.watch, Fingerprint::default().watch());
        let looked = spawn_blocking(move || {
            let changed = watch.has_changed();
            (watch, changed)
        });
        let Ok((watch, changed)) = looked.await else { return false };
        self.watch = watch;
        changed
    }

    /// Reserves disk space for a larger buffer, as the start does.
    async fn reserve_for_the_stop(&self, read: &Settings) -> Result<(), String> {
        let bytes = read.buffer.bytes;
        if self.settings.mode.ack == Ack::Journaled || bytes <= self.settings.buffer.bytes {
            return Ok(());
        }
        let reserved = timeout(RESERVING, self.parts.queue.reserve_for_the_stop(bytes as u64)).await;
        let too_slow = |_| Err(format!("the disk has not done it within {} s", RESERVING.as_secs()));
        reserved.unwrap_or_else(too_slow).map_err(|error| {
            format!("`buffer.max_bytes`: cannot reserve {bytes} bytes of disk for what the buffer may hold at a stop: {error}")
        })
    }

    /// Leaves everything as it is, and records the error.
    fn reject(&self, error: String, trigger: Trigger) {
        tracing::error!("the settings were not reloaded; the old ones stay in force: {error}");
        let mut reloads = self.reloads();
        let (changed, last) = (Vec::new(), reloads.last.take());
        let needs_restart = last.map_or_else(Vec::new, |last| last.needs_restart);
        reloads.note(Reload { at: SystemTime::now(), changed, needs_restart, error: Some(error) }, trigger);
    }

    /// Applies the settings that may change, or none and returns why.
    fn apply(&mut self, read: Settings, findings: &Findings, level: &Level) -> Result<Reload, String> {
        let changed: Vec<String> = self.settings.fingerprint.changed(&read.fingerprint).into_iter().collect();
        // Another broker takes effect after a restart.
        let is_same_broker = self.settings.broker.name == read.broker.name;
        let is_broker = |key: &String| is_same_broker && is_of(key, "broker.");
        let is_fixed = |key: &String| !LIVE.iter().any(|live| is_of(key, live)) && !is_broker(key);
        let needs_restart: Vec<String> =
            self.start.changed(&read.fingerprint).into_iter().filter(is_fixed).collect();
        let is_tls_new = changed.iter().any(|key| is_of(key, TLS));
        let has_same_routes = self.settings.broker.router.has_same_routes(&read.broker.router);
        let mut next = self.merge_live(read, is_tls_new);
        next.fingerprint.keep(&self.settings.fingerprint, is_fixed);
        if let Some(contradiction) = next.contradiction() {
            return Err(format!("{contradiction}; part of it needs a restart"));
        }
        if let (Some(tls), Some(old)) = (&next.ingress.tls, &self.settings.ingress.tls)
            && let Some(problem) = tls.problem(old)
        {
            return Err(format!("`ingress.tls.certificate_file`: {problem}, and the one in use is valid"));
        }
        // The broker tells the events of several sources apart.
        let has_same_terms = self.settings.only_source() == next.only_source();
        self.settings = next;
        let settings = &self.settings;
        // First, so that events of a new source use its new route.
        if changed.iter().any(is_broker) || !has_same_terms {
            let change = if has_same_routes { Change::Connection } else { Change::Routes };
            let (broker, router) = (settings.broker.broker(&settings.terms()), settings.broker.router.clone());
            self.parts.successor.put(RoutedBroker { broker, router }, change);
        }
        self.parts.queue.limit(settings.buffer);
        if let Some(problem) =
            settings.journal_problem().filter(|_| changed.iter().any(|key| is_of(key, "buffer.")))
        {
            tracing::warn!("{problem}");
        }
        let status = &self.parts.status;
        for (held, bytes) in
            [(&status.dead_letters, settings.dead_letters.bytes), (&status.invalid, settings.invalid.bytes)]
        {
            if let Some(held) = held {
                held.lock().capacity = bytes as u64;
            }
        }
        self.parts.known.limit(settings.deduplication);
        self.parts.connections.limit(resources::connections(&settings.ingress));
        self.parts.live.apply(settings.ingress.clone(), &settings.sources, settings.buffer.bytes);
        level.set(settings.log.level);
        self.watch = settings.fingerprint.watch();
        self.reloads().in_force = to_json(settings.fingerprint.effective());
        findings.log();
        let names = |keys: &[String]| if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
        tracing::info!(changed = names(&changed), "reloaded the settings");
        if !needs_restart.is_empty() {
            tracing::warn!(
                needs_restart = names(&needs_restart),
                "some settings keep their old values until the bridge is restarted"
            );
        }
        if !is_same_broker {
            tracing::warn!(
                running = settings.broker.name,
                "the settings name another broker: until the bridge is restarted, the secrets and certificates of the \
                 running one are not read again"
            );
        }
        Ok(Reload { at: SystemTime::now(), changed, needs_restart, error: None })
    }

    /// The settings in force, with those that may change taken from the new reading.
    fn merge_live(&self, read: Settings, is_tls_new: bool) -> Settings {
        let old = self.settings.clone();
        let ingress = ingress::Settings {
            listen: old.ingress.listen,
            threads: old.ingress.threads,
            max_body: old.ingress.max_body,
            // The same pair read again is still the same: its connections continue.
            tls: if is_tls_new { read.ingress.tls } else { old.ingress.tls },
            ..read.ingress
        };
        let mut log = old.log;
        log.level = read.log.level;
        let broker = if old.broker.name == read.broker.name { read.broker } else { old.broker };
        Settings {
            ingress,
            sources: read.sources,
            buffer: read.buffer,
            deduplication: read.deduplication,
            dead_letters: read.dead_letters,
            invalid: read.invalid,
            shutdown: read.shutdown,
            fingerprint: read.fingerprint,
            layers: read.layers,
            broker,
            log,
            ..old
        }
    }
}

/// Whether a key is this one, or in this table.
fn is_of(key: &str, name: &str) -> bool {
    if name.ends_with('.') { key.starts_with(name) } else { key == name }
}
