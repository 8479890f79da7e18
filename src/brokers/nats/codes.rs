//! The error codes of JetStream as answers to a message: what each is about, in one table.
//!
//! Source: the server's `errors.json`.

use crate::brokers::RefusalReason::{NoDestination, TooLarge};
use crate::brokers::Refused::{self, AddressUnable, AddressWrong, Broker, Event};

/// The header `Nats-Expected-Stream` names ours, and another stream takes the subject, too.
pub(super) const OTHER_STREAM: u64 = 10060;

/// Number, the server's name for it, what it is about. Every other code is about the broker.
const KNOWN: [(u64, &str, Refused); 14] = [
    (10054, "JSStreamMessageExceedsMaximumErr", Event(TooLarge)),
    (10059, "JSStreamNotFoundErr", AddressWrong(NoDestination)),
    // Only where our stream does not take the subject.
    (OTHER_STREAM, "JSStreamNotMatchErr", AddressWrong(NoDestination)),
    // Full with `discard = new`, for the stream or one subject, or a store that failed.
    (10077, "JSStreamStoreFailedF", AddressUnable),
    (10096, "JSStreamInvalidErr", AddressUnable),
    (10097, "JSStreamHeaderExceedsMaximumErr", Event(TooLarge)),
    (10109, "JSStreamSealedErr", AddressUnable),
    (10118, "JSStreamOfflineErr", AddressUnable),
    // The same message was sent before, and is not stored yet.
    (10158, "JSStreamDuplicateMessageConflict", AddressUnable),
    // A stream of counters takes none of the bridge's messages.
    (10169, "JSMessageIncrMissingErr", AddressUnable),
    (10170, "JSMessageIncrPayloadErr", AddressUnable),
    (10171, "JSMessageIncrInvalidErr", AddressUnable),
    (10172, "JSMessageCounterBrokenErr", AddressUnable),
    (10194, "JSStreamOfflineReasonErrF", AddressUnable),
];

/// The subject of the error of this number.
pub(super) fn kind(number: u64) -> Refused {
    let known = KNOWN.iter().find(|(known, _, _)| *known == number);
    known.map_or(Broker, |(_, _, kind)| *kind)
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
        let is_blamed = |number: &u64| matches!(kind(*number), Event(_) | AddressWrong(_));
        let blamed: Vec<u64> = list().into_keys().filter(is_blamed).collect();
        assert_eq!(blamed, [10054, 10059, 10060, 10097]);
        for unknown in [0, 1, 10_001, 10_999, u64::MAX] {
            assert_eq!(kind(unknown), Broker);
        }
    }

    #[test]
    fn blames_no_message_for_what_is_full_short_or_unavailable() {
        let words =
            ["Resource", "Limit", "Storage", "NotAvail", "Offline", "Sealed", "TooMany", "NotActive", "NotLeader"];
        let mut found = 0;
        for (number, (code, name)) in list() {
            if code >= 429 || words.iter().any(|word| name.contains(word)) {
                assert!(matches!(kind(number), AddressUnable | Broker), "{number} {name}");
                found += 1;
            }
        }
        assert!(found > 40, "{found} codes");
    }
}
