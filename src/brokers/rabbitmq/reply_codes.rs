//! What each reply code of AMQP 0-9-1 says about an event: the one table of them.

/// Whose state a reply code is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyKind {
    /// The event itself: the broker will never take it.
    Event,
    /// Its address: missing, unroutable, not authorised.
    AddressWrong,
    /// Its address, which takes nothing for now.
    AddressUnable,
    /// The broker, or the connection to it: nothing that is said about an event.
    Broker,
}

/// Returns the kind of a reply code. One that is not known refuses no event.
pub(super) fn kind(code: u16) -> ReplyKind {
    match code {
        // content-too-large; precondition-failed: to a publish it is RabbitMQ's answer to a body above its limit, or to a
        // property that it does not take.
        311 | 406 => ReplyKind::Event,
        // no-route, access-refused, not-found
        312 | 403 | 404 => ReplyKind::AddressWrong,
        // no-consumers, resource-locked
        313 | 405 => ReplyKind::AddressUnable,
        // connection-forced, invalid-path, frame-error, syntax-error, command-invalid, channel-error, unexpected-frame,
        // resource-error, not-allowed, not-implemented, internal-error: 320, 402, 501-506, 530, 540, 541.
        _ => ReplyKind::Broker,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every constant of the specification.
    const CODES: [(u16, &str, ReplyKind); 19] = [
        (311, "content-too-large", ReplyKind::Event),
        (312, "no-route", ReplyKind::AddressWrong),
        (313, "no-consumers", ReplyKind::AddressUnable),
        (320, "connection-forced", ReplyKind::Broker),
        (402, "invalid-path", ReplyKind::Broker),
        (403, "access-refused", ReplyKind::AddressWrong),
        (404, "not-found", ReplyKind::AddressWrong),
        (405, "resource-locked", ReplyKind::AddressUnable),
        (406, "precondition-failed", ReplyKind::Event),
        (501, "frame-error", ReplyKind::Broker),
        (502, "syntax-error", ReplyKind::Broker),
        (503, "command-invalid", ReplyKind::Broker),
        (504, "channel-error", ReplyKind::Broker),
        (505, "unexpected-frame", ReplyKind::Broker),
        (506, "resource-error", ReplyKind::Broker),
        (530, "not-allowed", ReplyKind::Broker),
        (540, "not-implemented", ReplyKind::Broker),
        (541, "internal-error", ReplyKind::Broker),
        (200, "reply-success", ReplyKind::Broker),
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
            assert_eq!(kind(code), ReplyKind::Broker, "{code}");
        }
    }
}
