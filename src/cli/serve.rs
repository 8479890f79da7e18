//! `serve`: the bridge itself.

use std::future::poll_fn;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crate::app::{self, Reloading, Signals, load, load_from};
use crate::process::{failpoint, logs, systemd};
use crate::settings::{Flags, Layers};
use crate::status::Totals;
use rustix::process::Signal as Raw;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::cli::{self, CommandResult, exit};

/// The interval at which the contents of secrets and certificates are compared.
const FILE_CHECK_INTERVAL: Duration = Duration::from_secs(30);

pub(super) fn run(flags: &Flags) -> CommandResult {
    let passed = systemd::sockets().map_err(cli::misconfigured)?;
    let runtime = cli::runtime()?;
    // As early as possible: by default these signals end a process.
    let asked = {
        let _inside = runtime.enter();
        hangups(&runtime).and_then(|asked| ignore_others().map(|()| asked))
    };
    let asked = asked.map_err(|error| cli::failed(format_args!("cannot listen for signals: {error}")))?;
    let (settings, findings) = cli::settings(flags)?;
    let log = logs::start(settings.log);
    let log = log.map_err(|error| cli::failed(format_args!("cannot start the log: {error}")))?;
    findings.log();
    let ended = runtime.block_on(async {
        // Before anything is bound, so that a signal during the start stops it, too.
        let signals = Unix::listen(None)?;
        let reloading = Reloading {
            load: Arc::new({
                let flags = flags.clone();
                move |layers: Option<Layers>| match layers {
                    Some(layers) => load_from(layers, std::env::var("STATE_DIRECTORY").ok()),
                    None => load(&flags),
                }
            }),
            asked,
            every: failpoint::every("reload.look", FILE_CHECK_INTERVAL),
            level: log.level(),
        };
        let app = app::bind(settings, passed)?.reloading(reloading);
        tracing::info!(
            ingress = %app.ingress_address(),
            admin = app.admin_address().map(|address| address.to_string()),
            version = crate::metrics::VERSION,
            revision = crate::metrics::revision(),
            "listening"
        );
        app.run(signals).await
    });
    // Work that still waits for a disk that hangs must not delay the end.
    runtime.shutdown_background();
    let summary = ended.map_err(|error| {
        tracing::error!("{error}");
        ExitCode::FAILURE
    })?;
    logs::report_all_left_out();
    log.close();
    // The last line of the log is the accounting; the reason for a failure is logged before.
    log_totals(&summary.totals);
    Ok(exit(summary.failed.is_none() && summary.totals.lost == 0))
}

/// Logs the accounting.
fn log_totals(totals: &Totals) {
    let Totals { received, accepted, duplicate, probe, rejected, .. } = *totals;
    let Totals { recovered, replayed, published, dead_lettered, withdrawn, lost, held, .. } = *totals;
    macro_rules! log {
        ($level:ident) => {
            tracing::$level!(
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
            )
        };
    }
    if lost > 0 { log!(error) } else { log!(info) }
}

/// Listens for the signals that ask for a stop.
pub(super) struct Unix(Vec<Signal>);

impl Unix {
    /// SIGTERM, SIGINT, SIGQUIT and another one.
    pub(super) fn listen(also: Option<SignalKind>) -> std::io::Result<Self> {
        ignore_others()?;
        let usual = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
        Ok(Self(usual.into_iter().chain(also).map(signal).collect::<Result<_, _>>()?))
    }
}

/// Turns SIGHUP into reload requests. Once handled, it stops nothing: a daemon outlives the terminal it was started
/// from.
fn hangups(runtime: &Runtime) -> std::io::Result<Arc<Notify>> {
    let (asked, mut hangups) = (Arc::new(Notify::new()), signal(SignalKind::hangup())?);
    let asks = asked.clone();
    runtime.spawn(async move {
        while hangups.recv().await.is_some() {
            asks.notify_one();
        }
    });
    Ok(asked)
}

/// Takes the signals that have no meaning here, and would end the process without a drain.
fn ignore_others() -> std::io::Result<()> {
    let others = [Raw::USR1, Raw::USR2, Raw::ALARM, Raw::VTALARM, Raw::PROF, Raw::IO, Raw::POWER];
    // A signal once listened for keeps its handler.
    others.into_iter().try_for_each(|other| signal(SignalKind::from_raw(other.as_raw())).map(drop))
}

impl Signals for Unix {
    async fn next(&mut self) {
        poll_fn(|cx| {
            let is_there = self.0.iter_mut().any(|signal| signal.poll_recv(cx).is_ready());
            if is_there { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}
