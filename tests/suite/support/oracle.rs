//! The one judge of all tests: compares accepted events with those at the broker, and with the bridge's own account of
//! both.

use std::collections::{HashMap, HashSet};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use super::{Note, Outcome, Sent, Status};

/// One message as the broker holds it.
#[derive(Clone, Debug)]
pub(crate) struct Delivered {
    /// Topic, exchange, subject or file.
    pub(crate) address: String,
    /// The partition, where there are some.
    pub(crate) partition: u64,
    /// Record key or routing key.
    pub(crate) key: String,
    /// The id that the broker's own consumers see.
    pub(crate) id: String,
    /// The headers.
    pub(crate) headers: HashMap<String, String>,
    /// The body.
    pub(crate) body: Vec<u8>,
}

impl From<&Value> for Delivered {
    fn from(line: &Value) -> Self {
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let headers = line["headers"].as_object().into_iter().flatten();
        Self {
            address: text("address"),
            partition: line["partition"].as_u64().unwrap_or_default(),
            key: text("key"),
            id: text("id"),
            headers: headers
                .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
                .collect(),
            body: BASE64_STANDARD.decode(text("body")).expect("the reader writes base64"),
        }
    }
}

/// The facts at the end of a test.
#[derive(Debug)]
pub(crate) struct Oracle<'a> {
    /// The events as the sender knows them.
    pub(crate) sent: &'a Sent,
    /// The messages at the broker.
    pub(crate) delivered: &'a [Delivered],
    /// The bridge's dead letters.
    pub(crate) dead: &'a [Value],
    /// `publish_out_of_order_total`.
    pub(crate) out_of_order: u64,
}

impl Oracle<'_> {
    /// Checks that nothing is lost or invented, bytes are equal, ids right, and order kept. Returns the number of
    /// repeats.
    pub(crate) fn judge(&self) -> usize {
        let by_cuid: HashMap<&str, &Note> = self.sent.0.iter().map(|note| (note.cuid.as_str(), note)).collect();
        assert_eq!(by_cuid.len(), self.sent.0.len(), "the load sent a cuid twice");
        let mut first = HashSet::new();
        let mut repeats = 0;
        let mut arrived: Vec<(&Delivered, &Note)> = Vec::new();
        for message in self.delivered {
            let cuid = cuid(&message.body);
            let note = by_cuid.get(cuid.as_str());
            let note =
                note.unwrap_or_else(|| panic!("delivered but never sent: cuid {cuid:?} at {}", message.address));
            assert!(message.body == note.body, "the body of {} is not the one that was signed", note.cuid);
            assert_eq!(message.id, note.id, "the event id of {}", note.cuid);
            assert!(
                !matches!(note.outcome, Outcome::Refused(_)),
                "delivered although the sender was told {:?}: {}",
                note.outcome,
                note.cuid
            );
            if first.insert(note.cuid.as_str()) {
                arrived.push((message, note));
            } else {
                repeats += 1;
            }
        }
        let dead: HashSet<String> = self.dead.iter().map(|letter| cuid(&dead_body(letter))).collect();
        assert_eq!(dead.len(), self.dead.len(), "an event is a dead letter twice");
        let missing: Vec<&str> = self
            .sent
            .0
            .iter()
            .filter(|note| note.accepted() && !first.contains(note.cuid.as_str()) && !dead.contains(&note.cuid))
            .map(|note| note.cuid.as_str())
            .collect();
        assert!(
            missing.is_empty(),
            "{} of {} accepted events are neither delivered nor dead letters, for one {:?} and {:?}; {} messages were \
             read, {repeats} of them repeats",
            missing.len(),
            self.sent.accepted(),
            missing[0],
            missing[missing.len() - 1],
            self.delivered.len()
        );
        self.judge_order(&arrived);
        repeats
    }

    /// How many events arrived first after a later one of their key.
    pub(crate) fn late(&self) -> u64 {
        let by_cuid: HashMap<&str, &Note> = self.sent.0.iter().map(|note| (note.cuid.as_str(), note)).collect();
        let mut first = HashSet::new();
        let notes =
            self.delivered.iter().filter_map(|message| Some((message, *by_cuid.get(&*cuid(&message.body))?)));
        late(&notes.filter(|(_, note)| first.insert(note.cuid.as_str())).collect::<Vec<_>>()).len() as u64
    }

    fn judge_order(&self, arrived: &[(&Delivered, &Note)]) {
        let late = late(arrived);
        assert!(
            late.len() as u64 <= self.out_of_order,
            "{} events came after a later one of their key, the bridge counts {}; (key, number, after): {:?}",
            late.len(),
            self.out_of_order,
            &late[..late.len().min(5)]
        );
    }

    /// The bridge's own accounting agrees with the sender and with the broker.
    pub(crate) fn agrees_with(&self, status: &Status) {
        let maybe = self.sent.0.iter().filter(|note| note.outcome == Outcome::Maybe).count() as u64;
        // A withdrawn event was sent again, or its sender got a 503.
        let accepted = status.count("accepted") - status.count("withdrawn");
        let told = self.sent.accepted();
        assert!(
            (told..=told + maybe).contains(&accepted),
            "accepted {accepted}, the sender was told 200 {told} times"
        );
        assert_eq!(status.count("dead_lettered"), self.dead.len() as u64, "dead_lettered against the store");
        let different: HashSet<String> = self.delivered.iter().map(|message| cuid(&message.body)).collect();
        let (published, held) = (status.count("published"), status.count("held"));
        assert!(
            (published..=published + held).contains(&(different.len() as u64)),
            "published {published} and held {held}, the broker has {} different events",
            different.len()
        );
        assert_books_balance(status);
    }
}

/// First deliveries after a later event of their key: key, number, and the number before them.
fn late<'a>(arrived: &[(&Delivered, &'a Note)]) -> Vec<(&'a str, u64, u64)> {
    let mut last: HashMap<(&str, &str), (u64, u64)> = HashMap::new();
    let mut late = Vec::new();
    for (message, note) in arrived {
        match last.get_mut(&(note.key.as_str(), message.address.as_str())) {
            None => {
                last.insert((&note.key, &message.address), (note.sequence, message.partition));
            }
            Some((sequence, partition)) => {
                assert_eq!(*partition, message.partition, "the key {} is in two partitions", note.key);
                if note.sequence < *sequence {
                    late.push((note.key.as_str(), note.sequence, *sequence));
                } else {
                    *sequence = note.sequence;
                }
            }
        }
    }
    late
}

/// Both equations of the accounting.
pub(crate) fn assert_books_balance(status: &Status) {
    let sum = |names: &[&str]| names.iter().map(|name| status.count(name)).sum::<u64>();
    assert_eq!(
        status.count("received"),
        sum(&["accepted", "duplicate", "probe", "rejected"]),
        "received = accepted + duplicate + probe + rejected: {}",
        status.0["accounting"]
    );
    assert_eq!(
        sum(&["accepted", "recovered", "replayed"]),
        sum(&["published", "dead_lettered", "withdrawn", "lost", "held"]),
        "accepted = published + dead_lettered + withdrawn + lost + held: {}",
        status.0["accounting"]
    );
    assert_eq!(status.count("mismatch"), 0, "mismatch");
}

/// The `cuid` of a body.
fn cuid(body: &[u8]) -> String {
    let fields: Value = serde_json::from_slice(body).expect("a delivered body is JSON");
    fields["cuid"].as_str().unwrap_or_default().to_owned()
}

/// The body of a dead letter.
fn dead_body(letter: &Value) -> Vec<u8> {
    if let Some(text) = letter["body"].as_str() {
        return text.as_bytes().to_vec();
    }
    let text = letter["body_base64"].as_str();
    let text = text.unwrap_or_else(|| panic!("a dead letter without a body: {letter}"));
    BASE64_STANDARD.decode(text).expect("`body_base64` is base64")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn note(cuid: &str, sequence: u64, outcome: Outcome) -> Note {
        Note {
            cuid: cuid.to_owned(),
            id: format!("{cuid}-id"),
            event: "ReportPublished",
            key: "key".to_owned(),
            sequence,
            body: format!("{{\"cuid\":\"{cuid}\"}}").into_bytes(),
            began: Instant::now(),
            outcome,
            took: Duration::ZERO,
            answered: Instant::now(),
            retry_after: None,
        }
    }

    fn sent() -> Sent {
        Sent(vec![note("a", 0, Outcome::Accepted), note("b", 1, Outcome::Accepted), note("c", 2, Outcome::Maybe)])
    }

    fn delivered(note: &Note) -> Delivered {
        Delivered {
            address: "here".to_owned(),
            partition: 0,
            key: note.key.clone(),
            id: note.id.clone(),
            headers: HashMap::new(),
            body: note.body.clone(),
        }
    }

    /// Judges these of `sent`, in this order, after a change of the delivered messages.
    fn judge(order: &[usize], change: impl FnOnce(&mut Vec<Delivered>)) -> usize {
        let sent = sent();
        let mut delivered: Vec<Delivered> = order.iter().map(|at| delivered(&sent.0[*at])).collect();
        change(&mut delivered);
        Oracle { sent: &sent, delivered: &delivered, dead: &[], out_of_order: 0 }.judge()
    }

    #[test]
    fn counts_repeats_and_ignores_the_unanswered() {
        assert_eq!(judge(&[0, 1], |_| ()), 0);
        assert_eq!(judge(&[0, 1, 0, 1, 2], |_| ()), 2);
    }

    #[test]
    #[should_panic(expected = "1 of 2 accepted events are neither delivered nor dead letters")]
    fn sees_a_loss() {
        judge(&[0, 2], |_| ());
    }

    #[test]
    #[should_panic(expected = "came after a later one of their key")]
    fn sees_a_wrong_order() {
        judge(&[1, 0], |_| ());
    }

    #[test]
    #[should_panic(expected = "is in two partitions")]
    fn sees_a_key_in_two_partitions() {
        judge(&[0, 1], |delivered| delivered[1].partition = 1);
    }

    #[test]
    #[should_panic(expected = "is not the one that was signed")]
    fn sees_a_changed_body() {
        judge(&[0, 1], |delivered| delivered[1].body.push(b' '));
    }

    #[test]
    #[should_panic(expected = "delivered but never sent")]
    fn sees_an_invented_event() {
        judge(&[0, 1], |delivered| delivered[1].body = b"{\"cuid\":\"z\"}".to_vec());
    }
}
