//! Requests about dead letters, `replay` and `drop`: a request touches what existed when it was made, ends with the
//! command that made it, and says what stands in its way.
//!
//! Length: every way in which daemon, command and a request can end before one another.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::dead_letters::{Pair, REFUSE, balanced, send};
use crate::support::{Ended, Program, Setup, wait_for, wait_until};

const LIMIT: Duration = Duration::from_mins(1);

/// A command that is running; killed when dropped.
struct Running {
    child: Child,
    out: PathBuf,
}

impl Running {
    /// Starts `dead-letters` with these arguments and failpoints.
    fn start(setup: &Setup, arguments: &[&str], failpoints: &str) -> Self {
        let config = setup.file().display().to_string();
        let all = [&["dead-letters"], arguments, &["--config", &config]].concat();
        let mut command = Program::new(all).variable("PLEXTRAC_BRIDGE_FAILPOINTS", failpoints).into_command();
        let out = setup.directory().join(format!("out-{}", fastrand::u32(..)));
        let file = File::create(&out).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Self { child: command.spawn().unwrap(), out }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.out).unwrap()
    }

    /// Waits until it has printed this.
    fn wait_until_it_says(&self, text: &str) {
        wait_until(&format!("{text:?}"), LIMIT, || self.said().contains(text));
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(done.success(), "it has ended before: {}", self.said());
    }

    fn wait(&mut self) -> ExitStatus {
        wait_for("the end of the command", LIMIT, || self.child.try_wait().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The directory that a broker of [`Pair::away`] needs.
fn bring_back(pair: &Pair) {
    fs::create_dir_all(pair.events.join("no")).unwrap();
}

/// Event ids that have arrived at a broker of [`Pair::away`].
fn arrived_late(pair: &Pair) -> Vec<String> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(pair.events.join("no/such")).into_iter().flatten().flatten() {
        for line in fs::read_to_string(entry.path()).unwrap().lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            ids.push(line["id"].as_str().unwrap().to_owned());
        }
    }
    ids
}

/// Every file below a directory, with its length.
fn tree(directory: &Path) -> BTreeMap<PathBuf, u64> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(tree(&path));
        }
        all.insert(path, entry.metadata().unwrap().len());
    }
    all
}

fn ids_of(letters: &[Value]) -> Vec<String> {
    let mut ids: Vec<String> = letters.iter().map(|letter| letter["id"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids
}

#[test]
fn a_drop_touches_what_existed_when_it_was_made_and_does_not_wait_behind_a_replay() {
    let (pair, _) = Pair::with_letters(1);
    let pair = pair.away();
    let pair = Pair { setup: pair.setup.failpoints(REFUSE), ..pair };
    let daemon = pair.setup.start();
    pair.json(&["replay", "--timeout", "1s"], 1);
    let done = pair.json(&["drop", "--all", "--timeout", "2s"], 0);
    assert_eq!((&done["selected"], &done["dropped"]), (&1.into(), &1.into()), "{done}");
    let mut ids = [send(&daemon, "later-1"), send(&daemon, "later-2")];
    bring_back(&pair);
    daemon.wait_until("both are dead letters", LIMIT, |status| {
        status.count("dead_lettered") >= 2 && status.number("/buffer/events") == 0
    });
    balanced(&daemon);
    assert_eq!(daemon.stop().code, Some(0));
    ids.sort();
    assert_eq!(ids_of(&pair.setup.dead_letters()), ids, "nobody asked for these to be dropped");
}

#[test]
fn a_drop_is_the_last_word_after_a_replay_that_gave_up() {
    let (pair, ids) = Pair::with_letters(3);
    let pair = pair.away();
    let daemon = pair.setup.start();
    let done = pair.json(&["replay", "--timeout", "1s"], 1);
    assert_eq!((&done["state"], &done["published"]), (&"failed".into(), &0.into()), "{done}");
    assert!(done["error"].as_str().unwrap().contains("gave up after 1s without progress"), "{done}");
    let done = pair.json(&["drop", "--all", "--timeout", "2s"], 0);
    assert_eq!(done["dropped"], ids.len());
    bring_back(&pair);
    let id = send(&daemon, "new");
    daemon.wait_until("the new one is published", LIMIT, |status| {
        status.count("published") >= 1 && status.number("/buffer/events") == 0
    });
    balanced(&daemon);
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(arrived_late(&pair), [id]);
    assert_eq!(pair.letters(), 0);
}

#[test]
fn a_command_without_a_daemon_leaves_nothing_behind_however_it_ends() {
    for signal in ["TERM", "HUP", "INT", "KILL"] {
        let (pair, ids) = Pair::with_letters(2);
        let pair = pair.away();
        let before = tree(&pair.setup.state());
        let mut running = Running::start(&pair.setup, &["replay"], "");
        running.wait_until_it_says("waiting: ");
        running.signal(signal);
        let ended = running.wait();
        if signal != "KILL" {
            assert_eq!(ended.code(), Some(1), "{signal}: {}", running.said());
            assert!(running.said().contains("2 left"), "{signal}: {}", running.said());
        }
        assert_eq!(tree(&pair.setup.state()), before, "{signal}");
        let pair = pair.mended();
        let daemon = pair.setup.start();
        let id = send(&daemon, "new");
        daemon.wait_until("it is published", LIMIT, |status| status.count("published") == 1);
        assert_eq!(daemon.stop().count("replayed"), 0, "{signal}");
        pair.assert_arrived(&[id]);
        assert_eq!(ids_of(&pair.setup.dead_letters()), ids, "{signal}");
    }
}

#[test]
fn drops_while_the_store_is_full_and_refuses_a_replay_at_once() {
    let setup = Setup::on_files().failpoints(REFUSE).text("ingress.max_body", "1KiB");
    let setup = setup.text("dead_letters.max_bytes", "68KiB");
    let events = setup.directory().join("events");
    let pair = Pair { setup, events };
    let daemon = pair.setup.start();
    let mut sent = 0;
    while !daemon.get("/readyz").text().contains("dead letters") {
        send(&daemon, &format!("c{sent:03}"));
        sent += 1;
        assert!(sent < 200, "the store is never full");
        daemon.wait_until("it is settled or held up", LIMIT, |status| {
            status.number("/dead_letters/events") == sent || status.0["broker"]["blocked"].is_string() || {
                daemon.get("/readyz").status == 503
            }
        });
    }
    let began = Instant::now();
    let done = pair.json(&["replay", "--timeout", "20s"], 1);
    assert!(began.elapsed() < Duration::from_secs(15), "not at once: {:?}", began.elapsed());
    assert_eq!((&done["state"], &done["published"]), (&"failed".into(), &0.into()), "{done}");
    assert!(done["error"].as_str().unwrap().contains("no room for a letter"), "{done}");
    let done = pair.json(&["drop", "--all", "--timeout", "20s"], 0);
    assert!(done["dropped"].as_u64().unwrap() > 0, "{done}");
    wait_until("ready again", LIMIT, || daemon.get("/readyz").status == 200);
    balanced(&daemon);
    assert_eq!(daemon.stop().code, Some(0));
}

/// Asks the daemon by hand; all that it answers until it closes the connection.
fn ask(setup: &Setup, head: &str, body: &str) -> String {
    let mut stream = UnixStream::connect(setup.state().join("control.sock")).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(stream, "{head}\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn serves_its_own_user_alone_and_refuses_what_it_does_not_understand() {
    let (pair, _) = Pair::with_letters(1);
    let daemon = pair.setup.start();
    let socket = fs::metadata(pair.setup.state().join("control.sock")).unwrap();
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let answer = ask(&pair.setup, "POST /dead-letters HTTP/1.1", r#"{"version":9,"action":"drop"}"#);
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("version 9"), "{answer}");
    assert!(answer.contains("\"state\":\"failed\""), "{answer}");
    let answer = ask(&pair.setup, "\0", "");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let unknown =
        r#"{"version":1,"action":"drop","store":"dead-letters","lenient":false,"as_is":false,"filter":{"x":1}}"#;
    let answer = ask(&pair.setup, "POST /dead-letters HTTP/1.1", unknown);
    assert!(answer.contains("unknown field `x`"), "{answer}");
    assert_eq!(pair.letters(), 1);
    assert_eq!(daemon.stop().code, Some(0));
    assert!(!pair.setup.state().join("control.sock").exists());
}

#[test]
fn a_killed_command_ends_its_replay_and_the_next_one_goes_on() {
    let (pair, ids) = Pair::with_letters(3);
    let pair = pair.away();
    let daemon = pair.setup.start();
    let mut replay = Running::start(&pair.setup, &["replay"], "");
    replay.wait_until_it_says("waiting: ");
    daemon.wait_until("they are in the queue", LIMIT, |status| status.count("held") == 3);
    replay.signal("KILL");
    replay.wait();
    let status = daemon.wait_until("they are taken back", LIMIT, |status| status.count("held") == 0);
    assert_eq!((status.count("replayed"), status.count("withdrawn")), (3, 3));
    assert_eq!(ids_of(&pair.setup.dead_letters()), ids);
    let mut replay = Running::start(&pair.setup, &["replay", "--json"], "");
    daemon.wait_until("they are in the queue again", LIMIT, |status| status.count("replayed") == 6);
    bring_back(&pair);
    assert_eq!(replay.wait().code(), Some(0), "{}", replay.said());
    assert!(replay.said().contains("\"published\":3"), "{}", replay.said());
    let mut arrived = arrived_late(&pair);
    arrived.sort();
    assert_eq!(arrived, ids, "each once");
    balanced(&daemon);
    assert_eq!((daemon.stop().code, pair.letters()), (Some(0), 0));
}

#[test]
fn a_daemon_that_stops_says_so_and_keeps_what_was_not_published() {
    let (pair, ids) = Pair::with_letters(2);
    let pair = pair.away();
    let daemon = pair.setup.start();
    let mut replay = Running::start(&pair.setup, &["replay", "--json"], "");
    daemon.wait_until("they are in the queue", LIMIT, |status| status.count("held") == 2);
    let began = Instant::now();
    let stopped = daemon.stop();
    assert!(began.elapsed() < Duration::from_secs(10), "a stop waits for no replay: {:?}", began.elapsed());
    assert_eq!((stopped.code, stopped.count("lost")), (Some(0), 0), "{}", stopped.log);
    assert_eq!(stopped.count("withdrawn") + stopped.count("held"), 2);
    stopped.assert_balanced();
    assert_eq!(replay.wait().code(), Some(1), "{}", replay.said());
    let result: Value = serde_json::from_str(&replay.said()).unwrap();
    assert_eq!((&result["state"], &result["skipped"]), (&"failed".into(), &2.into()), "{result}");
    assert!(result["error"].as_str().unwrap().contains("the bridge is stopping"), "{result}");
    assert_eq!(ids_of(&pair.setup.dead_letters()), ids);
}

#[test]
fn a_daemon_that_dies_leaves_the_command_with_a_result() {
    let (pair, ids) = Pair::with_letters(2);
    let pair = pair.away();
    let daemon = pair.setup.start();
    let mut replay = Running::start(&pair.setup, &["replay", "--json"], "");
    daemon.wait_until("they are in the queue", LIMIT, |status| status.count("held") == 2);
    daemon.kill();
    assert_eq!(replay.wait().code(), Some(1), "{}", replay.said());
    let result: Value = serde_json::from_str(&replay.said()).unwrap();
    assert_eq!((&result["state"], &result["skipped"]), (&"failed".into(), &2.into()), "{result}");
    assert!(result["error"].as_str().unwrap().contains("the daemon has ended"), "{result}");
    // Its socket is still there.
    assert!(pair.setup.state().join("control.sock").exists());
    let pair = pair.mended();
    let daemon = pair.setup.start();
    pair.json(&["replay"], 0);
    pair.assert_arrived(&ids);
    drop(daemon);
    assert_eq!(pair.json(&["drop", "--all"], 0)["selected"], 0, "without a daemon, beside a stale socket");
}

#[test]
fn loses_no_letter_wherever_the_daemon_dies() {
    for point in ["letters.rewrite", "letters.rename", "letters.remove"] {
        let (pair, ids) = Pair::with_letters(3);
        let pair = pair.mended();
        let dying = pair.setup.clone().failpoints(&format!("{point}=kill"));
        let mut daemon = dying.start();
        // One is left in the file, so that it is rewritten, not removed; and the other way round.
        let chosen: &[&str] = &["--id", &ids[0], "--id", &ids[1]];
        let chosen = if point == "letters.remove" { &[] } else { chosen };
        let done = pair.json(&[&["replay"], chosen].concat(), 1);
        assert_eq!(done["state"], "failed", "{point}: {done}");
        wait_until("the daemon has died", LIMIT, || daemon.has_ended());
        assert_eq!(ids_of(&pair.setup.dead_letters()), ids, "{point}");
        let daemon = pair.setup.start();
        let id = send(&daemon, "new");
        daemon.wait_until("it is published", LIMIT, |status| status.count("published") == 1);
        assert_eq!(daemon.status().count("replayed"), 0, "{point}: nobody asks any more");
        assert_eq!(pair.json(&["replay"], 0)["published"], 3, "{point}");
        balanced(&daemon);
        assert_eq!((daemon.stop().code, pair.letters()), (Some(0), 0), "{point}");
        let mut arrived: Vec<String> = pair.arrived().into_iter().map(|(id, _)| id).collect();
        arrived.sort();
        arrived.dedup();
        assert_eq!(arrived, [&ids[..], &[id]].concat(), "{point}");
    }
}

#[test]
fn a_reload_in_the_middle_of_a_replay_sends_the_rest_to_the_new_address() {
    let (pair, ids) = Pair::with_letters(2);
    let pair = pair.away();
    let daemon = pair.setup.start();
    let mut replay = Running::start(&pair.setup, &["replay", "--json"], "");
    daemon.wait_until("they are in the queue", LIMIT, |status| status.count("held") == 2);
    daemon.reload();
    bring_back(&pair);
    assert_eq!(replay.wait().code(), Some(0), "{}", replay.said());
    let mut arrived = arrived_late(&pair);
    arrived.sort();
    assert_eq!(arrived, ids, "each once");
    assert_eq!((daemon.stop().code, pair.letters()), (Some(0), 0));
}

#[test]
fn a_second_replay_waits_for_the_first_and_a_drop_leaves_what_is_sent() {
    let (pair, ids) = Pair::with_letters(2);
    // The broker has taken them, and its disk does not answer.
    let pair = pair.mended();
    let pair = Pair { setup: pair.setup.failpoints("file.sync=10s"), ..pair };
    let daemon = pair.setup.start();
    let mut first = Running::start(&pair.setup, &["replay", "--json", "--id", &ids[0]], "");
    daemon.wait_until("it is sent", LIMIT, |status| status.count("held") == 1);
    let mut second = Running::start(&pair.setup, &["replay"], "");
    second.wait_until_it_says("another replay is under way");
    let done = pair.json(&["drop", "--all", "--timeout", "30s"], 1);
    assert_eq!(
        (&done["selected"], &done["dropped"], &done["skipped"]),
        (&2.into(), &1.into(), &1.into()),
        "{done}"
    );
    assert!(done["error"].as_str().unwrap().contains("a replay has them in flight"), "{done}");
    assert_eq!(first.wait().code(), Some(0), "{}", first.said());
    second.wait();
    pair.assert_arrived(&ids[..1]);
    balanced(&daemon);
    assert_eq!((daemon.stop().code, pair.letters()), (Some(0), 0));
}

#[test]
fn what_was_sent_when_the_command_was_killed_is_settled() {
    let (pair, ids) = Pair::with_letters(2);
    let pair = pair.mended();
    let pair = Pair { setup: pair.setup.failpoints("file.sync=5s"), ..pair };
    let daemon = pair.setup.start();
    let mut replay = Running::start(&pair.setup, &["replay"], "");
    daemon.wait_until("both are sent", LIMIT, |status| status.number("/buffer/in_flight_events") == 2);
    replay.signal("KILL");
    replay.wait();
    wait_until("their letters are removed", LIMIT, || pair.letters() == 0);
    pair.assert_arrived(&ids);
    let status = daemon.status();
    assert_eq!((status.count("published"), status.count("withdrawn"), status.count("held")), (2, 0, 0));
    balanced(&daemon);
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn goes_on_where_no_socket_is_possible_and_the_command_says_so() {
    let (pair, ids) = Pair::with_letters(1);
    let pair = pair.mended();
    let setup = pair.setup.clone().failpoints("control.bind=error");
    let daemon = setup.start();
    daemon.wait_for_line("the warning", |line| {
        line["message"].as_str().is_some_and(|text| text.contains("cannot make a control socket"))
    });
    let id = send(&daemon, "new");
    daemon.wait_until("it is published", LIMIT, |status| status.count("published") == 1);
    let began = Instant::now();
    let done = pair.json(&["replay"], 1);
    assert!(began.elapsed() >= Duration::from_secs(5), "it may have been starting: {:?}", began.elapsed());
    assert!(done["error"].as_str().unwrap().contains("has no control socket"), "{done}");
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(pair.json(&["replay"], 0)["published"], 1);
    pair.assert_arrived(&[&ids[..], &[id]].concat());
}

#[test]
fn waits_for_a_daemon_that_is_about_to_listen_or_to_end() {
    let (pair, ids) = Pair::with_letters(1);
    let pair = pair.mended();
    let lock = File::options().write(true).open(pair.setup.state().join("lock")).unwrap();
    lock.lock().unwrap();
    let mut replay = Running::start(&pair.setup, &["replay", "--json"], "");
    // It cannot be seen that it waits; that it does not end can.
    assert!(replay.child.try_wait().unwrap().is_none());
    drop(lock);
    assert_eq!(replay.wait().code(), Some(0), "{}", replay.said());
    pair.assert_arrived(&ids);
}

#[test]
fn a_reader_that_is_slow_holds_nothing_up() {
    let (pair, ids) = Pair::with_letters(300);
    let pair = pair.mended();
    let daemon = pair.setup.start();
    let replay = Running::start(&pair.setup, &["replay"], "");
    replay.signal("STOP");
    // Stopped before or after it asked: in both cases others are served.
    let id = send(&daemon, "new");
    daemon.wait_until("it is published", LIMIT, |status| status.count("published") >= 1);
    assert_eq!(pair.json(&["drop", "--all", "--timeout", "20s"], 0)["state"], "done");
    replay.signal("CONT");
    let mut replay = replay;
    replay.wait();
    assert_eq!((daemon.stop().code, pair.letters()), (Some(0), 0));
    let arrived = pair.arrived();
    assert!(arrived.iter().any(|(arrived, _)| *arrived == id));
    assert!(arrived.iter().all(|(arrived, _)| *arrived == id || ids.contains(arrived)));
}

#[test]
fn survives_the_removal_of_its_state_directory() {
    let (pair, _) = Pair::with_letters(1);
    let pair = pair.mended();
    let daemon = pair.setup.start();
    fs::remove_dir_all(pair.setup.state()).unwrap();
    assert_eq!(pair.json(&["replay"], 1)["selected"], 0, "there is no such directory");
    let id = send(&daemon, "new");
    daemon.wait_until("it is published", LIMIT, |status| status.count("published") == 1);
    pair.assert_arrived(&[id]);
    daemon.stop();
}

/// Runs a command without the capability that lets root read everything.
fn run_unprivileged(setup: &Setup, arguments: &[&str]) -> Ended {
    let config = setup.file().display().to_string();
    let program = env!("CARGO_BIN_EXE_plextrac-bridge");
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    let command =
        [program, "dead-letters"].into_iter().chain(arguments.iter().copied()).chain(["--config", &config]);
    if is_root {
        return Program::other("setpriv", ["--inh-caps=-all", "--bounding-set=-all"].into_iter().chain(command))
            .run();
    }
    Program::other(program, command.skip(1)).run()
}

#[test]
fn takes_a_directory_that_it_may_not_read_for_an_error_not_for_an_empty_one() {
    let (pair, _) = Pair::with_letters(1);
    let state = pair.setup.state();
    let all = [&["list"][..], &["show", "x"], &["replay", "--json"], &["drop", "--all", "--json"]];
    for (closed, with_daemon) in
        [(state.clone(), false), (state.join("dead-letters"), false), (state.clone(), true)]
    {
        let daemon = with_daemon.then(|| pair.setup.start());
        let mode = fs::metadata(&closed).unwrap().permissions();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        let ended = all.map(|arguments| (arguments, run_unprivileged(&pair.setup, arguments)));
        fs::set_permissions(&closed, mode).unwrap();
        for (arguments, ended) in ended {
            ended.assert_code(1);
            assert!(ended.err.contains("ermission denied"), "{arguments:?}: {}{}", ended.out, ended.err);
            if arguments.contains(&"--json") {
                let result: Value = serde_json::from_str(&ended.out).unwrap();
                assert_eq!(result["state"], "failed", "{result}");
                assert!(result["error"].as_str().unwrap().contains("ermission denied"), "{result}");
            }
        }
        drop(daemon);
    }
    assert_eq!(pair.letters(), 1);
}
