//! The journal of a state directory: opened, written by a thread of its own, read back for deduplication.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::SystemTime;

use crate::app::Settings;
use crate::app::parts::SharedParts;
use crate::event::Origin;
use crate::ingress::{self, Deduplication};
use crate::queue::journal::{self, Opened, Writer};
use crate::queue::{Ack, Journaling};

/// The name of its directory in the state directory.
const DIRECTORY: &str = "journal";

/// Opens the journal, and logs the findings.
pub(super) fn open(state: &Path, settings: &Settings) -> io::Result<Opened> {
    let mut journal = journal::open(&state.join(DIRECTORY), &settings.journal)?;
    for finding in &journal.findings {
        tracing::error!("the journal is damaged: {finding}");
    }
    if !journal.recovered.is_empty() {
        let count = journal.recovered.end - journal.recovered.start;
        tracing::info!(events = count, "found events in the journal; they are delivered first");
    }
    if settings.mode.ack != Ack::Journaled {
        reserve_for_the_stop(&mut journal, settings);
    } else if let Some(problem) = settings.journal_problem() {
        tracing::warn!("{problem}");
    }
    Ok(journal)
}

/// Whether the journal was removed.
pub(super) fn is_missing(settings: &Settings) -> bool {
    settings
        .state_directory
        .as_ref()
        .is_some_and(|state| state.join(DIRECTORY).try_exists().is_ok_and(|exists| !exists))
}

/// Reserves disk space, because everything in the buffer must fit into the journal when the bridge stops.
fn reserve_for_the_stop(journal: &mut Opened, settings: &Settings) {
    let Opened { writer, layout, .. } = journal;
    let bytes = settings.buffer.bytes as u64;
    match writer.allocate(layout, bytes) {
        Ok(fits) => {
            if let Some(problem) = settings.spill_problem(fits) {
                tracing::warn!("{problem}");
            }
        }
        Err(error) => tracing::warn!(
            "cannot reserve {bytes} bytes of disk for what the buffer may hold at a stop: {error}; what is not \
             delivered within `shutdown.grace` may be lost"
        ),
    }
}

/// Starts the journal's writer.
pub(super) fn write(parts: &SharedParts, writer: Writer) -> io::Result<JoinHandle<()>> {
    let heartbeat = parts.status.heartbeats.add("the journal's writer");
    let journaling = Journaling::new(parts.queue.clone(), writer, parts.metrics.clone(), heartbeat);
    std::thread::Builder::new().name("journal".to_owned()).spawn(move || journaling.run())
}

/// Reads back, concurrently with everything else, what an earlier run accepted recently: a repeat of it is a duplicate.
/// Only in `journaled` mode, where a record means that its sender was answered 200 or would have been; records written
/// by the other modes at a stop may have been answered 503.
pub(super) fn recall(known: &Arc<Deduplication>, settings: &Settings) -> io::Result<()> {
    let is_wanted = known.is_on() && settings.mode.ack == Ack::Journaled;
    let Some(directory) = settings.state_directory.as_ref().filter(|_| is_wanted) else {
        return Ok(());
    };
    let (known, directory) = (known.clone(), directory.join(DIRECTORY));
    let (window, most) = (settings.deduplication.window, settings.deduplication.max_entries);
    let sources: Vec<Arc<str>> = settings.sources.iter().map(|source| source.name.clone()).collect();
    let recall = move || {
        let now = SystemTime::now();
        let Some(since) = now.checked_sub(window) else { return };
        let mut accepted = Vec::new();
        let mut visit = |origin: &Origin, body: &[u8]| {
            let Some(source) = sources.iter().position(|name| *name == origin.source) else { return };
            let Some(key) = ingress::known_by(source, origin, body) else { return };
            accepted.push((key, now.duration_since(origin.received).unwrap_or_default()));
        };
        if let Err(error) = journal::recent(&directory, since, most, &mut visit) {
            tracing::warn!(
                "cannot read back the events accepted before the start; repeats of them are published again: {error}"
            );
        }
        let requests = accepted.len();
        known.restore(accepted);
        tracing::debug!(requests, "recalled the events that an earlier run accepted");
    };
    std::thread::Builder::new().name("recall".to_owned()).spawn(recall)?;
    Ok(())
}
