//! Requests about letters: `dead-letters replay` and `drop` leave a file, this task does what it says.
//!
//! It shares the delivery thread. Replayed events go the way of all events, from the queue on; their lines are removed
//! only when delivery has settled them. What a stop leaves undone is done after the next start.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use crate::dead_letters::{Action, Desk, Filter, Letter, Progress, Request, RequestState, Store, StoreKind};
use crate::delivery::selection::{count, hash, read};
use crate::event::{Event, Kept, Origin, Rebuild};
use crate::event::{Outcome, Waiter};
use crate::process::logs::Throttle;
use crate::process::shutdown::Drain;
use crate::queue::Buffer;
use crate::status::{BrokerStatus, ConnectionState};

/// How often it is looked for requests: a person waits.
const LOOK: Duration = Duration::from_millis(500);

/// The most bytes of bodies that are replayed at once, unless one alone has more.
const BATCH_BYTES: usize = 8 << 20;

/// How often the progress is written down, at most.
const REPORT: Duration = Duration::from_millis(250);

/// Makes an event of a kept body if it is valid today: as its source is configured, or in the lenient way.
pub(crate) type RebuildInvalid = Arc<dyn Fn(Origin, Box<[u8]>) -> Option<Box<Event>> + Send + Sync>;

/// How events are made of letters again.
#[derive(Clone)]
pub(crate) struct Rebuilder {
    /// For bodies that were accepted, and for kept ones with `--as-is`.
    pub(crate) always: Rebuild,
    /// For kept bodies.
    pub(crate) configured: RebuildInvalid,
    /// For kept bodies with `--lenient`.
    pub(crate) lenient: RebuildInvalid,
}

/// Both stores.
#[derive(Clone, Debug)]
pub(crate) struct Stores {
    /// Events that the broker refused.
    pub(crate) dead_letters: Arc<Mutex<Store>>,
    /// Signed bodies that were not published.
    pub(crate) invalid: Arc<Mutex<Store>>,
}

impl Stores {
    /// The one of this kind.
    #[must_use]
    pub(crate) fn of(&self, kind: StoreKind) -> Arc<Mutex<Store>> {
        match kind {
            StoreKind::DeadLetters => self.dead_letters.clone(),
            StoreKind::Invalid => self.invalid.clone(),
        }
    }
}

/// The task.
pub(crate) struct Requests {
    desk: Desk,
    stores: Stores,
    rebuilder: Rebuilder,
    queue: Arc<Buffer>,
    view: BrokerStatus,
    drain: Drain,
}

/// Whether a request went to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Done,
    /// It was over before the last end of the process; only its file was left.
    Over,
    /// The bridge stops, or the request was taken back.
    Stopped,
}

impl Requests {
    /// A task for the requests on this desk.
    #[must_use]
    pub(crate) fn new(
        desk: Desk,
        stores: Stores,
        rebuilder: Rebuilder,
        queue: Arc<Buffer>,
        view: BrokerStatus,
        drain: Drain,
    ) -> Self {
        Self { desk, stores, rebuilder, queue, view, drain }
    }

    /// Does what requests ask for until the bridge stops. Runs on the delivery thread.
    pub(crate) async fn serve(self) {
        let throttle = Throttle::new(1, Duration::from_mins(1));
        while !self.drain.has_begun() {
            let desk = self.desk.clone();
            match blocking(move || desk.names()).await {
                Ok(names) => {
                    for name in names {
                        self.finish(&name).await;
                    }
                }
                Err(error) if throttle.admits() => tracing::warn!("cannot look for requests: {error}"),
                Err(_) => {}
            }
            tokio::select! {
                () = sleep(LOOK) => {}
                () = self.drain.begun() => {}
            }
        }
    }

    /// Does what one request asks for.
    pub(crate) async fn finish(&self, name: &str) {
        if self.drain.has_begun() {
            return;
        }
        let (desk, asked) = (self.desk.clone(), name.to_owned());
        let request = match blocking(move || desk.read(&asked)).await {
            Ok(Ok(request)) => request,
            Ok(Err(bad)) => return tracing::warn!(request = name, "put a bad request aside as .bad: {bad}"),
            // Taken back.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return tracing::warn!(request = name, "cannot read a request: {error}"),
        };
        let mut work = RequestWork {
            requests: self,
            name,
            store: self.stores.of(request.kind),
            progress: Progress::default(),
        };
        let ended = work.run(&request).await;
        let Progress { selected, published, dead_lettered, dropped, skipped, .. } = work.progress;
        match ended {
            Ok(Ended::Stopped) => work.report().await,
            Ok(Ended::Over) => work.close().await,
            Ok(Ended::Done) => {
                work.progress.state = RequestState::Done;
                work.progress.error = None;
                tracing::info!(
                    selected,
                    published,
                    dead_lettered,
                    dropped,
                    skipped,
                    "a request about letters is done"
                );
                work.close().await;
            }
            Err(error) => {
                tracing::error!(request = name, "dead-letter request failed: {error}");
                work.progress.state = RequestState::Failed;
                work.progress.error = Some(error.to_string());
                work.close().await;
            }
        }
    }
}

/// One request under way.
struct RequestWork<'r> {
    requests: &'r Requests,
    name: &'r str,
    store: Arc<Mutex<Store>>,
    progress: Progress,
}

impl RequestWork<'_> {
    async fn run(&mut self, request: &Request) -> io::Result<Ended> {
        let (desk, name) = (self.requests.desk.clone(), self.name.to_owned());
        let before = blocking(move || Ok(desk.progress(&name))).await?;
        match before {
            Some(progress) if progress.state != RequestState::Running => {
                self.progress = progress;
                return Ok(Ended::Over);
            }
            Some(Progress { published, dead_lettered, dropped, up_to, .. }) => {
                let done = published + dead_lettered + dropped;
                self.progress = Progress { done, published, dead_lettered, dropped, up_to, ..Progress::default() };
            }
            None => self.progress.up_to = lock(&self.store).seal(),
        }
        if lock(&self.store).number() <= self.progress.up_to {
            // After a restart the numbers may not have gone beyond: what comes now is not asked for.
            lock(&self.store).seal();
        }
        let files = lock(&self.store).files(self.progress.up_to);
        let (paths, filter) = (self.paths(&files), request.filter.clone());
        let (selected, unreadable) = blocking(move || count(&paths, &filter)).await?;
        self.progress.selected = self.progress.done + selected;
        self.progress.unreadable = unreadable;
        self.report().await;
        for file in files {
            let ended = match request.action {
                Action::Drop => self.drop_from(file, &request.filter).await?,
                Action::Replay => self.replay_from(file, request).await?,
            };
            if ended == Ended::Stopped || !self.requests.desk.has(self.name) {
                return Ok(Ended::Stopped);
            }
            self.report().await;
        }
        Ok(Ended::Done)
    }

    fn paths(&self, files: &[u64]) -> Vec<PathBuf> {
        let store = lock(&self.store);
        files.iter().map(|file| store.path(*file)).collect()
    }

    async fn drop_from(&mut self, file: u64, filter: &Filter) -> io::Result<Ended> {
        if self.requests.drain.has_begun() {
            return Ok(Ended::Stopped);
        }
        let (store, filter) = (self.store.clone(), filter.clone());
        let is_meant = move |line: &[u8]| Letter::parse(line).is_ok_and(|letter| filter.matches(&letter));
        let gone = blocking(move || lock(&store).rewrite(file, |_, line| !is_meant(line))).await?;
        self.progress.dropped += gone;
        self.progress.done += gone;
        Ok(Ended::Done)
    }

    async fn replay_from(&mut self, file: u64, request: &Request) -> io::Result<Ended> {
        let mut seen = 0;
        loop {
            let (path, request, rebuilder) =
                (lock(&self.store).path(file), request.clone(), self.requests.rebuilder.clone());
            let most = (self.requests.queue.limits().bytes / 4).min(BATCH_BYTES);
            let batch = blocking(move || read(&path, seen, &request, &rebuilder, most)).await?;
            self.progress.skipped += batch.skipped;
            self.progress.done += batch.skipped;
            let Some(kept) = self.deliver(batch.events).await else { return Ok(Ended::Stopped) };
            seen = batch.seen;
            if !kept.is_empty() {
                let store = self.store.clone();
                let keep = move |at: usize, line: &[u8]| kept.get(&at) != Some(&hash(line));
                let gone = blocking(move || lock(&store).rewrite(file, keep)).await;
                let gone = gone.map_err(|error| {
                    let text = format!("letters were published but cannot be removed, so they stay: {error}");
                    io::Error::new(error.kind(), text)
                })?;
                seen -= usize::try_from(gone).unwrap_or(seen).min(seen);
            }
            if self.requests.drain.has_begun() {
                return Ok(Ended::Stopped);
            }
            if batch.is_last {
                return Ok(Ended::Done);
            }
            if !self.requests.desk.has(self.name) {
                return Ok(Ended::Stopped);
            }
            self.report().await;
        }
    }

    /// Gives events to delivery and waits for their end; the lines that can go. None where the bridge stops.
    async fn deliver(&mut self, events: Vec<(usize, u64, Box<Event>)>) -> Option<HashMap<usize, u64>> {
        if events.is_empty() {
            return Some(HashMap::new());
        }
        self.wait_for_room().await?;
        // Refused again, an event becomes a dead letter whichever store it came from.
        let held = lock(&self.requests.stores.dead_letters).held();
        let returned = held.returned();
        let (mut waiting, mut replayed) = (Vec::new(), Vec::new());
        for (at, hash, mut event) in events {
            let waiter = Waiter::new(None);
            event.kept = Kept::DeadLetter;
            event.waiter = Some(waiter.clone());
            waiting.push((at, hash, waiter));
            replayed.push(event);
        }
        if !self.requests.queue.replay(replayed) {
            return None;
        }
        self.wait_for(&waiting).await;
        let all = waiting.len() as u64;
        let is_kept = |waiter: &Waiter| waiter.outcome() == Some(Outcome::Kept);
        let kept: HashMap<_, _> =
            waiting.into_iter().filter(|(.., waiter)| is_kept(waiter)).map(|(at, hash, _)| (at, hash)).collect();
        let (count, again) = (kept.len() as u64, held.returned() - returned);
        self.progress.published += count.saturating_sub(again);
        self.progress.dead_lettered += again.min(count);
        self.progress.skipped += all - count;
        self.progress.done += all;
        Some(kept)
    }

    /// Waits until less than half of the buffer is used: what comes in goes first. None where the bridge stops.
    async fn wait_for_room(&mut self) -> Option<()> {
        loop {
            if self.requests.drain.has_begun() {
                return None;
            }
            let (events, bytes) = self.requests.queue.held();
            let limits = self.requests.queue.limits();
            if events <= limits.events / 2 && bytes <= limits.bytes / 2 {
                return Some(());
            }
            self.note_trouble().await;
            tokio::select! {
                () = sleep(REPORT) => {}
                () = self.requests.drain.begun() => return None,
            }
        }
    }

    async fn wait_for(&mut self, waiting: &[(usize, u64, Arc<Waiter>)]) {
        let all = join_all(waiting.iter().map(|(.., waiter)| waiter.wait()));
        tokio::pin!(all);
        let before = self.progress.done;
        loop {
            tokio::select! {
                _ = &mut all => break,
                () = tokio::time::sleep_until(Instant::now() + REPORT) => {
                    let ended = waiting.iter().filter(|(.., waiter)| waiter.outcome().is_some()).count();
                    self.progress.done = before + ended as u64;
                    self.note_trouble().await;
                }
            }
        }
        self.progress.done = before;
        if waiting.iter().all(|(.., waiter)| waiter.outcome() == Some(Outcome::Kept)) {
            self.progress.error = None;
        }
    }

    /// Writes down how far it is, and what delivery waits for.
    async fn note_trouble(&mut self) {
        let view = self.requests.view.copy();
        let error = view.last_error.filter(|_| view.state != ConnectionState::Connected).map(|error| error.text);
        self.progress.error = view.blocked.or(error);
        self.report().await;
    }

    async fn report(&self) {
        let (desk, name, progress) = (self.requests.desk.clone(), self.name.to_owned(), self.progress.clone());
        if let Err(error) = blocking(move || desk.report(&name, &progress)).await {
            tracing::debug!("cannot write the progress of a request: {error}");
        }
    }

    /// The last report; then the request goes. In this order: a crash between the two repeats nothing.
    async fn close(&self) {
        self.report().await;
        let (desk, name) = (self.requests.desk.clone(), self.name.to_owned());
        if let Err(error) = blocking(move || desk.close(&name)).await {
            tracing::error!(request = self.name, "cannot remove a request that is done: {error}");
        }
    }
}

fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does file work on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
