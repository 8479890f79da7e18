//! `demo`: a bridge with the embedded file broker, a sender, and the published messages, all in one process.

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::app::{self, App, Settings, Signals, StartError, load_from};
use crate::brokers;
use crate::ingress::sign;
use crate::process::logs;
use crate::process::systemd::Passed;
use crate::settings::{Flags, Layers, Secret};
use crate::status::Totals;
use bytes::Bytes;
use clap::Args;
use hyper::Uri;
use tempfile::TempDir;
use tokio::signal::unix::SignalKind;
use tokio::sync::Notify;

use crate::cli::client::Http;
use crate::cli::serve::Unix;
use crate::cli::{self, CommandResult, exit, sample, say};

/// The directory of the files that the broker writes.
const EVENTS: &str = "events";

/// The number of events sent at once at the start.
const FIRST: u64 = 4;

/// The interval at which further events are sent.
const EVERY: Duration = Duration::from_secs(3);

/// The time after which an event that has not arrived counts as missing.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct DemoOptions {
    /// Send a few events, show that they arrive, and exit
    #[arg(long)]
    pub(super) once: bool,
}

pub(super) fn run(flags: &Flags, once: bool) -> CommandResult {
    let scratch = Scratch::new()?;
    let secret = Secret::new(format!("demo-{:032x}", fastrand::u128(..)));
    let (app, _log) = bind(flags, &scratch, &secret)?;
    let address = app.ingress_address();
    let url = format!("http://{address}/webhooks/plextrac");
    let admin = app.admin_address().map(|address| format!("http://{address}/")).unwrap_or_default();
    introduce(&url, &admin, &secret, &scratch);
    let uri: Uri = url.parse().map_err(|error| cli::failed(format_args!("{url}: {error}")))?;
    let http = Http::new(&uri)?;
    let runtime = cli::runtime()?;
    let done = Notify::new();
    let (ended, arrived) = runtime.block_on(async {
        // When its terminal is closed, too, it removes what it made.
        let unix = Unix::listen(Some(SignalKind::hangup())).map_err(cli::failed)?;
        let signals = DemoSignals { unix, done: &done };
        let show = show(&http, &uri, &secret, &scratch, once, &done);
        Ok::<_, ExitCode>(tokio::join!(app.run(signals), show))
    })?;
    let Totals { received, accepted, published, lost, .. } = ended.map_err(cli::failed)?.totals;
    say(format_args!("\n{received} received, {accepted} accepted, {published} published, {lost} lost"));
    Ok(exit(lost == 0 && arrived))
}

fn introduce(url: &str, admin: &str, secret: &Secret, scratch: &Scratch) {
    say("plextrac-bridge demo: a bridge, a sender, and files as the broker, in one process\n");
    say(format_args!("  page      {admin}"));
    say(format_args!("  metrics   {admin}metrics"));
    say(format_args!("  files     {}\n", scratch.path(EVENTS).display()));
    let missing = brokers::NAMES.into_iter().filter(|name| !brokers::BUILT_IN.contains(name));
    let missing = missing.collect::<Vec<_>>().join(", ");
    if !missing.is_empty() {
        say(format_args!(
            "This program was built without {missing}; `make release` builds one that has all brokers.\n"
        ));
    }
    say("PlexTrac's webhook form would have:");
    say(format_args!("  URL       {url}   (PlexTrac itself needs public https in front of it)"));
    say(format_args!("  Secret    {}   (for this demo only)\n", secret.reveal()));
    say("Send an event yourself:");
    let file = scratch.path("secret");
    say(format_args!("  plextrac-bridge send --secret-file {} {url}", file.display()));
    let body = br#"{"event":"ReportPublished","cuid":"c1","actorCuid":"c2","targetCuid":"c3","targetType":"report","text":"by hand"}"#;
    say(format_args!(
        "  curl -i -H 'X-Authorization-HMAC-256: {}' -d '{}' {url}\n",
        sign(secret, body),
        String::from_utf8_lossy(body)
    ));
}

/// Sends samples and prints what arrives; returns whether everything arrived.
async fn show(http: &Http, url: &Uri, secret: &Secret, scratch: &Scratch, once: bool, done: &Notify) -> bool {
    let samples = sample::usual();
    let mut seen = HashSet::new();
    let mut sent = 0;
    let mut next = Instant::now();
    let mut last_sent = Instant::now();
    loop {
        let due = sent < FIRST || (!once && Instant::now() >= next);
        if due {
            let sample = samples[usize::try_from(sent).unwrap_or(0) % samples.len()];
            let body = Bytes::from(sample.body(sent, sample::TARGETS));
            let signature = sign(secret, &body);
            match http.post(url, body, Some(&signature)).await {
                Ok(answer) if answer.status == 200 => sent += 1,
                Ok(answer) => say(format_args!("answered {}", answer.status)),
                // The bridge is stopping.
                Err(_) if sent >= FIRST => return true,
                Err(error) => say(format_args!("not sent: {error}")),
            }
            next = Instant::now() + EVERY;
            last_sent = Instant::now();
        }
        print_new(&scratch.path(EVENTS), &mut seen);
        let all = seen.len() as u64 >= sent && sent >= FIRST;
        let late = last_sent.elapsed() > ARRIVAL_TIMEOUT;
        if once && (all || late) {
            done.notify_one();
            return all;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
            () = done.notified() => return true,
        }
    }
}

/// Prints the lines of the files that were not seen yet.
fn print_new(directory: &Path, seen: &mut HashSet<String>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let text = fs::read_to_string(&path).unwrap_or_default();
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else { continue };
            let id = line["id"].as_str().unwrap_or_default();
            if seen.insert(id.to_owned()) {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                say(format_args!("arrived   {name:<50} {id}"));
            }
        }
    }
}

/// Ctrl-C, or the end of `--once`.
struct DemoSignals<'d> {
    unix: Unix,
    done: &'d Notify,
}

impl Signals for DemoSignals<'_> {
    async fn next(&mut self) {
        tokio::select! {
            () = self.unix.next() => self.done.notify_one(),
            () = self.done.notified() => {}
        }
    }
}

/// The demo's own settings: nothing of this machine is used.
fn bind(flags: &Flags, scratch: &Scratch, secret: &Secret) -> Result<(App, logs::Log), ExitCode> {
    scratch.write("secret", secret.reveal())?;
    let usual = settings(flags, scratch, 8080, 8081)?;
    let log = logs::start(usual.log).map_err(|error| cli::failed(format_args!("cannot start the log: {error}")))?;
    let app = match app::bind(usual, Passed::default()) {
        // If another program listens there, free ports are used instead.
        Err(StartError::Listen { .. }) => app::bind(settings(flags, scratch, 0, 0)?, Passed::default()),
        bound => bound,
    };
    Ok((app.map_err(cli::failed)?, log))
}

/// The settings of a bridge on these ports.
fn settings(flags: &Flags, scratch: &Scratch, ingress: u16, admin: u16) -> Result<Settings, ExitCode> {
    let name = format!("config-{ingress}.toml");
    let config = scratch.path(&name);
    let toml = format!(
        "state_directory = {}\n[ingress]\nlisten = \"127.0.0.1:{ingress}\"\nthreads = 1\n\
         [admin]\nlisten = \"127.0.0.1:{admin}\"\n[sources.plextrac]\nsecret_file = {}\n\
         [broker.file]\ndirectory = {}\n",
        quoted(&scratch.path("state")),
        quoted(&scratch.path("secret")),
        quoted(&scratch.path(EVENTS)),
    );
    scratch.write(&name, &toml)?;
    let flags = Flags {
        config: Some(config),
        log_level: Some(flags.log_level.clone().unwrap_or_else(|| "warn".to_owned())),
        log_format: Some(flags.log_format.clone().unwrap_or_else(|| "text".to_owned())),
    };
    let layers = Layers::read(&flags, Vec::new()).map_err(cli::failed)?;
    load_from(layers, None).map(|(settings, _)| settings).map_err(cli::failed)
}

/// A path as a TOML text.
fn quoted(path: &Path) -> String {
    format!("{:?}", path.to_string_lossy())
}

/// A directory that no other user may read, removed at the end.
struct Scratch(TempDir);

impl Scratch {
    fn new() -> Result<Self, ExitCode> {
        let mine = Permissions::from_mode(0o700);
        let created = tempfile::Builder::new().prefix("plextrac-bridge-demo-").permissions(mine).tempdir();
        created.map(Self).map_err(|error| cli::failed(format_args!("cannot create a directory: {error}")))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), ExitCode> {
        let path = self.path(name);
        let file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| cli::failed(format_args!("cannot write {}: {error}", path.display())))
    }
}
