//! JetStream's own API, as far as it is needed: look at one stream, create it.
//!
//! Source: <https://docs.nats.io/reference/reference-protocols/nats_api_reference>.

use std::time::Duration;

use async_nats::{Message, StatusCode};
use serde_json::{Value, json};

use super::acknowledgement::Error;
use super::settings::{Settings, StreamPlan};
use super::subjects;

/// No such stream.
const NOT_FOUND: u64 = 10059;

/// JetStream is off: for the server, for this account.
const NOT_ENABLED: [u64; 2] = [10076, 10039];

/// Replicas and leader speak once a second: one that was not heard for longer hangs, or cannot be reached.
const ACTIVE: Duration = Duration::from_secs(2);

/// The result of a check of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StreamLook {
    /// It is there.
    Stands(StreamLimits),
    /// It is not.
    Missing,
    /// There is no JetStream, for a reason.
    NoJetStream(String),
    /// JetStream has another answer.
    Unclear(String),
}

/// The relevant properties of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StreamLimits {
    pub(super) subjects: Vec<String>,
    /// Its own limit, headers included, where it has one.
    pub(super) max_message: Option<usize>,
    /// The reason why nothing can be published to it with an acknowledgement, if there is one.
    pub(super) useless: Option<&'static str>,
    /// The reason why the cluster stores nothing in it, if any. A leader that has lost its majority answers for many
    /// seconds as if nothing were the matter.
    pub(super) unable: Option<String>,
    /// The number of messages, where no consumer reads them and no limit removes them.
    pub(super) unread: Option<u64>,
}

impl StreamLimits {
    /// Whether a message to this subject, or to every subject of this pattern, goes into the stream.
    pub(super) fn takes(&self, subject: &str) -> bool {
        self.subjects.iter().any(|pattern| subjects::covers(pattern, subject))
    }
}

/// The subject of questions about a stream.
pub(super) fn info_subject(api: &str, stream: &str) -> String {
    format!("{api}.STREAM.INFO.{stream}")
}

/// The subject of requests to create a stream.
pub(super) fn create_subject(api: &str, stream: &str) -> String {
    format!("{api}.STREAM.CREATE.{stream}")
}

/// The request: the operator may limit later how long and how much the stream keeps.
pub(super) fn creation(settings: &Settings, plan: &StreamPlan) -> Vec<u8> {
    let window = u64::try_from(settings.duplicate_window.as_nanos()).unwrap_or(u64::MAX);
    json!({
        "name": plan.name,
        "subjects": plan.subjects,
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "num_replicas": settings.stream_replicas,
        "duplicate_window": window,
    })
    .to_string()
    .into_bytes()
}

/// Reads the answer to either.
pub(super) fn read(message: &Message) -> StreamLook {
    match message.status {
        Some(StatusCode::NO_RESPONDERS) => StreamLook::NoJetStream("it has no responder".to_owned()),
        Some(status) => StreamLook::Unclear(format!("status {status}")),
        None => read_payload(&message.payload),
    }
}

fn read_payload(payload: &[u8]) -> StreamLook {
    let Ok(answer) = serde_json::from_slice::<Value>(payload) else {
        return StreamLook::Unclear("an answer that is not JSON".to_owned());
    };
    if let Some(error) = answer.get("error") {
        return match Error::read(&error.to_string()) {
            Some(error) if error.number == NOT_FOUND => StreamLook::Missing,
            Some(error) if NOT_ENABLED.contains(&error.number) => StreamLook::NoJetStream(error.text),
            Some(error) => StreamLook::Unclear(format!("{} ({})", error.text, error.number)),
            None => StreamLook::Unclear("an error without a code".to_owned()),
        };
    }
    let Some(config) = answer.get("config") else {
        return StreamLook::Unclear("an answer without the stream's configuration".to_owned());
    };
    let flag = |key| config.get(key).and_then(Value::as_bool).unwrap_or(false);
    let subjects = config.get("subjects").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    StreamLook::Stands(StreamLimits {
        subjects: subjects.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        // Unlimited is -1.
        max_message: config.get("max_msg_size").and_then(Value::as_u64).and_then(|size| size.try_into().ok()),
        useless: if flag("no_ack") {
            Some("is set to `no_ack` and confirms nothing")
        } else if flag("sealed") {
            Some("is sealed and takes no message")
        } else {
            None
        },
        unable: unable(config, answer.get("cluster")),
        unread: unread(config, answer.get("state")),
    })
}

/// The number of messages, where no consumer reads them and no limit removes them.
fn unread(config: &Value, state: Option<&Value>) -> Option<u64> {
    let count = |key| state.and_then(|state| state.get(key)).and_then(Value::as_u64);
    // Unlimited is -1, or an age of 0.
    let is_limited = ["max_age", "max_bytes", "max_msgs", "max_msgs_per_subject"];
    let is_limited =
        is_limited.iter().any(|key| config.get(key).and_then(Value::as_i64).is_some_and(|most| most > 0));
    count("messages").filter(|_| !is_limited && count("consumer_count") == Some(0))
}

/// The reason why a stream of these replicas stores nothing: no leader, or no majority of replicas. A server without a
/// cluster says nothing of it.
fn unable(config: &Value, cluster: Option<&Value>) -> Option<String> {
    let cluster = cluster?;
    let leader = cluster.get("leader").and_then(Value::as_str).unwrap_or_default();
    if leader.is_empty() {
        return Some("has no leader".to_owned());
    }
    let replicas = config.get("num_replicas").and_then(Value::as_u64).unwrap_or(1);
    let flag = |replica: &Value, key| replica.get(key).and_then(Value::as_bool).unwrap_or(false);
    let is_active = |replica: &&Value| {
        let heard = replica.get("active").and_then(Value::as_u64).map(Duration::from_nanos);
        heard.is_some_and(|heard| heard < ACTIVE) && !flag(replica, "offline") && !flag(replica, "pending")
    };
    let others = cluster.get("replicas").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    // The leader is not among them.
    let active = 1 + others.iter().filter(is_active).count() as u64;
    (active < replicas / 2 + 1).then(|| "has a leader, but no majority of its replicas answers it".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: u64, number: u64) -> StreamLook {
        read_payload(
            format!(r#"{{"type":"t","error":{{"code":{code},"err_code":{number},"description":"why"}}}}"#)
                .as_bytes(),
        )
    }

    #[test]
    fn reads_what_matters_of_a_stream() {
        let look = read_payload(
            br#"{"config":{"name":"S","subjects":["a.>","b"],"max_msg_size":-1,"sealed":false},"state":{"messages":1}}"#,
        );
        let StreamLook::Stands(stream) = look else { panic!("{look:?}") };
        assert_eq!((stream.max_message, stream.useless, stream.unable.as_deref()), (None, None, None));
        assert_eq!(stream.unread, None, "nothing is said of consumers");
        assert!(stream.takes("a.x.y") && stream.takes("b") && !stream.takes("b.c") && !stream.takes("a"));
        let look = read_payload(br#"{"config":{"max_msg_size":100,"no_ack":true}}"#);
        let StreamLook::Stands(stream) = look else { panic!("{look:?}") };
        assert_eq!(stream.max_message, Some(100));
        assert!(stream.useless.is_some() && !stream.takes("a"));
    }

    #[test]
    fn tells_a_stream_that_grows_because_no_consumer_reads_it() {
        let unread = |config: &str, consumers: u64| {
            let state = format!(r#"{{"messages":7,"consumer_count":{consumers}}}"#);
            let look = read_payload(format!(r#"{{"config":{config},"state":{state}}}"#).as_bytes());
            let StreamLook::Stands(stream) = look else { panic!("{look:?}") };
            stream.unread
        };
        let unlimited = r#"{"max_age":0,"max_bytes":-1,"max_msgs":-1,"max_msgs_per_subject":-1}"#;
        assert_eq!(unread(unlimited, 0), Some(7));
        assert_eq!(unread(unlimited, 1), None);
        assert_eq!(unread(r#"{"max_age":1000000000,"max_bytes":-1}"#, 0), None);
    }

    fn unable_with(replicas: u64, cluster: &str) -> Option<String> {
        let look = read_payload(
            format!(r#"{{"config":{{"subjects":["a"],"num_replicas":{replicas}}},"cluster":{cluster}}}"#)
                .as_bytes(),
        );
        let StreamLook::Stands(stream) = look else { panic!("{look:?}") };
        stream.unable
    }

    #[test]
    fn believes_a_leader_only_with_a_majority_of_active_replicas() {
        let with = |active: [u64; 2], more: &str| {
            let replica = |ms: u64| format!(r#"{{"name":"n","current":true,"active":{}{more}}}"#, ms * 1_000_000);
            format!(r#"{{"leader":"n1","replicas":[{},{}]}}"#, replica(active[0]), replica(active[1]))
        };
        assert_eq!(unable_with(3, &with([500, 500], "")), None);
        assert_eq!(unable_with(3, &with([500, 9000], "")), None, "two of three");
        let few = Some("has a leader, but no majority of its replicas answers it".to_owned());
        assert_eq!(unable_with(3, &with([2000, 9000], "")), few);
        assert_eq!(unable_with(3, &with([500, 500], r#","offline":true"#)), few);
        assert_eq!(unable_with(3, &with([0, 0], r#","pending":true"#)), few);
        assert_eq!(unable_with(5, &with([500, 500], "")), None, "three of five");
        assert_eq!(unable_with(2, r#"{"leader":"n1","replicas":[]}"#), few);
        assert_eq!(unable_with(1, r#"{"leader":"n1"}"#), None);
        let none = Some("has no leader".to_owned());
        assert_eq!(unable_with(3, r#"{"leader":"","replicas":[]}"#), none);
        assert_eq!(unable_with(3, r#"{"name":"c"}"#), none);
    }

    #[test]
    fn tells_a_missing_stream_from_missing_jetstream() {
        assert_eq!(error(404, 10059), StreamLook::Missing);
        assert_eq!(error(503, 10039), StreamLook::NoJetStream("why".to_owned()));
        assert_eq!(error(503, 10076), StreamLook::NoJetStream("why".to_owned()));
        assert_eq!(error(503, 10008), StreamLook::Unclear("why (10008)".to_owned()));
        for payload in ["", "{}", "[]", r#"{"error":{}}"#] {
            assert!(matches!(read_payload(payload.as_bytes()), StreamLook::Unclear(_)), "{payload}");
        }
    }
}
