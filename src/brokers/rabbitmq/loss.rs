//! Judges the end of a channel by a table of AMQP's reply codes: its subject, and what is remembered of it.

use std::time::Instant;

use crate::brokers::rabbitmq::connection::describe;
use crate::brokers::rabbitmq::memory::ExchangeMemory;
use crate::brokers::{Refusal, RefusalReason, Refused, SessionError};

/// Returns the kind of a reply code. One that is not known refuses no event.
fn kind(code: u16) -> Refused {
    match code {
        // content-too-large
        311 => Refused::Event(RefusalReason::TooLarge),
        // precondition-failed: to a publish it is RabbitMQ's answer to a body above its limit, or to a property that it
        // does not take.
        406 => Refused::Event(RefusalReason::Other),
        // no-route, access-refused, not-found
        312 => Refused::AddressWrong(RefusalReason::Unroutable),
        403 => Refused::AddressWrong(RefusalReason::NotAuthorised),
        404 => Refused::AddressWrong(RefusalReason::NoDestination),
        // no-consumers, resource-locked
        313 | 405 => Refused::AddressUnable,
        // connection-forced, invalid-path, frame-error, syntax-error, command-invalid, channel-error, unexpected-frame,
        // resource-error, not-allowed, not-implemented, internal-error: 320, 402, 501-506, 530, 540, 541.
        _ => Refused::Broker,
    }
}

/// The subject of the error that ended a channel. What it says of an exchange, a routing key or the largest size is
/// remembered.
pub(super) fn refusal(error: &lapin::Error, memory: &mut ExchangeMemory) -> Refusal {
    let text = describe(error);
    let code = match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => error.get_id(),
        _ => 0,
    };
    let kind = match kind(code) {
        Refused::Event(_) if text.contains("message size") => Refused::Event(RefusalReason::TooLarge),
        kind => kind,
    };
    match kind {
        Refused::Event(_) => {
            if let Some(largest) = largest(&text) {
                memory.limit(largest, Instant::now());
            }
        }
        Refused::AddressWrong(reason) => {
            if let Some((exchange, key)) = place(&text) {
                memory.doubt(exchange, key, reason);
            }
        }
        Refused::AddressUnable | Refused::Broker => {}
    }
    Refusal::new(kind, text)
}

/// The meaning of such an error for a session. Where it names the exchange, the next one sends to that with care.
pub(super) fn judge(error: &lapin::Error, memory: &mut ExchangeMemory) -> SessionError {
    let refusal = refusal(error, memory);
    match refusal.kind {
        Refused::Event(_) => SessionError::suspect(refusal),
        Refused::AddressWrong(_) if place(&refusal.text).is_none() => SessionError::suspect(refusal),
        _ => SessionError::lost(refusal.text),
    }
}

/// The exchange that an error is about, and the routing key if it is about that only.
fn place(text: &str) -> Option<(&str, Option<&str>)> {
    let of_key = text.split_once("access to topic '").and_then(|(_, rest)| rest.split_once("' in exchange '"));
    let (key, rest) = if let Some((key, rest)) = of_key {
        (Some(key), rest)
    } else {
        let starts = ["no exchange '", "access to exchange '", "cannot publish to internal exchange '"];
        (None, starts.iter().find_map(|start| text.split_once(start))?.1)
    };
    // A name may contain a quote; what follows it does not.
    rest.rsplit_once("' in vhost").map(|(name, _)| (name, key))
}

/// The limit in `message size 600 is larger than configured max size 512`.
fn largest(text: &str) -> Option<usize> {
    let number = text.split_once("larger than configured max size ")?.1;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPError;

    use super::*;
    use crate::brokers::Cause;

    fn error(code: u16, text: &str) -> lapin::Error {
        lapin::ErrorKind::ProtocolError(AMQPError::from_id(code, text.into()).unwrap()).into()
    }

    #[test]
    fn remembers_the_exchange_or_the_key_that_has_ended_a_channel() {
        for (code, text, key, other) in [
            (404, "NOT_FOUND - no exchange 'other' in vhost '/'", true, true),
            (403, "ACCESS_REFUSED - access to exchange 'other' in vhost '/' refused for user 'u'", true, true),
            (403, "ACCESS_REFUSED - cannot publish to internal exchange 'other' in vhost '/'", true, true),
            (
                403,
                "ACCESS_REFUSED - access to topic 'k' in exchange 'other' in vhost '/' refused for user 'u'",
                true,
                false,
            ),
        ] {
            let mut memory = ExchangeMemory::default();
            assert_eq!(judge(&error(code, text), &mut memory), SessionError::lost(text));
            assert_eq!([memory.is_doubted("other", "k"), memory.is_doubted("other", "l")], [key, other], "{text}");
            assert!(!memory.is_doubted("x", "k"));
        }
    }

    #[test]
    fn suspects_a_message_where_the_error_names_no_exchange() {
        let mut memory = ExchangeMemory::default();
        let loss = judge(&error(403, "ACCESS_REFUSED"), &mut memory);
        let refusal = Refusal::wrong(RefusalReason::NotAuthorised, "ACCESS_REFUSED");
        assert_eq!(loss.suspect, Cause::Message(refusal));
    }

    #[test]
    fn learns_the_largest_size() {
        let text = "PRECONDITION_FAILED - message size 600 is larger than configured max size 512";
        let mut memory = ExchangeMemory::default();
        let loss = judge(&error(406, text), &mut memory);
        assert_eq!(loss.suspect, Cause::Message(Refusal::event(RefusalReason::TooLarge, text)));
        let is_refused = |size| memory.too_large(size, Instant::now()).is_some();
        assert!(!is_refused(512) && is_refused(513));
    }

    #[test]
    fn suspects_no_message_for_a_code_that_says_nothing_of_one() {
        for code in [320, 405, 501, 502, 503, 504, 505, 506, 530, 540, 541] {
            let loss = judge(&error(code, "no more of this"), &mut ExchangeMemory::default());
            assert_eq!(loss, SessionError::lost("no more of this"), "{code}");
        }
    }

    /// Every constant of the specification.
    const CODES: [(u16, &str, Refused); 19] = [
        (311, "content-too-large", Refused::Event(RefusalReason::TooLarge)),
        (312, "no-route", Refused::AddressWrong(RefusalReason::Unroutable)),
        (313, "no-consumers", Refused::AddressUnable),
        (320, "connection-forced", Refused::Broker),
        (402, "invalid-path", Refused::Broker),
        (403, "access-refused", Refused::AddressWrong(RefusalReason::NotAuthorised)),
        (404, "not-found", Refused::AddressWrong(RefusalReason::NoDestination)),
        (405, "resource-locked", Refused::AddressUnable),
        (406, "precondition-failed", Refused::Event(RefusalReason::Other)),
        (501, "frame-error", Refused::Broker),
        (502, "syntax-error", Refused::Broker),
        (503, "command-invalid", Refused::Broker),
        (504, "channel-error", Refused::Broker),
        (505, "unexpected-frame", Refused::Broker),
        (506, "resource-error", Refused::Broker),
        (530, "not-allowed", Refused::Broker),
        (540, "not-implemented", Refused::Broker),
        (541, "internal-error", Refused::Broker),
        (200, "reply-success", Refused::Broker),
    ];

    #[test]
    fn knows_every_reply_code_of_the_specification() {
        for (code, name, expected) in CODES {
            assert_eq!(kind(code), expected, "{code} {name}");
        }
    }

    #[test]
    fn refuses_no_event_for_a_code_that_is_not_known() {
        for code in (0..=u16::MAX).filter(|code| !CODES.iter().any(|(known, ..)| known == code)) {
            assert_eq!(kind(code), Refused::Broker, "{code}");
        }
    }
}
