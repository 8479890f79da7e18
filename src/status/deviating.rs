//! Deviations of accepted payloads from the documented one, counted per source, kind and event: names, never values.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::event::{Deviation, Deviations, Field, safe};
use crate::status::MOST_EVENTS;

/// The interval at which a deviation of one kind is logged per source.
const EVERY: Duration = Duration::from_hours(1);

/// The index of events without a name of their own.
const OTHER: usize = MOST_EVENTS;

/// The deviations of one source.
#[derive(Debug, Default)]
pub(crate) struct Deviating(Mutex<SeenDeviations>);

#[derive(Debug, Default)]
struct SeenDeviations {
    /// The indices of the first event names; the others share one.
    places: HashMap<String, usize>,
    /// These names in address form, by index; empty if `event` is absent.
    names: Vec<String>,
    /// The accepted events of the name at this index.
    accepted: BTreeMap<usize, u64>,
    /// Those among them that deviate so.
    counts: BTreeMap<(Field, Deviation, usize), u64>,
    /// The time at which a kind was last logged, and how many were left out since.
    logged: BTreeMap<(Field, Deviation), (Instant, u64)>,
}

/// The number of events of one name that deviate from the documented payload in one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviatingEvents {
    /// The field.
    pub(crate) field: Field,
    /// The way in which it deviates.
    pub(crate) deviation: Deviation,
    /// The events concerned.
    pub(crate) event: EventName,
    /// The number of them that deviate.
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
    /// The deviation as a sentence.
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

impl Deviating {
    /// The index of an event's name, which is not available once the event is enqueued.
    pub(crate) fn place(&self, event: &str) -> usize {
        let mut seen = self.0.lock();
        let next = seen.names.len();
        match seen.places.get(event) {
            Some(place) => *place,
            None if next == MOST_EVENTS => OTHER,
            None => {
                seen.names.push(if event.is_empty() { String::new() } else { safe(event) });
                seen.places.insert(event.to_owned(), next);
                next
            }
        }
    }

    /// Counts an accepted event.
    pub(crate) fn accepted(&self, place: usize, deviations: &Deviations, source: &str) {
        let mut seen = self.0.lock();
        *seen.accepted.entry(place).or_default() += 1;
        let now = Instant::now();
        for (field, deviation) in deviations.iter() {
            *seen.counts.entry((field, deviation, place)).or_default() += 1;
            if let Some(left_out) = seen.is_due(field, deviation, now) {
                tracing::info!(
                    source,
                    field = field.name(),
                    deviation = deviation.name(),
                    event = seen.names.get(place).map_or("other", String::as_str),
                    left_out,
                    "an accepted payload deviates from the documented one: `{}` {}",
                    field.name(),
                    deviation.phrase()
                );
            }
        }
    }

    /// The counts since the start, whatever the event.
    pub(crate) fn totals(&self) -> BTreeMap<(Field, Deviation), u64> {
        let mut totals = BTreeMap::new();
        for ((field, deviation, _), count) in &self.0.lock().counts {
            *totals.entry((*field, *deviation)).or_default() += count;
        }
        totals
    }

    /// All counts since the start.
    pub(crate) fn list(&self) -> Vec<DeviatingEvents> {
        let seen = self.0.lock();
        let listed = seen.counts.iter().map(|((field, deviation, place), count)| DeviatingEvents {
            field: *field,
            deviation: *deviation,
            event: match seen.names.get(*place) {
                Some(name) if name.is_empty() => EventName::Absent,
                Some(name) => EventName::Named(name.clone()),
                None => EventName::Other,
            },
            count: *count,
            of: seen.accepted[place],
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

    fn accept(deviating: &Deviating, event: &str, deviations: &Deviations) {
        let place = deviating.place(event);
        deviating.accepted(place, deviations, "main");
    }

    #[test]
    fn counts_departures_among_all_events_of_a_name() {
        let deviating = Deviating::default();
        let (missing, none) = (deviations(&[(Field::Text, Deviation::Missing)]), Deviations::default());
        for at in 0..5 {
            accept(&deviating, "FindingPublished", if at < 3 { &missing } else { &none });
            accept(&deviating, "ReportPublished", &none);
        }
        accept(&deviating, "", &deviations(&[(Field::Event, Deviation::Null)]));
        let texts: Vec<String> = deviating.list().iter().map(DeviatingEvents::text).collect();
        let expected =
            ["`event` is null in 1 of 1 events without a name", "`text` is missing in 3 of 5 `FindingPublished`"];
        assert_eq!(texts, expected);
        accept(&deviating, "ReportPublished", &missing);
        let totals = [((Field::Event, Deviation::Null), 1), ((Field::Text, Deviation::Missing), 4)];
        assert_eq!(deviating.totals().into_iter().collect::<Vec<_>>(), totals);
    }

    #[test]
    fn tells_a_hundred_events_apart_and_calls_the_rest_other() {
        let deviating = Deviating::default();
        let missing = deviations(&[(Field::Text, Deviation::Missing)]);
        for _ in 0..2 {
            for at in 0..MOST_EVENTS + 3 {
                accept(&deviating, &format!("Event {at}"), &missing);
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
