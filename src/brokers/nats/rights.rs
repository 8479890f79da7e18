//! The rights that a login lacks, as the server tells it, or by messages that no stream accepts.

use async_nats::HeaderMap;
use bytes::Bytes;
use serde_json::Value;

use super::connection::NatsConnection;
use super::settings::{Settings, StreamPlan};
use super::subjects::Wanted;
use super::{stream, subjects};
use crate::brokers::Finding;

/// The subject under which a server tells a login its permissions.
const OWN_PERMISSIONS: &str = "$SYS.REQ.USER.INFO";

/// No stream has a name with dots, so none takes a message that expects it.
const NO_STREAM: &str = "no.stream";

/// The findings about what these credentials may not publish to; `missing` are the streams that a start would create.
pub(super) async fn lacking(
    connection: &mut NatsConnection,
    settings: &Settings,
    missing: &[&StreamPlan],
) -> Vec<Finding> {
    let mut wanted: Vec<Wanted> = Vec::new();
    for template in settings.streams.iter().flat_map(|plan| &plan.templates) {
        let new = subjects::wanted_by(template);
        if !wanted.contains(&new) {
            wanted.push(new);
        }
    }
    for plan in missing {
        let subject = stream::create_subject(&settings.api, &plan.name);
        wanted.push((subject.clone(), subject));
    }
    match connection.ask(OWN_PERMISSIONS, Vec::new()).await {
        Ok(Some(answer)) => wanted.retain(|(_, pattern)| !may_publish(&answer.payload, pattern)),
        Ok(None) => {
            for (subject, _) in &wanted {
                let mut headers = HeaderMap::new();
                headers.insert("Nats-Expected-Stream", NO_STREAM);
                // Not an event, and not a request to create anything.
                connection.publish(subject, "rights", headers, Bytes::from_static(b"{}"));
            }
            // It is refused again, behind everything that is refused before it.
            if !matches!(connection.ask(OWN_PERMISSIONS, Vec::new()).await, Ok(None)) {
                return Vec::new();
            }
            wanted.retain(|(subject, _)| connection.forbidden.contains(subject));
        }
        Err(_) => return Vec::new(),
    }
    let finding = |(subject, pattern): Wanted| {
        let text = format!("{} lacks the permission to publish to {pattern}", settings.login.who());
        // Of several subjects some may be permitted.
        if pattern == subject { Finding::Missing(text) } else { Finding::Warning(text) }
    };
    wanted.into_iter().map(finding).collect()
}

/// Whether a server that was asked permits every subject of a pattern. Without limits, and before 2.10, it names none.
fn may_publish(answer: &[u8], pattern: &str) -> bool {
    let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    let named = |kind: &str| -> Option<Vec<&str>> {
        let list = answer.pointer(&format!("/data/permissions/publish/{kind}"))?.as_array()?;
        Some(list.iter().filter_map(Value::as_str).collect())
    };
    let is_allowed =
        named("allow").is_none_or(|list| list.iter().any(|allowed| subjects::covers(allowed, pattern)));
    is_allowed && !named("deny").unwrap_or_default().iter().any(|denied| subjects::overlap(denied, pattern))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_server_permits() {
        let limits = br#"{"data":{"permissions":{"publish":{"allow":["a.>","b"],"deny":["a.x.*"]}}}}"#;
        for (pattern, permitted) in [("a.*.*", false), ("a.b", true), ("a.*", true), ("b", true), ("c", false)] {
            assert_eq!(may_publish(limits, pattern), permitted, "{pattern}");
        }
        for none in [&b"{}"[..], b"", br#"{"data":{"permissions":{"subscribe":{"allow":["_INBOX.>"]}}}}"#] {
            assert!(may_publish(none, "a"));
        }
    }
}
