//! `serve`: the bridge itself.

use std::process::ExitCode;

use plextrac_bridge::accounting::Totals;
use plextrac_bridge::app::{self, Signals};
use plextrac_bridge::logs;
use plextrac_bridge::settings::Flags;
use plextrac_bridge::systemd;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli;

pub(super) fn run(flags: &Flags) -> ExitCode {
    let passed = match systemd::sockets() {
        Ok(passed) => passed,
        Err(error) => return cli::misconfigured(error),
    };
    let (settings, warnings) = match cli::settings(flags) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let _log = match logs::start(settings.log) {
        Ok(guard) => guard,
        Err(error) => return cli::failed(format_args!("cannot start the log: {error}")),
    };
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let runtime = match cli::runtime() {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    let outcome = runtime.block_on(async {
        // Before anything is bound: a signal during the start stops it too.
        let signals = Unix::listen()?.outlive_hangups()?;
        let app = app::bind(settings, passed)?;
        tracing::info!(
            ingress = %app.ingress_address(),
            admin = app.admin_address().map(|address| address.to_string()),
            version = plextrac_bridge::metrics::VERSION,
            "listening"
        );
        app.run(signals).await
    });
    match outcome {
        Ok(outcome) => {
            let code = stopped(&outcome.totals);
            // The last line of the log is the accounting; why it came to that stands before.
            if outcome.failed.is_some() { ExitCode::FAILURE } else { code }
        }
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The last line: the accounting. Anything lost makes the status 1.
pub(super) fn stopped(totals: &Totals) -> ExitCode {
    let Totals { received, accepted, duplicate, probe, rejected, .. } = *totals;
    let Totals { recovered, replayed, published, dead_lettered, withdrawn, lost, held, .. } = *totals;
    tracing::info!(
        received,
        accepted,
        duplicate,
        probe,
        rejected,
        recovered,
        replayed,
        published,
        dead_lettered,
        withdrawn,
        lost,
        held,
        "stopped"
    );
    if lost > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// SIGTERM and SIGINT; SIGHUP, where it is heard, stops nothing.
pub(super) struct Unix {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
}

impl Unix {
    pub(super) fn listen() -> std::io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, hangup: None })
    }

    /// A daemon outlives the terminal it was started from.
    pub(super) fn outlive_hangups(mut self) -> std::io::Result<Self> {
        self.hangup = Some(signal(SignalKind::hangup())?);
        Ok(self)
    }
}

impl Signals for Unix {
    async fn next(&mut self) {
        loop {
            let Self { terminate, interrupt, .. } = self;
            let (stopped, interrupted) = (terminate.recv(), interrupt.recv());
            tokio::select! {
                _ = stopped => return,
                _ = interrupted => return,
                () = hung_up(&mut self.hangup) => {
                    tracing::warn!("SIGHUP: this version does not reload its settings; restart it to apply them");
                }
            }
        }
    }
}

async fn hung_up(hangup: &mut Option<Signal>) {
    match hangup {
        Some(hangup) => {
            hangup.recv().await;
        }
        None => std::future::pending().await,
    }
}
