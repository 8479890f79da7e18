//! `dead-letters replay` and `drop`: a request, carried out by the daemon if one runs, else by this command in its place.

use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::pin::Pin;
use std::process::ExitCode;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::app::{self, Offline, Settings};
use crate::dead_letters::{Action, Progress, Request, RequestState, StoreKind, connect};
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
use crate::cli::dead_letters::{Chosen, Which, missing, wrong_arguments};
use crate::cli::{self, CommandResult, exit};

/// The longest time that another holder of the state directory may have no socket: a daemon that starts or stops, or
/// a command.
const RETRY: Duration = Duration::from_secs(5);

/// Between two tries.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// The way in which a request is watched and its result shown.
#[derive(Debug, Args)]
struct Attended {
    /// Give up after this time without progress
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Replay {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    chosen: Chosen,
    /// With --invalid: publish every JSON object with a field, whatever the source's `validation`
    #[arg(long, requires = "invalid")]
    lenient: bool,
    /// With --invalid: publish whatever was kept, also connection tests and bodies that are not JSON
    #[arg(long, requires = "invalid", conflicts_with = "lenient")]
    as_is: bool,
    #[command(flatten)]
    attended: Attended,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Drop {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    chosen: Chosen,
    /// Delete all letters
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    attended: Attended,
}

pub(super) fn replay(flags: &Flags, options: &Replay) -> CommandResult {
    let Replay { which, chosen, lenient, as_is, attended } = options;
    let filter = chosen.filter(which).map_err(|why| refused(Action::Replay, attended, &why))?;
    let (lenient, as_is) = (*lenient, *as_is);
    change(flags, &Request { action: Action::Replay, as_is, filter, lenient, store: which.kind() }, attended)
}

pub(super) fn drop(flags: &Flags, options: &Drop) -> CommandResult {
    let refused = |why: String| refused(Action::Drop, &options.attended, &why);
    let filter = options.chosen.filter(&options.which).map_err(refused)?;
    if filter.is_empty() != options.all {
        let text = if options.all { "--all and a filter are both given" } else { "give a filter or --all" };
        return Err(refused(format!("{text}; see plextrac-bridge dead-letters drop --help")));
    }
    let store = options.which.kind();
    let request = Request { action: Action::Drop, as_is: false, filter, lenient: false, store };
    change(flags, &request, &options.attended)
}

/// Reports arguments that make no sense together, to a program, too.
fn refused(action: Action, attended: &Attended, why: &str) -> ExitCode {
    Display::new(action, attended.json).refused(why);
    wrong_arguments(why)
}

fn change(flags: &Flags, request: &Request, attended: &Attended) -> CommandResult {
    let mut display = Display::new(request.action, attended.json);
    let state = cli::state_directory(flags).inspect_err(|_| display.refused(UNUSABLE))?;
    let runtime = cli::runtime()?;
    let progress = runtime.block_on(async {
        let mut log = None;
        let found = find(flags, &state, request.store, &mut log).await;
        let found = found.map_err(|Obstacle(code, text)| {
            display.refused(&text);
            code
        })?;
        Ok::<_, ExitCode>(carry_out(found, request, attended.timeout, &mut display).await)
    });
    runtime.shutdown_background();
    let progress = progress?;
    display.end(&progress);
    let all = progress.state == RequestState::Done && progress.skipped == 0 && progress.dead_lettered == 0;
    Ok(exit(all && progress.unreadable == 0))
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

/// The reason why a request is not carried out, which standard error has already, and the exit code.
struct Obstacle(ExitCode, String);

/// Only a command that does the work itself needs settings.
async fn find(
    flags: &Flags,
    state: &Path,
    kind: StoreKind,
    log: &mut Option<logs::Log>,
) -> Result<Found, Obstacle> {
    if let Some(why) = missing(state) {
        return Err(obstacle(why));
    }
    let directory = state.join(kind.directory());
    match std::fs::metadata(&directory) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(cannot_use(&directory, &error)),
    }
    let mut known: Option<Settings> = None;
    let began = Instant::now();
    loop {
        let unreachable = match connect(state).await {
            Ok(stream) => return Ok(Found::Daemon(stream)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => error,
            Err(error) => return Err(cannot_use(&state.join("control.sock"), &error)),
        };
        if known.is_none() {
            let (settings, _) = cli::settings(flags).map_err(|code| Obstacle(code, UNUSABLE.to_owned()))?;
            // What stands in the way is in the progress; more than that only where it is asked for.
            *log = flags.log_level.as_ref().and_then(|_| logs::start(settings.log).ok());
            known = Some(settings);
        }
        let Some(settings) = &known else { continue };
        match app::open_offline(settings.clone(), state) {
            Ok(offline) => return Ok(Found::Offline(Box::new(offline))),
            Err(StateError::Locked(_)) if began.elapsed() < RETRY => sleep(RETRY_INTERVAL).await,
            Err(StateError::Locked(_)) => {
                return Err(obstacle(format!(
                    "another plextrac-bridge uses {} and has no control socket ({unreachable}): a daemon whose log says \
                     why, or another command; stop it, or try again",
                    state.display()
                )));
            }
            Err(StateError::Unusable { path, source }) => return Err(cannot_use(Path::new(&path), &source)),
        }
    }
}

fn cannot_use(path: &Path, error: &io::Error) -> Obstacle {
    let is_denied = error.kind() == ErrorKind::PermissionDenied;
    let hint = if is_denied { "; run this as the daemon's user, or as root" } else { "" };
    obstacle(format!("cannot use {}: {error}{hint}", path.display()))
}

fn obstacle(text: String) -> Obstacle {
    Obstacle(cli::failed(&text), text)
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
    let mut kinds = vec![SignalKind::interrupt(), SignalKind::terminate()];
    // Under `nohup` a hang-up ends nothing.
    if !is_hangup_ignored() {
        kinds.push(SignalKind::hangup());
    }
    let mut signals: Vec<_> = kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect();
    poll_fn(|context| {
        let is_asked = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
        if is_asked { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Whether this process was started with SIGHUP ignored.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

/// Has the request carried out, and shows its progress. What it returns says how it ended.
async fn carry_out(found: Found, request: &Request, patience: Duration, display: &mut Display) -> Progress {
    let (sender, mut receiver) = watch::channel(Progress::default());
    let stop = Notify::new();
    let is_ours = matches!(found, Found::Offline(_));
    let mut work: Pin<Box<dyn Future<Output = ()> + '_>> = match found {
        Found::Nothing => return Progress { state: RequestState::Done, ..Progress::default() },
        Found::Offline(offline) => Box::pin(offline.run(request, sender, stop.notified())),
        Found::Daemon(stream) => Box::pin(follow(stream, request, sender)),
    };
    let mut is_done = false;
    let watched = tokio::select! {
        watched = watch(&mut receiver, patience, display, interrupted()) => watched,
        () = &mut work => {
            is_done = true;
            WatchEnd::Over
        }
    };
    let waited_for = receiver.borrow().error.clone();
    if is_ours && !is_done {
        if !matches!(watched, WatchEnd::Over) {
            stop.notify_one();
        }
        work.await;
    } else {
        // This closes the connection: the daemon withdraws what it has not sent.
        std::mem::drop(work);
    }
    let mut progress = receiver.borrow().clone();
    match watched {
        WatchEnd::TooLong if progress.state != RequestState::Done => {
            let why = waited_for.map(|why| format!(": {why}")).unwrap_or_default();
            progress.give_up(format!("gave up after {patience:?} without progress{why}"));
        }
        WatchEnd::Interrupted if progress.state != RequestState::Done => {
            progress.give_up("interrupted; what was not published is still kept".to_owned());
        }
        _ => {}
    }
    progress
}
