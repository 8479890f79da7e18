//! Reads what the journal holds and memory does not: on a thread for blocking work, for a disk may be slow.

use std::collections::VecDeque;
use std::time::Duration;

use crate::delivery::view::View;
use crate::logs::Throttle;
use crate::message::{Event, Kept, Rebuild};
use crate::queue::journal::{Batch, Reader, Stored};
use crate::queue::{Backlog, Buffer};

/// How long delivery waits before it tries again to read.
const RETRY: Duration = Duration::from_secs(1);

/// The journal as delivery reads it.
#[derive(Debug)]
pub struct BacklogReader {
    /// Here, or with the read that is under way.
    reader: Option<Reader>,
    rebuild: Rebuild,
    throttle: Throttle,
}

/// What one read brought: sound events, how many records were damaged, where to go on.
struct Read {
    events: VecDeque<Box<Event>>,
    damaged: u64,
    next: u64,
    findings: Vec<String>,
}

impl BacklogReader {
    /// Reads with this reader; `rebuild` makes events of records.
    #[must_use]
    pub fn new(reader: Reader, rebuild: Rebuild) -> Self {
        Self { reader: Some(reader), rebuild, throttle: Throttle::new(10, Duration::from_secs(1)) }
    }

    /// Reads up to `most` events of the backlog to the end of `into`, and notes them in the queue. While the disk
    /// fails it waits and tries again: nothing is skipped that can be read.
    pub(super) async fn read(
        &mut self,
        backlog: &Backlog,
        most: usize,
        queue: &Buffer,
        view: &View,
        into: &mut VecDeque<Box<Event>>,
    ) {
        loop {
            let Some(mut reader) = self.reader.take() else { return std::future::pending().await };
            let (wanted, rebuild) = (backlog.clone(), self.rebuild);
            let reading = tokio::task::spawn_blocking(move || {
                let read = reader.read(wanted.sequences.start, wanted.sequences.end, most, wanted.bytes);
                (reader, read.map(|batch| put_together(batch, rebuild)))
            });
            let Ok((reader, read)) = reading.await else { return std::future::pending().await };
            self.reader = Some(reader);
            match read {
                Ok(mut read) => {
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
                    let text = format!("cannot read the journal: {error}");
                    if self.throttle.admits() {
                        tracing::error!("delivery waits: {text}");
                    }
                    view.change(|view| view.unreadable = Some(text));
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
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
