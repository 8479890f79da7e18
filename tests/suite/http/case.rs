//! A case of a table: the bytes of a request, the answer, and exactly which counters rise.

use serde_json::Value;

use crate::support::{Answer, Bridge, Client, Counters, PATH, Payload, SECRET, sign};

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// 200 `accepted`: this body is published.
    Accepted(Vec<u8>),
    /// 200 `probe`.
    Probe,
    /// 200 `duplicate`: known already.
    Duplicate,
    /// Refused: the status, the reason of the counter, whether a signature matched.
    Refused(u16, &'static str, Signature),
    /// 404: no source's path.
    Unknown,
}

/// Whether a refused request counts as a match of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signature {
    Matched,
    NotSeen,
}

/// A request and its outcome.
#[derive(Clone, Debug)]
pub(super) struct Case {
    name: String,
    bytes: Vec<u8>,
    outcome: Outcome,
    detail: Option<String>,
    source: &'static str,
    secret_id: &'static str,
}

impl Case {
    /// A request of these bytes with this outcome.
    pub(super) fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>, outcome: Outcome) -> Self {
        let name = name.into();
        Self { name, bytes: bytes.into(), outcome, detail: None, source: "plextrac", secret_id: "default" }
    }

    /// A signed body in a plain request.
    pub(super) fn body(name: impl Into<String>, body: impl AsRef<[u8]>, outcome: Outcome) -> Self {
        Self::new(name, Request::signed(body.as_ref()).bytes(), outcome)
    }

    /// The problem document says exactly this.
    pub(super) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Another source and secret than the usual ones.
    pub(super) fn of(mut self, source: &'static str, secret_id: &'static str) -> Self {
        (self.source, self.secret_id) = (source, secret_id);
        self
    }

    /// Sends the bytes on a connection of their own, and checks the answer, the counters and the accounting.
    #[track_caller]
    pub(super) fn run(&self, bridge: &Bridge) -> Answer {
        let before = bridge.counters();
        let mut client = bridge.connect();
        // A broken request may be refused, and the connection closed, before all of it is written.
        let written = client.write(&self.bytes);
        let answer =
            client.answer().unwrap_or_else(|error| panic!("{}: no answer: {error}, {written:?}", self.name));
        self.look_at(&answer);
        if let Outcome::Accepted(body) = &self.outcome {
            bridge.accepted(body);
        }
        let risen = bridge.risen_since(&before);
        assert_eq!(risen, self.counters(), "{}: the counters that rose", self.name);
        let status = bridge.daemon.status();
        assert_eq!(status.count("mismatch"), 0, "{}: the accounting does not add up", self.name);
        answer
    }

    #[track_caller]
    fn look_at(&self, answer: &Answer) {
        let name = &self.name;
        let status = match &self.outcome {
            Outcome::Accepted(_) | Outcome::Probe | Outcome::Duplicate => 200,
            Outcome::Refused(status, _, _) => *status,
            Outcome::Unknown => 404,
        };
        assert_eq!(answer.status, status, "{name}: the status; the body: {}", answer.text());
        match &self.outcome {
            Outcome::Accepted(_) => assert_ok(name, answer, r#"{"status":"accepted"}"#),
            Outcome::Probe => assert_ok(name, answer, r#"{"status":"probe"}"#),
            Outcome::Duplicate => assert_ok(name, answer, r#"{"status":"duplicate"}"#),
            Outcome::Refused(..) | Outcome::Unknown => {
                let problem = problem(name, answer);
                if let Some(detail) = &self.detail {
                    assert_eq!(problem["detail"], detail.as_str(), "{name}: the detail");
                }
            }
        }
        let allow = (status == 405).then_some("POST");
        assert_eq!(answer.header("allow"), allow, "{name}: Allow");
        let seconds = answer.header("retry-after");
        assert_eq!(seconds.is_some(), status == 503, "{name}: Retry-After is for 503, found {seconds:?}");
        assert!(
            seconds.is_none_or(|seconds| seconds.parse::<u32>().is_ok_and(|seconds| seconds > 0)),
            "{name}: Retry-After has whole seconds, found {seconds:?}"
        );
        assert_eq!(answer.header("location"), None, "{name}: never a redirect");
    }

    fn counters(&self) -> Counters {
        let of = |family: &str| format!("{family}{{source=\"{}\"}}", self.source);
        let answered = |code: u16| format!("requests_total{{code=\"{code}\",source=\"{}\"}}", self.source);
        let matched =
            format!("signatures_matched_total{{secret_id=\"{}\",source=\"{}\"}}", self.secret_id, self.source);
        let has_secret = !self.secret_id.is_empty();
        let mut risen = Vec::new();
        match &self.outcome {
            Outcome::Accepted(_) => {
                risen.extend([answered(200), of("events_received_total"), of("events_accepted_total")]);
                risen.extend(has_secret.then_some(matched));
            }
            Outcome::Probe => {
                risen.extend([answered(200), of("events_received_total"), of("events_probe_total")]);
                risen.extend(has_secret.then_some(matched));
            }
            Outcome::Duplicate => {
                risen.extend([answered(200), of("events_received_total"), of("events_duplicate_total")]);
                risen.extend(has_secret.then_some(matched));
            }
            Outcome::Refused(status, reason, signature) => {
                let rejected = format!("events_rejected_total{{reason=\"{reason}\",source=\"{}\"}}", self.source);
                risen.extend([answered(*status), of("events_received_total"), rejected]);
                risen.extend((has_secret && *signature == Signature::Matched).then_some(matched));
            }
            Outcome::Unknown => risen.push("requests_total{code=\"404\",source=\"none\"}".to_owned()),
        }
        risen.into_iter().map(|name| (name, 1)).collect()
    }
}

/// Runs all cases on one daemon, one after the other; in the end exactly the accepted bodies have arrived.
#[track_caller]
pub(super) fn run_all(bridge: Bridge, cases: &[Case]) {
    for case in cases {
        case.run(&bridge);
    }
    bridge.stop();
}

#[track_caller]
fn assert_ok(name: &str, answer: &Answer, body: &str) {
    assert_eq!(answer.text(), body, "{name}: the body");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{name}: the content type");
}

/// The problem document of an answer, which must be a whole one.
#[track_caller]
pub(super) fn problem(name: &str, answer: &Answer) -> Value {
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{name}: the content type");
    let problem: Value = serde_json::from_slice(&answer.body).expect("a problem document is JSON");
    let fields: Vec<&String> = problem.as_object().expect("a problem document is an object").keys().collect();
    assert_eq!(fields, ["detail", "request_id", "status", "title", "type"], "{name}: the fields of {problem}");
    assert_eq!(problem["status"], answer.status, "{name}: the status within the document");
    assert_eq!(problem["type"], "about:blank", "{name}: the type of the problem");
    for field in ["title", "detail", "request_id"] {
        assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{name}: `{field}` of {problem}");
    }
    problem
}

/// A request under construction.
#[derive(Clone, Debug)]
pub(super) struct Request {
    start: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    /// POST to the source, without a signature.
    pub(super) fn unsigned(body: &[u8]) -> Self {
        Self {
            start: format!("POST {PATH} HTTP/1.1"),
            headers: vec![
                ("Host".to_owned(), "bridge".to_owned()),
                ("Content-Length".to_owned(), body.len().to_string()),
            ],
            body: body.to_vec(),
        }
    }

    /// POST to the source, signed.
    pub(super) fn signed(body: &[u8]) -> Self {
        Self::unsigned(body).header("X-Authorization-HMAC-256", sign(SECRET, body))
    }

    /// Another first line.
    pub(super) fn start(mut self, start: impl Into<String>) -> Self {
        self.start = start.into();
        self
    }

    /// One more header.
    pub(super) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Without a header.
    pub(super) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self
    }

    /// In chunks of this size instead of with a length.
    pub(super) fn chunked(self, size: usize) -> Self {
        let mut framed = Vec::new();
        for chunk in self.body.chunks(size) {
            framed.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            framed.extend_from_slice(chunk);
            framed.extend_from_slice(b"\r\n");
        }
        framed.extend_from_slice(b"0\r\n\r\n");
        self.framed(framed)
    }

    /// With these bytes for chunks.
    pub(super) fn framed(self, bytes: impl Into<Vec<u8>>) -> Self {
        let mut request = self.without("content-length").header("Transfer-Encoding", "chunked");
        request.body = bytes.into();
        request
    }

    /// The head alone.
    pub(super) fn head(&self) -> Vec<u8> {
        let mut head = format!("{}\r\n", self.start);
        for (name, value) in &self.headers {
            head.push_str(name);
            head.push_str(": ");
            head.push_str(value);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        head.into_bytes()
    }

    /// All of it.
    pub(super) fn bytes(&self) -> Vec<u8> {
        [self.head(), self.body.clone()].concat()
    }
}

/// A body of its own, as documented.
pub(super) fn good(cuid: &str) -> Vec<u8> {
    Payload::new(cuid).body()
}

/// Whether the daemon closes this connection without another answer.
#[track_caller]
pub(super) fn assert_closed(name: &str, client: &mut Client) {
    let answer = client.answer();
    assert!(answer.is_err(), "{name}: a second answer: {answer:?}");
    assert!(client.is_closed_by_server(), "{name}: the connection stays open");
}
