//! Disks that fail, are full, or disappear; and a directory that belongs to another. Never a silent change of mode.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{
    Client, Daemon, LIMIT, Load, Note, Outcome, PATH, Payload, SECRET, Sent, Setup, get, request_once, said, sign,
    wait_until,
};

/// Settings with segments of a mebibyte, which a hundred events fill, and long time-outs for a busy disk.
fn small_segments(setup: Setup) -> Setup {
    setup
        .text("ack", "journaled")
        .text("journal.max_bytes", "64MiB")
        .text("publish.timeout", "60s")
        .text("ingress.max_body", "16KiB")
        .text("buffer.max_bytes", "1MiB")
}

fn large(events: u64) -> Load {
    Load { events, connections: 32, keys: 64, text: "x".repeat(8_000), ..Load::default() }
}

#[test]
fn ends_with_an_error_when_a_sync_fails_and_answers_200_to_nothing_of_that_batch_or_later() {
    // The one after the failing one would be the end of the process: there must be none.
    let points = "journal.sync=error@20,journal.sync=kill@20";
    let setup = small_segments(Setup::on_missing_files()).text("shutdown.grace", "5s").failpoints(points);
    // A slow disk has not failed: no 503 except for the failure.
    let setup = setup.text("publish.timeout", "60s");
    let daemon = setup.start();
    let running = large(5_000).start(&daemon.ingress);
    wait_until("it is unready", LIMIT, || {
        get(&daemon.admin, "/readyz").is_ok_and(|answer| answer.status == 503 && answer.text().contains("journal"))
    });
    let status = daemon.status();
    assert!(!status.text("/journal/failed").is_empty(), "{}", status.0["journal"]);
    assert_eq!(status.text("/ack"), "journaled", "never another mode");
    assert!(daemon.metric("events_rejected_total", &[("reason", "unavailable")]) > 0);
    let stopped = daemon.wait();
    assert_eq!(stopped.code, Some(1), "a second sync, or no error: {}", stopped.last);
    assert!(stopped.log.lines().any(|line| line.contains("ERROR") && line.contains("journal")), "{}", stopped.log);
    let sent = running.end();
    assert!(sent.accepted() > 0 && sent.refused(503) > 0, "{} accepted", sent.accepted());
    let first = sent.0.iter().filter(|note| note.outcome == Outcome::Refused(503)).map(|note| note.answered).min();
    let late = sent.0.iter().filter(|note| note.accepted() && Some(note.began) > first).count();
    let refusals = stopped.log.lines().filter(|line| line.contains("refused a request")).take(3);
    assert_eq!(
        late,
        0,
        "answered 200 after the disk had failed; the first 503: {:?}",
        refusals.collect::<Vec<_>>()
    );
    for note in sent.0.iter().filter(|note| note.outcome == Outcome::Refused(503)) {
        assert!(note.retry_after.is_some(), "no Retry-After");
    }
    setup.bring_the_broker_back();
    let daemon = setup.without_failpoints();
    let (setup, daemon) = (&daemon, daemon.start());
    daemon.wait_until_empty();
    // Some events of the failed batch may be on the disk nevertheless.
    setup.judge(&sent.unsure_of_503());
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn answers_503_when_a_write_fails_and_loses_nothing() {
    let setup = small_segments(Setup::on_missing_files()).text("shutdown.grace", "1s");
    let setup = setup.failpoints("journal.write=error@20");
    let mut daemon = setup.start();
    let running = large(2_000).start(&daemon.ingress);
    wait_until("the end of the load", LIMIT, || running.is_over() || daemon.has_ended());
    let sent = running.end();
    assert!(sent.accepted() > 0 && sent.refused(503) > 0, "{} accepted", sent.accepted());
    // Whether it continues or ends by itself: accepted events are delivered by this one or by the next.
    if !daemon.has_ended() {
        daemon.kill();
    }
    setup.bring_the_broker_back();
    let setup = setup.without_failpoints();
    let daemon = setup.start();
    daemon.wait_until_empty();
    setup.judge(&sent.unsure_of_503());
    assert_eq!(daemon.stop().code, Some(0));
}

/// The event that makes room again.
enum Room<'a> {
    /// The disk grows.
    Disk(&'a Mount),
    /// The broker returns: settled events make segments free.
    Broker,
}

/// While the broker is away the disk has no room for another segment, until there is room again.
fn recovers_from_a_full_disk(setup: &Setup, room: &Room<'_>) {
    let daemon = setup.start();
    let sent = large(1_500).send(&daemon.ingress);
    assert!(sent.accepted() > 50 && sent.refused(503) > 0, "{} accepted", sent.accepted());
    assert_eq!(sent.accepted() + sent.refused(503) as u64, 1_500);
    assert_eq!(daemon.get("/livez").status, 200, "a full disk is no reason to be restarted");
    assert_eq!(daemon.status().text("/ack"), "journaled", "never another mode");
    match room {
        Room::Disk(disk) => disk.resize("128m"),
        Room::Broker => setup.bring_the_broker_back(),
    }
    let mut more = Sent::default();
    wait_until("events are accepted again", LIMIT, || {
        more.0.extend(large(1).send(&daemon.ingress).0);
        more.0.last().is_some_and(Note::accepted)
    });
    if matches!(room, Room::Disk(_)) {
        setup.bring_the_broker_back();
    }
    let status = daemon.wait_until_empty();
    wait_until("it is ready again", LIMIT, || daemon.get("/readyz").status == 200);
    assert_eq!(status.count("lost"), 0);
    setup.judge(&sent.and(more).unsure_of_503());
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn tries_again_when_a_segment_could_not_be_made() {
    // Once: the next try finds room.
    let setup = small_segments(Setup::on_missing_files()).failpoints("journal.create=full@3");
    let daemon = setup.start();
    let sent = Load { again: true, ..large(600) }.send(&daemon.ingress).all_accepted();
    setup.bring_the_broker_back();
    daemon.wait_until_empty();
    wait_until("it is ready", LIMIT, || daemon.get("/readyz").status == 200);
    assert_eq!(setup.judge(&sent), 0, "repeats although nothing was sent before");
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn answers_503_while_no_segment_can_be_made_and_recovers_when_some_are_free() {
    let setup = small_segments(Setup::on_missing_files()).failpoints("journal.create=full@4+");
    recovers_from_a_full_disk(&setup, &Room::Broker);
}

/// A file system of its own, unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    /// None if mounting is not permitted.
    fn new(directory: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(directory).unwrap();
        mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], directory)
            .then(|| Self(directory.to_owned()))
    }

    fn resize(&self, size: &str) {
        assert!(mount(&["-o", &format!("remount,size={size}")], &self.0), "it was mounted before");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a daemon may still be ending.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn mount(options: &[&str], directory: &Path) -> bool {
    Command::new("mount").args(options).arg(directory).output().is_ok_and(|done| done.status.success())
}

#[test]
fn recovers_when_the_disk_was_full() {
    let setup = small_segments(Setup::on_missing_files());
    if let Some(disk) = Mount::new(&setup.state(), "8m") {
        recovers_from_a_full_disk(&setup, &Room::Disk(&disk));
    } else {
        println!("mounting is not permitted here: a failpoint stands for the full disk");
        recovers_from_a_full_disk(&setup.failpoints("journal.create=full@6+"), &Room::Broker);
    }
}

#[test]
fn stops_and_says_why_when_the_directory_is_removed_while_it_runs() {
    let setup = small_segments(Setup::on_missing_files()).text("shutdown.grace", "60s");
    let daemon = setup.start();
    let before = large(50).send(&daemon.ingress).all_accepted();
    fs::remove_dir_all(setup.state().join("journal")).unwrap();
    let running = large(100_000).start(&daemon.ingress);
    wait_until("it is unready", LIMIT, || {
        get(&daemon.admin, "/readyz").is_ok_and(|answer| answer.status == 503 && answer.text().contains("journal"))
    });
    let status = daemon.status();
    assert_eq!(status.text("/ack"), "journaled", "never another mode");
    assert!(!status.text("/journal/failed").is_empty(), "{}", status.0["journal"]);
    // It delivers the events in memory before it ends.
    setup.bring_the_broker_back();
    let stopped = daemon.wait();
    let sent = before.and(running.end()).unsure_of_503();
    assert_eq!(stopped.code, Some(1), "{}", stopped.last);
    stopped.assert_balanced();
    assert_eq!((stopped.count("lost"), stopped.count("held")), (0, 0), "{}", stopped.last);
    setup.judge(&sent);
}

#[test]
fn says_at_the_start_that_a_directory_cannot_be_one() {
    for mode in ["buffered", "journaled", "published"] {
        // A file in place of the state directory, and one in place of the journal.
        for name in ["state", "state/journal"] {
            let setup = Setup::on_files().text("ack", mode);
            let path = setup.directory().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "a file").unwrap();
            let done = setup.run(&["serve"]);
            let text = said(&done);
            assert!(matches!(done.status.code(), Some(1 | 78)), "{mode}, {name}: {:?}: {text}", done.status.code());
            assert!(text.contains(&path.display().to_string()), "{mode}: {name} is not named: {text}");
            assert!(!text.contains("panicked"), "{mode}, {name}: {text}");
            assert_eq!(fs::read(&path).unwrap(), b"a file", "{mode}: {name} was overwritten");
        }
    }
}

#[test]
fn says_at_the_start_that_the_parent_is_missing() {
    for mode in ["buffered", "journaled", "published"] {
        let setup = Setup::on_files().text("ack", mode);
        let state = setup.directory().join("none/state").display().to_string();
        let done = setup.text("state_directory", &state).run(&["serve"]);
        let text = said(&done);
        assert_eq!(done.status.code(), Some(78), "{mode}: {text}");
        assert!(text.contains(&state) && text.contains("nor its parent exists"), "{mode}: {text}");
    }
}

fn accepts(daemon: &Daemon, cuid: &str) {
    assert_eq!(request_once(daemon, &Payload::new(cuid).body(), &[]).status, 200, "{cuid}");
}

#[test]
fn keeps_a_second_daemon_out_of_its_directory_in_every_mode() {
    for mode in ["buffered", "journaled", "published"] {
        let setup = Setup::on_files().text("ack", mode);
        let daemon = setup.start();
        accepts(&daemon, "before");
        for second in ["buffered", "journaled", "published"] {
            let other = Setup::on_files().text("ack", second);
            let other = other.text("state_directory", &setup.state().display().to_string());
            let stopped = other.try_start().expect_err("a second daemon in the same state directory");
            assert_eq!(stopped.code, Some(1), "{second} beside {mode}: {}", stopped.log);
            let state = setup.state().display().to_string();
            assert!(stopped.log.contains(&state), "{second} beside {mode}: {}", stopped.log);
        }
        accepts(&daemon, "after");
        daemon.wait_until_empty();
        daemon.kill();
        // A lock that outlived its daemon would be worse than none.
        let daemon = setup.start();
        daemon.wait_until_empty();
        daemon.kill();
        // A crash may repeat what was settled a moment before.
        let arrived: BTreeSet<String> = setup.delivered().into_iter().map(|message| message.id).collect();
        assert_eq!(arrived.len(), 2, "{mode}: {arrived:?}");
    }
}

/// Accepts some, then the disk hangs at the next sync.
fn on_a_disk_that_hangs(points: &str) -> Setup {
    let setup = Setup::on_missing_files().text("ack", "journaled").text("publish.timeout", "1s");
    setup.text("buffer.max_bytes", "4MiB").text("ingress.max_body", "256KiB").failpoints(points)
}

#[test]
fn refuses_at_once_and_in_bounded_memory_while_the_disk_hangs() {
    let setup = on_a_disk_that_hangs("journal.sync=hang@3+");
    let daemon = setup.start();
    // The large ones need a while each; more of them than memory may hold.
    let load = Load { events: 100_000, connections: 18, text: "x".repeat(200_000), ..Load::default() };
    let running = load.start(&daemon.ingress);
    wait_until("it is unready", LIMIT, || {
        get(&daemon.admin, "/readyz")
            .is_ok_and(|ready| ready.status == 503 && ready.text().contains("has not completed a write"))
    });
    assert_eq!(daemon.get("/livez").status, 200, "a disk that hangs is no reason to be restarted");
    assert!(daemon.status().text("/journal/failed").contains("has not completed a write"));
    let before = daemon.resident();
    let refused = daemon.metric("events_rejected_total", &[("reason", "unavailable")]);
    wait_until("many are refused", LIMIT, || {
        daemon.metric("events_rejected_total", &[("reason", "unavailable")]) > refused + 300
    });
    let grown = daemon.resident().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more while it refuses everything");
    let began = Instant::now();
    assert_eq!(request_once(&daemon, &Payload::new("late").body(), &[]).status, 503);
    assert!(began.elapsed() < Duration::from_millis(900), "it waited {:?} for what is known", began.elapsed());
    running.end();
    daemon.kill();
}

#[test]
fn is_ready_again_by_itself_when_the_disk_answers() {
    let setup = on_a_disk_that_hangs("journal.sync=4s@1");
    let daemon = setup.start();
    let first = Payload::new("first").body();
    assert_eq!(request_once(&daemon, &first, &[]).status, 503, "the disk did not answer in time");
    wait_until("it is unready", LIMIT, || daemon.get("/readyz").status == 503);
    let second = Payload::new("second").body();
    assert_eq!(request_once(&daemon, &second, &[]).status, 503);
    // Nothing is sent meanwhile: no event is needed to find out.
    wait_until("it is ready again", LIMIT, || daemon.get("/readyz").status == 200);
    assert_eq!(request_once(&daemon, &second, &[]).text(), r#"{"status":"accepted"}"#);
    // Written although its sender got a 503: the repeat is the same event.
    assert_eq!(request_once(&daemon, &first, &[]).text(), r#"{"status":"duplicate"}"#);
    setup.bring_the_broker_back();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.number("/accounting/mismatch")), (2, 0));
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn takes_what_fits_on_a_full_disk_and_is_unready_without_flickering() {
    let setup = Setup::on_missing_files().text("ack", "journaled").text("ingress.max_body", "256KiB");
    let setup = setup.text("publish.timeout", "60s").failpoints("journal.create=full@2+");
    let daemon = setup.start();
    // The first segment has 2 MiB.
    let load = Load { connections: 1, text: "x".repeat(200_000), ..Load { events: 12, ..Load::default() } };
    let sent = load.send(&daemon.ingress);
    assert!(sent.accepted() > 5 && sent.refused(503) > 0, "{} accepted", sent.accepted());
    let mut small = Sent::default();
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        // Longer than the writer's own tries are apart.
        assert_eq!(daemon.get("/readyz").status, 503, "it flickers");
        let series = Some(("small".to_owned(), small.0.len() as u64));
        small = small.and(Load { events: 1, series, ..Load::default() }.send(&daemon.ingress));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(small.accepted(), small.0.len() as u64, "a small event fits");
    assert_eq!(daemon.metric("events_rejected_total", &[("reason", "unavailable")]), sent.refused(503) as u64);
    setup.bring_the_broker_back();
    daemon.wait_until_empty();
    setup.judge(&sent.and(small));
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn starts_on_a_file_system_that_cannot_sync_a_directory_and_says_so() {
    let setup = Setup::on_files().text("ack", "journaled").failpoints("directory.sync=invalid@1+");
    let daemon = setup.start();
    accepts(&daemon, "on such a file system");
    daemon.wait_until_empty();
    let stopped = daemon.stop();
    assert_eq!((stopped.code, stopped.count("published")), (Some(0), 1), "{}", stopped.log);
    assert!(stopped.log.contains("cannot sync a directory"), "{}", stopped.log);
}

#[test]
fn syncs_the_parent_of_the_state_directory_first() {
    let setup = Setup::on_files().failpoints("directory.sync=error@1");
    let stopped = setup.try_start().expect_err("the sync of a directory failed");
    let parent = format!("cannot sync {}:", setup.directory().display());
    assert!(stopped.log.contains(&parent), "{}", stopped.log);
}

#[test]
fn answers_503_without_descriptors_and_goes_on_once_there_are_some() {
    // Four segments.
    let setup = Setup::on_files().text("ack", "journaled").text("journal.max_bytes", "4MiB").takes_repeats();
    let setup = setup.text("publish.timeout", "60s");
    let daemon = setup.start();
    let mut client = Client::connect(&daemon.ingress).unwrap();
    let body = Payload { text: "x".repeat(60_000), ..Payload::new("cuid") }.body();
    let signature = sign(SECRET, &body);
    let mut send = || {
        let answer = client.send("POST", PATH, &[("X-Authorization-HMAC-256", &signature)], &body);
        answer.expect("it serves").status
    };
    // The next segment exists: it is only to be opened.
    wait_until("there is a spare", LIMIT, || {
        assert_eq!(send(), 200);
        setup.segments().len() > 1
    });
    assert_eq!(send(), 200, "it is whole by now: the writer does one thing after another");
    // Below what is open already.
    let limit = daemon.limit_open_files(3);
    wait_until("the first segment is full", LIMIT, || send() == 503);
    assert_eq!(send(), 503, "it runs on");
    daemon.limit_open_files(limit);
    wait_until("it accepts again", LIMIT, || send() == 200);
    wait_until("it is ready again", LIMIT, || daemon.get("/readyz").status == 200);
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("lost"), status.count("dead_lettered")), (0, 0));
    let stopped = daemon.stop();
    assert_eq!(stopped.code, Some(0), "{}", stopped.log);
    stopped.assert_balanced();
}
