//! The ring alone: what is sent next, and what is known about order, after each verdict.

use std::collections::HashSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::brokers::{Refusal, RefusalReason};
use crate::delivery::backoff::Backoff;
use crate::event::{Event, Fields, Origin};

fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

pub(in crate::delivery) fn address(name: &str) -> Address {
    Address::new(&name.into(), None)
}

fn message(key: &str) -> Message {
    let origin = Origin {
        source: "a".into(),
        signature: None,
        verified: false,
        traceparent: None,
        received: SystemTime::UNIX_EPOCH,
    };
    let event = Event::new(origin, Box::default(), &Fields::default(), &[0; 32]);
    Message { event: Box::new(event), address: "topic".into(), key: key.into() }
}

pub(in crate::delivery) fn message_to(address: &str) -> Message {
    Message { address: address.into(), ..message("k") }
}

fn ring(count: usize) -> Ring {
    let mut ring = Ring::default();
    for _ in 0..count {
        ring.push(message("k"), 0);
    }
    ring
}

pub(in crate::delivery) fn hand_all(ring: &mut Ring) -> Vec<Sequence> {
    let mut order = Vec::new();
    while let Some((sequence, _, _)) = ring.next(Some(now())) {
        ring.hand(sequence, Instant::now());
        order.push(sequence);
    }
    order
}

#[test]
fn sends_again_in_order_after_a_lost_session_and_nothing_that_was_stored() {
    let mut ring = ring(5);
    assert_eq!(hand_all(&mut ring), [0, 1, 2, 3, 4]);
    ring.take(1, true).unwrap();
    ring.take(3, true).unwrap();
    ring.rewind();
    assert_eq!(ring.handed(), 0);
    assert_eq!(hand_all(&mut ring), [0, 2, 4]);
    assert_eq!((ring.span(), ring.unsettled()), (5, 3));
}

#[test]
fn sends_the_deferred_first_and_sees_that_a_younger_one_overtook_it() {
    let mut ring = ring(3);
    hand_all(&mut ring);
    ring.retry(0);
    assert!(!ring.take(1, true).unwrap().overtaken);
    ring.retry(2);
    assert_eq!(ring.next(Some(now())).unwrap().0, 0);
    hand_all(&mut ring);
    assert!(ring.take(0, true).unwrap().overtaken);
    assert!(!ring.take(2, true).unwrap().overtaken);
    assert_eq!((ring.span(), ring.begin()), (0, 3));
}

fn at(number: u64) -> Position {
    Position { number, repeat: false }
}

fn again(number: u64) -> Position {
    Position { number, repeat: true }
}

#[test]
fn knows_by_their_places_which_one_overtook() {
    let mut ring = ring(4);
    hand_all(&mut ring);
    assert!(!ring.take_at(2, at(7)).unwrap().overtaken, "sent once, in order");
    for sequence in [0, 1, 3] {
        ring.retry(sequence);
    }
    hand_all(&mut ring);
    assert!(!ring.take_at(0, again(5)).unwrap().overtaken, "stored by the first attempt, only its answer was lost");
    assert!(ring.take_at(1, at(8)).unwrap().overtaken);
    let last = ring.take_at(3, at(9)).unwrap();
    assert_eq!((last.overtaken, last.overtook, ring.span()), (false, 0, 0));
}

#[test]
fn learns_later_that_one_was_overtaken_by_another_whose_answer_was_lost() {
    let mut ring = ring(3);
    hand_all(&mut ring);
    ring.rewind();
    hand_all(&mut ring);
    let first = ring.take_at(0, at(9)).unwrap();
    assert_eq!((first.overtaken, first.overtook), (false, 0), "not known yet");
    assert_eq!(ring.take_at(1, again(5)).unwrap().overtook, 1, "it was before the first");
    assert_eq!(ring.take_at(2, again(6)).unwrap().overtook, 0, "counted once");
    ring.push(message("k"), 0);
    hand_all(&mut ring);
    assert_eq!(ring.take_at(3, again(1)).unwrap().overtook, 0, "forgotten with those it was about");
}

#[test]
fn a_message_of_another_key_overtakes_nothing() {
    let mut ring = Ring::default();
    ring.push(message("a"), 0);
    ring.push(message("b"), 0);
    hand_all(&mut ring);
    ring.retry(0);
    ring.take(1, true).unwrap();
    hand_all(&mut ring);
    assert!(!ring.take(0, true).unwrap().overtaken);
}

/// A refusal, of which the next try is due after `wait`.
pub(in crate::delivery) fn refusal(refusal: Refusal, wait: Duration) -> AddressRefusal {
    AddressRefusal { refusal, is_nacked: false, needs_room: false, backoff: Backoff::new(wait, wait), now: now() }
}

fn refuse(ring: &mut Ring, sequence: Sequence) {
    ring.park(sequence, refusal(Refusal::unable("no answer"), Duration::ZERO));
}

/// Sends what waits for its address, one after the other, each stored at the place that is given for it; returns the number counted.
fn stored_at(ring: &mut Ring, places: &[Position]) -> Vec<usize> {
    let mut counted = Vec::new();
    while let Some((sequence, _, _)) = ring.next(Some(now())) {
        ring.hand(sequence, Instant::now());
        let position = places[usize::try_from(sequence).unwrap()];
        let removed = ring.take_at(sequence, position).unwrap();
        counted.push(usize::from(removed.overtaken) + removed.overtook);
    }
    counted
}

/// The session is lost, and the next one refuses each of them.
#[test]
fn counts_none_of_those_that_a_lost_session_has_not_stored() {
    let mut ring = ring(4);
    hand_all(&mut ring);
    ring.rewind();
    hand_all(&mut ring);
    (0..4).for_each(|sequence| refuse(&mut ring, sequence));
    assert_eq!(stored_at(&mut ring, &[at(1), at(2), at(3), at(4)]), [0, 0, 0, 0]);
    assert_eq!(ring.unsettled(), 0);
}

/// The lost session stored the second and the last of them, which their places tell once they are sent again.
#[test]
fn counts_at_an_address_that_refused_what_a_lost_session_stored_before_them() {
    let mut ring = ring(4);
    hand_all(&mut ring);
    ring.rewind();
    hand_all(&mut ring);
    (0..4).for_each(|sequence| refuse(&mut ring, sequence));
    assert_eq!(stored_at(&mut ring, &[at(3), again(1), at(4), again(2)]), [0, 1, 0, 1]);
}

#[test]
fn knows_what_its_sender_took_back_before_it_was_sent() {
    let mut ring = Ring::default();
    let sequences: Vec<_> = (0..3).map(|_| crate::event::Waiter::new(None)).collect();
    for sequence in &sequences {
        let mut message = message("k");
        message.event.waiter = Some(sequence.clone());
        ring.push(message, 0);
    }
    assert!(sequences[0].send() && !sequences[0].withdraw());
    ring.hand(0, Instant::now());
    assert!(sequences[2].withdraw());
    assert_eq!(ring.withdrawn(), [2]);
    ring.take(2, false).unwrap();
    assert_eq!((ring.withdrawn(), ring.unsettled()), (vec![], 2));
}

/// The stream stored the youngest alone, and all others are refused one after the other, the first of which parks the address.
#[test]
fn counts_each_that_a_younger_one_overtook_before_the_address_was_parked() {
    let mut ring = ring(4);
    hand_all(&mut ring);
    assert_eq!(ring.take_at(3, at(1)).unwrap().overtook, 0);
    (0..3).for_each(|sequence| refuse(&mut ring, sequence));
    assert_eq!((stored_at(&mut ring, &[at(2), at(3), at(4)]), ring.unsettled()), (vec![1, 1, 1], 0));
}

#[test]
fn lets_others_pass_an_address_that_takes_no_more() {
    let mut ring = Ring::default();
    for address in ["a", "b", "a", "b"] {
        ring.push(message_to(address), 0);
    }
    ring.hold_back(0);
    assert_eq!(hand_all(&mut ring), [1, 3]);
    ring.push(message_to("a"), 0);
    assert!(ring.next(Some(now())).is_none());
    ring.look_again();
    assert_eq!(hand_all(&mut ring), [0, 2, 4]);
}

#[test]
fn lets_another_key_pass_where_each_key_is_an_address() {
    let mut ring = Ring::new(true);
    for key in ["a", "b", "a"] {
        ring.push(message(key), 0);
    }
    ring.hold_back(0);
    assert_eq!(hand_all(&mut ring), [1]);
    ring.look_again();
    assert_eq!(hand_all(&mut ring), [0, 2]);
}

#[test]
fn counts_a_stalled_address_neither_in_flight_nor_in_its_span() {
    let mut ring = Ring::default();
    for address in ["a", "a", "b", "a"] {
        ring.push(message_to(address), 0);
    }
    for sequence in 0..3 {
        ring.hand(sequence, Instant::now());
    }
    ring.stall(&address("a"), 0);
    assert_eq!((ring.handed(), ring.in_flight(), ring.span(), ring.unsettled()), (1, 3, 2, 4));
    assert!(ring.take(2, true).is_some());
    ring.push(message_to("a"), 0);
    ring.push(message_to("b"), 0);
    assert_eq!((ring.span(), ring.unsettled(), ring.begin()), (1, 5, 5));
    assert_eq!(hand_all(&mut ring), [5]);
    // Not the one that is waited for.
    assert!(ring.take(1, true).is_some());
    assert!(ring.next(Some(now())).is_none() && ring.destinations.is_closed(&address("a")));
    assert!(ring.take(0, true).is_some());
    assert_eq!((ring.handed(), ring.in_flight(), ring.begin()), (1, 1, 3));
    assert_eq!(hand_all(&mut ring), [3, 4]);
    assert!(ring.take(4, true).is_some() && ring.take(3, true).is_some() && ring.take(5, true).is_some());
    assert_eq!((ring.handed(), ring.in_flight(), ring.span(), ring.unsettled()), (0, 0, 0, 0));
}

#[test]
fn sees_at_a_stalled_address_too_that_a_younger_one_overtook() {
    let mut ring = ring(3);
    hand_all(&mut ring);
    ring.stall(&address("topic"), 0);
    ring.retry(0);
    assert!(!ring.take(1, true).unwrap().overtaken);
    assert_eq!(hand_all(&mut ring), [0]);
    assert!(ring.take(0, true).unwrap().overtaken);
    assert!(!ring.take(2, true).unwrap().overtaken);
}

#[test]
fn knows_no_sequence_twice() {
    let mut ring = ring(2);
    hand_all(&mut ring);
    assert!(ring.take(0, true).is_some());
    assert!(ring.take(0, true).is_none());
    assert!(ring.take(7, true).is_none());
    ring.retry(0);
    assert_eq!(ring.handed(), 1);
}

const ADDRESSES: [&str; 3] = ["a", "b", "c"];

proptest! {
    /// For any mix of verdicts, stalled addresses and lost sessions: handed-over counts agree, an address is sent oldest
    /// first, nothing stored is sent again, and in the end everything is settled.
    #[test]
    fn settles_everything_in_the_end(steps in proptest::collection::vec((0u8..8, 0usize..20), 1..200)) {
        let mut ring = Ring::default();
        let mut outstanding: Vec<Sequence> = Vec::new();
        let mut stored = HashSet::new();
        let mut pushed = 0u64;
        for (step, at) in steps {
            match step {
                0 | 5 => { ring.push(message_to(ADDRESSES[at % 3]), 0); pushed += 1; }
                6 => {
                    ring.look_again();
                    ring.hold_back(at as Sequence);
                }
                7 if !outstanding.is_empty() => {
                    let unanswered = ring.unanswered();
                    if let Some(seen) = unanswered.get(&address(ADDRESSES[at % 3])) {
                        ring.stall(&address(ADDRESSES[at % 3]), seen.oldest);
                    }
                }
                1 => {
                    let addresses: Vec<_> = ring.entries().map(|(sequence, entry)| (sequence, entry.address.clone())).collect();
                    let address = |sequence| addresses.iter().find(|(other, _)| *other == sequence).map(|(_, address)| address.clone());
                    let order = hand_all(&mut ring);
                    for name in ADDRESSES {
                        let of = order.iter().filter(|sequence| address(**sequence).as_deref() == Some(name));
                        prop_assert!(of.is_sorted());
                    }
                    prop_assert!(order.iter().all(|sequence| !stored.contains(sequence)));
                    outstanding.extend(order);
                }
                2 if !outstanding.is_empty() => {
                    let sequence = outstanding.swap_remove(at % outstanding.len());
                    prop_assert!(ring.take(sequence, true).is_some());
                    stored.insert(sequence);
                }
                3 if !outstanding.is_empty() => ring.retry(outstanding.swap_remove(at % outstanding.len())),
                4 => { ring.rewind(); outstanding.clear(); }
                _ => {}
            }
            prop_assert_eq!(ring.in_flight(), outstanding.len());
            prop_assert!(ring.handed() <= outstanding.len());
            prop_assert_eq!(ring.unanswered().values().map(|seen| seen.messages).sum::<usize>(), outstanding.len());
            let apart = ring.destinations.entries().map(|(_, entry)| entry.record_bytes()).sum::<u64>();
            prop_assert_eq!(ring.destinations.record_bytes(), apart);
            prop_assert_eq!(ring.unsettled() as u64, pushed - stored.len() as u64);
        }
        ring.rewind();
        for sequence in hand_all(&mut ring) {
            prop_assert!(ring.take(sequence, true).is_some());
        }
        prop_assert_eq!(ring.span(), 0);
    }
}

#[test]
fn what_is_behind_a_damaged_event_is_sent_at_once() {
    let mut ring = Ring::default();
    ring.adopt([(5, 100)].into_iter());
    let message = message_to("a");
    ring.rendered(5, &message.address, &message.key, SystemTime::UNIX_EPOCH);
    let behind = ring.push(message, 0);
    let now = Some(now());
    assert!(ring.next(now).is_none(), "it waits for the one before it");
    assert!(ring.destinations.take_unloaded(5, None).is_some(), "its record is damaged");
    assert_eq!(ring.next(now).map(|(sequence, ..)| sequence), Some(behind));
}

/// A reload of routes: younger ones of an address wait until all unloaded ones have got theirs.
#[test]
fn nothing_younger_is_sent_or_refused_while_addresses_are_rendered_anew() {
    let mut ring = Ring::default();
    ring.adopt([(5, 100), (6, 100)].into_iter());
    let message = message_to("a");
    for number in [5, 6] {
        ring.rendered(number, &message.address, &message.key, SystemTime::UNIX_EPOCH);
    }
    ring.push(message_to("a"), 0);
    refuse(&mut ring, 2);
    ring.destinations.render_unloaded();
    assert!(ring.next(Some(now())).is_none(), "both may belong before it");
    ring.rendered(5, &"b".into(), &message.key, SystemTime::UNIX_EPOCH);
    assert!(ring.next(Some(now())).is_none(), "the other one may still");
    let is_overdue = |ring: &Ring| !ring.destinations.overdue(Duration::ZERO, None, 10).is_empty();
    let refused = refusal(Refusal::wrong(RefusalReason::NoDestination, "not here"), Duration::from_hours(1));
    ring.park(2, AddressRefusal { now: now() + Duration::from_secs(1), ..refused });
    assert!(!is_overdue(&ring), "neither is it refused before them");
    ring.rendered(6, &"b".into(), &message.key, SystemTime::UNIX_EPOCH);
    assert!(is_overdue(&ring));
    let later = Some(now() + Duration::from_secs(2));
    assert_eq!(ring.next(later).map(|(sequence, ..)| sequence), Some(2));
}

/// Each of them may be sent in any round, and a round ends soon.
#[test]
fn tries_a_limited_number_of_addresses_in_a_round_and_all_of_them_in_turn() {
    let mut ring = Ring::default();
    for at in 0..5_000 {
        ring.push(message_to(&format!("a{at}")), 0);
    }
    assert_eq!(hand_all(&mut ring).len(), 5_000);
    (0..5_000).for_each(|sequence| refuse(&mut ring, sequence));
    let (mut tried, mut rounds) = (HashSet::new(), 0);
    while tried.len() < 5_000 {
        ring.destinations.begin_round();
        ring.destinations.look_again();
        let order = hand_all(&mut ring);
        assert!((1..=256).contains(&order.len()), "{} in a round", order.len());
        tried.extend(order);
        rounds += 1;
    }
    assert_eq!((rounds, ring.in_flight()), (20, 5_000));
    assert!(ring.next(Some(now())).is_none());
}
