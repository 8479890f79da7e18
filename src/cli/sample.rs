//! Sample payloads, as PlexTrac documents them.

use serde_json::json;

/// Event, target type, text.
const KINDS: [(&str, &str, &str); 4] = [
    ("ReportPublished", "report", "Acme Corp||External penetration test 2026"),
    ("FindingPublished", "finding", "Acme Corp||SQL injection in /login"),
    ("AssessmentSubmitted", "assessment", "Grüße aus Zürich||PCI DSS 4.0"),
    ("SchedulerEngagementSubmitted", "engagement", "Acme Corp||Red team, third quarter"),
];

/// A sample body; each has a `cuid` of its own.
pub(super) fn body(number: u64) -> Vec<u8> {
    let (event, target_type, text) = KINDS[usize::try_from(number % KINDS.len() as u64).unwrap_or(0)];
    let id = || format!("c{:024x}", fastrand::u128(..) >> 32);
    json!({
        "cuid": id(),
        "actorCuid": id(),
        "event": event,
        "targetCuid": id(),
        "targetType": target_type,
        "text": text,
    })
    .to_string()
    .into_bytes()
}
