//! What came back on the inbox for a message, as a verdict.
//!
//! Source of the numbers: the server's `errors.json`.

use std::collections::BTreeMap;

use async_nats::{Message, StatusCode};
use serde_json::value::RawValue;

use crate::brokers::{Refusal, RefusalReason, Verdict};

/// What an answer on the inbox says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AckReply {
    /// The stream's word.
    Verdict(Verdict),
    /// Nobody listens on this subject: gone, or never there?
    NobodyListens,
    /// Not from a stream: somebody else subscribed and replied.
    Foreign,
}

/// Reads the answer to a message for this stream.
pub(super) fn read(message: &Message, stream: &str) -> AckReply {
    match message.status {
        Some(StatusCode::NO_RESPONDERS) => AckReply::NobodyListens,
        Some(_) => AckReply::Foreign,
        None => read_payload(&message.payload, stream),
    }
}

fn read_payload(payload: &[u8], stream: &str) -> AckReply {
    // Borrowed texts in one small map: an acknowledgement has three or four keys.
    let Ok(fields) = serde_json::from_slice::<BTreeMap<&str, &RawValue>>(payload) else { return AckReply::Foreign };
    if let Some(error) = fields.get("error") {
        return match Error::read(error.get()) {
            Some(error) => AckReply::Verdict(error.verdict()),
            None => AckReply::Foreign,
        };
    }
    // A duplicate is stored as well: `"duplicate": true` beside the same stream.
    let named = fields.get("stream").and_then(|name| serde_json::from_str::<String>(name.get()).ok());
    if named.as_deref() == Some(stream) { AckReply::Verdict(Verdict::Stored) } else { AckReply::Foreign }
}

/// The error object of JetStream's answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Error {
    /// As in HTTP.
    pub(super) code: u64,
    /// What exactly.
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
        Some(Self { code: number("code")?, number: number("err_code").unwrap_or(0), text: text.to_owned() })
    }

    fn verdict(self) -> Verdict {
        let Self { code, number, text } = self;
        let reason = match (number, code) {
            // 10077 store failed, full with discard new among it; 10023 resources, 10047 storage; 10158 the same id is
            // being stored at this moment; 429 too many requests.
            (10077 | 10023 | 10047 | 10158, _) | (_, 429 | 500..) => {
                return Verdict::RetryLater(format!("{text} ({number})"));
            }
            (10054, _) => RefusalReason::TooLarge,
            (10060, _) => RefusalReason::NoDestination,
            _ => RefusalReason::Other,
        };
        Verdict::Refused(Refusal::new(reason, format!("{text} ({number})")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(payload: &str) -> AckReply {
        read_payload(payload.as_bytes(), "S")
    }

    fn error(code: u64, number: u64) -> AckReply {
        let error = format!(r#"{{"code":{code},"err_code":{number},"description":"why"}}"#);
        verdict(&format!(r#"{{"error":{error},"stream":"S","seq":0}}"#))
    }

    #[test]
    fn takes_only_the_streams_own_word_as_stored() {
        let stored = AckReply::Verdict(Verdict::Stored);
        assert_eq!(verdict(r#"{"stream":"S","seq":1}"#), stored);
        assert_eq!(verdict(r#"{"stream":"S","domain":"hub","seq":1,"duplicate":true}"#), stored);
        for payload in ["", "{", "[]", "null", "{}", r#"{"seq":1}"#, r#"{"stream":"T","seq":1}"#, r#"{"error":1}"#]
        {
            assert_eq!(verdict(payload), AckReply::Foreign, "{payload}");
        }
    }

    #[test]
    fn tells_refusals_for_now_from_those_for_good() {
        for (code, number) in
            [(503, 10077), (503, 10023), (500, 10047), (409, 10158), (429, 10167), (503, 1), (500, 0)]
        {
            assert_eq!(error(code, number), AckReply::Verdict(Verdict::RetryLater(format!("why ({number})"))));
        }
        for (code, number, reason) in [
            (400, 10054, RefusalReason::TooLarge),
            (400, 10060, RefusalReason::NoDestination),
            (400, 10109, RefusalReason::Other),
            (404, 0, RefusalReason::Other),
        ] {
            let refused = Verdict::Refused(Refusal::new(reason, format!("why ({number})")));
            assert_eq!(error(code, number), AckReply::Verdict(refused));
        }
    }
}
