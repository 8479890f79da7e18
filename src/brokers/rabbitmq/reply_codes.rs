//! The subject of each reply code of AMQP 0-9-1, as one table.

use crate::brokers::{RefusalReason, Refused};

/// Returns the kind of a reply code. One that is not known refuses no event.
pub(super) fn kind(code: u16) -> Refused {
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

#[cfg(test)]
mod tests {
    use super::*;

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
