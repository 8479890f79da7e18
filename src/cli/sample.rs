//! The sample payloads of `send` and `demo`: every event that PlexTrac is known to send, in every known shape.
//!
//! Sources: the vendor's pages on webhook payloads, today's and an earlier copy; public clients and receivers.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::builder::PossibleValue;
use serde_json::{Map, Value, json};

/// The name that selects every sample.
const ALL: &str = "all";

/// The number of targets of a bulk change if none is given.
pub(super) const TARGETS: usize = 3;

/// A kind of sample payload.
#[derive(Debug)]
pub(super) struct Sample {
    /// The name on the command line.
    name: &'static str,
    /// The `event`; empty if the payload has none.
    event: &'static str,
    /// The `targetType`; empty if the payload has none.
    target_type: &'static str,
    shape: &'static PayloadShape,
}

/// The fields of a payload beside `event` and `targetType`, and what `--help` says about them.
type PayloadShape = (&'static str, &'static [SampleField]);

/// A field: its name, and its value in a sample with this number and so many targets.
type SampleField = (&'static str, fn(&Sample, u64, usize) -> Value);

const CUID: SampleField = ("cuid", |_, number, _| json!(request(number)));
const ACTOR: SampleField = ("actorCuid", |_, _, _| json!(entity()));
const ONE_TARGET: SampleField = ("targetCuid", |_, _, _| json!(entity()));
const SEVERAL_TARGETS: SampleField = ("targetCuids", |_, _, targets| (0..targets).map(|_| entity()).collect());
const TEXT: SampleField = ("text", |sample, _, _| {
    json!(match sample.target_type {
        "finding" => "Acme Corp||SQL injection in /login",
        "assessment" => "Grüße aus Zürich||PCI DSS 4.0",
        "engagement" => "Acme Corp||Red team, third quarter",
        _ => "Acme Corp||External penetration test 2026",
    })
});

const fn number(name: &'static str) -> SampleField {
    (name, |_, _, _| json!(id()))
}

const fn digits(name: &'static str) -> SampleField {
    (name, |_, _, _| json!(id().to_string()))
}

const ONE: PayloadShape = (", the documented payload", &[CUID, ACTOR, ONE_TARGET, TEXT]);
const ONE_WITHOUT_TEXT: PayloadShape = (", as PlexTrac documented it earlier", &[CUID, ACTOR, ONE_TARGET]);
const BULK: PayloadShape = (" of several targets", &[CUID, ACTOR, SEVERAL_TARGETS, TEXT]);
const BULK_WITHOUT_TEXT: PayloadShape =
    (" of several targets, as PlexTrac documented it earlier", &[CUID, ACTOR, SEVERAL_TARGETS]);
const REPORT_IDS: PayloadShape = ("clientId and reportId as numbers", &[number("clientId"), number("reportId")]);
const NUMBERS: PayloadShape =
    ("clientId, reportId and findingId as numbers", &[number("clientId"), number("reportId"), number("findingId")]);
const STRINGS: PayloadShape =
    ("clientId, reportId and findingId as strings", &[digits("clientId"), digits("reportId"), digits("findingId")]);
const FLAW: PayloadShape =
    ("clientId, reportId and flawId as numbers", &[number("clientId"), number("reportId"), number("flawId")]);

const fn sample(
    name: &'static str,
    event: &'static str,
    target_type: &'static str,
    shape: &'static PayloadShape,
) -> Sample {
    Sample { name, event, target_type, shape }
}

/// The documented payloads first.
const SAMPLES: [Sample; 18] = [
    sample("report-published", "ReportPublished", "report", &ONE),
    sample("finding-published", "FindingPublished", "finding", &ONE),
    sample("assessment-submitted", "AssessmentSubmitted", "assessment", &ONE),
    sample("engagement-submitted", "SchedulerEngagementSubmitted", "engagement", &ONE),
    sample("report-status-changed", "ReportStatusChanged", "report", &ONE),
    sample("bulk-change", "FindingPublished", "finding", &BULK),
    sample("report-published-without-text", "ReportPublished", "report", &ONE_WITHOUT_TEXT),
    sample("finding-published-without-text", "FindingPublished", "finding", &ONE_WITHOUT_TEXT),
    sample("assessment-submitted-without-text", "AssessmentSubmitted", "assessment", &ONE_WITHOUT_TEXT),
    sample("engagement-submitted-without-text", "SchedulerEngagementSubmitted", "engagement", &ONE_WITHOUT_TEXT),
    sample("report-status-changed-without-text", "ReportStatusChanged", "report", &ONE_WITHOUT_TEXT),
    sample("bulk-change-without-text", "FindingPublished", "finding", &BULK_WITHOUT_TEXT),
    sample("report-automation", "On Report Creation/Edit", "", &REPORT_IDS),
    sample("finding-automation", "On Report Finding Creation/Edit", "", &NUMBERS),
    sample("workflow-automation", "WFA: On Report Creation/Edit", "", &STRINGS),
    sample("ids", "", "", &NUMBERS),
    sample("ids-as-strings", "", "", &STRINGS),
    sample("flaw-ids", "", "", &FLAW),
];

/// The number of samples that are sent if none is chosen: one target, the documented payload.
const USUAL: usize = 5;

impl Sample {
    /// Whether it lists several targets.
    pub(super) fn is_bulk(&self) -> bool {
        self.shape.1.iter().any(|(name, _)| *name == SEVERAL_TARGETS.0)
    }

    /// A body of this kind, different from all others: `number` counts the bodies of this process.
    pub(super) fn body(&self, number: u64, targets: usize) -> Vec<u8> {
        let named = [("event", self.event), ("targetType", self.target_type)];
        let named = named.into_iter().filter(|(_, value)| !value.is_empty());
        let others = self.shape.1.iter().map(|(name, value)| (*name, value(self, number, targets)));
        let fields = named.map(|(name, value)| (name, json!(value))).chain(others);
        let payload: Map<_, _> = fields.map(|(name, value)| (name.to_owned(), value)).collect();
        Value::from(payload).to_string().into_bytes()
    }

    /// The line in `--help`.
    fn help(&self) -> String {
        match (self.event, self.target_type, self.shape.0) {
            ("", _, what) => format!("An automation with ids only: {what}"),
            (event, "", what) => format!("{event}, with {what}"),
            (event, _, what) => format!("{event}{what}"),
        }
    }
}

/// The samples that are sent if none is chosen.
pub(super) fn usual() -> Vec<&'static Sample> {
    SAMPLES[..USUAL].iter().collect()
}

/// The bulk changes that are sent if only a number of targets is given.
pub(super) fn bulk() -> Vec<&'static Sample> {
    SAMPLES.iter().filter(|sample| sample.is_bulk()).take(1).collect()
}

/// The samples with these names, in the order given; `all` selects every one.
pub(super) fn named(names: &[String]) -> Vec<&'static Sample> {
    let mut samples = Vec::new();
    for name in names {
        samples.extend(SAMPLES.iter().filter(|sample| name == ALL || sample.name == name));
    }
    samples
}

/// The names, each with its line in `--help`.
pub(super) fn names() -> Vec<PossibleValue> {
    let each = SAMPLES.iter().map(|sample| PossibleValue::new(sample.name).help(sample.help()));
    each.chain([PossibleValue::new(ALL).help("Each of them in turn")]).collect()
}

/// An id that is a number.
fn id() -> u64 {
    1 + fastrand::u64(..1 << 48)
}

/// An id of an entity: 25 characters, as PlexTrac's.
fn entity() -> String {
    format!("c{:024x}", fastrand::u128(..) >> 32)
}

/// An id of a request as PlexTrac's: milliseconds and a counter, as of an entry in a stream.
fn request(number: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}-{number}", now.as_millis())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn payload(name: &str) -> Value {
        let sample = named(&[name.to_owned()])[0];
        serde_json::from_slice(&sample.body(7, TARGETS)).unwrap()
    }

    #[test]
    fn has_every_event_that_is_known() {
        let events: BTreeSet<&str> = SAMPLES.iter().map(|sample| sample.event).collect();
        let known = [
            "",
            "AssessmentSubmitted",
            "FindingPublished",
            "On Report Creation/Edit",
            "On Report Finding Creation/Edit",
            "ReportPublished",
            "ReportStatusChanged",
            "SchedulerEngagementSubmitted",
            "WFA: On Report Creation/Edit",
        ];
        assert_eq!(events.into_iter().collect::<Vec<_>>(), known);
    }

    #[test]
    fn has_every_documented_event_with_and_without_a_text() {
        for sample in usual() {
            let with = payload(sample.name);
            let without = payload(&format!("{}-without-text", sample.name));
            assert_eq!(with["event"], without["event"]);
            assert!(with["text"].is_string() && without.get("text").is_none(), "{with} {without}");
            let fields: Vec<&str> = with.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(fields, ["actorCuid", "cuid", "event", "targetCuid", "targetType", "text"]);
            assert!(
                with.as_object().unwrap().values().all(|value| value.as_str().is_some_and(|text| !text.is_empty()))
            );
        }
    }

    #[test]
    fn writes_ids_as_numbers_and_as_strings() {
        for (name, fields, write) in [
            ("ids", vec!["clientId", "findingId", "reportId"], Value::is_u64 as fn(&Value) -> bool),
            ("ids-as-strings", vec!["clientId", "findingId", "reportId"], Value::is_string),
            ("flaw-ids", vec!["clientId", "flawId", "reportId"], Value::is_u64),
        ] {
            let payload = payload(name);
            let payload = payload.as_object().unwrap();
            assert_eq!(payload.keys().map(String::as_str).collect::<Vec<_>>(), fields);
            assert!(payload.values().all(write), "{name}: {payload:?}");
        }
        let automation = payload("report-automation");
        assert_eq!(automation["event"], "On Report Creation/Edit");
        assert!(automation["reportId"].is_u64() && automation.get("findingId").is_none(), "{automation}");
        assert!(payload("workflow-automation")["findingId"].is_string());
    }

    #[test]
    fn lists_as_many_targets_as_it_is_told() {
        let body = bulk()[0].body(0, 20_000);
        let payload: Value = serde_json::from_slice(&body).unwrap();
        let targets: BTreeSet<&str> =
            payload["targetCuids"].as_array().unwrap().iter().map(|target| target.as_str().unwrap()).collect();
        assert_eq!(targets.len(), 20_000);
        assert!(targets.iter().all(|target| target.len() == 25));
        assert!(payload.get("targetCuid").is_none());
        // 28 bytes each, with quotes and comma.
        assert!((560_000..561_000).contains(&body.len()), "{}", body.len());
    }

    #[test]
    fn makes_no_body_twice() {
        let all = named(&[ALL.to_owned()]);
        assert_eq!(all.len(), SAMPLES.len());
        let bodies: BTreeSet<Vec<u8>> =
            (0..900).map(|number| all[number % all.len()].body(number as u64, TARGETS)).collect();
        assert_eq!(bodies.len(), 900);
    }

    #[test]
    fn finds_samples_by_their_names_in_the_order_given() {
        let names = ["ids".to_owned(), "bulk-change".to_owned(), "ids".to_owned()];
        assert_eq!(
            named(&names).iter().map(|sample| sample.name).collect::<Vec<_>>(),
            ["ids", "bulk-change", "ids"]
        );
        let distinct: BTreeSet<&str> = SAMPLES.iter().map(|sample| sample.name).collect();
        assert_eq!(distinct.len(), SAMPLES.len());
    }
}
