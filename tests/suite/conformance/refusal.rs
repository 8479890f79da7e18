//! What a broker refuses for good becomes a dead letter with its reason, and everything else flows.

use std::fs;

use serde_json::Value;

use super::rig::{Remote, Trap, judge};
use crate::support::{LIMIT, Load, Setup, said, wait_until};

/// So many events, every hundredth trapped.
const EVENTS: u64 = 2_000;
const EVERY: u64 = 100;

/// Above the limits of the brokers, which are those of Kafka and NATS by default.
const MAX_BODY: &str = "1280KiB";

fn load(text: String) -> Load {
    Load { events: EVENTS, connections: 4, keys: 12, every: Some((EVERY, "Trapped", text)), ..Load::default() }
}

fn keeps_as_dead_letters<R: Remote>(test: &str, trap: Trap) {
    let rig = R::new(test);
    let trapped = rig.trap(trap);
    let setup = Setup::new(&trapped.table).text("ingress.max_body", MAX_BODY).text("publish.refuse_after", "1s");
    let daemon = setup.start();
    let sent = load(trapped.text.clone()).send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until_empty();
    let dead = setup.dead_letters();
    let mut kept: Vec<&str> = dead.iter().filter_map(|letter| letter["id"].as_str()).collect();
    let mut wanted: Vec<&str> =
        sent.0.iter().filter(|note| note.event == "Trapped").map(|note| note.id.as_str()).collect();
    kept.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(
        kept,
        wanted,
        "exactly the trapped events are dead letters; one of them: {}",
        dead.first().map_or_else(String::new, ToString::to_string)
    );
    for letter in &dead {
        assert_eq!(letter["reason"], trapped.reason, "{letter}");
        for field in
            ["version", "time", "reason", "text", "attempts", "id", "address", "key", "headers", "event", "source"]
        {
            assert!(letter.get(field).is_some(), "no `{field}` in {letter}");
        }
        assert!(!letter["text"].as_str().unwrap_or_default().is_empty(), "no words of why: {letter}");
        assert_eq!((&letter["event"], &letter["source"]), (&"Trapped".into(), &"plextrac".into()));
    }
    assert_eq!(daemon.metric("events_dead_lettered_total", &[("reason", trapped.reason)]), EVENTS / EVERY);
    assert_eq!(status.number("/dead_letters/events"), EVENTS / EVERY);
    let out_of_order = daemon.metric("publish_out_of_order_total", &[]);
    let repeats = judge(&rig, &setup, &sent, &status, out_of_order);
    // Each refusal can cost one session, and each session repeats at most what was in flight.
    assert!(repeats <= 1000 * wanted.len(), "{repeats} repeats");
    assert_eq!(daemon.stop().code, Some(0), "a dead letter is not lost");
}

pub(super) fn keeps_what_is_too_large_as_dead_letters<R: Remote>(test: &str) {
    keeps_as_dead_letters::<R>(test, Trap::TooLarge);
}

pub(super) fn keeps_what_goes_to_a_missing_address_as_dead_letters<R: Remote>(test: &str) {
    keeps_as_dead_letters::<R>(test, Trap::Missing);
}

pub(super) fn keeps_what_goes_to_a_forbidden_address_as_dead_letters<R: Remote>(test: &str) {
    keeps_as_dead_letters::<R>(test, Trap::Forbidden);
}

pub(super) fn keeps_what_is_unroutable_as_dead_letters<R: Remote>(test: &str) {
    keeps_as_dead_letters::<R>(test, Trap::Unroutable);
}

pub(super) fn counts_refused_events_as_lost_without_a_state_directory<R: Remote>(test: &str) {
    let rig = R::new(test);
    let trapped = rig.trap(Trap::TooLarge);
    let setup = Setup::new(&trapped.table).text("ingress.max_body", MAX_BODY).without_state();
    let daemon = setup.start();
    let every = Some((50, "Trapped", trapped.text));
    let sent = Load { events: 200, every, ..Load::default() }.send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("lost"), status.count("dead_lettered"), status.count("published")), (4, 0, 196));
    assert_eq!(daemon.metric("events_lost_total", &[("reason", "refused")]), 4);
    let delivered = rig.read(196);
    assert!(!delivered.is_empty());
    for note in sent.0.iter().filter(|note| note.event != "Trapped") {
        assert!(delivered.iter().any(|message| message.id == note.id), "{} did not flow", note.cuid);
    }
    let stopped = daemon.stop();
    assert_eq!((stopped.code, stopped.count("lost")), (Some(1), 4));
}

/// The refused are listed, and arrive with the same id once the cause is fixed: through a daemon, or without one.
fn replays<R: Remote>(test: &str, trap: Trap, by: Replayer) {
    let rig = R::new(test);
    let trapped = rig.trap(trap);
    let setup = Setup::new(&trapped.table).text("ingress.max_body", MAX_BODY).text("publish.refuse_after", "0s");
    let daemon = setup.start();
    let every = Some((4, "Trapped", trapped.text));
    let sent = Load { events: 40, every, ..Load::default() }.send(&daemon.ingress).all_accepted();
    daemon.wait_until_empty();
    assert_eq!(daemon.stop().code, Some(0));
    let wanted: Vec<_> = sent.0.iter().filter(|note| note.event == "Trapped").collect();
    if trap == Trap::TooLarge {
        // Made again by the next session, without the limit.
        rig.delete();
    }
    let setup = setup.with_broker(&rig.table());
    let listed = setup.run(&["dead-letters", "list", "--json", "--reason", trapped.reason]);
    assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().count(), wanted.len(), "{}", said(&listed));
    let daemon = (by == Replayer::Daemon).then(|| setup.start());
    let done = setup.run(&["dead-letters", "replay", "--json"]);
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    let progress: Value = serde_json::from_slice(&done.stdout).expect("the result is JSON");
    assert_eq!(progress["published"], wanted.len(), "{progress}");
    assert!(setup.dead_letters().is_empty());
    if let Some(daemon) = daemon {
        let status = daemon.status();
        let counts = ["replayed", "published", "held", "mismatch"].map(|name| status.count(name));
        assert_eq!(counts, [wanted.len() as u64, wanted.len() as u64, 0, 0]);
        assert_eq!(daemon.stop().code, Some(0));
    }
    let delivered = rig.read(if trap == Trap::TooLarge { wanted.len() } else { sent.0.len() } as u64);
    for note in wanted {
        let message = delivered.iter().find(|message| message.id == note.id);
        let message = message.unwrap_or_else(|| panic!("{} did not arrive", note.id));
        assert!(message.body == note.body, "the body of {} is not the one that was signed", note.id);
    }
}

/// Who replays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replayer {
    Daemon,
    Command,
}

pub(super) fn replays_what_was_too_large_with_the_same_id<R: Remote>(test: &str) {
    replays::<R>(test, Trap::TooLarge, Replayer::Daemon);
}

pub(super) fn replays_what_went_to_a_missing_address_with_the_same_id<R: Remote>(test: &str) {
    replays::<R>(test, Trap::Missing, Replayer::Daemon);
}

pub(super) fn replays_what_was_unroutable_with_the_same_id<R: Remote>(test: &str) {
    replays::<R>(test, Trap::Unroutable, Replayer::Daemon);
}

pub(super) fn replays_what_was_forbidden_without_a_daemon<R: Remote>(test: &str) {
    replays::<R>(test, Trap::Forbidden, Replayer::Command);
}

pub(super) fn waits_with_full_dead_letters_and_goes_on_when_they_are_moved_away<R: Remote>(test: &str) {
    const MOST: u64 = 64 << 10;
    const LETTERS: usize = 12;
    let rig = R::new(test);
    let trapped = rig.trap(R::SMALL_TRAP);
    // Room for a few letters, and for at least one of the largest body.
    let padded = trapped.text + &"x".repeat(8 << 10);
    let body = padded.len() as u64 + 1024;
    let room = MOST + 2 * body;
    let setup = Setup::new(&trapped.table).text("ingress.max_body", &format!("{body}B"));
    let setup = setup.text("dead_letters.max_bytes", &format!("{room}B")).text("publish.refuse_after", "0s");
    let daemon = setup.start();
    let all = Load { events: LETTERS as u64, every: Some((1, "Trapped", padded)), ..Load::default() };
    all.send(&daemon.ingress).all_accepted();
    let store = setup.state().join("dead-letters");
    let mut moved = Vec::new();
    wait_until("all of them are dead letters", LIMIT, || {
        let entries = fs::read_dir(&store).expect("the store is there").flatten();
        let kept: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
        let bytes: u64 = kept.iter().map(|path| fs::metadata(path).map_or(0, |about| about.len())).sum();
        assert!(bytes <= room, "{bytes} bytes of dead letters, {room} may be");
        let ready = daemon.get("/readyz");
        if ready.status == 503 {
            assert!(ready.text().contains("dead letters"), "{}", ready.text());
            for path in kept {
                let to = setup.directory().join(format!("moved-{}", moved.len()));
                fs::rename(path, &to).expect("it was there just now");
                moved.push(to);
            }
        }
        daemon.status().count("held") == 0
    });
    assert!(!moved.is_empty(), "the limit was never reached");
    let lines = |path| fs::read_to_string(path).expect("it was moved here").lines().count();
    assert_eq!(moved.iter().map(lines).sum::<usize>() + setup.dead_letters().len(), LETTERS, "each once");
    assert_eq!(daemon.status().count("dead_lettered"), LETTERS as u64);
    assert_eq!(daemon.stop().code, Some(0));
}
