//! Two bridges side by side on one broker, as behind a balancer: they share nothing but the broker, so each knows only
//! the repeats, and keeps only the order, of its own events. `docs/operations.md` describes the consequences.

use std::collections::HashMap;
use std::thread;

use crate::conformance::kafka::Kafka;
use crate::conformance::nats::Nats;
use crate::conformance::rabbitmq::Rabbitmq;
use crate::conformance::rig::{Remote, Rig};
use crate::support::{Daemon, Payload, SECRET, Setup, assert_books_balance, request_once, sign};

const ACCEPTED: &str = r#"{"status":"accepted"}"#;
const DUPLICATE: &str = r#"{"status":"duplicate"}"#;

/// Events sent to both, and then events sent to one of them, in turn.
const BOTH: usize = 100;
const EITHER: usize = 200;
const KEYS: usize = 4;

fn post(daemon: &Daemon, payload: &Payload) -> String {
    let answer = request_once(daemon, &payload.body(), &[]);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

fn payload(number: usize) -> Payload {
    let mut payload = Payload::new(format!("cuid-{number}"));
    payload.target = format!("target-{}", number % KEYS);
    payload
}

fn id(payload: &Payload) -> String {
    format!("{}-{}", payload.cuid, &sign(SECRET, &payload.body())[..12])
}

/// Starts both at once: they declare what is missing side by side.
fn start(setups: &[Setup; 2]) -> Vec<Daemon> {
    thread::scope(|scope| {
        let starting = setups.each_ref().map(|setup| scope.spawn(|| setup.start()));
        starting.into_iter().map(|start| start.join().expect("it listens")).collect()
    })
}

fn each_replica_knows_its_own_repeats_and_order<R: Rig>(test: &str) {
    let rig = R::new(test);
    let setups = [Setup::new(&rig.table()), Setup::new(&rig.table())];
    let replicas = start(&setups);
    let events: Vec<Payload> = (0..BOTH + EITHER).map(payload).collect();
    let (both, either) = events.split_at(BOTH);
    for (at, event) in both.iter().enumerate() {
        let (first, second) = (&replicas[at % 2], &replicas[(at + 1) % 2]);
        assert_eq!(post(first, event), ACCEPTED, "{}", event.cuid);
        assert_eq!(post(second, event), ACCEPTED, "{}: it has not seen it", event.cuid);
        assert_eq!(post(first, event), DUPLICATE, "{}", event.cuid);
    }
    // Both replicas get every key: 2 in turn of 4.
    let replica_of = |at: usize| at / KEYS % 2;
    for (at, event) in either.iter().enumerate() {
        assert_eq!(post(&replicas[replica_of(at)], event), ACCEPTED, "{}", event.cuid);
    }

    for replica in &replicas {
        let status = replica.wait_until_empty();
        let count = |name| status.count(name);
        let accepted = (BOTH + EITHER / 2) as u64;
        assert_eq!((count("accepted"), count("duplicate")), (accepted, BOTH as u64 / 2));
        assert_eq!(
            (count("published"), count("lost")),
            (accepted, 0),
            "a repeat that the broker drops is confirmed"
        );
        assert_books_balance(&status);
    }
    let copies = if R::DROPS_REPEATS { 1 } else { 2 };
    let delivered = rig.read((BOTH * copies + EITHER) as u64);
    let mut stored: HashMap<&str, usize> = HashMap::new();
    for message in &delivered {
        *stored.entry(&message.id).or_default() += 1;
    }
    for (at, event) in events.iter().enumerate() {
        let expected = if at < BOTH { copies } else { 1 };
        assert_eq!(stored.remove(id(event).as_str()), Some(expected), "{} is stored", event.cuid);
    }
    assert!(stored.is_empty(), "stored and never sent: {stored:?}");

    // Events of one replica are in order, key by key.
    let place: HashMap<String, usize> = either.iter().enumerate().map(|(at, event)| (id(event), at)).collect();
    let mut last: HashMap<(usize, usize), usize> = HashMap::new();
    for at in delivered.iter().filter_map(|message| place.get(&message.id)) {
        if let Some(before) = last.insert((replica_of(*at), at % KEYS), *at) {
            assert!(before < *at, "{} came after {}", either[*at].cuid, either[before].cuid);
        }
    }
    assert_eq!(last.len(), 2 * KEYS, "every key came through both");
    for replica in replicas {
        assert_eq!(replica.stop().code, Some(0));
    }
}

#[test]
fn on_kafka_each_replica_knows_its_own_repeats_and_order() {
    each_replica_knows_its_own_repeats_and_order::<Kafka>("scaling_on_kafka");
}

#[test]
fn on_rabbitmq_each_replica_knows_its_own_repeats_and_order() {
    each_replica_knows_its_own_repeats_and_order::<Rabbitmq>("scaling_on_rabbitmq");
}

#[test]
fn on_nats_each_replica_knows_its_own_repeats_and_the_stream_those_of_both() {
    each_replica_knows_its_own_repeats_and_order::<Nats>("scaling_on_nats");
}

/// Shows a limit, not a promise: the documented restriction really occurs.
#[test]
fn a_replica_that_is_behind_delivers_an_earlier_event_later() {
    let rig = Nats::proxied("a_replica_that_is_behind");
    rig.proxy().refuse();
    let behind = Setup::new(&rig.table()).start();
    let ahead = Setup::new(&rig.with_password("bridge-secret")).start();
    // The events of one key.
    let (first, second) = (payload(0), payload(KEYS));
    assert_eq!(post(&behind, &first), ACCEPTED);
    assert_eq!(post(&ahead, &second), ACCEPTED);
    ahead.wait_until_empty();
    rig.proxy().heal();
    behind.wait_until_empty();
    let arrived: Vec<String> = rig.read(2).iter().map(|message| message.id.clone()).collect();
    assert_eq!(arrived, [id(&second), id(&first)]);
    for replica in [&behind, &ahead] {
        assert_eq!(replica.metric("publish_out_of_order_total", &[]), 0, "neither can see it");
    }
}
