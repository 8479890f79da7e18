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

use crate::admin::{self, Admin, Health};
use crate::app::Settings;
use crate::app::offline::{open_stores, rebuild_with};
use crate::app::reload::{Reloader, Reloading};
use crate::app::threads::{Runtimes, joined, thread};
use crate::app::{journal, memory, open_files};
use crate::brokers::Broker;
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
use crate::status::{BrokerStatus, Heartbeat, Ledger, Reloads, Totals, UnknownPaths, stalled};

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
        self.listeners.address()
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
        let Self { settings, listeners, admin, state, reloading } = self;
        let threads = settings.ingress.threads;
        open_files::raise();
        memory::give_back_large();
        // All of them before the first connection is accepted: many connections could leave no descriptor for the last
        // one.
        let mut runtimes = Runtimes::new(threads + 1 + usize::from(admin.is_some()))?;
        let (stopper, stop) = shutdown::channel();
        let (parts, kept) = SharedParts::new(&settings, stop, state);
        let StateParts { letters, control, backlog, writer, lock } = kept;
        let start = |letters: &Stores| Invalids::start(letters.invalid.clone(), parts.metrics.clone());
        let invalids = letters.as_ref().map(start).transpose()?.map(Arc::new);
        let live = parts.live(&settings, invalids.clone());
        let broker = settings.broker.broker(&settings.terms());
        let delivering = Heartbeat::new("the delivery task");
        let writing = Heartbeat::new("the journal's writer");
        let accepting: Vec<_> =
            (0..threads).map(|number| Heartbeat::new(&format!("ingress thread {number}"))).collect();
        let journal = writer.iter().map(|_| writing.clone());
        let heartbeats: Arc<[Heartbeat]> =
            accepting.iter().cloned().chain([delivering.clone()]).chain(journal).collect();
        if let Some(listener) = admin {
            let admin = Arc::new(parts.admin(&settings, &live, heartbeats.clone(), &*broker, letters.as_ref()));
            // It ends with the process: probes are answered until the last moment.
            thread("admin", runtimes.next()?, None, move || admin::serve(listener, admin))?;
        }
        let journal = writer.map(|writer| journal::write(&parts, writer, writing)).transpose()?;
        let work = delivery::Parts {
            broker,
            successor: parts.successor.clone(),
            queue: parts.queue.clone(),
            metrics: parts.metrics.clone(),
            view: parts.view.clone(),
            settings: settings.publish,
            store: letters.as_ref().map(|letters| letters.dead_letters.clone()),
            backlog,
            drain: parts.stop.clone(),
        };
        let requests = letters.as_ref().map(|letters| parts.requests(letters, live.clone()));
        let delivery = parts.start_delivery(runtimes.next()?, delivering, work, control.zip(requests))?;
        let serving = parts.start_ingress(&mut runtimes, listeners, &live, accepting)?;
        journal::recall(&parts.known, &settings)?;
        let queue = &parts.queue;
        let mut reloader = Reloader::new(reloading, settings, &parts, live);
        tokio::spawn(logs::report_left_out());
        tokio::spawn(memory::keep_low(queue.clone(), parts.connections.clone()));
        systemd::notify(systemd::ServiceState::Ready);
        tokio::spawn(systemd::feed_watchdog(move || stalled(&heartbeats)));
        let failed = tokio::select! {
            () = signals.next() => false,
            () = queue.failed() => true,
            never = reloader.run() => match never {},
        };
        let settings = reloader.settings();
        let shutdown = settings.shutdown;
        stop_in_order(&mut signals, &stopper, shutdown, queue, serving, delivery, journal).await;
        // Events that an ingress thread enqueued in the last moment of a hurried stop.
        queue.lose_waiting();
        if let Some(invalids) = invalids {
            let _ = tokio::task::spawn_blocking(move || invalids.close()).await;
        }
        if failed && journal::is_missing(settings) {
            queue.lose_journal();
        }
        let snapshot = queue.snapshot();
        drop(lock);
        let failure = || snapshot.journal.as_ref().and_then(|journal| journal.failed.clone());
        Ok(RunSummary { totals: snapshot.totals(), failed: failed.then(failure).flatten() })
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
pub(super) struct SharedParts {
    pub(super) queue: Arc<Buffer>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) connections: Arc<Connections>,
    pub(super) reloads: Arc<Reloads>,
    pub(super) unknown_paths: Arc<UnknownPaths>,
    pub(super) known: Arc<Deduplication>,
    pub(super) successor: Arc<Successor>,
    pub(super) view: BrokerStatus,
    pub(super) stop: Drain,
}

impl SharedParts {
    fn new(settings: &Settings, stop: Drain, state: Option<StateContents>) -> (Self, StateParts) {
        let mut queue = Buffer::new(settings.mode, settings.buffer, Ledger::default());
        let mut kept = StateParts::default();
        if let Some(StateContents { letters, control, journal, lock }) = state {
            let Opened { layout, writer, reader, recovered, damaged, .. } = journal;
            queue = queue.with_journal(layout, recovered, damaged);
            let backlog = BacklogReader::new(reader, ingress::rebuild);
            kept = StateParts {
                letters: Some(letters),
                control,
                backlog: Some(backlog),
                writer: Some(writer),
                lock: Some(lock),
            };
        }
        let parts = Self {
            queue: Arc::new(queue),
            metrics: Arc::new(Metrics::new(settings.mode.ack.name())),
            connections: Arc::new(Connections::new(settings.ingress.max_connections)),
            reloads: Arc::default(),
            unknown_paths: Arc::default(),
            known: Arc::new(Deduplication::new(settings.deduplication)),
            successor: Arc::default(),
            view: BrokerStatus::default(),
            stop,
        };
        parts.reloads.set_in_force(to_json(settings.fingerprint.effective()));
        (parts, kept)
    }

    /// Requests about dead letters, which validate bodies as the sources are configured at that time.
    fn requests(&self, letters: &Stores, live: Arc<CurrentIngress>) -> Arc<Requests> {
        let validation_of = move |name: &str| {
            let ingress = live.now();
            let endpoint = ingress.endpoints().iter().find(|endpoint| *endpoint.source.name == *name);
            endpoint.map(|endpoint| endpoint.source.validation)
        };
        Arc::new(Requests {
            stores: letters.clone(),
            rebuild: rebuild_with(validation_of),
            queue: self.queue.clone(),
            view: self.view.clone(),
            drain: self.stop.clone(),
            turn: Mutex::default(),
        })
    }

    /// Starts the delivery task and, beside it, the control socket. The thread returns the number of lost events.
    fn start_delivery(
        &self,
        runtime: Runtime,
        heartbeat: Heartbeat,
        work: delivery::Parts,
        control: Option<(ControlSocket, Arc<Requests>)>,
    ) -> io::Result<JoinHandle<usize>> {
        let stop = self.stop.clone();
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
        live: &Arc<CurrentIngress>,
        heartbeats: Vec<Heartbeat>,
    ) -> io::Result<Vec<JoinHandle<io::Result<()>>>> {
        let unreadable = Arc::new(ingress::Unreadable::new(self.metrics.clone()));
        let mut serving = Vec::new();
        for (socket, heartbeat) in listeners.into_sockets().into_iter().zip(heartbeats) {
            let (live, connections, stop) = (live.clone(), self.connections.clone(), self.stop.clone());
            let unreadable = unreadable.clone();
            let serve = move || ingress::serve(socket, live, connections, unreadable, stop);
            serving.push(thread("ingress", runtimes.next()?, Some(heartbeat), serve)?);
        }
        Ok(serving)
    }

    fn admin(
        &self,
        settings: &Settings,
        live: &Arc<CurrentIngress>,
        heartbeats: Arc<[Heartbeat]>,
        broker: &dyn Broker,
        letters: Option<&Stores>,
    ) -> Admin {
        Admin {
            health: Health {
                heartbeats,
                queue: self.queue.clone(),
                view: self.view.clone(),
                stop: self.stop.clone(),
            },
            metrics: self.metrics.clone(),
            connections: self.connections.clone(),
            live: live.clone(),
            reloads: self.reloads.clone(),
            unknown_paths: self.unknown_paths.clone(),
            dead_letters: letters.map(|letters| letters.dead_letters.held().clone()),
            invalid: letters.map(|letters| letters.invalid.held().clone()),
            dead_letters_capacity: settings.dead_letters.bytes as u64,
            broker_name: broker.name(),
            page: settings.admin.page,
            hosts: settings.admin.hosts.clone(),
        }
    }

    fn live(&self, settings: &Settings, invalids: Option<Arc<Invalids>>) -> Arc<CurrentIngress> {
        let shared = ingress::Shared {
            queue: self.queue.clone(),
            metrics: self.metrics.clone(),
            unknown: self.unknown_paths.clone(),
            known: self.known.clone(),
            invalids,
        };
        CurrentIngress::new(settings.ingress.clone(), &settings.sources, shared, settings.buffer.bytes)
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
