//! Departures of accepted payloads from the documented one, counted per source, kind and event: names, never values.
//!
//! An event without departures costs a hash of its name and one atomic addition; only others take the lock.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::event::{Deviation, Deviations, Field, safe};
use crate::metrics::Metrics;
use crate::status::MOST_EVENTS;

/// The interval at which a departure of one kind is logged per source.
const EVERY: Duration = Duration::from_hours(1);

/// The index of events without a name of their own.
const OTHER: usize = MOST_EVENTS;

/// The departures of one source.
#[derive(Debug)]
pub(crate) struct Deviating {
    hasher: RandomState,
    /// The hashes of the distinguished event names, in order of arrival; 0 means free.
    names: [AtomicU64; MOST_EVENTS],
    /// The accepted events of each name, and of all others.
    accepted: [AtomicU64; MOST_EVENTS + 1],
    seen: Mutex<SeenDeviations>,
}

#[derive(Debug, Default)]
struct SeenDeviations {
    /// The counts for the event name at this index in `names`.
    counts: BTreeMap<(Field, Deviation, usize), u64>,
    /// The names in address form, of indices that have departures.
    shown: BTreeMap<usize, String>,
    /// The time at which a kind was last logged, and how many were left out since.
    logged: BTreeMap<(Field, Deviation), (Instant, u64)>,
}

/// The number of events of one name that depart from the documented payload in one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviatingEvents {
    /// The field.
    pub(crate) field: Field,
    /// The way in which it departs.
    pub(crate) deviation: Deviation,
    /// The events concerned.
    pub(crate) event: EventName,
    /// The number of them that depart.
    pub(crate) count: u64,
    /// The number of them that were accepted.
    pub(crate) of: u64,
}

/// The name of an event, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EventName {
    /// The name in address form.
    Named(String),
    /// `event` is absent.
    Absent,
    /// There are too many names to distinguish them.
    Other,
}

impl DeviatingEvents {
    /// The departure as a sentence.
    pub(crate) fn text(&self) -> String {
        let events = match &self.event {
            EventName::Named(name) => format!("`{name}`"),
            EventName::Absent => "events without a name".to_owned(),
            EventName::Other => "other events".to_owned(),
        };
        let Self { field, deviation, count, of, .. } = self;
        format!("`{}` {} in {count} of {of} {events}", field.name(), deviation.phrase())
    }
}

impl Default for Deviating {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            names: std::array::from_fn(|_| AtomicU64::new(0)),
            accepted: std::array::from_fn(|_| AtomicU64::new(0)),
            seen: Mutex::default(),
        }
    }
}

impl Deviating {
    /// The index of an event's name; the first names get one each, the others share one.
    pub(crate) fn place(&self, event: &str) -> usize {
        let hash = self.hasher.hash_one(event).max(1);
        for (at, name) in self.names.iter().enumerate() {
            let mut known = name.load(Ordering::Relaxed);
            if known == 0 {
                let taken = name.compare_exchange(0, hash, Ordering::Relaxed, Ordering::Relaxed);
                known = taken.map_or_else(|other| other, |_| hash);
            }
            if known == hash {
                return at;
            }
        }
        OTHER
    }

    /// Notes how an event that is about to be enqueued departs: its name is not available afterwards.
    pub(crate) fn name(&self, place: usize, event: &str, deviations: &Deviations) {
        if !deviations.is_empty() && place != OTHER {
            let shown = || if event.is_empty() { String::new() } else { safe(event) };
            self.seen.lock().shown.entry(place).or_insert_with(shown);
        }
    }

    /// Counts an accepted event.
    pub(crate) fn accepted(&self, place: usize, deviations: &Deviations, source: &str, metrics: &Metrics) {
        self.accepted[place].fetch_add(1, Ordering::Relaxed);
        if deviations.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut seen = self.seen.lock();
        for (field, deviation) in deviations.iter() {
            metrics.deviating(source, field, deviation);
            *seen.counts.entry((field, deviation, place)).or_default() += 1;
            if let Some(left_out) = seen.is_due(field, deviation, now) {
                tracing::info!(
                    source,
                    field = field.name(),
                    deviation = deviation.name(),
                    event = seen.shown.get(&place).map_or("other", String::as_str),
                    left_out,
                    "an accepted payload departs from the documented one: `{}` {}",
                    field.name(),
                    deviation.phrase()
                );
            }
        }
    }

    /// All counts since the start.
    pub(crate) fn list(&self) -> Vec<DeviatingEvents> {
        let seen = self.seen.lock();
        let listed = seen.counts.iter().map(|((field, deviation, place), count)| DeviatingEvents {
            field: *field,
            deviation: *deviation,
            event: match seen.shown.get(place) {
                Some(name) if name.is_empty() => EventName::Absent,
                Some(name) => EventName::Named(name.clone()),
                None => EventName::Other,
            },
            count: *count,
            of: self.accepted[*place].load(Ordering::Relaxed),
        });
        listed.collect()
    }
}

impl SeenDeviations {
    /// The number of lines of this kind left out of the log since the last one; none if this one is left out, too.
    fn is_due(&mut self, field: Field, deviation: Deviation, now: Instant) -> Option<u64> {
        let Some((last, left_out)) = self.logged.get_mut(&(field, deviation)) else {
            self.logged.insert((field, deviation), (now, 0));
            return Some(0);
        };
        if now.duration_since(*last) < EVERY {
            *left_out += 1;
            return None;
        }
        *last = now;
        Some(std::mem::take(left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deviations(all: &[(Field, Deviation)]) -> Deviations {
        let mut deviations = Deviations::default();
        for (field, deviation) in all {
            deviations.note(*field, *deviation);
        }
        deviations
    }

    fn accept(deviating: &Deviating, event: &str, deviations: &Deviations, metrics: &Metrics) {
        let place = deviating.place(event);
        deviating.name(place, event, deviations);
        deviating.accepted(place, deviations, "main", metrics);
    }

    #[test]
    fn counts_departures_among_all_events_of_a_name() {
        let (deviating, metrics) = (Deviating::default(), Metrics::new("buffered"));
        let (missing, none) = (deviations(&[(Field::Text, Deviation::Missing)]), Deviations::default());
        for at in 0..5 {
            accept(&deviating, "FindingPublished", if at < 3 { &missing } else { &none }, &metrics);
            accept(&deviating, "ReportPublished", &none, &metrics);
        }
        accept(&deviating, "", &deviations(&[(Field::Event, Deviation::Null)]), &metrics);
        let texts: Vec<String> = deviating.list().iter().map(DeviatingEvents::text).collect();
        let expected =
            ["`event` is null in 1 of 1 events without a name", "`text` is missing in 3 of 5 `FindingPublished`"];
        assert_eq!(texts, expected);
    }

    #[test]
    fn tells_a_hundred_events_apart_and_calls_the_rest_other() {
        let (deviating, metrics) = (Deviating::default(), Metrics::new("buffered"));
        let missing = deviations(&[(Field::Text, Deviation::Missing)]);
        for _ in 0..2 {
            for at in 0..MOST_EVENTS + 3 {
                accept(&deviating, &format!("Event {at}"), &missing, &metrics);
            }
        }
        let list = deviating.list();
        assert_eq!(list.len(), MOST_EVENTS + 1);
        assert_eq!(list[7].text(), "`text` is missing in 2 of 2 `Event_7`");
        assert_eq!(list[MOST_EVENTS].text(), "`text` is missing in 6 of 6 other events");
    }

    #[test]
    fn logs_each_kind_once_an_hour_with_the_number_left_out() {
        let mut seen = SeenDeviations::default();
        let now = Instant::now();
        let mut due = |field, after| seen.is_due(field, Deviation::Null, now + after);
        assert_eq!(due(Field::Text, Duration::ZERO), Some(0));
        assert_eq!(due(Field::Cuid, Duration::ZERO), Some(0));
        assert_eq!(due(Field::Text, EVERY.mul_f64(0.99)), None);
        assert_eq!(due(Field::Text, EVERY), Some(1));
        assert_eq!(due(Field::Text, EVERY), None);
    }
}
