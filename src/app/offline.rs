//! The letters of a state directory, put together with what looks after them: inside the daemon, or alone for a command.

use std::fs::File;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::app::{Settings, StartError};
use crate::dead_letters::{
    Action, Progress, Rebuilder, Request, Requests, Store, StoreCounts, StoreKind, StoreLimits, Stores,
};
use crate::delivery::{Delivery, Parts};
use crate::ingress::{self, Validation};
use crate::metrics::Metrics;
use crate::process::shutdown::{self, Drain, Phase};
use crate::process::state_directory::{self, StateError};
use crate::queue::Buffer;
use crate::status::{BrokerStatus, Ledger};

/// The longest time that a command waits for its session to close.
const CLOSE: Duration = Duration::from_secs(5);

/// The longest time that a command that is to end waits for the verdicts on sent messages.
const VERDICTS: Duration = Duration::from_secs(2);

/// Both stores.
pub(super) struct Letters {
    pub(super) stores: Stores,
}

impl Letters {
    /// Opens both stores in a state directory that is ours.
    pub(super) fn open(state: &Path, settings: &Settings) -> Result<Self, StateError> {
        let open = |kind: StoreKind, limits| {
            let directory = state.join(kind.directory());
            let store = Store::open(&directory, limits).map_err(StateError::unusable(&directory))?;
            Ok(Arc::new(Mutex::new(store)))
        };
        let dead_letters = open(StoreKind::DeadLetters, StoreLimits::dead_letters(settings.dead_letters.bytes))?;
        let invalid = open(StoreKind::Invalid, StoreLimits::invalid(settings.invalid.bytes))?;
        Ok(Self { stores: Stores { dead_letters, invalid } })
    }

    /// The contents of a store, counted.
    pub(super) fn held(&self, kind: StoreKind) -> Arc<StoreCounts> {
        self.stores.of(kind).lock().unwrap_or_else(PoisonError::into_inner).held()
    }

    /// The part that does what requests ask for.
    pub(super) fn requests(
        &self,
        ways: ValidationOf,
        queue: &Arc<Buffer>,
        view: &BrokerStatus,
        drain: &Drain,
    ) -> Requests {
        Requests::new(self.stores.clone(), rebuilder(ways), queue.clone(), view.clone(), drain.clone())
    }
}

/// The validation of the payloads of a source, by its name.
pub(super) type ValidationOf = Box<dyn Fn(&str) -> Option<Validation> + Send + Sync>;

/// The rules by which letters become events again.
fn rebuilder(ways: ValidationOf) -> Rebuilder {
    Rebuilder {
        always: ingress::rebuild,
        configured: Arc::new(move |origin, body| {
            // A source that is not configured any more says nothing: the default.
            let way = ways(&origin.source).unwrap_or(Validation::Lenient);
            ingress::revalidate(origin, body, way)
        }),
        lenient: Arc::new(|origin, body| ingress::revalidate(origin, body, Validation::Lenient)),
    }
}

/// Letters looked after by a command, while no daemon runs.
pub(crate) struct Offline {
    settings: Settings,
    letters: Letters,
    /// Keeps daemons out.
    lock: File,
}

/// Takes the state directory, so that no daemon starts meanwhile.
///
/// # Errors
/// A daemon holds it, or it cannot be used.
pub(crate) fn open_offline(settings: Settings, state: &Path) -> Result<Offline, StartError> {
    let lock = state_directory::lock(state)?;
    let letters = Letters::open(state, &settings)?;
    Ok(Offline { settings, letters, lock })
}

impl Offline {
    /// Does what a request asks for, with the broker of the settings, until it is done or `stop` says so. What is not
    /// sent by then stays a letter. The last progress says how it ended.
    pub(crate) async fn run(
        self,
        request: &Request,
        progress: watch::Sender<Progress>,
        stop: impl Future<Output = ()>,
    ) {
        let Self { settings, letters, lock } = self;
        let (stopper, drain) = shutdown::channel();
        let queue = Arc::new(Buffer::new(settings.mode, settings.buffer, Ledger::default()));
        let view = BrokerStatus::default();
        let sources = settings.sources.clone();
        let ways =
            move |name: &str| sources.iter().find(|source| *source.name == *name).map(|source| source.validation);
        let requests = letters.requests(Box::new(ways), &queue, &view, &drain);
        let end = |at: Instant| {
            queue.drain();
            stopper.enter(Phase::Draining);
            stopper.deadline(at);
        };
        let finished = async {
            requests.run(request, progress).await;
            end(Instant::now() + CLOSE);
        };
        let halted = async {
            stop.await;
            end(Instant::now() + VERDICTS);
            // What was published in time is still removed.
            std::future::pending::<()>().await;
        };
        let work = async {
            tokio::select! {
                () = finished => {}
                () = halted => {}
            }
        };
        if request.action == Action::Drop {
            work.await;
        } else {
            let broker = settings.broker.broker(&settings.terms());
            let (metrics, store) = (Arc::new(Metrics::new("buffered")), letters.stores.dead_letters.clone());
            let delivery = Delivery::new(Parts {
                successor: Arc::default(),
                broker,
                queue: queue.clone(),
                metrics,
                view: view.clone(),
                settings: settings.publish,
                store: Some(store),
                backlog: None,
                drain: drain.clone(),
            });
            tokio::join!(delivery.run(), work);
        }
        drop(lock);
    }
}
