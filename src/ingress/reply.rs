//! Answers: 200 with one of three bodies, or a problem document (RFC 9457) with a request id.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

/// The answer to a request.
pub(super) type Reply = Response<Full<Bytes>>;

/// Soon enough for a sender that repeats, late enough for a broker that restarts.
const RETRY_AFTER_SECONDS: &str = "1";

/// A reason why there is no 200, as the sender reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) title: &'static str,
    pub(super) detail: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, title: &'static str, detail: impl Into<String>) -> Self {
        Self { status, title, detail: detail.into() }
    }

    /// Builds the answer; `id` is also in the log line.
    pub(super) fn reply(&self, id: &str) -> Reply {
        let document = serde_json::json!({
            "type": "about:blank",
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": self.detail,
            "request_id": id,
        });
        let mut reply = Response::new(Full::new(Bytes::from(document.to_string())));
        *reply.status_mut() = self.status;
        let headers = reply.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("POST"));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
        }
        reply
    }
}

/// Builds a 200 with this body.
pub(super) fn ok(body: &'static [u8]) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from_static(body)));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

pub(super) const ACCEPTED: &[u8] = br#"{"status":"accepted"}"#;
pub(super) const DUPLICATE: &[u8] = br#"{"status":"duplicate"}"#;
pub(super) const PROBE: &[u8] = br#"{"status":"probe"}"#;

/// Creates an id for a refused request: unique enough to find its log line.
pub(super) fn request_id() -> String {
    format!("{:016x}", fastrand::u64(..))
}
