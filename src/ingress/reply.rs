//! Answers: 200 with one of three bodies, or a problem document (RFC 9457) with a request id.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

use crate::status::Reason;

/// The answer to a request.
pub(super) type Reply = Response<Full<Bytes>>;

/// Soon enough for a sender that repeats, late enough for a broker that restarts.
const RETRY_AFTER_SECONDS: &str = "1";

/// A request that is not accepted: the reason it is counted under, and the detail of the answer.
#[derive(Debug)]
pub(super) struct Rejection {
    pub(super) reason: Reason,
    pub(super) detail: String,
}

impl Rejection {
    pub(super) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    /// Builds the answer; `id` is also in the log line.
    pub(super) fn reply(&self, id: &str) -> Reply {
        let (status, title) = status_of(self.reason);
        problem(status, title, &self.detail, id)
    }
}

/// The status of the answer, and its title in the problem document.
pub(super) fn status_of(reason: Reason) -> (StatusCode, &'static str) {
    match reason {
        Reason::Signature => (StatusCode::UNAUTHORIZED, "Unauthorized"),
        Reason::Malformed | Reason::Disconnected => (StatusCode::BAD_REQUEST, "Bad Request"),
        Reason::Invalid => (StatusCode::UNPROCESSABLE_ENTITY, "Unprocessable Content"),
        Reason::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "Content Too Large"),
        Reason::Timeout => (StatusCode::REQUEST_TIMEOUT, "Request Timeout"),
        Reason::Encoding => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported Media Type"),
        Reason::Method => (StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"),
        Reason::BufferFull | Reason::Draining | Reason::Unavailable => {
            (StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable")
        }
    }
}

/// Builds a problem document.
pub(super) fn problem(status: StatusCode, title: &str, detail: &str, id: &str) -> Reply {
    let document = serde_json::json!({
        "type": "about:blank",
        "title": title,
        "status": status.as_u16(),
        "detail": detail,
        "request_id": id,
    });
    let mut reply = Response::new(Full::new(Bytes::from(document.to_string())));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("POST"));
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
    }
    reply
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
