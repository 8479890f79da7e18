//! The parts that several threads share, and the threads of delivery and ingress, which get them.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::app::offline::rebuild_with;
use crate::app::threads::{Runtimes, thread};
use crate::app::{Settings, resources};
use crate::dead_letters::{ControlSocket, Requests, Stores};
use crate::delivery::{self, BacklogReader, Delivery, Successor};
use crate::ingress::{self, Connections, CurrentIngress, Deduplication, Invalids, Listeners};
use crate::metrics::Metrics;
use crate::process::shutdown::Drain;
use crate::queue::Buffer;
use crate::queue::journal::{Opened, Writer};
use crate::settings::to_json;
use crate::status::{Ledger, Status};

/// The parts that several threads share.
#[derive(Clone)]
pub(super) struct SharedParts {
    pub(super) queue: Arc<Buffer>,
    pub(super) status: Arc<Status>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) connections: Arc<Connections>,
    pub(super) known: Arc<Deduplication>,
    pub(super) live: Arc<CurrentIngress>,
    pub(super) successor: Arc<Successor>,
    pub(super) invalids: Option<Arc<Invalids>>,
    pub(super) stop: Drain,
}

impl SharedParts {
    pub(super) fn new(
        settings: &Settings,
        broker_name: &'static str,
        stop: Drain,
        letters: Option<&Stores>,
        journal: Option<Opened>,
    ) -> io::Result<(Self, Option<(Writer, BacklogReader)>)> {
        let metrics = Arc::new(Metrics::new(settings.mode.ack.name()));
        let mut queue = Buffer::new(settings.mode, settings.buffer, Ledger::default());
        let mut journal_parts = None;
        if let Some(Opened { layout, writer, reader, recovered, damaged, .. }) = journal {
            queue = queue.with_journal(layout, recovered, damaged);
            journal_parts = Some((writer, BacklogReader::new(reader, ingress::rebuild)));
        }
        let invalids = letters.map(|letters| Invalids::start(letters.invalid.clone(), metrics.clone()));
        let invalids = invalids.transpose()?.map(Arc::new);
        let status = Arc::new(Status {
            broker_name,
            dead_letters: letters.map(|letters| letters.dead_letters.held.clone()),
            invalid: letters.map(|letters| letters.invalid.held.clone()),
            ..Status::default()
        });
        status.reloads.lock().in_force = to_json(settings.fingerprint.effective());
        let shared = ingress::Shared {
            queue: Arc::new(queue),
            status: status.clone(),
            metrics: metrics.clone(),
            known: Arc::new(Deduplication::new(settings.deduplication)),
            invalids: invalids.clone(),
        };
        let parts = Self {
            queue: shared.queue.clone(),
            connections: Arc::new(Connections::new(resources::connections(&settings.ingress), status.clone())),
            status,
            metrics,
            known: shared.known.clone(),
            live: CurrentIngress::new(settings.ingress.clone(), &settings.sources, shared, settings.buffer.bytes),
            successor: Arc::default(),
            invalids,
            stop,
        };
        Ok((parts, journal_parts))
    }

    /// Requests about dead letters, which validate bodies as the sources are configured at that time.
    pub(super) fn requests(&self, stores: Stores) -> Arc<Requests> {
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
    pub(super) fn start_delivery(
        &self,
        runtime: Runtime,
        work: delivery::Parts,
        control: Option<(ControlSocket, Arc<Requests>)>,
    ) -> io::Result<JoinHandle<usize>> {
        let (stop, heartbeat) = (self.stop.clone(), self.status.heartbeats.add("the delivery task"));
        thread("delivery", runtime, Some(heartbeat), move || async move {
            let serving = control.map(|(control, requests)| tokio::spawn(control.serve(requests, stop.clone())));
            let lost = Delivery::new(work).run().await;
            if let Some(serving) = serving {
                // It ends with the drain, once it has removed letters that were published in time; a disk that hangs must
                // not delay it.
                let _ = timeout(stop.overtime(), serving).await;
            }
            lost
        })
    }

    /// Starts the ingress threads, one for each listening socket.
    pub(super) fn start_ingress(
        &self,
        runtimes: &mut Runtimes,
        listeners: Listeners,
    ) -> io::Result<Vec<JoinHandle<io::Result<()>>>> {
        let unreadable = Arc::new(ingress::Unreadable::new(self.metrics.clone()));
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
}
