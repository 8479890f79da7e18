//! The only file that knows all parts: binds them together, starts their threads, stops them in order.
//!
//! Threads: the caller's (signals, the order of stopping), one for the admin port, one for delivery, and one per
//! core for the ingress; each has a runtime of its own. With a state directory one more, without a runtime: the
//! journal's writer.
//!
//! Length: the order of start and stop, in one place.

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::admin::{self, Admin};
use crate::app::Settings;
use crate::app::offline::open_stores;
use crate::app::parts::SharedParts;
use crate::app::reload::{Reloader, Reloading};
use crate::app::threads::{Runtimes, joined, thread};
use crate::app::{journal, resources};
use crate::dead_letters::{ControlSocket, Stores};
use crate::delivery;
use crate::ingress::Listeners;
use crate::process::logs;
use crate::process::shutdown::{self, Phase, Stopper};
use crate::process::state_directory::{self, StateError};
use crate::process::systemd::{self, Passed};
use crate::queue::Buffer;
use crate::queue::journal::Opened;
use crate::status::Totals;

/// The reasons why the bridge does not start. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} (`{key}`): {source}{}", hint(source))]
    Listen {
        /// The settings key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The journal cannot be used.
    #[error("failed to open the journal: {0}")]
    Journal(io::Error),
    /// A thread or runtime cannot be created.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another program uses it; choose another port",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege; choose a higher one",
        _ => "",
    }
}

/// Requests to stop from outside: the first one drains, the second one hurries.
pub(crate) trait Signals {
    /// Waits for the next request to stop.
    fn next(&mut self) -> impl Future<Output = ()>;
}

/// The bridge, bound to its addresses, not yet serving.
pub(crate) struct App {
    settings: Settings,
    listeners: Listeners,
    admin: Option<TcpListener>,
    state: StateContents,
    reloading: Option<Reloading>,
}

/// The contents of the state directory; none without one.
#[derive(Default)]
struct StateContents {
    letters: Option<Stores>,
    /// None also where no socket is possible.
    control: Option<ControlSocket>,
    journal: Option<Opened>,
    /// Held as long as this process uses the directory.
    lock: Option<File>,
}

/// The result of a run.
#[derive(Clone, Debug)]
pub(crate) struct RunSummary {
    /// The accounting at the end.
    pub(crate) totals: Totals,
    /// The reason why it ended without being asked to.
    pub(crate) failed: Option<String>,
}

/// Binds the listeners that were not passed and takes the state directory. Nothing is served yet, so the addresses are
/// known first.
///
/// # Errors
/// The obstacle, with advice.
pub(crate) fn bind(settings: Settings, passed: Passed) -> Result<App, StartError> {
    let state = settings.state_directory.as_deref().map(|path| open_state(path, &settings));
    let state = state.transpose()?.unwrap_or_default();
    let address = settings.ingress.listen;
    let threads = settings.ingress.threads;
    let listeners = match passed.ingress {
        Some(socket) => Listeners::share(socket, threads),
        None => Listeners::bind(address, threads),
    };
    let listeners = listeners.map_err(|source| StartError::Listen { key: "ingress.listen", address, source })?;
    let admin = match settings.admin.listen.filter(|_| passed.admin.is_none()) {
        Some(address) => Some(admin::bind(address).map_err(|source| StartError::Listen {
            key: "admin.listen",
            address,
            source,
        })?),
        None => passed.admin,
    };
    Ok(App { settings, listeners, admin, state, reloading: None })
}

/// Takes the state directory, and opens its contents.
fn open_state(path: &Path, settings: &Settings) -> Result<StateContents, StartError> {
    let lock = state_directory::lock(path)?;
    let letters = open_stores(path, settings)?;
    let journal = journal::open(path, settings).map_err(StartError::Journal)?;
    let control = ControlSocket::bind(path).inspect_err(|error| {
        tracing::warn!(
            directory = %path.display(),
            "cannot make a control socket in the state directory ({error}): `dead-letters replay` and `drop` work only \
             while the bridge is stopped"
        );
    });
    Ok(StateContents { letters: Some(letters), control: control.ok(), journal: Some(journal), lock: Some(lock) })
}

impl App {
    /// The address of the ingress.
    pub(crate) fn ingress_address(&self) -> SocketAddr {
        self.listeners.address
    }

    /// The address of the admin port, if it is on.
    pub(crate) fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref()?.local_addr().ok()
    }

    /// Makes the bridge reload its settings on request, and when a file of secrets or certificates changes.
    pub(crate) fn reloading(self, reloading: Reloading) -> Self {
        Self { reloading: Some(reloading), ..self }
    }

    /// Serves until `signals` asks for a stop and the stop is over.
    ///
    /// # Errors
    /// A thread cannot be created.
    pub(crate) async fn run(self, mut signals: impl Signals) -> Result<RunSummary, StartError> {
        let mut running = self.start()?;
        let SharedParts { queue, status, .. } = running.parts.clone();
        tokio::spawn(logs::report_left_out());
        tokio::spawn(resources::keep_low(queue.clone(), status.clone()));
        systemd::notify(&systemd::NotifyState::Ready);
        tokio::spawn(systemd::feed_watchdog(move || status.heartbeats.stalled()));
        let failed = tokio::select! {
            () = signals.next() => false,
            () = queue.failed() => true,
            never = running.reloader.run() => match never {},
        };
        Ok(running.stop(signals, failed).await)
    }

    /// Starts all threads.
    fn start(self) -> Result<RunningApp, StartError> {
        let Self { settings, listeners, admin, state, reloading } = self;
        let StateContents { letters, control, journal, lock } = state;
        resources::raise_open_files();
        resources::give_back_large();
        // All of them before the first connection is accepted: many connections could leave no descriptor for the last
        // one.
        let mut runtimes = Runtimes::new(settings.ingress.threads + 1 + usize::from(admin.is_some()))?;
        let (stopper, stop) = shutdown::channel();
        let broker = settings.broker.broker(&settings.terms());
        let (parts, journal) = SharedParts::new(&settings, broker.name(), stop, letters.as_ref(), journal)?;
        let (writer, backlog) = journal.unzip();
        if let Some(listener) = admin {
            let admin::Settings { page, hosts, .. } = settings.admin.clone();
            let SharedParts { status, metrics, queue, stop, .. } = parts.clone();
            let admin = Arc::new(Admin { status, metrics, queue, stop, page, hosts });
            // It ends with the process: probes are answered until the last moment.
            thread("admin", runtimes.next()?, None, move || admin::serve(listener, admin))?;
        }
        let journal = writer.map(|writer| journal::write(&parts, writer)).transpose()?;
        let work = delivery::Parts {
            broker,
            router: settings.broker.router.clone(),
            headers: settings.headers(),
            successor: parts.successor.clone(),
            queue: parts.queue.clone(),
            metrics: parts.metrics.clone(),
            view: parts.status.broker.clone(),
            settings: settings.publish,
            store: letters.as_ref().map(|letters| letters.dead_letters.clone()),
            backlog,
            drain: parts.stop.clone(),
        };
        let requests = letters.map(|letters| parts.requests(letters));
        let delivery = parts.start_delivery(runtimes.next()?, work, control.zip(requests))?;
        let serving = parts.start_ingress(&mut runtimes, listeners)?;
        journal::recall(&parts.known, &settings)?;
        let reloader = Reloader::new(reloading, settings, parts.clone());
        Ok(RunningApp { parts, reloader, stopper, serving, delivery, journal, lock })
    }
}

/// The bridge while it serves.
struct RunningApp {
    parts: SharedParts,
    reloader: Reloader,
    stopper: Stopper,
    serving: Vec<JoinHandle<io::Result<()>>>,
    delivery: JoinHandle<usize>,
    journal: Option<JoinHandle<()>>,
    /// Held as long as this process uses the state directory.
    lock: Option<File>,
}

impl RunningApp {
    /// Stops all parts; `failed` if the journal did.
    async fn stop(self, mut signals: impl Signals, failed: bool) -> RunSummary {
        let Self { parts, reloader, stopper, serving, delivery, journal, lock } = self;
        let (queue, settings) = (&parts.queue, reloader.settings());
        stop_in_order(&mut signals, &stopper, settings.shutdown, queue, serving, delivery, journal).await;
        if let Some(invalids) = parts.invalids.clone() {
            let limit = stopper.overtime();
            let _ = tokio::task::spawn_blocking(move || invalids.close(limit)).await;
        }
        if failed && journal::is_missing(settings) {
            queue.lose_journal();
        }
        let snapshot = queue.snapshot();
        drop(lock);
        let failure = || snapshot.journal.as_ref().and_then(|journal| journal.failed.clone());
        RunSummary { totals: snapshot.totals(), failed: failed.then(failure).flatten() }
    }
}

/// Unready, still serving; then no new requests; then deliver what is held. A second signal hurries.
async fn stop_in_order<T: Send + 'static>(
    signals: &mut impl Signals,
    stopper: &Stopper,
    settings: shutdown::Settings,
    queue: &Arc<Buffer>,
    serving: Vec<JoinHandle<T>>,
    delivery: JoinHandle<usize>,
    journal: Option<JoinHandle<()>>,
) {
    if settings.delay.is_zero() {
        tracing::info!("stopping: delivering for up to {:?}", settings.grace);
    } else {
        let shutdown::Settings { delay, grace } = settings;
        tracing::info!("stopping: unready, serving for {delay:?}, then delivering for up to {grace:?}");
    }
    systemd::notify(&systemd::NotifyState::Stopping);
    stopper.enter(Phase::Leaving);
    let hurried = tokio::select! {
        () = tokio::time::sleep(settings.delay) => false,
        () = signals.next() => true,
    };
    let grace = if hurried { Duration::ZERO } else { settings.grace };
    stopper.deadline(Instant::now() + grace);
    stopper.enter(Phase::Closing);
    let ended = async {
        joined(serving).await;
        queue.drain();
        stopper.enter(Phase::Draining);
        joined(vec![delivery]).await;
        queue.close_journal();
        // A disk that hangs must not delay the end for ever.
        let _ = timeout(stopper.overtime(), joined(journal.into_iter().collect())).await;
    };
    tokio::pin!(ended);
    loop {
        tokio::select! {
            () = &mut ended => return,
            () = signals.next() => {
                tracing::warn!("a second signal: stopping at once");
                stopper.deadline(Instant::now());
            }
        }
    }
}
