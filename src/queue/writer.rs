//! The journal's one writer thread: group commit. It writes everything that arrived while it synced the previous batch,
//! with one write and one fdatasync, and then completes all their waiters at once.
//!
//! Length: a step of the thread is chosen, carried out and judged here, and each part changes with the others.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;
use tokio::sync::oneshot;

use crate::event::{Outcome, Waiter, complete_all};
use crate::metrics::Metrics;
use crate::process::failpoint;
use crate::process::logs::Throttle;
use crate::queue::disk::{AppendReason, Disk, Incoming, NewestEvents, RETRY_INTERVAL, Writing};
use crate::queue::journal::{CommitError, Fill, Record, Writer};
use crate::queue::{Ack, Buffer};
use crate::status::{Decision, Heartbeat, Reason};

/// The time after which a moved watermark is written, if no commit writes it before.
const NOTE_AFTER: Duration = Duration::from_millis(100);

/// The last batch from which many senders wait: those who were answered just now are about to send again.
const MANY: usize = 8;

/// The time that the writer waits for them, once, before a batch that is smaller than the last: with all of them in one
/// batch there are fewer syncs. With few senders it does not wait.
const GATHER: Duration = Duration::from_micros(200);

/// The least time between two writes of the watermark beside records: each costs a block of its own, half as much again as
/// a small commit. None in tests, which look at each.
const BETWEEN_NOTES: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 10 });

/// The interval at which an idle writer checks that its directory exists, and beats its heartbeat. Also the interval at
/// which it retries to create a segment after the disk had no room for one.
const IDLE_INTERVAL: Duration = RETRY_INTERVAL;

/// The next step of the writer.
pub(super) struct WriterStep {
    incoming: Vec<Incoming>,
    watermark: u64,
    /// The watermark moved since it was noted.
    moved: bool,
    surplus: Vec<u32>,
    /// A segment to create ahead.
    spare: Option<(u32, Fill)>,
    closing: bool,
    failed: bool,
}

/// The writer and its state.
#[derive(Debug)]
pub(crate) struct Journaling {
    queue: Arc<Buffer>,
    writer: Writer,
    metrics: Arc<Metrics>,
    heartbeat: Heartbeat,
    /// Limits how often a full disk is logged.
    throttle: Throttle,
    /// Limits how often it is logged that an event was refused for that reason: a spare that cannot be opened is tried for
    /// each.
    refusals: Throttle,
}

impl Journaling {
    /// Creates the writer.
    #[must_use]
    pub(crate) fn new(queue: Arc<Buffer>, writer: Writer, metrics: Arc<Metrics>, heartbeat: Heartbeat) -> Self {
        Self {
            queue,
            writer,
            metrics,
            heartbeat,
            throttle: Throttle::new("segments that cannot be made", 1, Duration::from_secs(30)),
            refusals: Throttle::new("events without a segment of the journal", 1, Duration::from_secs(1)),
        }
    }

    /// Writes until [`Buffer::close_journal`] is called and everything is written.
    pub(crate) fn run(mut self) {
        loop {
            self.heartbeat.tick();
            let work = self.queue.work();
            let is_last = work.closing && work.incoming.is_empty();
            // Blocking on the disk must not trip the liveness check.
            self.heartbeat.pause();
            self.carry_out(work);
            if is_last {
                return;
            }
        }
    }

    /// Carries out a step, and completes all who wait for it.
    pub(super) fn carry_out(&mut self, work: WriterStep) {
        if !work.failed {
            self.write(work);
        } else if !work.incoming.is_empty() {
            tell(self.queue.not_written(work.incoming, None), Outcome::Failed);
        }
    }

    fn write(&mut self, work: WriterStep) {
        let spare = work.spare;
        let is_written = self.commit(work);
        let Some((segment, how)) = spare else { return };
        let made = is_written.then(|| self.writer.create(segment, how));
        if let Some(Err(error)) = &made
            && how == Fill::Zeroed
            && self.throttle.admits()
        {
            tracing::warn!("cannot make another segment of the journal, trying again every second: {error}");
        }
        self.queue.prepared(segment, made);
    }

    /// Writes and syncs the events that arrived, and the watermark; returns whether all succeeded.
    fn commit(&mut self, work: WriterStep) -> bool {
        let is_idle = work.incoming.is_empty();
        let mut incoming = work.incoming;
        // Segments are free already, the watermark that records it is not written: a test may end the process here.
        if work.moved
            && let Err(error) = failpoint::pass("journal.release")
        {
            self.not_written(&CommitError::Failed(error), incoming);
            return false;
        }
        // Before any commit: places reserved since may use the numbers of these.
        self.writer.delete(&work.surplus);
        while !incoming.is_empty() {
            // All in one segment: one write, one sync.
            let segment = incoming[0].place.segment;
            let length = incoming.iter().take_while(|next| next.place.segment == segment).count();
            let later = incoming.split_off(length);
            let run = std::mem::replace(&mut incoming, later);
            let records: Vec<_> = run.iter().map(|next| (next.place, Record::of(&next.event))).collect();
            let began = Instant::now();
            match self.writer.commit(&records, work.watermark) {
                Ok(()) => {
                    self.metrics.journal_sync_duration(began.elapsed());
                    tell(self.queue.committed(run, &incoming), Outcome::Kept);
                }
                Err(error) => {
                    let rest = run.into_iter().chain(std::mem::take(&mut incoming)).collect();
                    self.not_written(&error, rest);
                    return false;
                }
            }
        }
        let noted = if work.closing {
            self.writer.note(work.watermark).and_then(|()| self.writer.sync())
        } else if is_idle && work.moved {
            self.writer.note(work.watermark)
        } else if is_idle {
            self.writer.is_there().map_err(CommitError::Failed)
        } else {
            Ok(())
        };
        if let Err(error) = noted {
            self.not_written(&error, Vec::new());
            return false;
        }
        true
    }

    /// Refuses events that could not be written, and all that arrived after them.
    fn not_written(&mut self, error: &CommitError, run: Vec<Incoming>) {
        // Without the journal the other modes keep their promise; only a stop may lose events in memory.
        let ends = matches!(error, CommitError::Failed(_)) && self.queue.mode().ack == Ack::Journaled;
        match error {
            CommitError::NoSpace(_) => {
                if self.refusals.admits() {
                    tracing::error!("{error}; answering 503 to what does not fit until it works");
                }
            }
            CommitError::Failed(_) if ends => tracing::error!("{error}; the bridge stops"),
            CommitError::Failed(_) => {
                tracing::error!("{error}; what is not delivered when the bridge stops is lost");
            }
        }
        tell(self.queue.not_written(run, Some(error)), Outcome::Failed);
        if ends {
            self.queue.failed.notify_one();
        }
    }
}

fn tell(waiters: Vec<Arc<Waiter>>, outcome: Outcome) {
    complete_all(waiters.into_iter().map(|waiter| (waiter, outcome)));
}

impl Buffer {
    /// Waits for the next step.
    fn work(&self) -> WriterStep {
        let mut state = self.lock();
        let mut remaining = IDLE_INTERVAL;
        let mut has_gathered = false;
        loop {
            let Some(disk) = &mut state.disk else {
                return WriterStep::nothing();
            };
            if disk.gathers() && !std::mem::replace(&mut has_gathered, true) {
                MutexGuard::unlocked(&mut state, || thread::sleep(GATHER));
                continue;
            }
            let is_due = remaining.is_zero();
            let is_asked = disk.writing == Writing::Closing || disk.reserving.is_some();
            if !disk.incoming.is_empty() || !disk.surplus.is_empty() || is_asked || is_due {
                return disk.work();
            }
            if disk.moved {
                remaining = remaining.min(NOTE_AFTER);
            }
            disk.writing = Writing::Idle;
            let began = Instant::now();
            self.work.wait_for(&mut state, remaining);
            remaining = remaining.saturating_sub(began.elapsed());
        }
    }

    /// The next step at this moment, as after a wait.
    #[cfg(test)]
    pub(super) fn work_now(&self) -> WriterStep {
        self.lock().disk.as_mut().map_or_else(WriterStep::nothing, Disk::work)
    }

    /// Adds synced events to the ledger and to memory; `rest` are those taken and not written yet.
    pub(super) fn committed(&self, run: Vec<Incoming>, rest: &[Incoming]) -> Vec<Arc<Waiter>> {
        let mut waiters = Vec::with_capacity(run.len());
        let mut state = self.lock();
        let state = &mut *state;
        let Some(disk) = &mut state.disk else { return waiters };
        disk.writing_since = waiting_since(rest);
        for Incoming { place, event, entry } in run {
            disk.note_synced(&place);
            let cost = event.cost();
            disk.unsynced_bytes -= cost;
            match entry {
                AppendReason::Accept { source, secret, waiter } => {
                    disk.events += 1;
                    state.held += 1;
                    state.ledger.decide(source, secret, Decision::Accepted, event.origin.received);
                    waiters.push(waiter);
                    let held = state.waiting.len() + state.replays.len() + state.taken;
                    if held >= state.limits.events || state.bytes + cost > state.limits.bytes {
                        disk.tail = NewestEvents::OnDisk;
                    } else if disk.cursor >= place.sequence {
                        disk.tail = NewestEvents::InMemory;
                    }
                    if disk.tail == NewestEvents::InMemory {
                        state.bytes += cost;
                        state.waiting.push_back(event);
                    }
                }
                AppendReason::Copy { number, waiter } => {
                    disk.copied(number, place.sequence);
                    waiters.extend(waiter);
                }
            }
        }
        self.ready.notify_one();
        waiters
    }

    /// Handles events that the journal did not accept: those that a sender waits for are refused, copies are dropped. After
    /// an error the places of these events are taken back, and all that were accepted after them, too.
    fn not_written(&self, mut run: Vec<Incoming>, error: Option<&CommitError>) -> Vec<Arc<Waiter>> {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(disk) = &mut state.disk else { return Vec::new() };
        if let Some(error) = error {
            run.append(&mut disk.incoming);
            disk.give_up(error, run.first());
        }
        disk.writing_since = None;
        disk.unsynced_bytes -= run.iter().map(|next| next.event.cost()).sum::<usize>();
        let mut waiters = Vec::with_capacity(run.len());
        for Incoming { event, entry, place } in run {
            match entry {
                AppendReason::Copy { number, waiter } => {
                    disk.not_copied(number, place.sequence);
                    waiters.extend(waiter);
                }
                AppendReason::Accept { source, secret, waiter } => {
                    let received = event.origin.received;
                    state.ledger.decide(source, secret, Decision::Rejected(Reason::Unavailable), received);
                    waiters.push(waiter);
                }
            }
        }
        waiters
    }

    /// Makes room in the journal, as far as its limit allows, for so many bytes that the buffer may hold at a stop. The writer
    /// does it between its commits.
    ///
    /// # Errors
    /// The disk has no room for it; what there was before is kept.
    pub(crate) async fn reserve_for_the_stop(&self, bytes: u64) -> Result<(), String> {
        let (asker, done) = oneshot::channel();
        {
            let mut state = self.lock();
            let Some(disk) = &mut state.disk else { return Ok(()) };
            disk.reserving = Some((bytes, asker));
            if disk.wakes_writer() {
                self.work.notify_one();
            }
        }
        done.await.unwrap_or_else(|_| Err("the bridge is stopping".to_owned()))
    }

    /// Ends the writer once it has written everything.
    pub(crate) fn close_journal(&self) {
        if let Some(disk) = &mut self.lock().disk {
            disk.writing = Writing::Closing;
        }
        self.work.notify_one();
    }

    /// Waits until the journal can never be written again; the bridge must end then.
    pub(crate) async fn failed(&self) {
        self.failed.notified().await;
    }

    /// Notes that a wanted segment was created, or that this failed; none: it is not created for now.
    fn prepared(&self, segment: u32, made: Option<io::Result<()>>) {
        if let Some(disk) = &mut self.lock().disk {
            disk.layout.prepared(segment, matches!(made, Some(Ok(()))));
            match made {
                Some(Ok(())) => disk.note_space(),
                // Too little for a larger buffer is enough for the one there is.
                Some(Err(error)) if disk.reserving.is_some() => disk.end_reserving(Err(error.to_string())),
                Some(Err(error)) => disk.note_no_space(error.to_string()),
                None => {}
            }
        }
    }
}

/// The acceptance time of the oldest of these for which a sender waits; copies have no waiting sender.
fn waiting_since(incoming: &[Incoming]) -> Option<Instant> {
    let mut awaited = incoming.iter().filter(|next| matches!(next.entry, AppendReason::Accept { .. }));
    awaited.next().map(|next| next.event.accepted)
}

impl Disk {
    /// Takes back the places from the first of these events on.
    fn give_up(&mut self, error: &CommitError, first: Option<&Incoming>) {
        if let Some(first) = first {
            self.layout.undo(&first.place);
        }
        match error {
            CommitError::NoSpace(_) => {
                // Refusing these reported already that events do not fit.
                self.short |= first.is_some();
                self.note_no_space(error.to_string());
            }
            CommitError::Failed(_) => self.failed = Some(error.to_string()),
        }
    }

    /// Whether an event has waited for the disk for longer than this.
    pub(super) fn is_stalled(&self, longest: Duration) -> bool {
        let oldest = self.writing_since.or_else(|| waiting_since(&self.incoming));
        oldest.is_some_and(|since| since.elapsed() > longest)
    }

    /// Whether more events are about to arrive that can be in one batch with those that have.
    pub(super) fn gathers(&self) -> bool {
        let arrived = self.incoming.len();
        arrived > 0 && arrived < self.batch && self.batch >= MANY && self.writing != Writing::Closing
    }

    fn work(&mut self) -> WriterStep {
        self.batch = self.incoming.len();
        if let Some(text) = self.failed.clone() {
            self.end_reserving(Err(text));
        }
        let spare = self.wanted_spare();
        // What is only for a stop is never written, as a rule.
        let how = if self.reserving.is_some() { Fill::Reserved } else { Fill::Zeroed };
        let closing = self.writing == Writing::Closing;
        let is_early = self.noted_at.is_some_and(|at| at.elapsed() < BETWEEN_NOTES);
        let notes = closing || self.incoming.is_empty() || !is_early;
        if notes {
            (self.noted, self.noted_at) = (self.watermark(), Some(Instant::now()));
        }
        let moved = notes && std::mem::take(&mut self.moved);
        if !closing {
            self.writing = Writing::Busy;
        }
        self.writing_since = waiting_since(&self.incoming);
        WriterStep {
            incoming: std::mem::take(&mut self.incoming),
            watermark: self.noted,
            moved,
            surplus: std::mem::take(&mut self.surplus),
            spare: spare.map(|number| (number, how)),
            closing,
            failed: self.failed.is_some(),
        }
    }
}

impl WriterStep {
    fn nothing() -> Self {
        Self {
            incoming: Vec::new(),
            watermark: 0,
            moved: false,
            surplus: Vec::new(),
            spare: None,
            closing: true,
            failed: false,
        }
    }
}
