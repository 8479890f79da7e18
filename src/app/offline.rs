//! The letters of a state directory, put together with what looks after them: inside the daemon, or alone for a command.

use std::fs::File;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, watch};

use crate::app::Settings;
use crate::dead_letters::{Action, Progress, RebuildLetter, Request, Requests, Stores, Validity};
use crate::delivery::{Delivery, Parts};
use crate::ingress::{self, Validation};
use crate::metrics::Metrics;
use crate::process::shutdown::{self, Phase};
use crate::process::state_directory::{self, StateError};
use crate::queue::Buffer;
use crate::status::{BrokerStatus, Ledger};

/// The longest time that a command waits for its session to close.
const CLOSE: Duration = Duration::from_secs(5);

/// The longest time that a command that is to end waits for the verdicts on sent messages.
const VERDICTS: Duration = Duration::from_secs(2);

/// Opens both stores in a state directory that is ours.
pub(super) fn open_stores(state: &Path, settings: &Settings) -> Result<Stores, StateError> {
    Stores::open(state, settings.dead_letters.bytes, settings.invalid.bytes)
}

/// The rule by which letters become events again, with the validation of the payloads of a source, by its name.
pub(super) fn rebuild_with(
    validation_of: impl Fn(&str) -> Option<Validation> + Send + Sync + 'static,
) -> RebuildLetter {
    Arc::new(move |validity, origin, body| {
        let validation = match validity {
            Validity::AsIs => return Some(ingress::rebuild(origin, body)),
            Validity::Lenient => Validation::Lenient,
            // A source that is not configured any more says nothing: the default.
            Validity::AsConfigured => validation_of(&origin.source).unwrap_or(Validation::Lenient),
        };
        ingress::revalidate(origin, body, validation)
    })
}

/// Letters looked after by a command, while no daemon runs.
pub(crate) struct Offline {
    settings: Settings,
    stores: Stores,
    /// Keeps daemons out.
    lock: File,
}

/// Takes the state directory, so that no daemon starts meanwhile.
///
/// # Errors
/// A daemon holds it, or it cannot be used.
pub(crate) fn open_offline(settings: Settings, state: &Path) -> Result<Offline, StateError> {
    let lock = state_directory::lock(state)?;
    let stores = open_stores(state, &settings)?;
    Ok(Offline { settings, stores, lock })
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
        let Self { settings, stores, lock } = self;
        let (stopper, drain) = shutdown::channel();
        let queue = Arc::new(Buffer::new(settings.mode, settings.buffer, Ledger::default()));
        let view = BrokerStatus::default();
        let sources = settings.sources.clone();
        let validation_of =
            move |name: &str| sources.iter().find(|source| *source.name == *name).map(|source| source.validation);
        let requests = Requests {
            stores: stores.clone(),
            rebuild: rebuild_with(validation_of),
            queue: queue.clone(),
            view: view.clone(),
            drain: drain.clone(),
            turn: Mutex::default(),
        };
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
            let (metrics, store) = (Arc::new(Metrics::new("buffered")), stores.dead_letters);
            let delivery = Delivery::new(Parts {
                successor: Arc::default(),
                broker,
                router: settings.broker.router.clone(),
                headers: settings.headers(),
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
