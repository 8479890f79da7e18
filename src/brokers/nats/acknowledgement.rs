//! Reads the answers to messages that arrive on the inbox.

use std::collections::BTreeMap;

use async_nats::{Message, StatusCode};
use serde_json::value::RawValue;

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
    /// Another stream has it.
    OtherStream(String),
    /// Not from a stream: another subscriber replied.
    Foreign,
}

/// Reads the answer to a message for this stream.
pub(super) fn read(message: &Message, stream: &str) -> AckReply {
    match message.status {
        Some(StatusCode::NO_RESPONDERS) => AckReply::NobodyListens,
        Some(status) => read_status(status, &message.payload),
        None => read_payload(&message.payload, stream),
    }
}

/// A server that has no room for the message says so by a status; the error beside it says more.
fn read_status(status: StatusCode, payload: &[u8]) -> AckReply {
    let fields = serde_json::from_slice::<BTreeMap<&str, &RawValue>>(payload).unwrap_or_default();
    let error = fields.get("error").and_then(|error| Error::read(error.get()));
    AckReply::Refused(
        error.map_or_else(|| Refusal::new(Refused::Broker, format!("status {status}")), Error::refusal),
    )
}

/// The place of a message in the usual answer, as the server writes it: `{"stream":"S", "seq":7}`.
fn usual(payload: &[u8], stream: &str) -> Option<u64> {
    let rest = payload.strip_prefix(br#"{"stream":""#)?.strip_prefix(stream.as_bytes())?;
    let number = std::str::from_utf8(rest.strip_prefix(br#"", "seq":"#)?.strip_suffix(b"}")?).ok()?;
    number.bytes().all(|digit| digit.is_ascii_digit()).then(|| number.parse().ok())?
}

fn read_payload(payload: &[u8], stream: &str) -> AckReply {
    if let Some(number) = usual(payload, stream) {
        return AckReply::Stored(Position { number, repeat: false });
    }
    // Borrowed texts in one small map: an acknowledgement has three or four keys.
    let Ok(fields) = serde_json::from_slice::<BTreeMap<&str, &RawValue>>(payload) else { return AckReply::Foreign };
    if let Some(error) = fields.get("error") {
        return match Error::read(error.get()) {
            Some(error) => AckReply::Refused(error.refusal()),
            None => AckReply::Foreign,
        };
    }
    let named = fields.get("stream").and_then(|name| serde_json::from_str::<String>(name.get()).ok());
    let Some(named) = named else { return AckReply::Foreign };
    if named != stream {
        return AckReply::OtherStream(named);
    }
    // A repeat is stored as well, where it was the first time.
    let number = fields.get("seq").and_then(|number| number.get().parse().ok()).unwrap_or(0);
    let repeat = fields.get("duplicate").is_some_and(|repeat| repeat.get() == "true");
    AckReply::Stored(Position { number, repeat })
}

/// The error object of JetStream's answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Error {
    /// The details.
    pub(super) number: u64,
    /// For people.
    pub(super) text: String,
}

impl Error {
    /// Reads `{"code":..,"err_code":..,"description":".."}`.
    pub(super) fn read(json: &str) -> Option<Self> {
        let value: serde_json::Value = serde_json::from_str(json).ok()?;
        let number = |key| value.get(key).and_then(serde_json::Value::as_u64);
        let text = value.get("description").and_then(serde_json::Value::as_str).unwrap_or("no reason given");
        number("code")?;
        Some(Self { number: number("err_code").unwrap_or(0), text: text.to_owned() })
    }

    fn refusal(self) -> Refusal {
        let Self { number, text } = self;
        Refusal::new(codes::kind(number), format!("{text} ({number})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::brokers::RefusalReason;

    fn verdict(payload: &str) -> AckReply {
        read_payload(payload.as_bytes(), "S")
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
        assert_eq!(verdict(r#"{"stream":"T","seq":1}"#), AckReply::OtherStream("T".to_owned()));
        for payload in ["", "{", "[]", "null", "{}", r#"{"seq":1}"#, r#"{"error":1}"#] {
            assert_eq!(verdict(payload), AckReply::Foreign, "{payload}");
        }
    }

    #[test]
    fn tells_what_a_refusal_is_about() {
        let wrong = Refused::AddressWrong(RefusalReason::NoDestination);
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
            (400, 10060, wrong),
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
        assert_eq!(read_status(status, payload.as_bytes()), expected);
        assert_eq!(read_status(status, b""), refused(Refused::Broker, "status 429"));
    }
}
