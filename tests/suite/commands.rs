//! The commands beside `serve`: their output, their exit codes, and that they leave nothing behind.
//!
//! Length: one part for each command.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Instant;

use serde_json::Value;

use crate::support::{
    Bridge, Ended, LIMIT, PATH, Payload, Program, SECRET, Setup, get, node_signs, request_once, sign,
};

const COMMANDS: [&str; 12] = [
    "serve",
    "check",
    "demo",
    "sign",
    "explain",
    "send",
    "dead-letters",
    "journal",
    "healthcheck",
    "schema",
    "completions",
    "man",
];

/// A file with the secret of the suite.
fn secret_file(directory: &Path) -> String {
    let path = directory.join("secret");
    fs::write(&path, format!("{SECRET}\n")).unwrap();
    path.display().to_string()
}

/// Runs `send` to a bridge.
fn send(bridge: &Bridge, directory: &Path, arguments: &[&str], files: &[&str]) -> Ended {
    let url = format!("http://{}{PATH}", bridge.daemon.ingress);
    let secret = secret_file(directory);
    let fixed = ["send", "--secret-file", &secret];
    let all = fixed.iter().chain(arguments).copied().chain([url.as_str()]).chain(files.iter().copied());
    Program::new(all).within(directory).run()
}

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}: {}{}", ended.out, ended.err))
}

#[test]
fn shows_an_example_in_the_help_of_every_command() {
    let help = Program::new(["--help"]).run();
    help.assert_code(0);
    for command in COMMANDS {
        assert!(help.out.contains(&format!("\n  {command} ")), "{command} is not in:\n{}", help.out);
        let own = Program::new([command, "--help"]).run();
        own.assert_code(0);
        let (_, example) =
            own.out.split_once("Example").unwrap_or_else(|| panic!("{command}: no example in {}", own.out));
        assert!(example.contains("plextrac-bridge "), "{command}: the example calls nothing: {example}");
        let width = example.lines().map(str::len).max();
        assert!(width <= Some(78), "{command}: a terminal breaks the lines of {example}");
        assert!(!own.out.contains('\x1b'), "{command}: colour although it is no terminal");
    }
    let listed = help.out.split_once("Commands:\n").unwrap().1.split_once("\n\n").unwrap().0;
    let listed: Vec<&str> = listed.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    let listed: Vec<&str> = listed.into_iter().filter(|name| !name.is_empty() && *name != "help").collect();
    assert_eq!(listed, COMMANDS, "a command is not looked at here");
    assert!(!help.out.contains('`'), "quotes of the source stand in the help: {}", help.out);
}

#[test]
fn ends_with_2_for_wrong_arguments_and_78_for_wrong_settings() {
    for arguments in [
        &["bogus"][..],
        &["check", "--bogus"],
        &["check", "--config"],
        &["send", "--rate", "0"],
        &["send", "--connections", "x"],
        &["sign", "a", "b"],
        &["send", "--source", "a", "--secret-file", "b"],
        &[],
    ] {
        Program::new(arguments).run().assert_code(2);
    }
    for arguments in [&["serve"][..], &["check"], &["sign"], &["send"], &["serve", "--config", "/no/such"]] {
        let ended = Program::new(arguments).run();
        ended.assert_code(78);
        assert!(ended.err.starts_with("error: "), "{arguments:?}: {}", ended.err);
    }
    let version = Program::new(["--version"]).run();
    version.assert_code(0);
    let revision = option_env!("PLEXTRAC_BRIDGE_REVISION").unwrap_or("unknown");
    assert_eq!(
        version.out,
        format!(
            "plextrac-bridge {} ({revision})\nbrokers: kafka, rabbitmq, nats, file\n",
            env!("CARGO_PKG_VERSION")
        )
    );
}

#[test]
fn demonstrates_itself_once_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let ended =
        Program::new(["demo", "--once"]).variable("TMPDIR", directory.path()).within(directory.path()).run();
    ended.assert_code(0);
    assert!(ended.out.contains("4 received, 4 accepted, 4 published, 0 lost"), "the end: {}", ended.out);
    assert_eq!(ended.out.matches("\narrived ").count(), 4, "what arrived: {}", ended.out);
    for word in ["http://127.0.0.1:", "/metrics", "Secret ", "curl -i -H 'X-Authorization-HMAC-256: "] {
        assert!(ended.out.contains(word), "{word} is not shown: {}", ended.out);
    }
    assert_eq!(ended.err, "", "nothing to complain about");
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn demonstrates_itself_until_it_is_told_to_stop() {
    for signal in ["INT", "HUP"] {
        demonstrates_itself_until(signal);
    }
}

fn demonstrates_itself_until(signal: &str) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Program::new(["demo"]).variable("TMPDIR", directory.path()).into_command();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let (mut url, mut arrived) = (String::new(), 0);
    while arrived < 4 {
        let line = lines.next().expect("the demo ended by itself");
        arrived += usize::from(line.starts_with("arrived "));
        if let Some(page) = line.strip_prefix("  page      ") {
            page.clone_into(&mut url);
        }
    }
    let address = url.strip_prefix("http://").unwrap_or_else(|| panic!("no page: {url:?}")).trim_end_matches('/');
    assert_eq!(get(address, "/").unwrap().status, 200, "the page at {url}");
    let pid = child.id().to_string();
    Program::other("kill", ["-s", signal, &pid]).run().assert_code(0);
    let rest: Vec<String> = lines.collect();
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}: {rest:?}");
    assert!(rest.iter().any(|line| line.ends_with(", 0 lost")), "the end: {rest:?}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "something was left behind");
}

#[test]
fn signs_as_node_does() {
    let directory = tempfile::tempdir().unwrap();
    let secret = secret_file(directory.path());
    let payload = serde_json::json!({ "text": "Zürich 😀\u{2028}", "lone": { "$unit": [0xd800] } });
    let signed = &node_signs(SECRET, &[payload])[0];
    fs::write(directory.path().join("body"), &signed.body).unwrap();
    let by_file = Program::new(["sign", "--secret-file", &secret, "body"]).within(directory.path()).run();
    by_file.assert_code(0);
    assert_eq!(by_file.out, format!("{}\n", signed.signature), "of a file");
    for arguments in [&["sign", "--secret-file", &secret][..], &["sign", "--secret-file", &secret, "-"]] {
        let by_input = Program::new(arguments).input(signed.body.clone()).run();
        assert_eq!(by_input.out, format!("{}\n", signed.signature), "of standard input");
    }
    let none = Program::new(["sign", "--secret-file", &secret, "none"]).within(directory.path()).run();
    none.assert_code(1);
    assert_eq!(none.err, "error: cannot read none: No such file or directory (os error 2)\n", "a missing body");
    let none = Program::new(["sign", "--secret-file", "none"]).within(directory.path()).run();
    none.assert_code(1);
    assert_eq!(none.err, "error: cannot read none: No such file or directory (os error 2)\n", "a missing secret");
}

#[test]
fn signs_as_the_source_that_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let toml = format!(
        "[sources.a]\npath = \"/a\"\nsecret = \"{SECRET}\"\n[sources.b]\npath = \"/b\"\nunsigned = true\n[broker.file]\n"
    );
    fs::write(directory.path().join("bridge.toml"), toml).unwrap();
    let run = |arguments: &[&str]| {
        let all = ["sign", "--config", "bridge.toml"].iter().chain(arguments);
        Program::new(all).within(directory.path()).input("{}").run()
    };
    assert_eq!(run(&["--source", "a"]).out, format!("{}\n", sign(SECRET, b"{}")), "the source a");
    for (arguments, error) in [
        (&[][..], "error: name one of the sources with --source: a, b\n"),
        (&["--source", "c"], "error: name one of the sources with --source: a, b\n"),
        (&["--source", "b"], "error: the source is unsigned: there is no secret\n"),
    ] {
        let ended = run(arguments);
        ended.assert_code(1);
        assert_eq!(ended.err, error, "{arguments:?}");
    }
}

#[test]
fn sends_as_many_samples_as_it_is_told() {
    let bridge = Bridge::start(|setup| setup);
    let directory = tempfile::tempdir().unwrap();
    let ended = send(&bridge, directory.path(), &[], &[]);
    ended.assert_code(0);
    assert!(ended.out.starts_with("1 accepted, 0 refused, 0 failed, 0 repeated after a 503, in "), "{}", ended.out);
    let ended = send(&bridge, directory.path(), &["--count", "50", "--connections", "3", "--json"], &[]);
    ended.assert_code(0);
    let result = json(&ended);
    assert_eq!(result["accepted"], 50, "{result}");
    assert_eq!(result["codes"], serde_json::json!({ "200": 50 }), "{result}");
    let fields: Vec<&str> = result.as_object().unwrap().keys().map(String::as_str).collect();
    let promised = [
        "accepted",
        "accepted_per_second",
        "codes",
        "failed",
        "last_error",
        "p50_milliseconds",
        "p99_milliseconds",
        "refused",
        "repeated",
        "seconds",
    ];
    assert_eq!(fields, promised, "the fields of --json");
    bridge.daemon.wait_until_empty();
    let arrived = bridge.arrived();
    assert_eq!(arrived.len(), 51, "what arrived");
    let ids: std::collections::BTreeSet<&String> = arrived.iter().map(|line| &line.id).collect();
    assert_eq!(ids.len(), 51, "each sample has an id of its own");
}

#[test]
fn sends_the_samples_that_it_is_told() {
    let bridge = Bridge::start(|setup| setup);
    let directory = tempfile::tempdir().unwrap();
    let sent = |arguments: &[&str]| {
        let before = bridge.arrived().len();
        let result = send(&bridge, directory.path(), &[arguments, &["--connections", "1", "--json"]].concat(), &[]);
        result.assert_code(0);
        bridge.daemon.wait_until_empty();
        let mut arrived = bridge.arrived();
        arrived.retain(|line| !line.body.is_empty());
        assert_eq!(arrived.len() as u64, before as u64 + json(&result)["accepted"].as_u64().unwrap());
        arrived.iter().map(|line| serde_json::from_slice(&line.body).unwrap()).collect::<Vec<Value>>()
    };
    // Each of them once if no number is given.
    let all = sent(&["--sample", "all"]);
    assert_eq!(all.len(), 18);
    let is_automation = |payload: &&Value| payload.get("event").is_none();
    assert_eq!(all.iter().filter(is_automation).count(), 3);
    assert!(
        all.iter().any(|payload| payload["reportId"].is_string())
            && all.iter().any(|payload| payload["reportId"].is_u64())
    );
    assert_eq!(
        all.iter().filter(|payload| payload["targetCuids"].as_array().is_some_and(|list| list.len() == 3)).count(),
        2
    );
    // In turn.
    let more = sent(&["--sample", "ids,flaw-ids", "--sample", "report-published", "--count", "5"]);
    assert_eq!(more.iter().filter(is_automation).count(), 3 + 4);
    // The largest change that is known, with the limits as they are by default.
    let bulk = sent(&["--targets", "20000"]);
    let largest = bulk.iter().filter_map(|payload| payload["targetCuids"].as_array()).map(Vec::len).max();
    assert_eq!((bulk.len(), largest), (24, Some(20_000)));
    let none = sent(&["--sample", "bulk-change-without-text", "--targets", "0"]);
    assert!(none.iter().any(|payload| payload["targetCuids"] == serde_json::json!([])));
}

#[test]
fn says_which_samples_there_are() {
    let bridge = Bridge::start(|setup| setup);
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.json"), Payload::new("a").body()).unwrap();
    let refused = |arguments: &[&str], files: &[&str], text: &str| {
        let ended = send(&bridge, directory.path(), arguments, files);
        ended.assert_code(2);
        assert!(ended.err.contains(text), "{arguments:?}: {}", ended.err);
    };
    refused(&["--sample", "bogus"], &[], "report-published, finding-published, ");
    refused(&["--sample", "ids", "--targets", "5"], &[], "--targets needs a sample that is a bulk change");
    refused(&["--targets", "x"], &[], "--targets <N>");
    refused(&["--sample", "ids"], &["a.json"], "cannot be used with");
    refused(&["--targets", "5"], &["a.json"], "cannot be used with");
    assert_eq!(bridge.daemon.status().count("received"), 0);
}

#[test]
fn sends_no_faster_than_it_is_told() {
    let bridge = Bridge::start(|setup| setup);
    let directory = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    send(&bridge, directory.path(), &["--count", "11", "--rate", "20"], &[]).assert_code(0);
    // The eleventh is due half a second after the first.
    assert!(begun.elapsed().as_millis() >= 500, "11 events at 20 a second took {:?}", begun.elapsed());
}

#[test]
fn sends_the_bytes_of_files_unchanged() {
    let bridge = Bridge::start(Setup::takes_repeats);
    let directory = tempfile::tempdir().unwrap();
    let bodies = [
        format!(" {}\r\n", String::from_utf8(Payload::new("blanks").body()).unwrap()).into_bytes(),
        Payload::new("ünïcode 😀\u{2028}").body(),
        Payload::new("large").body_of(100_000),
    ];
    let names = ["a.json", "b.json", "c.json"];
    for (name, body) in names.iter().zip(&bodies) {
        fs::write(directory.path().join(name), body).unwrap();
        bridge.accepted(body);
    }
    send(&bridge, directory.path(), &[], &names).assert_code(0);
    bridge.check();
    // More than there are files: from the first again.
    send(&bridge, directory.path(), &["--count", "4"], &names).assert_code(0);
    bodies.iter().chain([&bodies[0]]).for_each(|body| bridge.accepted(body));
    bridge.stop();
}

#[test]
fn repeats_after_a_503_or_counts_it_as_refused() {
    let bridge = Bridge::start_without_broker(|setup| setup.raw("buffer.max_events", "2"));
    let directory = tempfile::tempdir().unwrap();
    let ended =
        send(&bridge, directory.path(), &["--count", "5", "--connections", "1", "--no-retry", "--json"], &[]);
    ended.assert_code(1);
    let result = json(&ended);
    assert_eq!(result["codes"], serde_json::json!({ "200": 2, "503": 3 }), "{result}");
    assert_eq!((&result["refused"], &result["repeated"]), (&3.into(), &0.into()), "{result}");
    let url = format!("http://{}{PATH}", bridge.daemon.ingress);
    let secret = secret_file(directory.path());
    let sending = thread::spawn(move || {
        Program::new(["send", "--secret-file", &secret, "--count", "3", "--json", &url]).run()
    });
    bridge.daemon.wait_until("a 503", LIMIT, |status| status.count("rejected") > 3);
    bridge.bring_the_broker_back();
    let ended = sending.join().unwrap();
    ended.assert_code(0);
    let result = json(&ended);
    assert_eq!((&result["accepted"], &result["refused"]), (&3.into(), &0.into()), "{result}");
    assert!(result["repeated"].as_u64() > Some(0), "{result}");
    bridge.daemon.wait_until_empty();
    assert_eq!(bridge.arrived().len(), 5, "what arrived");
}

#[test]
fn reports_errors_of_sending() {
    let bridge = Bridge::start(|setup| setup);
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("bad.json"), "{").unwrap();
    let ended = send(&bridge, directory.path(), &[], &["bad.json"]);
    ended.assert_code(1);
    assert!(ended.out.contains("0 accepted, 1 refused") && ended.out.contains("\n  1 x 400\n"), "{}", ended.out);
    assert!(ended.out.contains("last refusal: {\"detail\":\"not JSON: "), "{}", ended.out);
    let ended = send(&bridge, directory.path(), &[], &["none.json"]);
    ended.assert_code(1);
    assert!(ended.err.starts_with("error: cannot read none.json: "), "{}", ended.err);
    let secret = secret_file(directory.path());
    let ended = Program::new(["send", "--secret-file", &secret, "http://127.0.0.1:1/x"]).run();
    ended.assert_code(1);
    assert!(
        ended.err.starts_with("error: http://127.0.0.1:1/x: ") && ended.err.contains("refused"),
        "{}",
        ended.err
    );
    for url in ["nonsense", "/x"] {
        let ended = Program::new(["send", "--secret-file", &secret, url]).run();
        ended.assert_code(1);
        assert!(ended.err.starts_with("error: ") && ended.err.contains("not a URL"), "{url}: {}", ended.err);
    }
    let ended = Program::new(["send", "--secret-file", &secret]).run();
    ended.assert_code(1);
    assert!(ended.err.starts_with("error: give the URL to send to"), "{}", ended.err);
}

#[test]
fn asks_the_running_bridge_for_its_health() {
    let bridge = Bridge::start_without_broker(|setup| setup.raw("buffer.max_events", "1"));
    let directory = tempfile::tempdir().unwrap();
    let toml = |admin: &str| {
        let path = directory.path().join("bridge.toml");
        fs::write(&path, format!("[admin]\nlisten = {admin:?}\n[sources.a]\nunsigned = true\n[broker.file]\n"))
            .unwrap();
    };
    let health = |arguments: &[&str]| {
        let all = ["healthcheck", "--config", "bridge.toml"].iter().chain(arguments);
        Program::new(all).within(directory.path()).run()
    };
    toml(&bridge.daemon.admin);
    for (arguments, word) in [(&[][..], "live\n"), (&["--ready"], "ready\n")] {
        let ended = health(arguments);
        ended.assert_code(0);
        assert_eq!(ended.out, word, "{arguments:?}");
    }
    request_once(&bridge.daemon, &Payload::new("fills it").body(), &[]);
    let unready = health(&["--ready"]);
    unready.assert_code(1);
    assert!(unready.out.starts_with("not ready\nbuffer full: 1 of 1 events"), "{}", unready.out);
    health(&[]).assert_code(0);
    toml("127.0.0.1:1");
    let nobody = health(&[]);
    nobody.assert_code(1);
    assert!(nobody.err.ends_with("is the bridge running with these settings?\n"), "{}", nobody.err);
    toml("");
    let off = health(&[]);
    off.assert_code(1);
    assert_eq!(off.err, "error: the admin port is off (`admin.listen` is empty), so there is nothing to ask\n");
}

#[test]
fn says_whether_the_broker_is_there_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let check = |events: &str| {
        let toml = format!("[sources.a]\nunsigned = true\n[broker.file]\ndirectory = {events:?}\n");
        fs::write(directory.path().join("bridge.toml"), toml).unwrap();
        Program::new(["--config", "bridge.toml", "check", "--connect"]).within(directory.path()).run()
    };
    let good = check("events");
    good.assert_code(0);
    assert!(
        good.out.ends_with("good: the directory events will be created at start\nbroker: good\n"),
        "{}",
        good.out
    );
    assert!(!directory.path().join("events").exists(), "a check made the directory");
    let missing = check("no/events");
    missing.assert_code(1);
    assert_eq!(missing.err, "error: neither no/events nor its parent exists; create no\n", "what is missing");
}

#[test]
fn shows_on_a_terminal_how_far_it_is_with_sending() {
    let bridge = Bridge::start_without_broker(|setup| setup.raw("buffer.max_events", "10"));
    let directory = tempfile::tempdir().unwrap();
    let secret = secret_file(directory.path());
    let url = format!("http://{}{PATH}", bridge.daemon.ingress);
    let arguments = ["send", "--secret-file", &secret, "--count", "12", &url].map(str::to_owned);
    let running = thread::spawn(move || Program::on_terminal(&arguments.each_ref().map(String::as_str)).run());
    bridge.daemon.wait_until("the buffer is full", LIMIT, |status| status.count("rejected") > 0);
    bridge.bring_the_broker_back();
    let ended = running.join().unwrap();
    ended.assert_code(0);
    for part in ["10/12 events, ", "/s, ", " left, 2 waiting after a 503", "12 accepted, 0 refused"] {
        assert!(ended.out.contains(part), "no {part:?} in {:?}", ended.out);
    }
    let wrong = directory.path().join("wrong").display().to_string();
    fs::write(&wrong, "another secret, 0123456789").unwrap();
    let ended = Program::on_terminal(&["send", "--secret-file", &wrong, "--count", "3", &url]).run();
    ended.assert_code(1);
    assert!(ended.out.contains(" left, 3 refused"), "{:?}", ended.out);
    // If a program reads, there is no bar.
    let ended = send(&bridge, directory.path(), &["--count", "3"], &[]);
    ended.assert_code(0);
    assert_eq!(ended.err, "");
}
