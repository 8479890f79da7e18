//! `/status`: the state of the bridge as JSON, without secrets.

use std::time::{Instant, SystemTime};

use serde_json::{Value, json};

use crate::admin::Admin;
use crate::metrics::{VERSION, revision};
use crate::status::{
    DeviatingEvents, EventName, JournalState, Reason, Reload, Snapshot, SourceBook, SourceStatus, Totals,
    unix_seconds,
};

impl Admin {
    pub(super) fn status(&self, snapshot: &Snapshot, started: Instant) -> Value {
        let (status, reasons) = (&self.status, self.unready(snapshot));
        let view = status.broker.copy();
        let ingress = status.ingress.lock().clone();
        let connections = *status.connections.lock();
        // A source that a reload has just added may be newer than the snapshot.
        let books = &snapshot.ledger.sources;
        let sources =
            ingress.sources.iter().filter_map(|source| Some(of_source(source, books.get(source.number)?)));
        json!({
            "version": VERSION,
            "revision": revision(),
            "uptime_seconds": started.elapsed().as_secs_f64(),
            "time_seconds": unix_seconds(SystemTime::now()),
            "ack": self.queue.mode().ack.name(),
            "ready": reasons.is_empty(),
            "reasons": reasons,
            "accounting": accounting(&snapshot.totals()),
            "buffer": {
                "events": snapshot.events,
                "bytes": snapshot.bytes,
                "capacity_events": snapshot.limits.events,
                "capacity_bytes": snapshot.limits.bytes,
                "in_flight_events": view.in_flight,
                "oldest_event_timestamp_seconds": unix_seconds(snapshot.oldest),
            },
            "journal": snapshot.journal.as_ref().map(|state| journal(state, view.unreadable.as_deref())),
            "dead_letters": status.dead_letters.as_ref().map(|held| held.lock()).map(|held| json!({
                "events": held.events,
                "bytes": held.bytes,
                "capacity_bytes": held.capacity,
            })),
            "invalid": status.invalid.as_ref().map(|held| held.lock()).map(|held| json!({
                "kept": held.kept,
                "dropped": held.dropped,
                "events": held.events,
                "bytes": held.bytes,
                "capacity_bytes": held.capacity,
            })),
            "broker": {
                "name": status.broker_name,
                "location": view.location,
                "state": view.state.name(),
                "since_timestamp_seconds": unix_seconds(view.since),
                "last_error": view.last_error,
                "last_published_timestamp_seconds": unix_seconds(view.last_published),
                "findings": view.findings,
                "waiting": view.waiting,
            },
            "connections": {
                "open": connections.open,
                "capacity": connections.capacity,
            },
            "unknown_paths": status.unknown_paths.list(),
            "sources": sources.collect::<Vec<_>>(),
            "reload": status.reloads.lock().last.as_ref().map(reload),
            "settings": status.reloads.lock().in_force,
        })
    }
}

fn journal(journal: &JournalState, unreadable: Option<&str>) -> Value {
    json!({
        "events": journal.events,
        "bytes": journal.bytes,
        "capacity_bytes": journal.capacity,
        "recovered": journal.recovered,
        "damaged": journal.damaged,
        "failed": journal.failed.as_deref().or(journal.stalled).or(journal.no_space.as_deref()),
        "unreadable": unreadable,
    })
}

fn reload(reload: &Reload) -> Value {
    let mut shown = json!(reload);
    shown["result"] = json!(if reload.error.is_none() { "success" } else { "failure" });
    shown
}

/// One deviation; `event` is null if the events have no name, and `other` if there are too many names.
fn deviation(events: &DeviatingEvents) -> Value {
    json!({
        "field": events.field.name(),
        "deviation": events.deviation.name(),
        "event": match &events.event {
            EventName::Named(name) => Some(name.as_str()),
            EventName::Absent => None,
            EventName::Other => Some("other"),
        },
        "count": events.count,
        "of": events.of,
        "text": events.text(),
    })
}

fn accounting(totals: &Totals) -> Value {
    let mut shown = json!(totals);
    shown["mismatch"] = json!(totals.mismatch());
    shown
}

fn of_source(source: &SourceStatus, book: &SourceBook) -> Value {
    let rejected = Reason::ALL.iter().zip(book.rejected).filter(|(_, count)| *count > 0);
    let rejected = rejected
        .map(|(reason, count)| json!({ "reason": reason.name(), "count": count, "advice": reason.advice() }))
        .collect::<Vec<_>>();
    let refusals = source.observed.recent.list().into_iter().map(|refusal| {
        let mut shown = json!(refusal);
        shown["advice"] = json!(refusal.reason.advice());
        shown
    });
    // The book also has secrets that are no longer in the settings.
    let is_used = |id: &str| source.secrets.iter().any(|used| **used == *id);
    let secrets = book.secrets.iter().filter(|secret| is_used(&secret.id)).map(|secret| {
        json!({
            "id": &*secret.id,
            "matched": secret.matched,
            "last_used_timestamp_seconds": unix_seconds(secret.last),
        })
    });
    json!({
        "name": &*source.name,
        "path": source.path,
        "signed": source.is_signed,
        "validation": source.validation,
        "received": book.received,
        "accepted": book.accepted,
        "duplicate": book.duplicate,
        "probe": book.probe,
        "rejected": rejected,
        "last": book.last.map(|(decision, at)| json!({
            "outcome": decision.name(),
            "timestamp_seconds": unix_seconds(at),
        })),
        "recent_refusals": refusals.collect::<Vec<_>>(),
        "deviations": source.observed.deviating.list().iter().map(deviation).collect::<Vec<_>>(),
        "secrets": secrets.collect::<Vec<_>>(),
    })
}
