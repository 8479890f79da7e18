//! The error codes of JetStream as answers to a message: who is at fault, the message, its subject or neither.
//!
//! Source: the server's `errors.json`.

/// Who an error speaks of. Only the first two are a reason to refuse a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The message: this stream will never take it, whatever its state.
    Event(EventFault),
    /// The subject: it belongs to another stream.
    AddressWrong,
    /// The stream: it takes nothing at the moment.
    AddressUnable,
    /// The account, the server or the cluster, and every code that is not known.
    Broker,
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EventFault {
    /// Message or headers are larger than the stream takes.
    TooLarge,
}

/// Number, the server's name for it, who is at fault. Every other code is the broker's.
const KNOWN: [(u64, &str, Fault); 15] = [
    (10054, "JSStreamMessageExceedsMaximumErr", Fault::Event(EventFault::TooLarge)),
    (10059, "JSStreamNotFoundErr", Fault::AddressWrong),
    // The header `Nats-Expected-Stream` names ours.
    (10060, "JSStreamNotMatchErr", Fault::AddressWrong),
    // Full with `discard = new`, for the stream or one subject, or a store that failed.
    (10077, "JSStreamStoreFailedF", Fault::AddressUnable),
    (10096, "JSStreamInvalidErr", Fault::AddressUnable),
    (10097, "JSStreamHeaderExceedsMaximumErr", Fault::Event(EventFault::TooLarge)),
    (10109, "JSStreamSealedErr", Fault::AddressUnable),
    (10118, "JSStreamOfflineErr", Fault::AddressUnable),
    // The same message was sent before, and is not stored yet.
    (10158, "JSStreamDuplicateMessageConflict", Fault::AddressUnable),
    // More messages at once than the stream buffers.
    (10167, "JSStreamTooManyRequests", Fault::AddressUnable),
    // A stream of counters takes none of the bridge's messages.
    (10169, "JSMessageIncrMissingErr", Fault::AddressUnable),
    (10170, "JSMessageIncrPayloadErr", Fault::AddressUnable),
    (10171, "JSMessageIncrInvalidErr", Fault::AddressUnable),
    (10172, "JSMessageCounterBrokenErr", Fault::AddressUnable),
    (10194, "JSStreamOfflineReasonErrF", Fault::AddressUnable),
];

/// Who is at fault for the error of this number.
pub(super) fn fault(number: u64) -> Fault {
    let known = KNOWN.iter().find(|(known, _, _)| *known == number);
    known.map_or(Fault::Broker, |(_, _, fault)| *fault)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Number, code as in HTTP and name of each error that the server knows.
    fn list() -> BTreeMap<u64, (u64, &'static str)> {
        let lines = include_str!("codes.txt").lines().filter(|line| !line.starts_with('#'));
        let read = lines.map(|line| {
            let mut words = line.split(' ');
            let mut number = || words.next().unwrap().parse::<u64>().unwrap();
            let (code, number) = (number(), number());
            (number, (code, words.next().unwrap()))
        });
        read.collect()
    }

    #[test]
    fn knows_each_code_by_the_servers_name() {
        let list = list();
        assert_eq!(list.len(), 227);
        for (number, name, _) in KNOWN {
            assert_eq!(list.get(&number).map(|(_, name)| *name), Some(name), "{number}");
        }
        assert!(KNOWN.windows(2).all(|pair| pair[0].0 < pair[1].0), "in order, each once");
    }

    #[test]
    fn blames_a_message_or_its_subject_for_four_codes_of_the_whole_list_only() {
        let is_blamed = |number: &u64| matches!(fault(*number), Fault::Event(_) | Fault::AddressWrong);
        let blamed: Vec<u64> = list().into_keys().filter(is_blamed).collect();
        assert_eq!(blamed, [10054, 10059, 10060, 10097]);
        for unknown in [0, 1, 10_001, 10_999, u64::MAX] {
            assert_eq!(fault(unknown), Fault::Broker);
        }
    }

    #[test]
    fn blames_no_message_for_what_is_full_short_or_unavailable() {
        let words =
            ["Resource", "Limit", "Storage", "NotAvail", "Offline", "Sealed", "TooMany", "NotActive", "NotLeader"];
        let mut found = 0;
        for (number, (code, name)) in list() {
            if code >= 429 || words.iter().any(|word| name.contains(word)) {
                assert!(matches!(fault(number), Fault::AddressUnable | Fault::Broker), "{number} {name}");
                found += 1;
            }
        }
        assert!(found > 40, "{found} codes");
    }
}
