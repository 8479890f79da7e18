//! `dead-letters replay` and `drop`: a request, carried out by the daemon if one runs, else by this command in its place.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::app::{self, Offline, StartError};
use crate::dead_letters::{Action, Progress, Request, RequestState, StoreKind, Validity, connect};
use crate::process::logs;
use crate::process::state_directory::StateError;
use crate::settings::Flags;
use clap::Args;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, sleep_until};

use crate::cli::dead_letters::daemon::follow;
use crate::cli::dead_letters::progress::Display;
use crate::cli::dead_letters::{Chosen, Which};
use crate::cli::{self, complain};

/// The longest time that another holder of the state directory may have no socket: a daemon that starts or stops, or
/// a command.
const RETRY: Duration = Duration::from_secs(5);

/// Between two tries.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(in crate::cli) struct Replay {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    chosen: Chosen,
    /// With --invalid: every object with a field, whatever the source's validation says
    #[arg(long, requires = "invalid")]
    lenient: bool,
    /// With --invalid: whatever was kept, connection tests and what is not JSON as well
    #[arg(long, requires = "invalid", conflicts_with = "lenient")]
    as_is: bool,
    /// Give up when nothing has moved for so long
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Drop {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    chosen: Chosen,
    /// All of them
    #[arg(long)]
    all: bool,
    /// Give up when nothing has moved for so long
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn replay(flags: &Flags, options: &Replay) -> Result<ExitCode, ExitCode> {
    let request = Request {
        action: Action::Replay,
        kind: options.which.kind(),
        filter: options.chosen.filter(),
        validity: match (options.lenient, options.as_is) {
            (_, true) => Validity::AsIs,
            (true, false) => Validity::Lenient,
            (false, false) => Validity::AsConfigured,
        },
    };
    change(flags, &request, options.timeout, options.json)
}

pub(super) fn drop(flags: &Flags, options: &Drop) -> Result<ExitCode, ExitCode> {
    let filter = options.chosen.filter();
    if filter.is_empty() != options.all {
        let text = if options.all { "--all and a filter are both given" } else { "say which ones, or --all" };
        complain(format_args!("{text}; see plextrac-bridge dead-letters drop --help"));
        return Err(ExitCode::from(2));
    }
    let request =
        Request { action: Action::Drop, kind: options.which.kind(), filter, validity: Validity::AsConfigured };
    change(flags, &request, options.timeout, options.json)
}

fn change(flags: &Flags, request: &Request, patience: Duration, as_json: bool) -> Result<ExitCode, ExitCode> {
    let display = Display::new(request.action, as_json);
    let state = cli::state_directory(flags).inspect_err(|_| display.refused(UNUSABLE))?;
    let runtime = cli::runtime()?;
    let outcome = runtime.block_on(carry_out(flags, &state, request, patience, display));
    runtime.shutdown_background();
    let progress = outcome?;
    let all = progress.state == RequestState::Done && progress.skipped == 0 && progress.dead_lettered == 0;
    Ok(if all && progress.unreadable == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Has the request carried out, and shows its progress and its end.
async fn carry_out(
    flags: &Flags,
    state: &Path,
    request: &Request,
    patience: Duration,
    mut display: Display,
) -> Result<Progress, ExitCode> {
    let mut log = None;
    let progress = match find(flags, state, request.kind, &mut log).await {
        Ok(Found::Nothing) => Progress { state: RequestState::Done, ..Progress::default() },
        Ok(Found::Offline(offline)) => by_ourselves(*offline, request, patience, &mut display).await,
        Ok(Found::Daemon(stream)) => by_the_daemon(stream, request, patience, &mut display).await,
        Err(Obstacle::Settings(code)) => {
            display.refused(UNUSABLE);
            return Err(code);
        }
        Err(Obstacle::Other(text)) => {
            display.refused(&text);
            return Err(cli::failed(text));
        }
    };
    display.end(&progress);
    Ok(progress)
}

/// The way a request is carried out.
enum Found {
    /// No letter was ever kept here.
    Nothing,
    /// No daemon runs.
    Offline(Box<Offline>),
    /// A daemon runs.
    Daemon(UnixStream),
}

/// The result where the settings stand in the way.
const UNUSABLE: &str = "the settings cannot be used; standard error has the reason";

/// The reason why a request is not carried out.
enum Obstacle {
    /// The settings, reported already.
    Settings(ExitCode),
    Other(String),
}

/// Only a command that does the work itself needs settings.
async fn find(
    flags: &Flags,
    state: &Path,
    kind: StoreKind,
    log: &mut Option<logs::Log>,
) -> Result<Found, Obstacle> {
    let directory = state.join(kind.directory());
    match std::fs::metadata(&directory) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(cannot_use(&directory, &error)),
    }
    let mut known = None;
    let began = Instant::now();
    loop {
        let unreachable = match connect(state).await {
            Ok(stream) => return Ok(Found::Daemon(stream)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => error,
            Err(error) => return Err(cannot_use(&state.join("control.sock"), &error)),
        };
        let settings = match known.take() {
            Some(settings) => settings,
            None => cli::settings(flags).map_err(Obstacle::Settings)?.0,
        };
        if log.is_none() && flags.log_level.is_some() {
            // What stands in the way is in the progress; more than that only where it is asked for.
            *log = logs::start(settings.log).ok();
        }
        let settings = known.insert(settings);
        match app::open_offline(settings.clone(), state) {
            Ok(offline) => return Ok(Found::Offline(Box::new(offline))),
            Err(StartError::State(StateError::Locked(_))) if began.elapsed() < RETRY => sleep(RETRY_INTERVAL).await,
            Err(StartError::State(StateError::Locked(_))) => {
                return Err(Obstacle::Other(format!(
                    "another plextrac-bridge uses {} and has no control socket ({unreachable}): a daemon whose log says \
                     why, or another command; stop it, or try again",
                    state.display()
                )));
            }
            Err(StartError::State(StateError::Unusable { path, source })) => {
                return Err(cannot_use(Path::new(&path), &source));
            }
            Err(error) => return Err(Obstacle::Other(error.to_string())),
        }
    }
}

fn cannot_use(path: &Path, error: &io::Error) -> Obstacle {
    let hint = match error.kind() {
        ErrorKind::PermissionDenied => "; run this as the daemon's user, or as root",
        _ => "",
    };
    Obstacle::Other(format!("cannot use {}: {error}{hint}", path.display()))
}

/// The reason why a request is no longer watched.
enum WatchEnd {
    Over,
    TooLong,
    Interrupted,
}

/// Shows how far a request is until it is over.
async fn watch(
    progress: &mut watch::Receiver<Progress>,
    patience: Duration,
    display: &mut Display,
    interrupted: impl Future<Output = ()>,
) -> WatchEnd {
    tokio::pin!(interrupted);
    let mut last = tokio::time::Instant::now();
    let mut before = None;
    loop {
        let now = progress.borrow_and_update().clone();
        if now.state != RequestState::Running {
            return WatchEnd::Over;
        }
        if before.replace(now.done) != Some(now.done) {
            last = tokio::time::Instant::now();
        }
        // The first one is the state before anything is known.
        if now != Progress::default() {
            display.update(&now);
        }
        tokio::select! {
            changed = progress.changed() => if changed.is_err() {
                return WatchEnd::Over;
            },
            () = sleep_until(last + patience) => return WatchEnd::TooLong,
            () = &mut interrupted => return WatchEnd::Interrupted,
        }
    }
}

/// Resolves when the command is asked to end.
async fn interrupted() {
    let listen = |kind| {
        let mut listener = signal(kind).ok();
        async move {
            match &mut listener {
                Some(listener) => {
                    listener.recv().await;
                }
                None => std::future::pending().await,
            }
        }
    };
    // Under `nohup` a hang-up ends nothing.
    let hangup = (!is_hangup_ignored()).then(|| listen(SignalKind::hangup()));
    let hangup = async {
        match hangup {
            Some(hangup) => hangup.await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = listen(SignalKind::interrupt()) => {}
        () = listen(SignalKind::terminate()) => {}
        () = hangup => {}
    }
}

/// Whether this process was started with SIGHUP ignored.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

/// Notes in the progress why it was not watched to its end.
fn note_end(progress: &mut Progress, watched: &WatchEnd, patience: Duration) {
    let why = progress.error.take();
    match watched {
        WatchEnd::Over => progress.error = why,
        WatchEnd::TooLong => {
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            progress.give_up(format!("gave up, nothing has moved for {patience:?}{why}"));
        }
        WatchEnd::Interrupted => progress.give_up("interrupted; what was not published is still kept".to_owned()),
    }
}

async fn by_the_daemon(
    stream: UnixStream,
    request: &Request,
    patience: Duration,
    display: &mut Display,
) -> Progress {
    let (sender, mut receiver) = watch::channel(Progress::default());
    let following = async {
        let followed = follow(stream, request, &sender).await;
        // Only the end of the answer says that nothing more comes.
        if sender.borrow().state == RequestState::Running {
            let error = followed.err().unwrap_or_else(|| "the daemon has ended".to_owned());
            sender.send_modify(|progress| progress.give_up(error));
        }
        std::future::pending::<WatchEnd>().await
    };
    let watched = tokio::select! {
        watched = watch(&mut receiver, patience, display, interrupted()) => watched,
        never = following => never,
    };
    // The connection is closed by now: the daemon withdraws what it has not sent.
    let mut progress = receiver.borrow().clone();
    note_end(&mut progress, &watched, patience);
    progress
}

async fn by_ourselves(offline: Offline, request: &Request, patience: Duration, display: &mut Display) -> Progress {
    let (sender, mut receiver) = watch::channel(Progress::default());
    let stop = Notify::new();
    let work = offline.run(request, sender, stop.notified());
    tokio::pin!(work);
    let mut is_done = false;
    let watched = tokio::select! {
        watched = watch(&mut receiver, patience, display, interrupted()) => watched,
        () = &mut work => {
            is_done = true;
            WatchEnd::Over
        }
    };
    let waited_for = receiver.borrow().error.clone();
    if !matches!(watched, WatchEnd::Over) {
        stop.notify_one();
    }
    if !is_done {
        work.await;
    }
    let mut progress = receiver.borrow().clone();
    if !matches!(watched, WatchEnd::Over) && progress.state != RequestState::Done {
        progress.error = waited_for;
        note_end(&mut progress, &watched, patience);
    }
    progress
}
