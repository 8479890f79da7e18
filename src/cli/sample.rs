//! The sample payloads of `send` and `demo`: every event that PlexTrac is known to send, in every known shape.
//!
//! Sources: the vendor's pages on webhook payloads, today's and an earlier copy; public clients and receivers.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::builder::PossibleValue;
use serde_json::{Value, json};

use PayloadShape::{Automation, Bulk, One};

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
    shape: PayloadShape,
}

/// The fields of a payload beside `event` and `targetType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PayloadShape {
    /// `cuid`, `actorCuid`, a target and a text.
    One(Text),
    /// Does the same with a list of targets.
    Bulk(Text),
    /// The ids of a workflow automation.
    Automation(Ids),
}

/// The `text` of a payload: an earlier copy of the vendor's page has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    Present,
    Missing,
}

/// The form in which an automation writes its ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ids {
    /// `clientId` and `reportId` as numbers.
    Report,
    /// These and `findingId`, as numbers.
    Numbers,
    /// The same ids as strings.
    Strings,
    /// As numbers, with `flawId` for `findingId`.
    Flaw,
}

const fn sample(name: &'static str, event: &'static str, target_type: &'static str, shape: PayloadShape) -> Sample {
    Sample { name, event, target_type, shape }
}

/// The documented payloads first.
const SAMPLES: [Sample; 18] = [
    sample("report-published", "ReportPublished", "report", One(Text::Present)),
    sample("finding-published", "FindingPublished", "finding", One(Text::Present)),
    sample("assessment-submitted", "AssessmentSubmitted", "assessment", One(Text::Present)),
    sample("engagement-submitted", "SchedulerEngagementSubmitted", "engagement", One(Text::Present)),
    sample("report-status-changed", "ReportStatusChanged", "report", One(Text::Present)),
    sample("bulk-change", "FindingPublished", "finding", Bulk(Text::Present)),
    sample("report-published-without-text", "ReportPublished", "report", One(Text::Missing)),
    sample("finding-published-without-text", "FindingPublished", "finding", One(Text::Missing)),
    sample("assessment-submitted-without-text", "AssessmentSubmitted", "assessment", One(Text::Missing)),
    sample("engagement-submitted-without-text", "SchedulerEngagementSubmitted", "engagement", One(Text::Missing)),
    sample("report-status-changed-without-text", "ReportStatusChanged", "report", One(Text::Missing)),
    sample("bulk-change-without-text", "FindingPublished", "finding", Bulk(Text::Missing)),
    sample("report-automation", "On Report Creation/Edit", "", Automation(Ids::Report)),
    sample("finding-automation", "On Report Finding Creation/Edit", "", Automation(Ids::Numbers)),
    sample("workflow-automation", "WFA: On Report Creation/Edit", "", Automation(Ids::Strings)),
    sample("ids", "", "", Automation(Ids::Numbers)),
    sample("ids-as-strings", "", "", Automation(Ids::Strings)),
    sample("flaw-ids", "", "", Automation(Ids::Flaw)),
];

/// The number of samples that are sent if none is chosen: one target, the documented payload.
const USUAL: usize = 5;

impl Sample {
    /// Whether it lists several targets.
    pub(super) fn is_bulk(&self) -> bool {
        matches!(self.shape, Bulk(_))
    }

    /// A body of this kind, different from all others: `number` counts the bodies of this process.
    pub(super) fn body(&self, number: u64, targets: usize) -> Vec<u8> {
        let mut payload = json!({});
        if !self.event.is_empty() {
            payload["event"] = json!(self.event);
        }
        if !self.target_type.is_empty() {
            payload["targetType"] = json!(self.target_type);
        }
        match self.shape {
            One(text) => {
                payload["targetCuid"] = json!(entity());
                self.describe(&mut payload, text, number);
            }
            Bulk(text) => {
                payload["targetCuids"] = (0..targets).map(|_| entity()).collect();
                self.describe(&mut payload, text, number);
            }
            Automation(ids) => {
                let id = || 1 + fastrand::u64(..1 << 48);
                let write = |id: u64| if ids == Ids::Strings { json!(id.to_string()) } else { json!(id) };
                payload["clientId"] = write(id());
                payload["reportId"] = write(id());
                match ids {
                    Ids::Report => {}
                    Ids::Numbers | Ids::Strings => payload["findingId"] = write(id()),
                    Ids::Flaw => payload["flawId"] = write(id()),
                }
            }
        }
        payload.to_string().into_bytes()
    }

    fn describe(&self, payload: &mut Value, text: Text, number: u64) {
        payload["cuid"] = json!(request(number));
        payload["actorCuid"] = json!(entity());
        if text == Text::Present {
            payload["text"] = json!(match self.target_type {
                "finding" => "Acme Corp||SQL injection in /login",
                "assessment" => "Grüße aus Zürich||PCI DSS 4.0",
                "engagement" => "Acme Corp||Red team, third quarter",
                _ => "Acme Corp||External penetration test 2026",
            });
        }
    }

    /// The line in `--help`.
    fn help(&self) -> String {
        let what = match self.shape {
            One(Text::Present) => ", the documented payload",
            One(Text::Missing) => ", as an earlier page has it",
            Bulk(Text::Present) => " of several targets",
            Bulk(Text::Missing) => " of several targets, as an earlier page has it",
            Automation(Ids::Report) => "clientId and reportId as numbers",
            Automation(Ids::Numbers) => "clientId, reportId and findingId as numbers",
            Automation(Ids::Strings) => "clientId, reportId and findingId as strings",
            Automation(Ids::Flaw) => "clientId, reportId and flawId as numbers",
        };
        match (self.event, self.shape) {
            ("", _) => format!("An automation of ids alone: {what}"),
            (event, Automation(_)) => format!("{event}, with {what}"),
            (event, _) => format!("{event}{what}"),
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
