//! JetStream's own API, as far as it is needed: look at one stream, create it.
//!
//! Source: <https://docs.nats.io/reference/reference-protocols/nats_api_reference>.

use std::time::Duration;

use async_nats::{Message, StatusCode};
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::acknowledgement::Error;
use super::settings::{Settings, StreamPlan};
use super::subjects;
use crate::brokers::{Refusal, RefusalReason};

/// No such stream.
const NOT_FOUND: u64 = 10059;

/// JetStream is off: for the server, for this account.
const NOT_ENABLED: [u64; 2] = [10076, 10039];

/// Replicas and leader speak once a second: one that was not heard for longer hangs, or cannot be reached.
const ACTIVE: Duration = Duration::from_secs(2);

/// The result of a check of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StreamLook {
    /// It is there.
    Stands(StreamLimits),
    /// It is not.
    Missing,
    /// There is no JetStream, for a reason.
    NoJetStream(String),
    /// JetStream has another answer.
    Unclear(String),
    /// There was no answer.
    Silent,
    /// These credentials may not ask.
    Forbidden,
}

impl StreamLook {
    /// The stream, where it is there.
    pub(super) fn stream(&self) -> Option<&StreamLimits> {
        if let Self::Stands(stream) = self { Some(stream) } else { None }
    }

    /// Whether the cluster stores nothing in it at the moment.
    pub(super) fn is_unable(&self) -> bool {
        matches!(self, Self::Stands(StreamLimits { useless: None, unable: Some(_), .. }))
    }

    /// The refusal of what was sent to the stream of this name, which takes nothing.
    pub(super) fn refusal(self, name: &str) -> Refusal {
        match self {
            Self::Missing => {
                let text = format!("the stream {name} does not exist any more");
                Refusal::wrong(RefusalReason::NoDestination, text)
            }
            Self::Stands(stream) => {
                Refusal::unable(format!("the stream {name} {}", stream.trouble().unwrap_or_default()))
            }
            Self::NoJetStream(why) => Refusal::unable(format!("JetStream is not available: {why}")),
            Self::Unclear(why) => Refusal::unable(format!("cannot look at the stream {name}: {why}")),
            Self::Silent | Self::Forbidden => Refusal::unable(format!("no answer about the stream {name}")),
        }
    }
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
    pub(super) unable: Option<&'static str>,
    /// The number of messages, where no consumer reads them and no limit removes them.
    pub(super) unread: Option<u64>,
}

impl StreamLimits {
    /// The reason why it takes nothing, if there is one.
    pub(super) fn trouble(&self) -> Option<&'static str> {
        self.useless.or(self.unable)
    }

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

/// The subject of questions for streams by what they take.
pub(super) fn names_subject(api: &str) -> String {
    format!("{api}.STREAM.NAMES")
}

/// The question for streams that take a subject, or a part of a pattern.
pub(super) fn taking(subject: &str) -> Vec<u8> {
    json!({ "subject": subject }).to_string().into_bytes()
}

/// The first stream that an answer names.
pub(super) fn first_name(answer: &[u8]) -> Option<String> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    Some(answer["streams"][0].as_str()?.to_owned())
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

/// Reads the answer to either, if there is one.
pub(super) fn read(answer: Option<&Message>) -> StreamLook {
    match answer.map(|message| (message.status, &message.payload)) {
        None => StreamLook::Silent,
        Some((Some(StatusCode::NO_RESPONDERS), _)) => StreamLook::NoJetStream("it has no responder".to_owned()),
        Some((Some(status), _)) => StreamLook::Unclear(format!("status {status}")),
        Some((None, payload)) => read_payload(payload),
    }
}

fn read_payload(payload: &[u8]) -> StreamLook {
    let Ok(answer) = serde_json::from_slice::<Value>(payload) else {
        return StreamLook::Unclear("an answer that is not JSON".to_owned());
    };
    if let Some(error) = answer.get("error") {
        return match Error::deserialize(error) {
            Ok(error) if error.number == NOT_FOUND => StreamLook::Missing,
            Ok(error) if NOT_ENABLED.contains(&error.number) => StreamLook::NoJetStream(error.text),
            Ok(error) => StreamLook::Unclear(format!("{} ({})", error.text, error.number)),
            Err(_) => StreamLook::Unclear("an error without a code".to_owned()),
        };
    }
    let Some(config) = answer.get("config") else {
        return StreamLook::Unclear("an answer without the stream's configuration".to_owned());
    };
    let subjects = config["subjects"].as_array().into_iter().flatten().filter_map(Value::as_str);
    StreamLook::Stands(StreamLimits {
        subjects: subjects.map(str::to_owned).collect(),
        // Unlimited is -1.
        max_message: config["max_msg_size"].as_u64().and_then(|size| size.try_into().ok()),
        useless: if config["no_ack"] == true {
            Some("is set to `no_ack` and confirms nothing")
        } else if config["sealed"] == true {
            Some("is sealed and takes no message")
        } else {
            None
        },
        unable: unable(config, &answer["cluster"]),
        unread: unread(config, &answer["state"]),
    })
}

/// The number of messages, where no consumer reads them and no limit removes them.
fn unread(config: &Value, state: &Value) -> Option<u64> {
    // Unlimited is -1, or an age of 0.
    let limits = ["max_age", "max_bytes", "max_msgs", "max_msgs_per_subject"];
    let is_limited = limits.iter().any(|limit| config[*limit].as_i64().is_some_and(|most| most > 0));
    state["messages"].as_u64().filter(|_| !is_limited && state["consumer_count"] == 0)
}

/// The reason why a stream of these replicas stores nothing: no leader, or no majority of replicas. A server without a
/// cluster says nothing of it.
fn unable(config: &Value, cluster: &Value) -> Option<&'static str> {
    if cluster.is_null() {
        return None;
    }
    if cluster["leader"].as_str().is_none_or(str::is_empty) {
        return Some("has no leader");
    }
    let replicas = config["num_replicas"].as_u64().unwrap_or(1);
    let is_active = |replica: &&Value| {
        let is_heard = replica["active"].as_u64().is_some_and(|ago| Duration::from_nanos(ago) < ACTIVE);
        is_heard && replica["offline"] != true && replica["pending"] != true
    };
    // The leader is not among them.
    let others = cluster["replicas"].as_array().into_iter().flatten();
    let active = 1 + others.filter(is_active).count() as u64;
    (active < replicas / 2 + 1).then_some("has a leader, but no majority of its replicas answers it")
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
        assert_eq!((stream.max_message, stream.useless, stream.unable), (None, None, None));
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

    fn unable_with(replicas: u64, cluster: &str) -> Option<&'static str> {
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
        let few = Some("has a leader, but no majority of its replicas answers it");
        assert_eq!(unable_with(3, &with([2000, 9000], "")), few);
        assert_eq!(unable_with(3, &with([500, 500], r#","offline":true"#)), few);
        assert_eq!(unable_with(3, &with([0, 0], r#","pending":true"#)), few);
        assert_eq!(unable_with(5, &with([500, 500], "")), None, "three of five");
        assert_eq!(unable_with(2, r#"{"leader":"n1","replicas":[]}"#), few);
        assert_eq!(unable_with(1, r#"{"leader":"n1"}"#), None);
        let none = Some("has no leader");
        assert_eq!(unable_with(3, r#"{"leader":"","replicas":[]}"#), none);
        assert_eq!(unable_with(3, r#"{"name":"c"}"#), none);
    }

    #[test]
    fn reads_which_stream_takes_a_subject() {
        assert_eq!(first_name(br#"{"total":1,"streams":["OTHER","B"]}"#).as_deref(), Some("OTHER"));
        for none in [&br#"{"total":0,"streams":null}"#[..], br#"{"error":{"code":503}}"#, b""] {
            assert_eq!(first_name(none), None);
        }
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
