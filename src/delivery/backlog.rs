//! Reads events that are in the journal and not in memory, on a thread for blocking work, because a disk may be slow.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::event::{Event, Kept, Rebuild};
use crate::process::logs::Throttle;
use crate::queue::journal::{Batch, Reader, Stored, is_unreadable};
use crate::queue::{Backlog, Buffer};
use crate::status::BrokerStatus;

/// The time that delivery waits before it retries a read.
const RETRY: Duration = Duration::from_secs(1);

/// The number of attempts to read a block before it is skipped: some disks recover it after a moment.
const TRIES: u32 = 3;

/// A read that takes longer than this is reported.
const SLOW: Duration = Duration::from_secs(2);

/// The journal as delivery reads it.
#[derive(Debug)]
pub(crate) struct BacklogReader {
    reading: PendingRead,
    /// The number of failures of the next read.
    failures: u32,
    rebuild: Rebuild,
    throttle: Throttle,
}

/// A read, kept from one call to the next: waiting for it may be cancelled, the read itself is not.
#[derive(Debug)]
enum PendingRead {
    /// None is in progress; the next may begin at this time.
    Idle(Box<Reader>, Option<Instant>),
    /// One is in progress.
    Busy(JoinHandle<(Box<Reader>, io::Result<Read>)>),
    /// It panicked.
    Broken,
}

/// The result of one read: sound events, the number of damaged records, the sequence to continue with.
#[derive(Debug)]
struct Read {
    events: VecDeque<Box<Event>>,
    damaged: u64,
    next: u64,
    findings: Vec<String>,
}

impl BacklogReader {
    /// Reads with this reader; `rebuild` turns records into events.
    #[must_use]
    pub(crate) fn new(reader: Reader, rebuild: Rebuild) -> Self {
        let reading = PendingRead::Idle(Box::new(reader), None);
        Self {
            reading,
            failures: 0,
            rebuild,
            throttle: Throttle::new("reading the journal", 10, Duration::from_secs(1)),
        }
    }

    /// Reads up to `most` events of the backlog to the end of `into`, and notes them in the queue. While the disk fails
    /// it waits and retries; a block that stays unreadable in a readable file is skipped, and its records count as
    /// damaged. Cancel-safe.
    pub(super) async fn read(
        &mut self,
        backlog: &Backlog,
        most: usize,
        queue: &Buffer,
        view: &BrokerStatus,
        into: &mut VecDeque<Box<Event>>,
    ) {
        loop {
            match self.finished(backlog, most, view).await {
                Ok(mut read) => {
                    self.failures = 0;
                    view.change(|view| view.unreadable = None);
                    for finding in &read.findings {
                        if self.throttle.admits() {
                            tracing::error!("the journal is damaged: {finding}");
                        }
                    }
                    queue.read_back(&read.events, read.damaged, read.next);
                    into.append(&mut read.events);
                    return;
                }
                Err(error) => {
                    self.failures += 1;
                    let text = format!("cannot read the journal: {error}");
                    if self.throttle.admits() {
                        tracing::error!("delivery waits: {text}");
                    }
                    view.change(|view| view.unreadable = Some(text));
                    if let PendingRead::Idle(reader, next) = &mut self.reading {
                        *next = Some(Instant::now() + RETRY);
                        if self.failures >= TRIES && is_unreadable(&error) {
                            reader.skip_unreadable();
                        }
                    }
                }
            }
        }
    }

    /// Begins a read if none is in progress, and waits for its end.
    async fn finished(&mut self, backlog: &Backlog, most: usize, view: &BrokerStatus) -> io::Result<Read> {
        if let PendingRead::Idle(_, Some(next)) = &self.reading {
            sleep_until(*next).await;
        }
        self.reading = match std::mem::replace(&mut self.reading, PendingRead::Broken) {
            PendingRead::Idle(mut reader, _) => {
                let (wanted, rebuild) = (backlog.clone(), self.rebuild);
                PendingRead::Busy(tokio::task::spawn_blocking(move || {
                    let read = reader.read(wanted.sequences.start, wanted.sequences.end, most, wanted.bytes);
                    (reader, read.map(|batch| put_together(batch, rebuild)))
                }))
            }
            other => other,
        };
        let PendingRead::Busy(handle) = &mut self.reading else { return std::future::pending().await };
        let ended = if let Ok(ended) = timeout(SLOW, &mut *handle).await {
            ended
        } else {
            let text = format!("the disk has not answered a read of the journal for {SLOW:?} or longer");
            view.change(|view| view.unreadable = Some(text));
            handle.await
        };
        let Ok((reader, read)) = ended else {
            self.reading = PendingRead::Broken;
            return std::future::pending().await;
        };
        self.reading = PendingRead::Idle(reader, None);
        read
    }
}

fn put_together(batch: Batch, rebuild: Rebuild) -> Read {
    let Batch { records, next, damaged, findings } = batch;
    let events = records.into_iter().map(|Stored { sequence, origin, body }| {
        let mut event = rebuild(origin, body);
        event.kept = Kept::Journal(sequence);
        event
    });
    Read { events: events.collect(), damaged, next, findings }
}
