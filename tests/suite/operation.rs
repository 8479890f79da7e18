//! The running daemon as its operator meets it: signals, what the log says and leaves out, connections to the admin port.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{
    Bridge, Client, LIMIT, PATH, Payload, Program, SECRET, Setup, plain, request_once, wait_for, wait_until,
};

fn lines_of(log: &str) -> impl Iterator<Item = Value> + '_ {
    log.lines().filter_map(|line| serde_json::from_str(line).ok())
}

#[test]
fn goes_on_after_signals_without_a_meaning() {
    let daemon = Setup::on_files().start();
    for name in ["USR1", "USR2", "ALRM", "VTALRM", "PROF", "IO", "PWR"] {
        Program::other("kill", ["-s", name, &daemon.pid().to_string()]).run().assert_code(0);
    }
    assert_eq!(request_once(&daemon, &Payload::new("cuid-1").body(), &[]).status, 200);
    daemon.wait_until_empty();
    let stopped = daemon.stop();
    assert_eq!((stopped.code, stopped.count("published")), (Some(0), 1), "{}", stopped.log);
}

#[test]
fn every_signal_that_asks_for_a_stop_ends_it_in_order() {
    for name in ["INT", "QUIT"] {
        let daemon = Setup::on_files().start();
        assert_eq!(request_once(&daemon, &Payload::new("cuid-1").body(), &[]).status, 200);
        Program::other("kill", ["-s", name, &daemon.pid().to_string()]).run().assert_code(0);
        let stopped = daemon.wait();
        assert_eq!((stopped.code, stopped.count("published")), (Some(0), 1), "{name}: {}", stopped.log);
    }
}

#[test]
fn ends_its_log_with_the_accounting_at_every_level() {
    for level in ["error", "warn"] {
        let setup = Setup::on_files();
        let socket = setup.state().join("control.sock");
        let program = Program::new(["serve", "--log-format", "json", "--log-level", level, "--config"]);
        let mut command: Command = program.into_command();
        command.arg(setup.file());
        let daemon = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it can be started");
        // It does not say at this level that it listens.
        wait_until("the daemon runs", LIMIT, || socket.exists());
        Program::other("kill", ["-s", "TERM", &daemon.id().to_string()]).run().assert_code(0);
        let ended = daemon.wait_with_output().expect("it ends");
        let log = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(0), "{level}: {log}");
        let last = lines_of(&log).last().unwrap_or_default();
        assert_eq!((&last["message"], &last["received"]), (&"stopped".into(), &0.into()), "{level}: {log}");
    }
}

#[test]
fn says_how_many_lines_it_left_out() {
    let daemon = Setup::on_files().start();
    let mut client = Client::connect(&daemon.ingress).unwrap();
    for _ in 0..200 {
        let wrong = [("X-Authorization-HMAC-256", "00")];
        assert_eq!(client.send("POST", PATH, &wrong, b"{}").unwrap().status, 401);
    }
    let said = || {
        let log = daemon.log();
        let refused = lines_of(&log).filter(|line| line["reason"] == "signature").count() as u64;
        let is_summary =
            |line: &Value| line["message"].as_str().is_some_and(|text| text.ends_with(": refused requests"));
        let left_out: u64 = lines_of(&log).filter(is_summary).filter_map(|line| line["left_out"].as_u64()).sum();
        (refused, left_out)
    };
    wait_until("every refusal is in the log", LIMIT, || {
        let (refused, left_out) = said();
        refused + left_out == 200
    });
    assert!(said().0 < 200, "nothing was left out");
    // What is left out just before the end is said before the accounting.
    for _ in 0..20 {
        assert_eq!(client.send("GET", PATH, &[], b"").unwrap().status, 405);
    }
    let stopped = daemon.stop();
    let left_out: u64 = lines_of(&stopped.log)
        .filter(|line| {
            line["message"].as_str().is_some_and(|text| text.ends_with(": refused GET, HEAD and OPTIONS requests"))
        })
        .filter_map(|line| line["left_out"].as_u64())
        .sum();
    assert_eq!(left_out, 19, "{}", stopped.log);
    assert_eq!(stopped.count("rejected"), 220);
}

#[test]
fn logs_each_step_of_an_event_at_debug() {
    let setup = Setup::on_files().level("debug");
    let daemon = setup.start();
    assert_eq!(request_once(&daemon, &Payload::new("cuid-1").body(), &[]).status, 200);
    daemon.wait_until_empty();
    let refused = br#"{"cuid":"cuid-2","event":"E"}"#;
    let stopped = daemon.stop();
    for message in ["accepted an event", "sent an event", "the broker stored an event"] {
        let lines: Vec<Value> = lines_of(&stopped.log).filter(|line| line["message"] == message).collect();
        let [line] = lines.as_slice() else { panic!("{message}: {lines:?}") };
        assert!(line["id"].as_str().is_some_and(|id| id.starts_with("cuid-1-")), "{line}");
    }
    let daemon = setup.failpoints("publish.address=error").start();
    assert_eq!(request_once(&daemon, refused, &[]).status, 200);
    daemon.wait_for_line("the refusal", |line| {
        line["message"] == "refused an event" && line["id"].as_str().is_some_and(|id| id.starts_with("cuid-2-"))
    });
}

#[test]
fn begins_lines_with_their_priority_where_they_go_to_the_journal() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let writer = File::from(OwnedFd::from(writer));
    let metadata = writer.metadata().unwrap();
    let stream = format!("{}:{}", metadata.dev(), metadata.ino());
    let setup = Setup::on_files();
    let config = setup.file();
    let run = |stream: &str, stderr: File| {
        let mut command: Command =
            Program::new(["serve", "--config"]).variable("JOURNAL_STREAM", stream).into_command();
        command.arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap()
    };
    let mut child = run(&stream, writer);
    let mut first = [0; 3];
    reader.read_exact(&mut first).unwrap();
    Program::other("kill", [child.id().to_string()]).run().assert_code(0);
    let mut log = String::from_utf8_lossy(&first).into_owned();
    reader.read_to_string(&mut log).unwrap();
    child.wait().unwrap();
    for line in log.lines() {
        let (priority, line) = line.split_at(3);
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let expected = if line["level"] == "WARN" { "<4>" } else { "<6>" };
        assert_eq!(priority, expected, "{line}");
    }
    assert!(log.contains("\"stopped\""), "{log}");
    // A stream of something else.
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut child = run(&stream.replace(':', ":9"), File::from(OwnedFd::from(writer)));
    reader.read_exact(&mut first).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(&first, b"{\"t");
}

#[test]
fn answers_probes_although_others_keep_connections_to_the_admin_port() {
    let daemon = Setup::on_files().start();
    let mut asked = Client::connect(&daemon.admin).unwrap();
    let answer = asked.send("GET", "/livez", &[], b"").unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(asked.is_closed_by_server(), "it is not kept");
    let mut silent: Vec<_> = (0..64).map(|_| plain(&daemon.admin)).collect();
    // Each closes the one that has been silent longest.
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(daemon.get(path).status, 200, "{path}");
    }
    let mut nothing = Vec::new();
    silent[0].read_to_end(&mut nothing).unwrap();
    assert!(nothing.is_empty());
}

#[test]
fn answers_no_request_for_another_host_on_loopback() {
    let daemon = Setup::on_files().start();
    let status = |admin: &str, host: &str| {
        let mut client = Client::connect(admin).unwrap();
        let request = if host.is_empty() { String::new() } else { format!("Host: {host}\r\n") };
        let version = if host.is_empty() { "HTTP/1.0" } else { "HTTP/1.1" };
        client.write(format!("GET /status {version}\r\n{request}\r\n").as_bytes()).unwrap();
        let answer = client.answer().unwrap();
        (answer.status, answer.text())
    };
    for host in
        ["", "localhost", "LOCALHOST:8081", "localhost.", "127.0.0.1", "192.0.2.1:8081", "[::1]:8081", "[::1]"]
    {
        assert_eq!(status(&daemon.admin, host).0, 200, "{host}");
    }
    for host in
        ["example.com", "evil.example:8081", "127.0.0.1.evil.example", "localhost.evil.example", "bridge.internal"]
    {
        let (code, text) = status(&daemon.admin, host);
        assert_eq!(code, 421, "{host}");
        assert!(text.contains("`admin.hosts`"), "{text}");
    }
    let named = Setup::on_files().raw("admin.hosts", "[\"bridge.internal\"]").start();
    assert_eq!(status(&named.admin, "Bridge.internal:8081").0, 200);
    assert_eq!(status(&named.admin, "example.com").0, 421);
    // On another address only where names are set.
    let everywhere = Setup::on_files().text("admin.listen", "0.0.0.0:0");
    let local = |admin: &str| admin.replace("0.0.0.0", "127.0.0.1");
    let daemon = everywhere.start();
    assert_eq!(status(&local(&daemon.admin), "example.com").0, 200);
    daemon.stop();
    let daemon = everywhere.raw("admin.hosts", "[\"bridge.internal\"]").start();
    assert_eq!(status(&local(&daemon.admin), "example.com").0, 421);
    assert_eq!(status(&local(&daemon.admin), "bridge.internal").0, 200);
}

#[test]
fn says_the_commit_it_was_built_from() {
    let daemon = Setup::on_files().start();
    let revision = daemon.status().text("/revision").to_owned();
    let is_in_repository = Path::new(env!("CARGO_MANIFEST_DIR")).join(".git").exists();
    let is_commit = revision.len() == 12 && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(is_commit || !is_in_repository, "{revision}");
    assert!(daemon.get("/metrics").text().contains(&format!("revision=\"{revision}\"")));
}

#[test]
fn says_what_it_is_answered_and_gives_up_sending() {
    let bridge = Bridge::start_without_broker(|setup| setup.raw("buffer.max_events", "2"));
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("secret"), SECRET).unwrap();
    let url = format!("http://{}{PATH}", bridge.daemon.ingress);
    let arguments =
        ["send", "--secret-file", "secret", "--count", "5", "--connections", "1", "--timeout", "2s", &url];
    let ended = Program::new(arguments).within(directory.path()).run();
    ended.assert_code(1);
    assert_eq!(ended.err.matches("answer: 503 ").count(), 1, "a line for each change: {}", ended.err);
    assert!(ended.err.contains("gave up: nothing was accepted for 2s; 2 not sent"), "{}", ended.err);
    assert!(ended.out.starts_with("2 accepted, 1 refused, 0 failed, "), "{}", ended.out);
    let waiting = wait_for("a line", LIMIT, || Some(bridge.daemon.status()));
    assert_eq!(waiting.count("accepted"), 2);
}
