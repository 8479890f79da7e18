//! Requests about dead letters, `replay` and `drop`: a request touches what existed when it was made, ends with the
//! command that made it, and says what stands in its way.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
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
    let mut ids = vec![send(&daemon, "later-1"), send(&daemon, "later-2")];
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
    assert!(done["error"].as_str().unwrap().contains("nothing has moved for 1s"), "{done}");
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
    let setup = setup.text("dead_letters.max_bytes", "8KiB");
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
        fs::set_permissions(&closed, fs::Permissions::from_mode(0)).unwrap();
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
