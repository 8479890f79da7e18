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

use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::admin::{self, Admin};
use crate::app::Settings;
use crate::app::offline::{open_stores, rebuild_with};
use crate::app::reload::{Reloader, Reloading};
use crate::app::threads::{Runtimes, joined, thread};
use crate::app::{journal, memory, open_files};
use crate::dead_letters::{ControlSocket, Requests, Stores, remove_old_requests};
use crate::delivery::{self, BacklogReader, Delivery, Successor};
use crate::ingress::{self, Connections, CurrentIngress, Deduplication, Invalids, Listeners};
use crate::metrics::Metrics;
use crate::process::logs;
use crate::process::shutdown::{self, Drain, Phase, Stopper};
use crate::process::state_directory::{self, StateError};
use crate::process::systemd::{self, Passed};
use crate::queue::Buffer;
use crate::queue::journal::{OpenError, Opened, Writer};
use crate::settings::to_json;
use crate::status::{Ledger, Status, Totals};

/// The time that the end waits for the journal's final writes, beyond the stop's deadline; at least a fifth of it.
const JOURNAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The time that the end waits for requests about dead letters, once delivery has ended: they remove published letters.
const REQUESTS_TIMEOUT: Duration = Duration::from_secs(5);

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
    #[error(transparent)]
    Journal(#[from] OpenError),
    /// A thread or runtime cannot be created.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another program uses it, choose another port",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege, choose one above",
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
    state: Option<StateContents>,
    reloading: Option<Reloading>,
}

/// The contents of the state directory.
struct StateContents {
    letters: Stores,
    /// None where no socket is possible.
    control: Option<ControlSocket>,
    journal: Opened,
    /// Held as long as this process uses the directory.
    lock: File,
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
    let state = settings.state_directory.as_deref().map(|path| open_state(path, &settings)).transpose()?;
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
    if let Err(error) = remove_old_requests(path) {
        tracing::warn!("cannot remove the requests of an earlier version, which are not carried out: {error}");
    }
    let journal = journal::open(path, settings)?;
    let control = ControlSocket::bind(path).inspect_err(|error| {
        tracing::warn!(
            directory = %path.display(),
            "cannot make a control socket in the state directory ({error}): `dead-letters replay` and `drop` work only \
             while the bridge is stopped"
        );
    });
    Ok(StateContents { letters, control: control.ok(), journal, lock })
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
        tokio::spawn(memory::keep_low(queue.clone(), status.clone()));
        systemd::notify(systemd::ServiceState::Ready);
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
        open_files::raise();
        memory::give_back_large();
        // All of them before the first connection is accepted: many connections could leave no descriptor for the last
        // one.
        let mut runtimes = Runtimes::new(settings.ingress.threads + 1 + usize::from(admin.is_some()))?;
        let (stopper, stop) = shutdown::channel();
        let broker = settings.broker.broker(&settings.terms());
        let (parts, kept) = SharedParts::new(&settings, broker.name(), stop, state)?;
        let StateParts { letters, control, backlog, writer, lock } = kept;
        if let Some(listener) = admin {
            let admin = Arc::new(parts.admin(&settings.admin));
            // It ends with the process: probes are answered until the last moment.
            thread("admin", runtimes.next()?, None, move || admin::serve(listener, admin))?;
        }
        let journal = writer.map(|writer| journal::write(&parts, writer)).transpose()?;
        let work = delivery::Parts {
            broker,
            router: settings.broker.router().clone(),
            headers: settings.broker.headers(settings.publish.headers),
            successor: parts.successor.clone(),
            queue: parts.queue.clone(),
            metrics: parts.status.metrics.clone(),
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
        // Events that an ingress thread enqueued in the last moment of a hurried stop.
        queue.lose_waiting();
        if let Some(invalids) = parts.invalids.clone() {
            let _ = tokio::task::spawn_blocking(move || invalids.close()).await;
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

/// The part of the state directory that each part gets.
#[derive(Default)]
struct StateParts {
    letters: Option<Stores>,
    control: Option<ControlSocket>,
    backlog: Option<BacklogReader>,
    writer: Option<Writer>,
    lock: Option<File>,
}

/// The parts that several threads share.
#[derive(Clone)]
pub(super) struct SharedParts {
    pub(super) queue: Arc<Buffer>,
    pub(super) status: Arc<Status>,
    pub(super) connections: Arc<Connections>,
    pub(super) known: Arc<Deduplication>,
    pub(super) live: Arc<CurrentIngress>,
    pub(super) successor: Arc<Successor>,
    invalids: Option<Arc<Invalids>>,
    stop: Drain,
}

impl SharedParts {
    fn new(
        settings: &Settings,
        broker_name: &'static str,
        stop: Drain,
        state: Option<StateContents>,
    ) -> io::Result<(Self, StateParts)> {
        let metrics = Arc::new(Metrics::new(settings.mode.ack.name()));
        let mut queue = Buffer::new(settings.mode, settings.buffer, Ledger::default());
        let (mut kept, mut invalids) = (StateParts::default(), None);
        if let Some(StateContents { letters, control, journal, lock }) = state {
            let Opened { layout, writer, reader, recovered, damaged, .. } = journal;
            queue = queue.with_journal(layout, recovered, damaged);
            invalids = Some(Arc::new(Invalids::start(letters.invalid.clone(), metrics.clone())?));
            kept = StateParts {
                letters: Some(letters),
                control,
                backlog: Some(BacklogReader::new(reader, ingress::rebuild)),
                writer: Some(writer),
                lock: Some(lock),
            };
        }
        let status = Arc::new(Status {
            metrics,
            broker_name,
            dead_letters: kept.letters.as_ref().map(|letters| letters.dead_letters.held.clone()),
            dead_letters_capacity: settings.dead_letters.bytes as u64,
            invalid: kept.letters.as_ref().map(|letters| letters.invalid.held.clone()),
            ..Status::default()
        });
        status.reloads.lock().in_force = to_json(settings.fingerprint.effective());
        let shared = ingress::Shared {
            queue: Arc::new(queue),
            status: status.clone(),
            known: Arc::new(Deduplication::new(settings.deduplication)),
            invalids: invalids.clone(),
        };
        let parts = Self {
            queue: shared.queue.clone(),
            connections: Arc::new(Connections::new(settings.ingress.max_connections, status.clone())),
            status,
            known: shared.known.clone(),
            live: CurrentIngress::new(settings.ingress.clone(), &settings.sources, shared, settings.buffer.bytes),
            successor: Arc::default(),
            invalids,
            stop,
        };
        Ok((parts, kept))
    }

    /// Requests about dead letters, which validate bodies as the sources are configured at that time.
    fn requests(&self, stores: Stores) -> Arc<Requests> {
        let live = self.live.clone();
        Arc::new(Requests {
            stores,
            rebuild: rebuild_with(move |source| live.now().validation_of(source)),
            queue: self.queue.clone(),
            view: self.status.broker.clone(),
            drain: self.stop.clone(),
            turn: Mutex::default(),
        })
    }

    /// Starts the delivery task and, beside it, the control socket. The thread returns the number of lost events.
    fn start_delivery(
        &self,
        runtime: Runtime,
        work: delivery::Parts,
        control: Option<(ControlSocket, Arc<Requests>)>,
    ) -> io::Result<JoinHandle<usize>> {
        let (stop, heartbeat) = (self.stop.clone(), self.status.heartbeats.add("the delivery task"));
        thread("delivery", runtime, Some(heartbeat), move || async move {
            let serving = control.map(|(control, requests)| tokio::spawn(control.serve(requests, stop)));
            let lost = Delivery::new(work).run().await;
            if let Some(serving) = serving {
                // It ends with the drain, once it has removed letters that were published in time; a disk that hangs must
                // not delay it.
                let _ = timeout(REQUESTS_TIMEOUT, serving).await;
            }
            lost
        })
    }

    /// Starts the ingress threads, one for each listening socket.
    fn start_ingress(
        &self,
        runtimes: &mut Runtimes,
        listeners: Listeners,
    ) -> io::Result<Vec<JoinHandle<io::Result<()>>>> {
        let unreadable = Arc::new(ingress::Unreadable::new(self.status.clone()));
        let mut serving = Vec::new();
        for (number, socket) in listeners.sockets.into_iter().enumerate() {
            let heartbeat = self.status.heartbeats.add(&format!("ingress thread {number}"));
            let Self { live, connections, stop, .. } = self.clone();
            let unreadable = unreadable.clone();
            let serve = move || ingress::serve(socket, live, connections, unreadable, stop);
            serving.push(thread("ingress", runtimes.next()?, Some(heartbeat), serve)?);
        }
        Ok(serving)
    }

    fn admin(&self, settings: &admin::Settings) -> Admin {
        Admin {
            status: self.status.clone(),
            queue: self.queue.clone(),
            stop: self.stop.clone(),
            page: settings.page,
            hosts: settings.hosts.clone(),
        }
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
    tracing::info!(
        "stopping: unready, serving for {:?}, then delivering for up to {:?}",
        settings.delay,
        settings.grace
    );
    systemd::notify(systemd::ServiceState::Stopping);
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
        let limit = JOURNAL_TIMEOUT.saturating_sub(stopper.overdue()).max(JOURNAL_TIMEOUT / 5);
        let _ = timeout(limit, joined(journal.into_iter().collect())).await;
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
