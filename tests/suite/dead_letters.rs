//! `dead-letters` and invalid bodies, on the file broker: what was refused is listed, shown, replayed with the same id
//! and dropped, by a running daemon and without one; nothing is lost on the way.
//!
//! Length: every way of one letter, and of every kind of body that is kept.

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Daemon, Ended, Payload, Program, SECRET, Setup, Table, request_once, said, sign};

/// Where the file broker says that there is no address for an event.
pub(crate) const REFUSE: &str = "publish.address=error@1+";

/// A bridge that refuses every event, or none, in the same directories.
pub(crate) struct Pair {
    pub(crate) setup: Setup,
    pub(crate) events: PathBuf,
}

impl Pair {
    pub(crate) fn refusing() -> Self {
        let setup = Setup::on_files().failpoints(REFUSE);
        let events = setup.directory().join("events");
        Self { setup, events }
    }

    /// The cause is mended, and the address of all is another one.
    pub(crate) fn mended(self) -> Self {
        let table = Table::new("file").text("directory", self.events.display().to_string()).text("name", "all");
        Self { setup: self.setup.without_failpoints().with_broker(&table), events: self.events }
    }

    /// A broker that is not there.
    pub(crate) fn away(self) -> Self {
        let table = Table::new("file").text("directory", self.events.join("no/such").display().to_string());
        Self { setup: self.setup.without_failpoints().with_broker(&table), events: self.events }
    }

    /// Starts a daemon that refuses so many events, and ends it; their ids.
    pub(crate) fn with_letters(count: usize) -> (Self, Vec<String>) {
        let pair = Self::refusing();
        let daemon = pair.setup.start();
        let ids = (0..count).map(|number| send(&daemon, &format!("c{number:03}"))).collect();
        daemon.wait_until("all are dead letters", Duration::from_mins(1), |status| {
            status.number("/dead_letters/events") == count as u64 && status.number("/buffer/events") == 0
        });
        balanced(&daemon);
        assert_eq!(daemon.stop().code, Some(0));
        (pair, ids)
    }

    /// Event ids and bodies that the broker has.
    pub(crate) fn arrived(&self) -> Vec<(String, Vec<u8>)> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.events).into_iter().flatten().flatten() {
            for line in fs::read_to_string(entry.path()).unwrap().lines() {
                let line: Value = serde_json::from_str(line).unwrap();
                let body = line["body"].as_str().unwrap_or_default().as_bytes().to_vec();
                all.push((line["id"].as_str().unwrap().to_owned(), body));
            }
        }
        all
    }

    pub(crate) fn assert_arrived(&self, ids: &[String]) {
        let mut arrived: Vec<String> = self.arrived().into_iter().map(|(id, _)| id).collect();
        let mut ids = ids.to_vec();
        arrived.sort();
        ids.sort();
        assert_eq!(arrived, ids);
    }

    pub(crate) fn letters(&self) -> usize {
        self.setup.dead_letters().len()
    }

    pub(crate) fn run(&self, arguments: &[&str], code: i32) -> Output {
        let arguments = [&["dead-letters"], arguments].concat();
        let done = self.setup.run(&arguments);
        assert_eq!(done.status.code(), Some(code), "{arguments:?}: {}", said(&done));
        done
    }

    /// The final object of `--json`.
    pub(crate) fn json(&self, arguments: &[&str], code: i32) -> Value {
        let done = self.run(&[arguments, &["--json"]].concat(), code);
        serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&done)))
    }
}

pub(crate) fn body(cuid: &str) -> Vec<u8> {
    Payload::new(cuid).body()
}

/// Sends one event, which is accepted; its id.
pub(crate) fn send(daemon: &Daemon, cuid: &str) -> String {
    let body = body(cuid);
    assert_eq!(request_once(daemon, &body, &[]).status, 200);
    format!("{cuid}-{}", &sign(SECRET, &body)[..12])
}

pub(crate) fn balanced(daemon: &Daemon) {
    let status = daemon.status();
    assert_eq!(status.count("mismatch"), 0, "{}", status.0["accounting"]);
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

#[test]
fn lists_and_shows_letters_and_drops_them_with_a_daemon_and_without() {
    let pair = Pair::refusing();
    let daemon = pair.setup.start();
    let ids = [send(&daemon, "a"), send(&daemon, "b")];
    daemon.wait_until("two letters", Duration::from_mins(1), |status| status.number("/dead_letters/events") == 2);
    let list = text(&pair.run(&["list"], 0).stdout);
    assert_eq!(list.lines().count(), 4, "a head, two rows, a sum: {list}");
    assert!(list.contains(&ids[0]) && list.contains("unroutable") && !list.contains("Client||Report"), "{list}");
    let sum = list.lines().last().unwrap();
    assert!(sum.starts_with("2 in ") && sum.ends_with(" bytes"), "{sum}");
    let list = text(&pair.run(&["list", "--json", "--id", &ids[1]], 0).stdout);
    let line: Value = serde_json::from_str(list.trim()).unwrap();
    assert_eq!((&line["id"], &line["body"]), (&Value::from(ids[1].as_str()), &Value::Null));
    assert!(text(&pair.run(&["list", "--older-than", "1h"], 0).stdout).starts_with("0 in "));
    assert!(text(&pair.run(&["list", "--reason", "too_large"], 0).stdout).starts_with("0 in "));
    let shown = text(&pair.run(&["show", &ids[0]], 0).stdout);
    assert!(shown.contains("Client||Report") && shown.contains("no address"), "{shown}");
    let line: Value = serde_json::from_slice(&pair.run(&["show", "--json", &ids[0]], 0).stdout).unwrap();
    assert_eq!(line, pair.setup.dead_letters()[0], "as it is stored");
    assert_eq!(pair.run(&["show", "--body", &ids[0]], 0).stdout, body("a"));
    assert!(said(&pair.run(&["show", "nobody"], 1)).contains("no letter nobody"));
    pair.run(&["drop"], 2);
    pair.run(&["drop", "--all", "--id", "x"], 2);
    pair.run(&["replay", "--lenient"], 2);
    assert_eq!(pair.letters(), 2);
    let done = pair.json(&["drop", "--id", &ids[0]], 0);
    assert_eq!((&done["selected"], &done["dropped"], &done["state"]), (&1.into(), &1.into(), &"done".into()));
    let status = daemon.status();
    assert_eq!(status.number("/dead_letters/events"), 1);
    balanced(&daemon);
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(pair.setup.dead_letters()[0]["id"], ids[1].as_str());
    assert_eq!(pair.json(&["drop", "--all"], 0)["dropped"], 1);
    assert_eq!(pair.letters(), 0);
    assert!(!pair.setup.state().join("control.sock").exists(), "it goes with the daemon");
}

#[test]
fn refuses_a_choice_that_no_letter_can_be() {
    let setup = Setup::on_files();
    let state = setup.state().display().to_string();
    for (arguments, text) in [
        (&["--reason", "invalid"][..], "dead letters never have the reason `invalid`; add --invalid"),
        (&["--reason", "other", "--reason", "probe"], "dead letters never have the reason `probe`; add --invalid"),
        (
            &["--invalid", "--reason", "too_large"],
            "bodies that were not published never have the reason `too_large`; leave --invalid out",
        ),
        (&["--id", ""], "--id is empty: every letter has one"),
        (&["--older-than", "2h", "--newer-than", "1h"], "nothing is older than 2h and newer than 1h"),
    ] {
        for command in ["list", "replay", "drop"] {
            let program = Program::new(["dead-letters", command].iter().chain(arguments));
            let ended = program.variable("STATE_DIRECTORY", &state).run();
            ended.assert_code(2);
            assert!(ended.err.contains(text), "{command} {arguments:?}: {}", ended.err);
            assert_eq!(ended.out, "", "{command} {arguments:?}");
        }
        for command in ["replay", "drop"] {
            let program = Program::new(["dead-letters", command, "--json"].iter().chain(arguments));
            assert_result_of_wrong_arguments(&program.variable("STATE_DIRECTORY", &state).run(), text);
        }
    }
    for (arguments, text) in
        [(&[][..], "give a filter or --all"), (&["--all", "--id", "x"], "--all and a filter are both given")]
    {
        let program = Program::new(["dead-letters", "drop", "--json"].iter().chain(arguments));
        assert_result_of_wrong_arguments(&program.variable("STATE_DIRECTORY", &state).run(), text);
    }
}

/// A program that reads the result of `--json` gets one, with the text of the error.
#[track_caller]
fn assert_result_of_wrong_arguments(ended: &Ended, text: &str) {
    ended.assert_code(2);
    assert!(ended.err.contains(text), "{}", ended.err);
    let result: Value = serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}: {}", ended.out));
    assert_eq!(result["state"], "failed", "{result}");
    assert!(result["error"].as_str().is_some_and(|error| error.contains(text)), "{result}");
}

#[test]
fn takes_a_missing_state_directory_for_a_mistake() {
    let setup = Setup::on_files();
    let missing = setup.directory().join("no/such").display().to_string();
    let text = format!("there is no {missing}; name the state directory in `state_directory`");
    for arguments in [&["list"][..], &["show", "x"], &["replay"], &["drop", "--all"], &["replay", "--json"]] {
        let program = Program::new(["dead-letters"].iter().chain(arguments));
        let ended = program.variable("PLEXTRAC_BRIDGE__STATE_DIRECTORY", &missing).run();
        ended.assert_code(1);
        assert!(ended.err.contains(&text), "{arguments:?}: {}", ended.err);
        if arguments.contains(&"--json") {
            let result: Value = serde_json::from_str(&ended.out).unwrap();
            assert!(result["error"].as_str().is_some_and(|error| error.contains(&text)), "{result}");
        }
    }
    // One without letters is none.
    let state = setup.directory().display().to_string();
    for arguments in [&["list"][..], &["replay"], &["drop", "--all"]] {
        let program = Program::new(["dead-letters"].iter().chain(arguments));
        program.variable("PLEXTRAC_BRIDGE__STATE_DIRECTORY", &state).run().assert_code(0);
    }
}

#[test]
fn replays_through_a_running_daemon_with_the_same_id_and_body() {
    let (pair, ids) = Pair::with_letters(300);
    let pair = pair.mended();
    let daemon = pair.setup.start();
    let done = pair.json(&["replay"], 0);
    assert_eq!((&done["selected"], &done["published"], &done["done"]), (&300.into(), &300.into(), &300.into()));
    pair.assert_arrived(&ids);
    let (_, first) = pair.arrived().into_iter().find(|(id, _)| *id == ids[0]).unwrap();
    assert_eq!(first, body("c000"));
    let status = daemon.status();
    assert_eq!((status.count("replayed"), status.count("published"), status.count("held")), (300, 300, 0));
    assert_eq!(status.number("/dead_letters/events"), 0);
    assert_eq!(daemon.metric("events_replayed_total", &[]), 300);
    balanced(&daemon);
    assert_eq!((daemon.stop().code, pair.letters()), (Some(0), 0));
}

/// A file that cannot be read stops neither the start nor the work on the other letters. A directory in its place cannot be
/// read even by root.
#[test]
fn goes_on_without_the_files_that_cannot_be_read() {
    let (pair, ids) = Pair::with_letters(2);
    let pair = pair.mended();
    let broken = ["dead-letters/00000000.ndjson", "invalid/00000001-probes.ndjson"];
    let broken = broken.map(|name| pair.setup.state().join(name));
    for path in &broken {
        fs::create_dir_all(path).unwrap();
    }
    let names = |text: &str, path: &PathBuf| text.contains(&path.display().to_string());
    let daemon = pair.setup.start();
    for path in &broken {
        let line = daemon.wait_for_line("the warning", |line| names(&line.to_string(), path));
        assert!(line["level"] == "WARN" && line.to_string().contains("move it away"), "{line}");
    }
    let listed = pair.run(&["list", "--json"], 1);
    assert_eq!(text(&listed.stdout).lines().count(), 2);
    assert!(names(&said(&listed), &broken[0]), "{}", said(&listed));
    let done = pair.json(&["replay", "--id", &ids[0]], 1);
    assert_eq!(
        (&done["published"], &done["state"], &done["skipped"]),
        (&1.into(), &"done".into(), &0.into()),
        "{done}"
    );
    assert!(names(done["error"].as_str().unwrap(), &broken[0]), "{done}");
    assert_eq!(request_once(&daemon, b"[1]", &[]).status, 200);
    daemon.wait_until("it is kept", Duration::from_mins(1), |status| status.number("/invalid/kept") == 1);
    balanced(&daemon);
    assert_eq!(daemon.stop().code, Some(0));
    let done = pair.json(&["drop", "--all"], 1);
    assert_eq!((&done["dropped"], &done["state"]), (&1.into(), &"done".into()), "{done}");
    assert!(names(done["error"].as_str().unwrap(), &broken[0]), "{done}");
    assert!(broken.iter().all(|path| path.is_dir()), "left alone");
    fs::remove_dir(&broken[0]).unwrap();
    assert_eq!(pair.json(&["replay"], 0)["selected"], 0);
    pair.assert_arrived(&ids[..1]);
}

#[test]
fn a_request_touches_the_files_that_were_put_back_before_it() {
    let (pair, ids) = Pair::with_letters(3);
    let pair = pair.mended();
    let (file, away) =
        (pair.setup.state().join("dead-letters/00000001.ndjson"), pair.setup.directory().join("away"));
    fs::rename(&file, &away).unwrap();
    let daemon = pair.setup.start();
    assert_eq!(pair.json(&["replay"], 0)["selected"], 0);
    fs::copy(&away, &file).unwrap();
    let done = pair.json(&["replay"], 0);
    assert_eq!((&done["selected"], &done["published"]), (&3.into(), &3.into()), "{done}");
    pair.assert_arrived(&ids);
    fs::copy(&away, &file).unwrap();
    assert_eq!(pair.json(&["drop", "--all"], 0)["dropped"], 3);
    assert_eq!((pair.letters(), daemon.status().number("/dead_letters/events")), (0, 0));
    balanced(&daemon);
    assert_eq!(daemon.stop().code, Some(0));
}

/// Equal events without a `cuid` of one instant have equal lines, and are events of their own.
#[test]
fn replays_and_drops_each_of_several_equal_letters() {
    let (pair, ids) = Pair::with_letters(1);
    let pair = pair.mended();
    let file = pair.setup.state().join("dead-letters/00000001.ndjson");
    let line = fs::read_to_string(&file).unwrap();
    // More than one batch.
    fs::write(&file, line.repeat(300)).unwrap();
    let done = pair.json(&["replay"], 0);
    assert_eq!((&done["selected"], &done["published"], &done["skipped"]), (&300.into(), &300.into(), &0.into()));
    pair.assert_arrived(&vec![ids[0].clone(); 300]);
    assert_eq!(pair.letters(), 0);
    fs::write(&file, line.repeat(3)).unwrap();
    assert_eq!(pair.json(&["drop", "--all"], 0)["dropped"], 3);
}

#[test]
fn replays_every_one_of_many_equal_events_without_a_cuid() {
    let pair = Pair::refusing();
    let daemon = pair.setup.start();
    for _ in 0..50 {
        assert_eq!(request_once(&daemon, br#"{"event":"Heartbeat"}"#, &[]).status, 200);
    }
    daemon.wait_until("all are dead letters", Duration::from_mins(1), |status| {
        status.number("/dead_letters/events") == 50 && status.number("/buffer/events") == 0
    });
    assert_eq!(daemon.stop().code, Some(0));
    let letters = pair.setup.dead_letters();
    let mut received: Vec<&str> = letters.iter().map(|letter| letter["received"].as_str().unwrap()).collect();
    received.sort_unstable();
    received.dedup();
    assert_eq!(received.len(), 50, "a server that knows events by their time takes each");
    let pair = pair.mended();
    assert_eq!(pair.json(&["replay"], 0)["published"], 50);
    assert_eq!((pair.arrived().len(), pair.letters()), (50, 0));
}

#[test]
fn replays_without_a_daemon_what_the_filter_says() {
    let (pair, ids) = Pair::with_letters(3);
    let pair = pair.mended();
    let said = said(&pair.run(&["replay", "--id", &ids[1]], 0));
    assert!(said.contains("1 selected: 1 published, 0 refused again and kept, 0 left"), "{said}");
    pair.assert_arrived(&ids[1..2]);
    assert_eq!(pair.letters(), 2);
    pair.run(&["replay"], 0);
    pair.assert_arrived(&ids);
    assert_eq!(pair.letters(), 0);
    assert_eq!(pair.json(&["replay"], 0)["selected"], 0);
}

#[test]
fn keeps_what_is_refused_again_and_says_so() {
    let (pair, ids) = Pair::with_letters(3);
    let daemon = pair.setup.start();
    let done = pair.json(&["replay"], 1);
    assert_eq!(
        (&done["dead_lettered"], &done["published"], &done["state"]),
        (&3.into(), &0.into(), &"done".into())
    );
    let mut kept: Vec<String> =
        pair.setup.dead_letters().iter().map(|letter| letter["id"].as_str().unwrap().to_owned()).collect();
    kept.sort();
    assert_eq!(kept, ids, "each once");
    let status = daemon.status();
    assert_eq!((status.count("replayed"), status.count("dead_lettered"), status.count("held")), (3, 3, 0));
    balanced(&daemon);
    assert_eq!(daemon.stop().code, Some(0));
    let config = pair.setup.directory().join("config.toml").display().to_string();
    let replay = Program::new(["dead-letters", "replay", "--config", &config]);
    let done = replay.variable("PLEXTRAC_BRIDGE_FAILPOINTS", REFUSE).run();
    done.assert_code(1);
    assert!(done.out.contains("3 selected: 0 published, 3 refused again and kept, 0 left"), "{}", done.out);
    assert_eq!(pair.letters(), 3);
}

#[test]
fn gives_up_on_a_broker_that_is_away_and_keeps_every_letter() {
    let (pair, ids) = Pair::with_letters(2);
    let pair = pair.away();
    let done = pair.json(&["replay", "--timeout", "1s"], 1);
    assert_eq!((&done["state"], &done["skipped"]), (&"failed".into(), &2.into()), "{done}");
    assert!(done["error"].as_str().unwrap().contains("no/such"), "{done}");
    assert_eq!(pair.letters(), 2);
    let pair = pair.mended();
    pair.run(&["replay"], 0);
    pair.assert_arrived(&ids);
}

#[test]
fn loses_no_letter_wherever_the_process_dies() {
    for point in ["letters.rewrite", "letters.rename", "letters.remove"] {
        let (pair, ids) = Pair::with_letters(3);
        let pair = pair.mended();
        // One is left in the file, so that it is rewritten, not removed; and the other way round.
        let arguments = match point {
            "letters.remove" => vec!["replay"],
            _ => vec!["replay", "--id", &ids[0], "--id", &ids[1]],
        };
        pair.run(&["list"], 0);
        let config = pair.setup.directory().join("config.toml").display().to_string();
        let all = ["dead-letters"].into_iter().chain(arguments).chain(["--config", &config]);
        let died = Program::new(all).variable("PLEXTRAC_BRIDGE_FAILPOINTS", format!("{point}=kill")).run();
        assert_eq!(died.code, None, "{point}: {}{}", died.out, died.err);
        assert_eq!(pair.letters(), 3, "{point}");
        // Nothing happens by itself; asked again, it publishes all of them.
        let daemon = pair.setup.start();
        assert_eq!(pair.json(&["replay"], 0)["published"], 3, "{point}");
        balanced(&daemon);
        assert_eq!(daemon.stop().count("replayed"), 3, "{point}");
        assert_eq!(pair.letters(), 0, "{point}");
        let mut arrived: Vec<String> = pair.arrived().into_iter().map(|(id, _)| id).collect();
        arrived.sort();
        arrived.dedup();
        assert_eq!(arrived, ids, "{point}");
    }
}

#[test]
fn keeps_and_reports_lines_that_it_cannot_read() {
    let (pair, ids) = Pair::with_letters(1);
    let pair = pair.mended();
    let file = pair.setup.directory().join("state/dead-letters/00000001.ndjson");
    let newer = "{\"version\":2,\"new\":true}\n";
    fs::write(&file, format!("{newer}{}", fs::read_to_string(&file).unwrap())).unwrap();
    assert!(said(&pair.run(&["list"], 1)).contains("written in version 2 of the format"));
    assert_eq!(pair.json(&["replay"], 1)["unreadable"], 1);
    pair.assert_arrived(&ids);
    pair.run(&["drop", "--all"], 1);
    assert_eq!(fs::read_to_string(&file).unwrap(), newer);
}

#[test]
fn keeps_what_is_not_published_once_and_replays_it_leniently() {
    let pair = Pair::refusing().mended();
    let strict = pair.setup.clone().strict();
    let daemon = strict.start();
    let body = br#"{"event":"E","cuid":"c1","colour":"red"}"#;
    for _ in 0..3 {
        assert_eq!(request_once(&daemon, body, &[]).status, 422);
        assert_eq!(request_once(&daemon, b"[1]", &[]).status, 200);
        assert_eq!(request_once(&daemon, b"{", &[]).status, 400);
    }
    let id = format!("c1-{}", &sign(SECRET, body)[..12]);
    let status =
        daemon.wait_until("all are kept", Duration::from_mins(1), |status| status.number("/invalid/kept") == 3);
    assert_eq!((status.number("/invalid/events"), status.number("/invalid/dropped")), (3, 0));
    for reason in ["invalid", "malformed", "probe"] {
        assert_eq!(daemon.metric("invalid_kept_total", &[("reason", reason)]), 1, "{reason}");
    }
    let list = text(&pair.run(&["list", "--invalid"], 0).stdout);
    assert!(!list.contains("colour"), "no bodies: {list}");
    for (body, reason, why) in [
        (&body[..], "invalid", "`actorCuid` is missing"),
        (b"[1]", "probe", "a list"),
        (b"{", "malformed", "EOF while parsing an object"),
    ] {
        let id = if reason == "invalid" { id.clone() } else { sign(SECRET, body)[..32].to_owned() };
        let row = list.lines().find(|line| line.contains(&id)).unwrap_or_else(|| panic!("no {id} in {list}"));
        assert!(row.contains(reason) && row.contains(why), "{row}");
        assert_eq!(pair.run(&["show", "--invalid", "--body", &id], 0).stdout, body);
    }
    let done = pair.json(&["replay", "--invalid"], 1);
    assert_eq!((&done["selected"], &done["skipped"], &done["published"]), (&3.into(), &3.into(), &0.into()));
    let done = pair.json(&["replay", "--invalid", "--lenient"], 1);
    assert_eq!((&done["skipped"], &done["published"]), (&2.into(), &1.into()));
    assert_eq!(pair.arrived(), [(id, body.to_vec())]);
    balanced(&daemon);
    assert_eq!(daemon.stop().code, Some(0));
    // Known across a restart; and without a daemon.
    let daemon = strict.start();
    assert_eq!(request_once(&daemon, b"[1]", &[]).status, 200);
    assert_eq!(request_once(&daemon, b"[2]", &[]).status, 200);
    assert_eq!(daemon.stop().code, Some(0), "flushed before the exit");
    assert_eq!(text(&pair.run(&["list", "--invalid", "--json"], 0).stdout).lines().count(), 3);
    assert_eq!(pair.json(&["drop", "--invalid", "--reason", "probe"], 0)["dropped"], 2);
    assert_eq!(pair.json(&["drop", "--invalid", "--all"], 0)["dropped"], 1);
}

/// Bodies that are not published by themselves: the status of the answer, and what each is as a message.
const AS_IS: [(&[u8], u16, &str); 6] = [
    (b"", 200, "application/octet-stream"),
    (b"{}", 200, "application/json"),
    (b" [{\"event\":\"E\"}]", 200, "application/json"),
    (b"{\"event\":\"E\"", 400, "application/octet-stream"),
    (b"\xff\x00{\"event\":\"E\"}", 400, "application/octet-stream"),
    (b"\xef\xbb\xbf{\"event\":\"E\"}", 400, "application/octet-stream"),
];

/// All of them, kept by a daemon.
fn kept() -> (Setup, Daemon) {
    let setup = Setup::on_files();
    let daemon = setup.start();
    for (body, status, _) in AS_IS {
        assert_eq!(request_once(&daemon, body, &[]).status, status, "{body:?}");
    }
    daemon.wait_until("all are kept", Duration::from_mins(1), |status| status.number("/invalid/events") == 6);
    (setup, daemon)
}

/// Replays all as they are; they arrive byte for byte, and nothing is kept any more.
#[track_caller]
fn replays_as_they_are(setup: &Setup) {
    let run = |arguments: &[&str]| {
        let done = setup.run(&[&["dead-letters"], arguments, &["--invalid", "--json"]].concat());
        (done.status.code(), serde_json::from_slice::<Value>(&done.stdout).unwrap_or_default())
    };
    let (code, done) = run(&["replay"]);
    assert_eq!((code, &done["published"], &done["skipped"]), (Some(1), &0.into(), &6.into()), "{done}");
    let (code, done) = run(&["replay", "--as-is"]);
    assert_eq!((code, &done["published"], &done["skipped"]), (Some(0), &6.into(), &0.into()), "{done}");
    assert_eq!(run(&["list"]).1, Value::Null, "all are published");
    let mut delivered = setup.delivered();
    assert_eq!(delivered.len(), AS_IS.len());
    for (body, _, content_type) in AS_IS {
        let at = delivered.iter().position(|message| message.body == body);
        let message = delivered.swap_remove(at.unwrap_or_else(|| panic!("{body:?} did not arrive")));
        assert_eq!(message.id, sign(SECRET, body)[..32], "{body:?}");
        assert_eq!(message.headers["content-type"], content_type, "{body:?}");
        assert_eq!(message.headers["x-authorization-hmac-256"], sign(SECRET, body), "{body:?}");
        assert_eq!(message.headers["ce_type"], "com.plextrac.unknown", "{body:?}");
    }
}

#[test]
fn publishes_whatever_was_kept_as_it_is_by_a_daemon() {
    let (setup, daemon) = kept();
    replays_as_they_are(&setup);
    let status = daemon.status();
    assert_eq!((status.count("replayed"), status.count("published"), status.count("accepted")), (6, 6, 0));
    balanced(&daemon);
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn publishes_whatever_was_kept_as_it_is_without_a_daemon() {
    let (setup, daemon) = kept();
    assert_eq!(daemon.stop().code, Some(0));
    replays_as_they_are(&setup);
}

#[test]
fn keeps_what_is_refused_again_as_a_dead_letter_that_is_published_later() {
    let (setup, daemon) = kept();
    assert_eq!(daemon.stop().code, Some(0));
    let refusing = setup.clone().failpoints(REFUSE);
    let daemon = refusing.start();
    let done = refusing.run(&["dead-letters", "replay", "--invalid", "--as-is"]);
    assert!(said(&done).contains("6 selected: 0 published, 6 refused again and kept"), "{}", said(&done));
    assert_eq!(daemon.stop().code, Some(0));
    let letters = setup.dead_letters();
    let mut types: Vec<&str> =
        letters.iter().filter_map(|letter| letter["headers"]["content-type"].as_str()).collect();
    let mut expected = AS_IS.map(|(_, _, content_type)| content_type);
    types.sort_unstable();
    expected.sort_unstable();
    assert_eq!(types, expected);
    let done = setup.run(&["dead-letters", "replay"]);
    assert!(said(&done).contains("6 selected: 6 published"), "{}", said(&done));
    assert_eq!(setup.delivered().len(), 6);
}

#[test]
fn drops_connection_tests_first_when_the_store_is_full() {
    let setup = Setup::on_files().strict().text("invalid.max_bytes", "8KiB");
    let daemon = setup.start();
    let settled = |count: u64| {
        daemon.wait_until("it is kept or dropped", Duration::from_mins(1), |status| {
            status.number("/invalid/events") + status.number("/invalid/dropped") == count
        })
    };
    let mut count = 0;
    for number in 0..40 {
        for body in [format!("[{number}]"), format!(r#"{{"event":"{number:04}"}}"#)] {
            request_once(&daemon, body.as_bytes(), &[]);
            count += 1;
            assert!(settled(count).number("/invalid/bytes") <= 8192);
        }
    }
    let list = text(&setup.run(&["dead-letters", "list", "--invalid", "--json"]).stdout);
    let of = |reason: &str| list.lines().filter(|line| line.contains(&format!("\"reason\":\"{reason}\""))).count();
    assert!(of("probe") <= 1 && of("invalid") > 10, "{} probes, {} invalid: {list}", of("probe"), of("invalid"));
    assert!(list.contains("\"event\":\"0039\""), "the youngest is kept: {list}");
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn drops_nothing_for_a_body_that_is_larger_than_the_store() {
    let setup = Setup::on_files().strict().text("invalid.max_bytes", "100KiB");
    let daemon = setup.start();
    for number in 0..30 {
        assert_eq!(request_once(&daemon, format!(r#"{{"event":"{number:04}"}}"#).as_bytes(), &[]).status, 422);
    }
    daemon.wait_until("all are kept", Duration::from_mins(1), |status| status.number("/invalid/events") == 30);
    let large = format!(r#"{{"event":"{}"}}"#, "x".repeat(120_000));
    assert_eq!(request_once(&daemon, large.as_bytes(), &[]).status, 422);
    let line = daemon.wait_for_line("what to set", |line| line.to_string().contains("raise `invalid.max_bytes`"));
    assert_eq!(line["level"], "WARN", "{line}");
    let status = daemon.status();
    assert_eq!((status.number("/invalid/events"), status.number("/invalid/dropped")), (30, 1));
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn says_what_to_set_where_nothing_is_kept() {
    let setup = Setup::on_files().without_state();
    for arguments in [&["list"][..], &["show", "x"], &["replay"], &["drop", "--all"]] {
        let done = setup.run(&[&["dead-letters"], arguments].concat());
        assert_eq!(done.status.code(), Some(1), "{}", said(&done));
        assert!(said(&done).contains("set `state_directory`"), "{}", said(&done));
    }
}

#[test]
fn shows_on_a_terminal_how_far_a_replay_is_and_what_it_waits_for() {
    let (pair, _) = Pair::with_letters(3);
    let pair = pair.away();
    // Writes the settings.
    assert!(pair.setup.run(&["check"]).status.success());
    let config = pair.setup.directory().join("config.toml").display().to_string();
    let replay = ["--config", &config, "dead-letters", "replay", "--timeout", "2s"];
    let ended = Program::on_terminal(&replay).run();
    ended.assert_code(1);
    for part in
        ["0/3 letters, ", " left", "waiting: ", "3 selected: 0 published", "gave up after 2s without progress"]
    {
        assert!(ended.out.contains(part), "no {part:?} in {:?}", ended.out);
    }
    assert_eq!(pair.letters(), 3);
    // Where a program reads there are lines.
    let ended = pair.setup.run(&replay[2..]);
    assert!(said(&ended).starts_with("0 of 3"), "{}", said(&ended));
}
