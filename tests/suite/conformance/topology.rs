//! Topics, queues and streams that are missing, at start or later.

use std::time::{Duration, Instant};

use super::rig::{Named, Remote};
use crate::support::{LIMIT, Load, Sent, Setup, Status, said};

/// Kafka tells of a deleted topic after 35 s at the latest, and it is left alone for 10 s.
const SEEN: Duration = Duration::from_mins(1);

/// Everything that was begun after this moment is there; what was stored before went with the topic.
fn assert_delivered_since<R: Remote>(rig: &R, sent: &Sent, since: Instant, status: &Status) {
    let late: Vec<_> = sent.0.iter().filter(|note| note.accepted() && note.began > since).collect();
    assert!(late.len() > 100, "only {} events after the deletion", late.len());
    let delivered = rig.read(late.len() as u64);
    let missing = late.iter().filter(|note| !delivered.iter().any(|message| message.id == note.id)).count();
    assert_eq!(missing, 0, "of {} events that came after the deletion", late.len());
    assert_eq!((status.count("dead_lettered"), status.count("lost")), (0, 0));
}

pub(super) fn makes_again_what_was_deleted<R: Remote>(test: &str) {
    let rig = R::new(test);
    let setup = Setup::new(&rig.table());
    let daemon = setup.start();
    let running = Load { events: 60_000, rate: 200, again: true, ..Load::default() }.start(&daemon.ingress);
    daemon.wait_until("events flow", LIMIT, |status| status.count("published") > 200);
    rig.delete();
    let since = Instant::now();
    let published = daemon.status().count("published");
    daemon.wait_until("events flow again", SEEN, |status| {
        status.count("published") > published + 400 && status.text("/broker/state") == "connected"
    });
    let sent = running.end().all_accepted();
    let status = daemon.wait_until_empty();
    assert_delivered_since(&rig, &sent, since, &status);
    assert_eq!(daemon.stop().code, Some(0));
}

pub(super) fn waits_for_what_was_deleted_until_it_is_mended<R: Remote>(test: &str) {
    let rig = R::new(test);
    rig.create();
    let setup = Setup::new(&rig.table().text("topology", "check"));
    let daemon = setup.start();
    let running = Load { events: 60_000, rate: 200, again: true, ..Load::default() }.start(&daemon.ingress);
    daemon.wait_until("events flow", LIMIT, |status| status.count("published") > 200);
    rig.delete();
    let since = Instant::now();
    daemon.wait_until("the operator is told", SEEN, |status| {
        let told = !status.text("/broker/last_error/text").is_empty()
            || status.0["broker"]["findings"] != serde_json::json!([]);
        told && status.number("/buffer/events") > 200
    });
    let published = daemon.status().count("published");
    rig.create();
    daemon.wait_until("events flow again", SEEN, |status| status.count("published") > published + 400);
    let sent = running.end().all_accepted();
    let status = daemon.wait_until_empty();
    assert_delivered_since(&rig, &sent, since, &status);
    assert_eq!(daemon.stop().code, Some(0));
}

pub(super) fn says_what_is_missing_when_it_checks<R: Remote + Named>(test: &str) {
    let rig = R::new(test);
    let setup = Setup::new(&rig.table().text("topology", "check"));
    let done = setup.run(&["check", "--connect"]);
    let said = said(&done);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains(rig.name()), "the missing {} is not named: {said}", rig.name());
}

pub(super) fn says_that_all_is_there_when_it_checks<R: Remote + Named>(test: &str) {
    let rig = R::new(test);
    rig.create();
    let setup = Setup::new(&rig.table().text("topology", "check"));
    let done = setup.run(&["check", "--connect"]);
    let said = said(&done);
    assert_eq!(done.status.code(), Some(0), "{said}");
    assert!(said.contains(rig.name()), "what was found is not named: {said}");
}
