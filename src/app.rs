//! The only file that knows all parts: binds them together, starts their threads, stops them in order.
//!
//! Threads: the caller's (signals, the order of stopping), one for the admin port, one for delivery, and one per
//! core for the ingress; each has a runtime of its own.

mod letters;

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;

use crate::accounting::{Ledger, SourceBook, Totals};
use crate::admin::{self, Admin, Health};
use crate::brokers::Broker;
use crate::delivery::{Delivery, View};
use crate::ingress::{self, Connections, Ingress, Invalids, Listeners, Recent, UnknownPaths};
use crate::letters::Kind;
use crate::metrics::Metrics;
use crate::pulse::Pulse;
use crate::queue::Buffer;
use crate::settings::Settings;
use crate::shutdown::{self, Drain, Phase, Stopper};
use crate::state::{self, StateError};

use letters::Letters;
pub use letters::{Alone, alone};

/// Why the bridge does not start. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} (`{key}`): {source}{}", hint(source))]
    Listen {
        /// The settings key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// A thread or runtime cannot be made.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another program listens there, choose another port",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege, choose one above",
        _ => "",
    }
}

/// A stop asked for from outside: once to drain, twice to hurry.
pub trait Signals {
    /// Waits for the next request to stop.
    fn next(&mut self) -> impl Future<Output = ()>;
}

/// The bridge, bound to its addresses, not yet serving.
pub struct App {
    settings: Settings,
    listeners: Listeners,
    admin: Option<TcpListener>,
    letters: Option<Letters>,
    /// Held as long as the state directory is ours.
    lock: Option<File>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The accounting at the end.
    pub totals: Totals,
}

/// Binds both listeners and takes the state directory; nothing is served yet, so the addresses are known first.
///
/// # Errors
/// What stands in the way.
pub fn bind(settings: Settings) -> Result<App, StartError> {
    let (lock, letters) = match &settings.state_directory {
        Some(path) => {
            let lock = state::lock(path)?;
            (Some(lock), Some(Letters::open(path, settings.dead_letters.bytes)?))
        }
        None => (None, None),
    };
    let address = settings.ingress.listen;
    let listeners = Listeners::bind(address, settings.ingress.threads).map_err(|source| StartError::Listen {
        key: "ingress.listen",
        address,
        source,
    })?;
    let admin = match settings.admin.listen {
        Some(address) => Some(admin::bind(address).map_err(|source| StartError::Listen {
            key: "admin.listen",
            address,
            source,
        })?),
        None => None,
    };
    Ok(App { settings, listeners, admin, letters, lock })
}

impl App {
    /// Where webhooks come in.
    #[must_use]
    pub fn ingress_address(&self) -> SocketAddr {
        self.listeners.address()
    }

    /// Where the admin port is, if it is on.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref()?.local_addr().ok()
    }

    /// Serves until `signals` asks for a stop and the stop is over.
    ///
    /// # Errors
    /// A thread cannot be made.
    pub async fn run(self, mut signals: impl Signals) -> Result<Outcome, StartError> {
        let Self { settings, listeners, admin, letters, lock } = self;
        let threads = settings.ingress.threads;
        // All of them before the first connection is taken: a flood could leave no descriptor for the last one.
        let mut runtimes = Runtimes::new(threads + 1 + usize::from(admin.is_some()))?;
        let (stopper, stop) = shutdown::channel();
        let parts = Parts::new(&settings, stop);
        let broker = settings.broker.broker(&settings.terms());
        let delivering = Pulse::new("the delivery task");
        let accepting: Vec<_> =
            (0..threads).map(|number| Pulse::new(&format!("ingress thread {number}"))).collect();
        if let Some(listener) = admin {
            let pulses = [std::slice::from_ref(&delivering), &accepting].concat();
            let admin = Arc::new(parts.admin(&settings, pulses, &*broker, letters.as_ref()));
            // It ends with the process: probes are answered until the last moment.
            thread("admin", runtimes.next()?, None, move || admin::serve(listener, admin))?;
        }
        let (queue, metrics, view) = (parts.queue.clone(), parts.metrics.clone(), parts.view.clone());
        let (publish, drain) = (settings.publish, parts.stop.clone());
        let dead_letters = letters.as_ref().map(|letters| letters.stores.dead_letters.clone());
        let requests = letters
            .as_ref()
            .map(|letters| letters.requests(&settings.sources, &parts.queue, &parts.view, &parts.stop));
        let delivery = thread("delivery", runtimes.next()?, Some(delivering), move || async move {
            let serving = requests.map(|requests| tokio::task::spawn_local(requests.serve()));
            let lost = Delivery::new(broker, queue, metrics, view, publish, dead_letters, drain).run().await;
            if let Some(serving) = serving {
                // It ends with the drain, once it has removed what was published in time.
                let _ = serving.await;
            }
            lost
        })?;
        let invalids = match &letters {
            Some(letters) => Some(Arc::new(Invalids::start(letters.stores.invalid.clone())?)),
            None => None,
        };
        let ingress = Arc::new(parts.ingress(&settings).keeping(invalids.clone()));
        let mut serving = Vec::new();
        for (socket, pulse) in listeners.into_sockets().into_iter().zip(accepting) {
            let (ingress, connections, stop) = (ingress.clone(), parts.connections.clone(), parts.stop.clone());
            let serve = move || ingress::serve(socket, ingress, connections, stop);
            serving.push(thread("ingress", runtimes.next()?, Some(pulse), serve)?);
        }
        signals.next().await;
        stop_in_order(&mut signals, &stopper, settings.shutdown, &parts.queue, serving, delivery).await;
        // What an ingress thread enqueued in the very last moment of a hurried stop.
        parts.queue.lose_waiting();
        if let Some(invalids) = invalids {
            let _ = tokio::task::spawn_blocking(move || invalids.close()).await;
        }
        let snapshot = parts.queue.snapshot();
        drop(lock);
        Ok(Outcome { totals: snapshot.ledger.totals(snapshot.events as u64) })
    }
}

/// What several threads share.
struct Parts {
    queue: Arc<Buffer>,
    metrics: Arc<Metrics>,
    connections: Arc<Connections>,
    recents: Vec<Arc<Recent>>,
    unknown_paths: Arc<UnknownPaths>,
    view: View,
    stop: Drain,
}

impl Parts {
    fn new(settings: &Settings, stop: Drain) -> Self {
        let books = settings.sources.iter().map(|source| {
            SourceBook::new(source.name.clone(), source.secrets.iter().map(|secret| secret.id.clone()))
        });
        let names: Vec<(String, Vec<String>)> = settings
            .sources
            .iter()
            .map(|source| {
                (source.name.to_string(), source.secrets.iter().map(|secret| secret.id.to_string()).collect())
            })
            .collect();
        Self {
            queue: Arc::new(Buffer::new(settings.buffer, Ledger::new(books.collect()))),
            metrics: Arc::new(Metrics::new(&names)),
            connections: Arc::new(Connections::new(settings.ingress.max_connections)),
            recents: settings.sources.iter().map(|_| Arc::default()).collect(),
            unknown_paths: Arc::default(),
            view: View::default(),
            stop,
        }
    }

    fn admin(
        &self,
        settings: &Settings,
        pulses: Vec<Pulse>,
        broker: &dyn Broker,
        letters: Option<&Letters>,
    ) -> Admin {
        Admin {
            health: Health { pulses, queue: self.queue.clone(), view: self.view.clone(), stop: self.stop.clone() },
            metrics: self.metrics.clone(),
            connections: self.connections.clone(),
            sources: settings.sources.clone(),
            recents: self.recents.clone(),
            unknown_paths: self.unknown_paths.clone(),
            dead_letters: letters.map(|letters| letters.held(Kind::DeadLetters)),
            invalid: letters.map(|letters| letters.held(Kind::Invalid)),
            dead_letters_capacity: settings.dead_letters.bytes as u64,
            broker_name: broker.name(),
            broker_location: broker.location(),
            page: settings.admin.page,
        }
    }

    fn ingress(&self, settings: &Settings) -> Ingress {
        Ingress::new(
            settings.ingress.clone(),
            &settings.sources,
            self.queue.clone(),
            self.metrics.clone(),
            &self.recents,
            self.unknown_paths.clone(),
            settings.buffer.bytes,
        )
    }
}

/// One runtime per thread, not yet given to its thread.
struct Runtimes(Vec<Runtime>);

impl Runtimes {
    fn new(count: usize) -> io::Result<Self> {
        let mut made = Self(Vec::with_capacity(count));
        for _ in 0..count {
            made.0.push(Self::one()?);
        }
        Ok(made)
    }

    fn one() -> io::Result<Runtime> {
        Builder::new_current_thread().enable_all().build()
    }

    fn next(&mut self) -> io::Result<Runtime> {
        self.0.pop().map_or_else(Self::one, Ok)
    }
}

impl Drop for Runtimes {
    fn drop(&mut self) {
        // Where a start failed: tokio panics when a runtime is dropped inside another in any other way.
        self.0.drain(..).for_each(Runtime::shutdown_background);
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
) {
    tracing::info!(
        "stopping: unready, serving for {:?}, then delivering for up to {:?}",
        settings.delay,
        settings.grace
    );
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

async fn joined<T: Send + 'static>(threads: Vec<JoinHandle<T>>) {
    for thread in threads {
        // A panic ends the process (`panic = "abort"`) or is in the log already.
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
}

/// Starts a thread with a runtime of its own, for one future and what it spawns there.
fn thread<F, T>(
    name: &str,
    runtime: Runtime,
    pulse: Option<Pulse>,
    make: impl FnOnce() -> F + Send + 'static,
) -> Result<JoinHandle<T>, StartError>
where
    F: Future<Output = T>,
    T: Send + 'static,
{
    let handle = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let local = LocalSet::new();
        if let Some(pulse) = pulse {
            local.spawn_local(pulse.beat());
        }
        let output = local.block_on(&runtime, async { make().await });
        // Blocking work that is still under way (a client library closing) must not hold the end up.
        runtime.shutdown_background();
        output
    })?;
    Ok(handle)
}
