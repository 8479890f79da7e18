//! The rights that a login lacks, found without storing anything: messages that no stream accepts.

use async_nats::HeaderMap;
use bytes::Bytes;

use super::connection::{NatsConnection, Unanswered};
use super::settings::{Settings, StreamPlan};
use super::stream;
use crate::brokers::Finding;
use crate::brokers::template::Template;

/// The subject under which a server tells a login its permissions.
const OWN_PERMISSIONS: &str = "$SYS.REQ.USER.INFO";

/// No stream has a name with dots, so none takes a message that expects it.
const NO_STREAM: &str = "no.stream";

/// A subject, and the pattern that an operator would permit.
type Wanted = (String, String);

/// The findings about what these credentials may not publish to; `missing` are the streams that a start would create.
pub(super) async fn lacking(
    connection: &mut NatsConnection,
    settings: &Settings,
    missing: &[&StreamPlan],
) -> Vec<Finding> {
    if is_unrestricted(connection).await {
        return Vec::new();
    }
    let mut wanted: Vec<Wanted> = Vec::new();
    for template in settings.streams.iter().flat_map(|plan| &plan.templates) {
        let new = wanted_by(template);
        if !wanted.contains(&new) {
            wanted.push(new);
        }
    }
    for plan in missing {
        let subject = stream::create_subject(&settings.api, &plan.name);
        wanted.push((subject.clone(), subject));
    }
    for (subject, _) in &wanted {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Stream", NO_STREAM);
        // Not an event, and not a request to create anything.
        connection.publish(subject, "rights", Some(headers), Bytes::from_static(b"{}"));
    }
    // Its answer comes after what the server says to those before it.
    let info = stream::info_subject(&settings.api, &settings.main().name);
    if let Err(Unanswered::Silence(error)) = connection.ask(&info, Vec::new()).await {
        return vec![Finding::Warning(format!("nothing is known of the permissions: {error}"))];
    }
    wanted.retain(|(subject, _)| connection.forbidden().contains(subject));
    let finding = |(subject, pattern): Wanted| {
        let text = format!("{} lacks the permission to publish to {pattern}", settings.login.who());
        // Of several subjects some may be permitted.
        if pattern == subject { Finding::Missing(text) } else { Finding::Warning(text) }
    };
    wanted.into_iter().map(finding).collect()
}

/// Whether the server says that these credentials have no limits; older servers, and stricter ones, say nothing.
async fn is_unrestricted(connection: &mut NatsConnection) -> bool {
    let Ok(answer) = connection.ask(OWN_PERMISSIONS, Vec::new()).await else { return false };
    let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
    let data = answer.get("data");
    data.is_some_and(|data| data.get("permissions").is_none_or(|permissions| permissions.get("publish").is_none()))
}

/// A subject of the template, and the pattern of all of them.
fn wanted_by(template: &Template) -> Wanted {
    let [subject, other] = template.samples();
    let tokens = subject.split('.').zip(other.split('.')).map(|(one, other)| if one == other { one } else { "*" });
    let pattern = tokens.collect::<Vec<_>>().join(".");
    (subject, pattern)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::brokers::template::TemplateKind;

    #[test]
    fn names_the_permission_as_a_pattern_of_whole_tokens() {
        let wanted = |text: &str| wanted_by(&Template::parse(TemplateKind::Address, text).unwrap());
        assert_eq!(wanted("a.{event}.b{source}"), ("a._.b_".to_owned(), "a.*.*".to_owned()));
        assert_eq!(wanted("a.b"), ("a.b".to_owned(), "a.b".to_owned()));
    }
}
