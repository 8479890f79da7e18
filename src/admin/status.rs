//! `/status`: the state of the bridge as JSON, without secrets.

use std::time::{Instant, SystemTime};

use serde_json::{Value, json};

use crate::admin::Admin;
use crate::ingress::{Source, Validation};
use crate::metrics::{Moment, VERSION, revision, unix_seconds};
use crate::status::{
    DeviatingEvents, EventName, JournalState, Observed, Reason, Reload, Snapshot, SourceBook, Totals, UnknownPath,
    WaitingAddress,
};

impl Admin {
    /// The values that a scrape adds to the snapshot.
    pub(super) fn moment(&self, ready: bool) -> Moment {
        let view = self.health.view.copy();
        Moment {
            ready,
            broker: view.state,
            addresses_waiting: view.waiting_count,
            in_flight: view.in_flight,
            last_published: view.last_published,
            connections_open: self.connections.open(),
            connections_capacity: self.connections.capacity(),
            dead_letters: self
                .dead_letters
                .as_ref()
                .map_or((0, 0, self.dead_letters_capacity), |held| (held.events(), held.bytes(), held.capacity())),
            certificate_not_after: self.live.now().certificate_not_after(),
            reloads: self.reloads.counts(),
            reload_failed: self.reloads.last().is_some_and(|last| last.error.is_some()),
        }
    }

    pub(super) fn status(&self, snapshot: &Snapshot, totals: &Totals, started: Instant) -> Value {
        let reasons = self.health.unready(snapshot);
        let view = self.health.view.copy();
        let error = view.last_error.as_ref().map(|error| {
            json!({
                "kind": error.kind.name(),
                "text": error.text,
                "timestamp_seconds": unix_seconds(Some(error.at)),
            })
        });
        let ingress = self.live.now();
        // A source that a reload has just added may be newer than the snapshot.
        let sources = ingress.endpoints().iter().filter_map(|endpoint| {
            let book = snapshot.ledger.sources.get(endpoint.number)?;
            Some(source_status(&endpoint.source, &endpoint.observed, book))
        });
        json!({
            "version": VERSION,
            "revision": revision(),
            "uptime_seconds": started.elapsed().as_secs_f64(),
            "time_seconds": unix_seconds(Some(SystemTime::now())),
            "ack": self.health.queue.mode().ack.name(),
            "ready": reasons.is_empty(),
            "reasons": reasons,
            "accounting": accounting(totals),
            "buffer": {
                "events": snapshot.events,
                "bytes": snapshot.bytes,
                "capacity_events": snapshot.limits.events,
                "capacity_bytes": snapshot.limits.bytes,
                "in_flight_events": view.in_flight,
                "oldest_event_timestamp_seconds": unix_seconds(snapshot.oldest),
            },
            "journal": snapshot.journal.as_ref().map(|state| journal(state, view.unreadable.as_deref())),
            "dead_letters": self.dead_letters.as_ref().map(|held| json!({
                "events": held.events(),
                "bytes": held.bytes(),
                "capacity_bytes": held.capacity(),
            })),
            "invalid": self.invalid.as_ref().map(|held| json!({
                "kept": held.kept(),
                "dropped": held.dropped(),
                "events": held.events(),
                "bytes": held.bytes(),
                "capacity_bytes": held.capacity(),
            })),
            "broker": {
                "name": self.broker_name,
                "location": view.location,
                "state": view.state.name(),
                "since_timestamp_seconds": unix_seconds(Some(view.since)),
                "last_error": error,
                "last_published_timestamp_seconds": unix_seconds(view.last_published),
                "findings": view.findings,
                "waiting": view.waiting.iter().map(waiting).collect::<Vec<_>>(),
            },
            "connections": {
                "open": self.connections.open(),
                "capacity": self.connections.capacity(),
            },
            "unknown_paths": self.unknown_paths.list().iter().map(unknown_path).collect::<Vec<_>>(),
            "sources": sources.collect::<Vec<_>>(),
            "reload": self.reloads.last().as_ref().map(reload),
            "settings": self.reloads.in_force(),
        })
    }
}

fn waiting(waiting: &WaitingAddress) -> Value {
    json!({
        "address": waiting.address,
        "events": waiting.events,
        "since_timestamp_seconds": unix_seconds(waiting.since),
        "reason": waiting.reason,
    })
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
    json!({
        "result": if reload.error.is_none() { "success" } else { "failure" },
        "timestamp_seconds": unix_seconds(Some(reload.at)),
        "changed": reload.changed,
        "needs_restart": reload.needs_restart,
        "error": reload.error,
    })
}

fn unknown_path(unknown: &UnknownPath) -> Value {
    json!({
        "path": unknown.path,
        "meant": unknown.meant,
        "count": unknown.count,
        "peer": unknown.peer,
        "timestamp_seconds": unix_seconds(Some(unknown.at)),
    })
}

/// One departure; `event` is null if the events have no name, and `other` if there are too many names.
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
    json!({
        "received": totals.received,
        "accepted": totals.accepted,
        "duplicate": totals.duplicate,
        "probe": totals.probe,
        "rejected": totals.rejected,
        "recovered": totals.recovered,
        "replayed": totals.replayed,
        "published": totals.published,
        "dead_lettered": totals.dead_lettered,
        "withdrawn": totals.withdrawn,
        "lost": totals.lost,
        "held": totals.held,
        "mismatch": totals.mismatch(),
    })
}

fn source_status(source: &Source, observed: &Observed, book: &SourceBook) -> Value {
    let rejected = Reason::ALL.iter().zip(book.rejected).filter(|(_, count)| *count > 0);
    let rejected = rejected
        .map(|(reason, count)| json!({ "reason": reason.name(), "count": count, "advice": reason.advice() }))
        .collect::<Vec<_>>();
    let refusals = observed.recent.list().into_iter().map(|refusal| {
        json!({
            "reason": refusal.reason.name(),
            "status": refusal.status,
            "detail": refusal.detail,
            "request_id": refusal.request_id,
            "count": refusal.count,
            "peer": refusal.peer,
            "advice": refusal.reason.advice(),
            "timestamp_seconds": unix_seconds(Some(refusal.at)),
        })
    });
    // The book also has secrets that are no longer in the settings.
    let is_used = |id: &str| source.secrets.iter().any(|secret| *secret.id == *id);
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
        "signed": source.is_signed(),
        "validation": match source.validation {
            Validation::Strict => "strict",
            Validation::Lenient => "lenient",
        },
        "received": book.received,
        "accepted": book.accepted,
        "duplicate": book.duplicate,
        "probe": book.probe,
        "rejected": rejected,
        "last": book.last.map(|(decision, at)| json!({
            "outcome": decision.name(),
            "timestamp_seconds": unix_seconds(Some(at)),
        })),
        "recent_refusals": refusals.collect::<Vec<_>>(),
        "deviations": observed.deviating.list().iter().map(deviation).collect::<Vec<_>>(),
        "secrets": secrets.collect::<Vec<_>>(),
    })
}
