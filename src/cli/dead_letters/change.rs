//! `dead-letters replay` and `drop`: a request, done by the daemon if one runs, else by this command in its place.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::app::{self, Offline, StartError};
use crate::dead_letters::{Action, Desk, Progress, Request, RequestState, StoreKind, Validity};
use crate::process::logs;
use crate::process::state_directory::{self, StateError};
use crate::settings::Flags;
use clap::Args;
use tokio::sync::Notify;

use crate::cli::dead_letters::progress::Display;
use crate::cli::dead_letters::{Chosen, Which, state};
use crate::cli::{self, complain};

/// How often it is looked how far a request is.
const LOOK: Duration = Duration::from_millis(100);

/// Without news for so long it is asked whether the daemon is still there.
const QUIET: Duration = Duration::from_secs(2);

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
    let (settings, state) = state(flags)?;
    let mut display = Display::new(request.action, as_json);
    if !state.join(StoreKind::DeadLetters.directory()).is_dir() {
        // No daemon was ever here.
        display.end(&Progress { state: RequestState::Done, ..Progress::default() });
        return Ok(ExitCode::SUCCESS);
    }
    // What stands in the way is in the progress; more than that only for one who asks.
    let _log = flags.log_level.is_some().then(|| logs::start(settings.log));
    let runtime = cli::runtime()?;
    let outcome = runtime.block_on(async {
        let desk = Desk::within(&state);
        match app::open_offline(settings, &state) {
            Ok(alone) => by_ourselves(alone, &desk, request, patience, &mut display).await,
            Err(StartError::State(StateError::Locked(_))) => {
                by_the_daemon(&state, &desk, request, patience, &mut display).await
            }
            Err(error) => Err(cli::failed(error)),
        }
    });
    runtime.shutdown_background();
    let progress = outcome?;
    display.end(&progress);
    let all = progress.state == RequestState::Done && progress.skipped == 0 && progress.dead_lettered == 0;
    Ok(if all && progress.unreadable == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Why a request is no longer watched.
enum Watched {
    Over(Progress),
    /// The request is gone, and nobody says how it ended.
    Gone,
    TooLong,
    Interrupted,
    /// Nobody holds the state directory any more.
    Offline,
}

/// Shows how far a request is until it is over; `holder` says whether somebody still looks after it.
async fn watch(
    desk: &Desk,
    name: &str,
    patience: Duration,
    display: &mut Display,
    holder: impl Fn() -> bool,
) -> Watched {
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let (mut last, mut asked) = (Instant::now(), Instant::now());
    let mut before = None;
    loop {
        let (waits, progress) = (desk.has(name), desk.progress(name));
        if let Some(progress) = &progress {
            display.update(progress);
        }
        match &progress {
            Some(progress) if progress.state != RequestState::Running && !waits => {
                return Watched::Over(progress.clone());
            }
            _ if !waits => return Watched::Gone,
            _ => {}
        }
        let done = progress.map(|progress| progress.done);
        if done != before {
            (before, last) = (done, Instant::now());
        } else if last.elapsed() > patience {
            return Watched::TooLong;
        } else if last.elapsed() > QUIET && asked.elapsed() > QUIET {
            asked = Instant::now();
            if !holder() {
                return Watched::Offline;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = &mut interrupted => return Watched::Interrupted,
        }
    }
}

fn leave(desk: &Desk, request: &Request) -> Result<String, ExitCode> {
    desk.leave(request).map_err(|error| {
        cli::failed(format_args!(
            "cannot leave a request in the state directory: {error}; run this as the daemon's user, or as root"
        ))
    })
}

async fn by_the_daemon(
    state: &Path,
    desk: &Desk,
    request: &Request,
    patience: Duration,
    display: &mut Display,
) -> Result<Progress, ExitCode> {
    let name = leave(desk, request)?;
    match watch(desk, &name, patience, display, || state_directory::is_held(state)).await {
        Watched::Over(progress) => {
            // Not removed, it goes at the daemon's next start.
            let _ = desk.forget(&name);
            Ok(progress)
        }
        Watched::Gone => Err(cli::failed("the daemon gave the request up; its log says why")),
        Watched::TooLong => {
            let error = desk.progress(&name).and_then(|progress| progress.error);
            let why = error.map(|error| format!(" ({error})")).unwrap_or_default();
            Err(cli::failed(format_args!(
                "nothing has moved for {patience:?}{why}; the daemon goes on with the request"
            )))
        }
        Watched::Interrupted => Err(cli::failed("the daemon goes on with the request")),
        Watched::Offline => Err(cli::failed("the daemon has ended; the request waits for its next start")),
    }
}

async fn by_ourselves(
    alone: Offline,
    desk: &Desk,
    request: &Request,
    patience: Duration,
    display: &mut Display,
) -> Result<Progress, ExitCode> {
    let name = leave(desk, request)?;
    let stop = Notify::new();
    let work = alone.finish(request, &name, stop.notified());
    tokio::pin!(work);
    let watched = tokio::select! {
        watched = watch(desk, &name, patience, display, || true) => Some(watched),
        () = &mut work => None,
    };
    match &watched {
        Some(Watched::TooLong | Watched::Interrupted) => {
            stop.notify_one();
            work.await;
        }
        Some(_) => work.await,
        None => {}
    }
    let progress = desk.progress(&name);
    // Whatever is left undone stays a letter, and no daemon is to begin with it by itself.
    let taken_back = desk.close(&name).and_then(|()| desk.forget(&name));
    taken_back.map_err(|error| cli::failed(format_args!("cannot take the request back: {error}")))?;
    let mut progress = progress.unwrap_or_default();
    progress.skipped += progress.selected.saturating_sub(progress.done);
    match watched {
        Some(Watched::TooLong) => {
            let why = progress.error.take().unwrap_or_else(|| "the broker is away".to_owned());
            progress.error = Some(format!("gave up, nothing has moved for {patience:?}: {why}"));
        }
        Some(Watched::Interrupted) => {
            progress.error = Some("interrupted; what was not stored is still kept".to_owned());
        }
        _ => {}
    }
    if progress.state == RequestState::Running {
        progress.state = RequestState::Failed;
    }
    Ok(progress)
}
