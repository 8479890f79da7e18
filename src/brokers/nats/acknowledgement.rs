//! Reads the answers to messages that arrive on the inbox.

use async_nats::{Message, StatusCode};
use serde::Deserialize;

use super::codes;
use crate::brokers::{Position, Refusal, Refused};

/// The meaning of an answer on the inbox.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AckReply {
    /// The stream has the message, at this place.
    Stored(Position),
    /// The stream, the server or the cluster does not take it.
    Refused(Refusal),
    /// The subject has no listener: deleted, or never there?
    NobodyListens,
    /// Another stream takes its subject; its own may have it all the same.
    OtherStream(String),
    /// Not from a stream: another subscriber replied.
    Foreign,
}

/// An answer of JetStream to a message.
#[derive(Default, Deserialize)]
#[serde(default)]
struct StreamAnswer {
    error: Option<Error>,
    stream: Option<String>,
    seq: u64,
    duplicate: bool,
}

/// The error object of JetStream's answers.
#[derive(Deserialize)]
pub(super) struct Error {
    /// As in HTTP. What has none is no error of JetStream.
    #[serde(rename = "code")]
    _code: u64,
    /// The details.
    #[serde(rename = "err_code", default)]
    pub(super) number: u64,
    /// For people.
    #[serde(rename = "description", default = "no_reason")]
    pub(super) text: String,
}

fn no_reason() -> String {
    "no reason given".to_owned()
}

/// Reads the answer to a message for this stream.
pub(super) fn read(message: &Message, stream: &str) -> AckReply {
    match message.status {
        Some(StatusCode::NO_RESPONDERS) => AckReply::NobodyListens,
        status => read_payload(status, &message.payload, stream),
    }
}

/// The place of a message in the usual answer, as the server writes it: `{"stream":"S", "seq":7}`.
fn usual(payload: &[u8], stream: &str) -> Option<u64> {
    let rest = payload.strip_prefix(br#"{"stream":""#)?.strip_prefix(stream.as_bytes())?;
    let number = std::str::from_utf8(rest.strip_prefix(br#"", "seq":"#)?.strip_suffix(b"}")?).ok()?;
    number.bytes().all(|digit| digit.is_ascii_digit()).then(|| number.parse().ok())?
}

fn read_payload(status: Option<StatusCode>, payload: &[u8], stream: &str) -> AckReply {
    if let Some(number) = usual(payload, stream) {
        return AckReply::Stored(Position { number, repeat: false });
    }
    let StreamAnswer { error, stream: named, seq: number, duplicate: repeat } =
        serde_json::from_slice(payload).unwrap_or_default();
    match (error, status, named) {
        (Some(Error { number: codes::OTHER_STREAM, text, .. }), ..) => {
            AckReply::OtherStream(format!("another stream than {stream} answers: {text} ({})", codes::OTHER_STREAM))
        }
        (Some(Error { number, text, .. }), ..) => {
            AckReply::Refused(Refusal::new(codes::kind(number), format!("{text} ({number})")))
        }
        // A server that has no room for the message says so by a status; the error beside it says more.
        (None, Some(status), _) => AckReply::Refused(Refusal::new(Refused::Broker, format!("status {status}"))),
        (None, None, None) => AckReply::Foreign,
        (None, None, Some(other)) if other != stream => {
            AckReply::OtherStream(format!("the stream {other} answers, not the stream {stream}"))
        }
        // A repeat is stored as well, where it was the first time.
        (None, None, Some(_)) => AckReply::Stored(Position { number, repeat }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::brokers::RefusalReason;

    fn verdict(payload: &str) -> AckReply {
        read_payload(None, payload.as_bytes(), "S")
    }

    fn error(code: u64, number: u64) -> AckReply {
        let error = format!(r#"{{"code":{code},"err_code":{number},"description":"why"}}"#);
        verdict(&format!(r#"{{"error":{error},"stream":"S","seq":0}}"#))
    }

    fn refused(kind: Refused, text: &str) -> AckReply {
        AckReply::Refused(Refusal::new(kind, text))
    }

    #[test]
    fn takes_only_the_streams_own_word_as_stored() {
        let stored = |number, repeat| AckReply::Stored(Position { number, repeat });
        assert_eq!(verdict(r#"{"stream":"S","seq":1}"#), stored(1, false));
        let usual =
            [(r#"{"stream":"S", "seq":18446744073709551615}"#, u64::MAX), (r#"{"stream":"S", "seq":1}"#, 1)];
        for (payload, number) in usual {
            assert_eq!(super::usual(payload.as_bytes(), "S"), Some(number));
            assert_eq!(verdict(payload), stored(number, false));
        }
        for payload in [r#"{"stream":"S", "seq":}"#, r#"{"stream":"S", "seq":+1}"#, r#"{"stream":"ST", "seq":1}"#] {
            assert_eq!(super::usual(payload.as_bytes(), "S"), None, "{payload}");
        }
        assert_eq!(verdict(r#"{"stream":"S", "domain":"hub", "seq":7,"duplicate": true}"#), stored(7, true));
        assert_eq!(verdict(r#"{"stream":"S","seq":2,"duplicate":false}"#), stored(2, false));
        let other = "the stream T answers, not the stream S";
        assert_eq!(verdict(r#"{"stream":"T","seq":1}"#), AckReply::OtherStream(other.to_owned()));
        let other = "another stream than S answers: why (10060)";
        assert_eq!(error(400, 10060), AckReply::OtherStream(other.to_owned()));
        for payload in ["", "{", "[]", "null", "{}", r#"{"seq":1}"#, r#"{"error":1}"#] {
            assert_eq!(verdict(payload), AckReply::Foreign, "{payload}");
        }
    }

    #[test]
    fn tells_what_a_refusal_is_about() {
        for (code, number, kind) in [
            (503, 10077, Refused::AddressUnable),
            (503, 10023, Refused::Broker),
            (400, 10002, Refused::Broker),
            (400, 10120, Refused::Broker),
            (400, 10109, Refused::AddressUnable),
            (500, 10047, Refused::Broker),
            (409, 10158, Refused::AddressUnable),
            (429, 10167, Refused::Broker),
            (503, 10008, Refused::Broker),
            (400, 10999, Refused::Broker),
            (400, 0, Refused::Broker),
            (400, 10054, Refused::Event(RefusalReason::TooLarge)),
            (400, 10097, Refused::Event(RefusalReason::TooLarge)),
            (404, 10059, Refused::AddressWrong(RefusalReason::NoDestination)),
        ] {
            assert_eq!(error(code, number), refused(kind, &format!("why ({number})")));
        }
    }

    #[test]
    fn reads_an_answer_that_carries_a_status() {
        let status = StatusCode::from_u16(429).unwrap();
        let payload =
            r#"{"error":{"code":429,"err_code":10167,"description":"too many requests"},"stream":"S","seq":0}"#;
        let expected = refused(Refused::Broker, "too many requests (10167)");
        assert_eq!(read_payload(Some(status), payload.as_bytes(), "S"), expected);
        assert_eq!(read_payload(Some(status), b"", "S"), refused(Refused::Broker, "status 429"));
    }
}
