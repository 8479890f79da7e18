//! The work of a request about letters: `replay` publishes them again, `drop` deletes them.
//!
//! A request is about the letters that exist when it is made, and ends when its asker leaves. Replayed events take the way
//! of all events, from the queue on; their lines are removed once delivery has settled them. One replay works at a time;
//! a drop waits for none, and leaves what a replay has in flight.
//!
//! Length: how a request ends is decided in several places, which are only understood side by side.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{Mutex, watch};
use tokio::time::sleep;

use crate::dead_letters::selection::{RebuildLetter, count, take};
use crate::dead_letters::store::LineSet;
use crate::dead_letters::{Action, Filter, Letter, Progress, Request, RequestState, SharedStore, StoreKind};
use crate::event::{Event, Kept, Outcome, Waiter};
use crate::process::shutdown::Drain;
use crate::process::state_directory::StateError;
use crate::queue::Buffer;
use crate::status::{BrokerStatus, ConnectionState};

/// The most bytes of bodies that are replayed at once, unless one alone has more.
const BATCH_BYTES: usize = 8 << 20;

/// The interval at which the progress of a batch is reported, and room for the next one is looked for.
const REPORT: Duration = Duration::from_millis(250);

/// Both stores.
#[derive(Clone, Debug)]
pub(crate) struct Stores {
    /// Events that the broker refused.
    pub(crate) dead_letters: SharedStore,
    /// Signed bodies that were not published.
    pub(crate) invalid: SharedStore,
}

impl Stores {
    /// Opens both in a state directory that is ours, with the most bytes of each.
    ///
    /// # Errors
    /// One of them cannot be read or created.
    pub(crate) fn open(state: &Path, dead_letters: usize, invalid: usize) -> Result<Self, StateError> {
        let open = |kind: StoreKind, capacity| {
            let directory = state.join(kind.directory());
            SharedStore::open(&directory, kind, capacity).map_err(StateError::unusable(&directory))
        };
        Ok(Self {
            dead_letters: open(StoreKind::DeadLetters, dead_letters)?,
            invalid: open(StoreKind::Invalid, invalid)?,
        })
    }
}

/// Does what requests ask for.
pub(crate) struct Requests {
    /// The stores that they are about.
    pub(crate) stores: Stores,
    /// The rule by which letters become events again.
    pub(crate) rebuild: RebuildLetter,
    /// The queue that gets the events.
    pub(crate) queue: Arc<Buffer>,
    /// The state of the broker, which the events may wait for.
    pub(crate) view: BrokerStatus,
    /// The begin of the drain.
    pub(crate) drain: Drain,
    /// Held by the one replay that works.
    pub(crate) turn: Mutex<()>,
}

/// The reason why a request ends before all that it could do is done.
enum Ended {
    /// The bridge stops.
    Stopped,
    /// Its asker has left; these events had been sent before.
    Left(Option<ReplayBatch>),
    /// The disk fails, or the store is full.
    Failed(io::Error),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl Requests {
    /// Does what one request asks for, until it is done, the drain begins, or all receivers of its progress are dropped.
    /// The last progress says how it ended. Returns once nothing of it is in flight.
    pub(crate) async fn run(&self, request: &Request, asker: watch::Sender<Progress>) {
        let store = match request.store {
            StoreKind::DeadLetters => self.stores.dead_letters.clone(),
            StoreKind::Invalid => self.stores.invalid.clone(),
        };
        let mut work = RequestWork { requests: self, request, store, asker, progress: Progress::default() };
        match work.run().await {
            Ok(()) => work.progress.state = RequestState::Done,
            Err(Ended::Stopped) => {
                work.progress.give_up("the bridge is stopping; what was not published is still kept".to_owned());
            }
            Err(Ended::Left(sent)) => {
                if let Some(in_flight) = sent {
                    in_flight.ended().await;
                    match in_flight.settle().await {
                        Ok(batch) => work.note(&batch),
                        Err(error) => tracing::error!("{error}"),
                    }
                }
                work.progress.give_up("the command has ended".to_owned());
            }
            Err(Ended::Failed(error)) => work.progress.give_up(error.to_string()),
        }
        work.report();
        let Progress { state, selected, published, dead_lettered, dropped, skipped, error, .. } = work.progress;
        let action = if request.action == Action::Drop { "drop" } else { "replay" };
        let state = if state == RequestState::Done { "done" } else { "failed" };
        tracing::info!(
            action,
            state,
            selected,
            published,
            dead_lettered,
            dropped,
            skipped,
            error,
            "a request about dead letters has ended"
        );
    }
}

/// One request under way.
struct RequestWork<'r> {
    requests: &'r Requests,
    request: &'r Request,
    store: SharedStore,
    asker: watch::Sender<Progress>,
    progress: Progress,
}

impl RequestWork<'_> {
    async fn run(&mut self) -> Result<(), Ended> {
        let files = self.store.work(|store| {
            store.measure()?;
            let last = store.seal();
            Ok(store.files(last).into_iter().map(|file| (file, store.path(file))).collect::<Vec<_>>())
        });
        let (files, filter) = (files.await?, self.request.filter.clone());
        // Without the lock: it may be long.
        let counting = tokio::task::spawn_blocking(move || {
            files.into_iter().map(|(file, path)| (file, count(&path, &filter))).collect::<Vec<_>>()
        });
        let (mut files, mut unread) = (Vec::new(), None);
        for (file, counted) in counting.await.map_err(io::Error::other)? {
            match counted {
                Ok((selected, unreadable)) => {
                    files.push(file);
                    self.progress.selected += selected;
                    self.progress.unreadable += unreadable;
                }
                Err(error) => {
                    self.progress.unreadable += 1;
                    unread.get_or_insert(error);
                }
            }
        }
        self.report();
        match self.request.action {
            Action::Drop => self.drop_from(&files).await?,
            Action::Replay => self.replay_from(&files).await?,
        }
        if let Some(error) = unread {
            self.progress.error.get_or_insert(error.to_string());
        }
        Ok(())
    }

    async fn drop_from(&mut self, files: &[u64]) -> Result<(), Ended> {
        for file in files.iter().copied() {
            self.check()?;
            let filter = self.request.filter.clone();
            let is_meant = move |line: &[u8]| is_meant(&filter, line);
            let (dropped, skipped) = self.store.work(move |store| store.drop_letters(file, is_meant)).await?;
            self.progress.dropped += dropped;
            self.progress.skipped += skipped;
            self.progress.done += dropped + skipped;
            if self.progress.skipped > 0 {
                let skipped = self.progress.skipped;
                self.progress.error = Some(format!("{skipped} stay, since a replay has them in flight"));
            }
            self.report();
        }
        Ok(())
    }

    async fn replay_from(&mut self, files: &[u64]) -> Result<(), Ended> {
        self.refuse_if_full().await?;
        let requests = self.requests;
        let _turn = if let Ok(turn) = requests.turn.try_lock() {
            turn
        } else {
            self.progress.error = Some("another replay is under way".to_owned());
            self.report();
            tokio::select! {
                turn = requests.turn.lock() => turn,
                () = self.asker.closed() => return Err(Ended::Left(None)),
                () = requests.drain.begun() => return Err(Ended::Stopped),
            }
        };
        self.progress.error = None;
        for file in files.iter().copied() {
            self.replay_file(file).await?;
        }
        Ok(())
    }

    /// Replays the letters of one file, batch by batch.
    async fn replay_file(&mut self, file: u64) -> Result<(), Ended> {
        let mut left = LineSet::default();
        loop {
            self.wait_for_room().await?;
            self.refuse_if_full().await?;
            let (request, rebuild) = (self.request.clone(), self.requests.rebuild.clone());
            let most = (self.requests.queue.limits().bytes / 8).min(BATCH_BYTES);
            let batch = self.store.work(move |store| take(store, file, left, &request, &rebuild, most)).await?;
            self.progress.skipped += batch.skipped;
            self.progress.done += batch.skipped;
            left = batch.left;
            for hash in self.deliver(file, batch.events).await? {
                left.add(hash);
            }
            self.report();
            if batch.is_last {
                return Ok(());
            }
        }
    }

    /// Gives events to delivery, waits for their end and removes the letters of those that are settled; returns the others.
    async fn deliver(&mut self, file: u64, events: Vec<(u64, Box<Event>)>) -> Result<Vec<u64>, Ended> {
        if events.is_empty() {
            return self.check().map(|()| Vec::new());
        }
        let (mut letters, mut replayed) = (Vec::new(), Vec::new());
        for (hash, mut event) in events {
            let waiter = Waiter::new(None);
            event.kept = Kept::DeadLetter;
            event.waiter = Some(waiter.clone());
            letters.push((hash, waiter));
            replayed.push(event);
        }
        let batch = ReplayBatch { store: self.store.clone(), file, letters };
        if !self.requests.queue.replay(replayed) {
            batch.withdraw(&self.requests.queue);
            batch.settle().await?;
            return Err(Ended::Stopped);
        }
        let batch = self.watch(batch).await?;
        let batch = batch.settle().await?;
        self.note(&batch);
        self.check().map(|()| batch.left)
    }

    /// Adds what became of a batch.
    fn note(&mut self, batch: &SettledBatch) {
        let left = batch.left.len() as u64;
        self.progress.published += batch.published;
        self.progress.dead_lettered += batch.dead_lettered;
        self.progress.skipped += left;
        self.progress.done += batch.published + batch.dead_lettered + left;
    }

    /// Reports how far a batch is until all of it has ended. If the asker leaves or the drain begins, what is not sent is
    /// withdrawn; the drain tells the rest how it ends, the asker's is not waited for here.
    async fn watch(&mut self, batch: ReplayBatch) -> Result<ReplayBatch, Ended> {
        let before = self.progress.done;
        let requests = self.requests;
        let mut is_draining = false;
        let is_left = {
            let ended = batch.ended();
            tokio::pin!(ended);
            loop {
                tokio::select! {
                    () = &mut ended => break false,
                    () = self.asker.closed() => break true,
                    () = requests.drain.begun(), if !is_draining => {
                        batch.withdraw(&requests.queue);
                        is_draining = true;
                    }
                    () = sleep(REPORT) => {
                        self.progress.done = before + batch.ended_count();
                        self.note_trouble();
                    }
                }
            }
        };
        self.progress.done = before;
        if is_left {
            batch.withdraw(&requests.queue);
            return Err(Ended::Left(Some(batch)));
        }
        self.progress.error = None;
        Ok(batch)
    }

    /// Waits until at most half of the buffer is used, or three quarters where events wait for their address, perhaps for
    /// long: new events take precedence.
    async fn wait_for_room(&mut self) -> Result<(), Ended> {
        let requests = self.requests;
        loop {
            self.check()?;
            let (events, bytes) = requests.queue.held();
            let limits = requests.queue.limits();
            let are_some_waiting = !requests.view.copy().waiting.is_empty();
            let most = |limit: usize| if are_some_waiting { limit - limit / 4 } else { limit / 2 };
            if events <= most(limits.events) && bytes <= most(limits.bytes) {
                self.progress.error = None;
                return Ok(());
            }
            self.note_trouble();
            if self.progress.error.is_none() {
                self.progress.error = Some("new events, which go first, fill the buffer".to_owned());
                self.report();
            }
            tokio::select! {
                () = sleep(REPORT) => {}
                () = self.asker.closed() => {}
                () = requests.drain.begun() => {}
            }
        }
    }

    /// Fails if the request must end here.
    fn check(&self) -> Result<(), Ended> {
        match (self.requests.drain.has_begun(), self.asker.is_closed()) {
            (true, _) => Err(Ended::Stopped),
            (_, true) => Err(Ended::Left(None)),
            _ => Ok(()),
        }
    }

    /// While delivery waits for room in the store, nothing that is replayed moves.
    async fn refuse_if_full(&self) -> io::Result<()> {
        let no_room = self.requests.stores.dead_letters.work(|store| Ok(store.no_room())).await?;
        no_room.map_or(Ok(()), |full| Err(io::Error::other(format!("nothing can be replayed now: {full}"))))
    }

    /// Reports how far it is, and what delivery waits for.
    fn note_trouble(&mut self) {
        let view = self.requests.view.copy();
        let error = view.last_error.as_ref().filter(|_| view.state != ConnectionState::Connected);
        let error = error.map(|error| error.text.clone());
        self.progress.error = view.blocked.clone().or(error).or_else(|| view.most_waiting());
        self.report();
    }

    fn report(&self) {
        self.asker.send_replace(self.progress.clone());
    }
}

/// The outcomes of a batch.
#[derive(Default)]
struct SettledBatch {
    published: u64,
    /// Events that were refused again: dead letters now, whichever store they came from.
    dead_lettered: u64,
    /// The letters that stay.
    left: Vec<u64>,
}

/// Letters of a file that are marked in their store, and whose events delivery has.
struct ReplayBatch {
    store: SharedStore,
    file: u64,
    letters: Vec<(u64, Arc<Waiter>)>,
}

impl ReplayBatch {
    /// Takes back the events that are not sent yet.
    fn withdraw(&self, queue: &Buffer) {
        for (_, waiter) in &self.letters {
            // One that is sent, or has ended, stays as it is.
            let _ = waiter.withdraw();
        }
        queue.sweep();
    }

    /// Waits until all have ended.
    async fn ended(&self) {
        join_all(self.letters.iter().map(|(_, waiter)| waiter.wait())).await;
    }

    fn ended_count(&self) -> u64 {
        self.letters.iter().filter(|(_, waiter)| waiter.outcome().is_some()).count() as u64
    }

    /// Removes the letters of those that are stored or refused again; the others can be replayed or dropped again.
    async fn settle(self) -> io::Result<SettledBatch> {
        let Self { store, file, letters } = self;
        let settled = store.work(move |store| {
            let (mut settled, mut batch) = (LineSet::default(), SettledBatch::default());
            for (hash, waiter) in &letters {
                match waiter.outcome() {
                    Some(Outcome::Kept) => batch.published += 1,
                    Some(Outcome::DeadLettered) => batch.dead_lettered += 1,
                    _ => {
                        batch.left.push(*hash);
                        continue;
                    }
                }
                settled.add(*hash);
            }
            let removed = if batch.left.len() == letters.len() { Ok(0) } else { store.remove(file, settled) };
            store.unmark(file, letters.iter().map(|(hash, _)| *hash));
            removed.map(|_| batch).map_err(|error| {
                let text = format!("letters were published but cannot be removed, so they stay: {error}");
                io::Error::new(error.kind(), text)
            })
        });
        settled.await
    }
}

fn is_meant(filter: &Filter, line: &[u8]) -> bool {
    Letter::parse(line).is_ok_and(|letter| filter.matches(&letter))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::dead_letters::NewLetter;
    use crate::dead_letters::letter::tests::letter;
    use crate::event::{Fields, Origin, complete_all};
    use crate::process::shutdown;
    use crate::queue::{Ack, Mode};
    use crate::status::{Ledger, Limits, WaitingAddress};

    fn event(origin: Origin, body: Box<[u8]>) -> Box<Event> {
        Box::new(Event::new(origin, body, &Fields::default(), &[0; 32]))
    }

    /// A replay of one letter beside so many events, of 1000 that fit, some of which wait for their address; ends when the
    /// letter's event is in the queue, or with what the replay waits for.
    async fn replay_beside(events: usize) -> Option<String> {
        let directory = tempfile::tempdir().unwrap();
        let stores = Stores::open(directory.path(), 1 << 20, 1 << 20).unwrap();
        stores.dead_letters.lock().append(&[NewLetter::new(letter("a").line())]).unwrap();
        let mode = Mode { ack: Ack::Buffered, timeout: Duration::from_secs(5) };
        let queue = Arc::new(Buffer::new(mode, Limits { events: 1000, bytes: 64 << 20 }, Ledger::default()));
        let (origin, body) = letter("b").origin_and_body();
        assert!(queue.replay((0..events).map(|_| event(origin.clone(), body.clone())).collect()));
        let view = BrokerStatus::default();
        view.change(|view| {
            view.state = ConnectionState::Connected;
            let reason = Some("it is sealed".to_owned());
            view.waiting = vec![WaitingAddress { address: "orders".to_owned(), events: 500, since: None, reason }];
        });
        let (stopper, drain) = shutdown::channel();
        let rebuild: RebuildLetter = Arc::new(|_, origin, body| Some(event(origin, body)));
        let requests = Requests { stores, rebuild, queue: queue.clone(), view, drain, turn: Mutex::default() };
        let request = Request {
            action: Action::Replay,
            as_is: false,
            filter: Filter::default(),
            lenient: false,
            store: StoreKind::DeadLetters,
        };
        let (asker, mut progress) = watch::channel(Progress::default());
        let said = async {
            for _ in 0..20 {
                progress.changed().await.unwrap();
                if queue.held().0 > events {
                    return None;
                }
                let error = progress.borrow().error.clone();
                if error.is_some() {
                    return error;
                }
            }
            Some("nothing moves".to_owned())
        };
        let outcome = tokio::select! {
            () = requests.run(&request, asker) => panic!("nothing is delivered here"),
            outcome = said => outcome,
        };
        drop(stopper);
        outcome
    }

    #[tokio::test]
    async fn needs_no_more_than_room_where_others_wait_for_their_address() {
        assert_eq!(replay_beside(600).await, None);
    }

    #[tokio::test]
    async fn names_the_address_that_fills_the_buffer() {
        let error = replay_beside(900).await.unwrap();
        assert!(error.contains("500 of the events wait for orders: it is sealed"), "{error}");
    }

    /// The waiter of the next event that delivery would get.
    async fn next(queue: &Buffer) -> Arc<Waiter> {
        let mut taken = VecDeque::new();
        loop {
            queue.take(1, &mut taken);
            if let Some(event) = taken.pop_front() {
                return event.waiter.unwrap();
            }
            queue.ready().await;
        }
    }

    #[tokio::test]
    async fn counts_as_its_own_nothing_that_another_replay_has_left_in_flight() {
        let directory = tempfile::tempdir().unwrap();
        let stores = Stores::open(directory.path(), 1 << 20, 1 << 20).unwrap();
        for id in ["a", "b"] {
            stores.dead_letters.lock().append(&[NewLetter::new(letter(id).line())]).unwrap();
        }
        let mode = Mode { ack: Ack::Buffered, timeout: Duration::from_secs(5) };
        let queue = Arc::new(Buffer::new(mode, Limits { events: 1000, bytes: 64 << 20 }, Ledger::default()));
        let (_stopper, drain) = shutdown::channel();
        let rebuild: RebuildLetter = Arc::new(|_, origin, body| Some(event(origin, body)));
        let (turn, view, queue_of) = (Mutex::default(), BrokerStatus::default(), queue.clone());
        let requests = Requests { stores, rebuild, queue: queue_of, view, drain, turn };
        let request = |id: &str| Request {
            action: Action::Replay,
            as_is: false,
            filter: Filter { ids: vec![id.to_owned()], ..Filter::default() },
            lenient: false,
            store: StoreKind::DeadLetters,
        };
        let (first, second) = (request("a"), request("b"));
        let (leaving, leaves) = watch::channel(Progress::default());
        let (asking, progress) = watch::channel(Progress::default());
        let others = async {
            let left = next(&queue).await;
            assert!(left.send());
            drop(leaves);
            let ends = async {
                let own = next(&queue).await;
                complete_all([(left, Outcome::DeadLettered), (own, Outcome::Kept)]);
            };
            tokio::join!(requests.run(&second, asking), ends);
        };
        tokio::join!(requests.run(&first, leaving), others);
        let Progress { published, dead_lettered, .. } = *progress.borrow();
        assert_eq!((published, dead_lettered), (1, 0));
    }
}
