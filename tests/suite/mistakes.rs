//! Mistakes of an operator: what `check` and the start say about them, and commands that work nevertheless.
//!
//! Length: one test for each mistake.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;

use crate::support::{
    Authority, Bridge, Daemon, Ended, LIMIT, Payload, Program, SECRET, Setup, request_once, said, wait_for,
};

/// A settings file in a directory of its own.
fn written(toml: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("bridge.toml"), toml).unwrap();
    directory
}

fn sound(more: &str) -> tempfile::TempDir {
    written(&format!("[sources.plextrac]\nsecret = \"{SECRET}\"\n[broker.file]\ndirectory = \"events\"\n{more}"))
}

fn check(directory: &Path) -> Program {
    Program::new(["check", "--config", "bridge.toml"]).within(directory)
}

#[track_caller]
fn assert_has(ended: &Ended, lines: &[&str]) {
    for line in lines {
        assert!(ended.out.lines().any(|found| found == *line), "{line:?} is not in:\n{}{}", ended.out, ended.err);
    }
}

#[test]
fn says_which_limits_are_too_low_before_the_start() {
    let directory = sound(
        "[journal]\nmax_bytes = \"16MiB\"\n[ingress]\nmax_connections = 1000000\n[invalid]\nmax_bytes = \"1MiB\"\n",
    );
    let ended = check(directory.path()).variable("PLEXTRAC_BRIDGE__STATE_DIRECTORY", "state").run();
    ended.assert_code(0);
    for limit in [
        "the journal has room for 16760768 bytes of the 67108864 that the buffer may hold at a stop",
        "files may be open, and `ingress.max_connections` = 1000000",
        "`invalid.max_bytes` (1048576 bytes) has no room for a signed body of `ingress.max_body` (983040 bytes)",
    ] {
        assert!(
            ended.out.lines().any(|line| line.starts_with("warning: ") && line.contains(limit)),
            "{}",
            ended.out
        );
    }
    let ended = check(directory.path()).run();
    assert!(!ended.out.contains("journal.max_bytes"), "nothing is written at a stop: {}", ended.out);
    // Each segment has a header.
    let directory = sound("[journal]\nmax_bytes = \"64MiB\"\n[buffer]\nmax_bytes = \"64MiB\"\n");
    let ended = check(directory.path()).variable("PLEXTRAC_BRIDGE__STATE_DIRECTORY", "state").run();
    ended.assert_code(0);
    assert!(
        ended.out.contains("warning: the journal has room for 67092416 bytes of the 67108864"),
        "{}",
        ended.out
    );
}

#[test]
fn says_that_a_journal_is_too_small_for_events_that_wait() {
    let check = |max_bytes: &str| {
        let directory = sound(&format!("[journal]\nmax_bytes = \"{max_bytes}\"\n"));
        let journaled = check(directory.path()).variable("PLEXTRAC_BRIDGE__ACK", "journaled");
        let ended = journaled.variable("PLEXTRAC_BRIDGE__STATE_DIRECTORY", "state").run();
        ended.assert_code(0);
        ended.out
    };
    let small = check("3MiB");
    assert!(small.contains("warning: `journal.max_bytes` (3145728 bytes)"), "{small}");
    assert!(small.contains("raise it to \"3888KiB\""), "{small}");
    let enough = check("4MiB");
    assert!(!enough.contains("journal.max_bytes"), "{enough}");
}

#[test]
fn names_the_files_that_were_read_the_addresses_and_what_a_variable_overrides() {
    let directory = sound("[ingress]\nlisten = \"127.0.0.1:9000\"\n[admin]\nlisten = \"\"\n");
    let ended = check(directory.path()).variable("PLEXTRAC_BRIDGE__INGRESS__LISTEN", "127.0.0.1:9001").run();
    ended.assert_code(0);
    assert_has(
        &ended,
        &[
            "file bridge.toml: settings",
            "note: `ingress.listen` in bridge.toml is overridden by environment variable PLEXTRAC_BRIDGE__INGRESS__LISTEN",
            "webhooks: 127.0.0.1:9001, admin port: off, state directory: none",
        ],
    );
    // The start says the same.
    let setup = Setup::on_files().variable("PLEXTRAC_BRIDGE__INGRESS__THREADS", "1");
    let daemon = setup.start();
    let line = daemon.wait_for_line("the value that counts", |line| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.contains("`ingress.threads` in ") && text.contains("overridden"))
    });
    assert_eq!(line["level"], "INFO", "{line}");
}

#[test]
fn reads_a_file_of_defaults_below_the_settings_file() {
    let directory = sound("[ingress]\nlisten = \"127.0.0.1:9000\"\n");
    let defaults =
        "state_directory = \"state\"\n[ingress]\nlisten = \"0.0.0.0:8080\"\n[admin]\nlisten = \"0.0.0.0:8081\"\n";
    fs::write(directory.path().join("image.toml"), defaults).unwrap();
    let ended = check(directory.path()).variable("PLEXTRAC_BRIDGE_DEFAULTS", "image.toml").run();
    ended.assert_code(0);
    assert_has(
        &ended,
        &[
            "file image.toml: defaults",
            "file bridge.toml: settings",
            "webhooks: 127.0.0.1:9000, admin port: 0.0.0.0:8081, state directory: state",
        ],
    );
    assert!(!ended.out.contains("overridden"), "it is what such a file is for: {}", ended.out);
    let ended = check(directory.path()).variable("PLEXTRAC_BRIDGE_DEFAULTS", "none.toml").run();
    ended.assert_code(78);
    assert!(
        ended.err.contains("environment variable PLEXTRAC_BRIDGE_DEFAULTS: none.toml: cannot read it: "),
        "{}",
        ended.err
    );
}

#[test]
fn takes_the_settings_file_from_a_variable_unless_an_option_names_one() {
    let directory = sound("[ingress]\nlisten = \"127.0.0.1:9000\"\n");
    fs::write(directory.path().join("other.toml"), "typo").unwrap();
    let run = |arguments: &[&str], file: &str| {
        Program::new(arguments).within(directory.path()).variable("PLEXTRAC_BRIDGE_CONFIG", file).run()
    };
    let ended = run(&["check"], "bridge.toml");
    ended.assert_code(0);
    assert_has(&ended, &["file bridge.toml: settings"]);
    run(&["check", "--config", "bridge.toml"], "other.toml").assert_code(0);
    let ended = run(&["check"], "other.toml");
    ended.assert_code(78);
    assert!(ended.err.starts_with("error: other.toml: line 1"), "{}", ended.err);
    let ended = run(&["check"], "none.toml");
    ended.assert_code(78);
    assert!(
        ended.err.contains("environment variable PLEXTRAC_BRIDGE_CONFIG: none.toml: cannot read it: "),
        "{}",
        ended.err
    );
}

#[test]
fn warns_of_variables_that_are_no_settings() {
    for (name, meant) in [
        ("PLEXTRAC_BRIDGE_INGRESS__LISTEN", "PLEXTRAC_BRIDGE__INGRESS__LISTEN"),
        ("PLEXTRAC_BRIDGE_INGRES__LISTEN", "PLEXTRAC_BRIDGE__INGRESS__LISTEN"),
        ("PLEXTRAC_BRIDGE_INGRESS_LISTEN", "PLEXTRAC_BRIDGE__INGRESS__LISTEN"),
        ("PLEXTRAC_BRIDGE_SOURCES__PLEXTRAC__SECRET_FILE", "PLEXTRAC_BRIDGE__SOURCES__PLEXTRAC__SECRET_FILE"),
        ("PLEXTRAC_BRIDGE_ACK", "PLEXTRAC_BRIDGE__ACK"),
        ("PLEXTRAC_BRIDGE_STATE_DIRECTORY", "PLEXTRAC_BRIDGE__STATE_DIRECTORY"),
        ("plextrac_bridge__ack", "PLEXTRAC_BRIDGE__ACK"),
        ("PLEXTRAC_BRIDGE_CONFIGS", "PLEXTRAC_BRIDGE_CONFIG"),
        ("PLEXTRAC_BRIDGE_DEFAULT", "PLEXTRAC_BRIDGE_DEFAULTS"),
    ] {
        let ended = check(sound("").path()).variable(name, "x").run();
        ended.assert_code(0);
        assert!(
            ended.out.contains(&format!("warning: environment variable {name} is ignored: "))
                && ended.out.contains(&format!("did you mean {meant}?")),
            "{name}: {}",
            ended.out
        );
    }
    for name in
        ["PLEXTRAC_BRIDGE_PORT", "PLEXTRAC_BRIDGE_ADMIN_PORT_8081_TCP", "PLEXTRAC_BRIDGE_SERVICE_PORT_WEBHOOKS"]
    {
        let ended = check(sound("").path()).variable(name, "x").run();
        assert!(!ended.out.contains("warning"), "{name}: {}", ended.out);
    }
}

#[test]
fn doubts_secrets_that_are_hardly_meant_so() {
    let source = "[sources.plextrac]\nsecret_file = \"secret\"\n";
    let files = |broker: &str| written(&format!("{source}{broker}"));
    let kafka = "[broker.kafka]\nsecurity_protocol = \"sasl_ssl\"\nsasl_mechanism = \"PLAIN\"\nusername = \"u\"\npassword_file = \"password\"\n";
    let run = |secret: &str, password: &str| {
        let directory = files(kafka);
        for (name, text) in [("secret", secret), ("password", password)] {
            fs::write(directory.path().join(name), text).unwrap();
            fs::set_permissions(directory.path().join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        check(directory.path()).run()
    };
    let good = run(&format!("{SECRET}\n"), "password\n");
    good.assert_code(0);
    assert!(!good.out.contains("warning"), "{}", good.out);
    for (end, found) in
        [("\n\n", "a line break"), (" ", "a blank"), ("\t\n", "a blank"), ("\"", "a quote"), ("'\n", "a quote")]
    {
        let (secret, password) = (format!("{SECRET}{end}"), format!("password{end}"));
        for (ended, key) in [
            (run(&secret, "password"), "sources.plextrac.secret_file"),
            (run(SECRET, &password), "broker.kafka.password_file"),
        ] {
            ended.assert_code(0);
            let warning = format!("warning: `{key}` in bridge.toml: ");
            assert!(
                ended
                    .out
                    .lines()
                    .any(|line| line.starts_with(&warning) && line.contains(&format!("ends with {found}: "))),
                "{end:?}: {}",
                ended.out
            );
            assert!(!ended.out.contains(SECRET) && !ended.out.contains("passwordp"), "it is shown: {}", ended.out);
        }
    }
    let ended = run("${PLEXTRAC_SECRET_OF_THE_WEBHOOK}\n", "password");
    ended.assert_code(0);
    assert!(ended.out.contains("has `${`, which is not replaced by anything"), "{}", ended.out);
    for (ended, key) in [
        (run(&format!("\u{feff}{SECRET}\n"), "p"), "sources.plextrac.secret_file"),
        (run(SECRET, "\u{feff}p"), "broker.kafka.password_file"),
    ] {
        ended.assert_code(78);
        assert!(
            ended.err.contains(&format!("`{key}` in bridge.toml: ")) && ended.err.contains("byte order mark"),
            "{}",
            ended.err
        );
    }
}

#[test]
fn takes_one_line_break_off_a_secret_in_a_variable() {
    let directory = written("[broker.file]\n");
    fs::write(directory.path().join("body"), "{}").unwrap();
    let run = |secret: &str, arguments: &[&str]| {
        let all = ["--config", "bridge.toml"].iter().chain(arguments);
        Program::new(all)
            .within(directory.path())
            .variable("PLEXTRAC_BRIDGE__SOURCES__PLEXTRAC__SECRET", secret)
            .run()
    };
    assert_eq!(run(&format!("{SECRET}\n"), &["sign", "body"]).out, run(SECRET, &["sign", "body"]).out);
    let ended = run(&format!("{SECRET}\n\n"), &["check"]);
    ended.assert_code(0);
    assert!(
        ended.out.contains("PLEXTRAC_BRIDGE__SOURCES__PLEXTRAC__SECRET: the secret ends with a line break"),
        "{}",
        ended.out
    );
}

#[test]
fn takes_one_line_break_off_every_other_variable() {
    let directory = sound("");
    fs::write(directory.path().join("body"), r#"{"event":"E"}"#).unwrap();
    let explained = |name: &str| {
        Program::new(["explain", "body"])
            .within(directory.path())
            .variable("PLEXTRAC_BRIDGE_CONFIG", "bridge.toml\n")
            .variable("PLEXTRAC_BRIDGE__LOG__LEVEL", "debug\r\n")
            .variable("PLEXTRAC_BRIDGE__BROKER__FILE__NAME", name)
            .run()
    };
    let ended = explained("all\n");
    ended.assert_code(0);
    assert!(ended.out.contains("all (file)\n"), "{}", ended.out);
    let ended = explained("all\n\n");
    assert!(ended.out.contains("all\n (file)\n"), "{}", ended.out);
}

#[test]
fn names_a_misspelt_variable_beside_the_error_that_it_causes() {
    let name = "PLEXTRAC_BRIDGE_SOURCES__PLEXTRAC__SECRET";
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("bridge.toml"), "[broker.file]\n").unwrap();
    let check = Program::new(["--config", "bridge.toml", "check"]).within(directory.path()).variable(name, SECRET);
    let ended = check.run();
    ended.assert_code(78);
    assert!(ended.err.contains("error: no source of webhooks"), "{}", ended.err);
    let meant = "did you mean PLEXTRAC_BRIDGE__SOURCES__PLEXTRAC__SECRET?";
    assert!(ended.err.contains(name) && ended.err.contains(meant), "{}", ended.err);
    assert!(!ended.err.contains(SECRET), "{}", ended.err);
}

#[test]
fn explains_the_other_bodies_where_one_file_is_missing() {
    let directory = sound("");
    fs::write(directory.path().join("body"), r#"{"event":"E"}"#).unwrap();
    let arguments = ["--config", "bridge.toml", "explain", "--json", "body", "missing", "body"];
    let ended = Program::new(arguments).within(directory.path()).run();
    ended.assert_code(1);
    assert_eq!(ended.out.lines().count(), 2, "{}", ended.out);
    assert!(ended.err.contains("cannot read missing: "), "{}", ended.err);
}

#[test]
fn says_where_a_chain_of_certificates_does_not_lead_on() {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let (pair, setup) = (authority.issue(), Setup::on_files());
    let (certificate, key) = pair.write(setup.directory(), "server");
    let setup = setup
        .text("ingress.tls.certificate_file", &certificate.display().to_string())
        .text("ingress.tls.key_file", &key.display().to_string())
        .text("journal.max_bytes", "80MiB");
    let (own, name) = (&pair.certificate, certificate.display());
    let says = |chain: &str| {
        fs::write(&certificate, chain).unwrap();
        let done = setup.run(&["check"]);
        assert_eq!(done.status.code(), Some(0), "{}", said(&done));
        said(&done)
    };
    let whole = says(&format!("{own}{}", authority.certificate()));
    assert!(!whole.contains("warning") && !whole.contains("note"), "{whole}");
    let alone = says(own);
    assert!(
        !alone.contains("warning") && alone.contains("note: ") && alone.contains("the server's certificate alone"),
        "{alone}"
    );
    // Both authorities have the same name.
    let text = says(&format!("{own}{}", foreign.certificate()));
    assert!(
        text.contains(&format!("{name}: certificate 2 (")) && text.contains("did not sign the one before it"),
        "{text}"
    );
    let text = says(&format!("{own}{}{}", authority.certificate(), foreign.certificate()));
    assert!(text.contains(&format!("{name}: certificate 3 (")), "{text}");
    let joined = format!("{}{}", own.trim_end(), authority.certificate());
    let line = own.trim_end().lines().count();
    let text = says(&joined);
    assert!(text.contains("warning: `ingress.tls.certificate_file` in "), "{text}");
    assert!(text.contains(&format!("{name}, line {line}: `-----BEGIN` does not start the line")), "{text}");
    let text = says(&format!("\u{feff}{own}{}", pair.certificate));
    assert!(text.contains("line 1: `-----BEGIN` does not start the line"), "{text}");
}

#[test]
fn asks_whether_the_state_directory_can_be_written_and_creates_nothing() {
    let directory = sound("");
    let at = |state: &Path| check(directory.path()).variable("PLEXTRAC_BRIDGE__STATE_DIRECTORY", state).run();
    let state = directory.path().join("state");
    at(&state).assert_code(0);
    assert!(!state.exists(), "a check made it");
    // Root may write everywhere but there.
    for (place, text) in [
        ("/proc/self", "cannot write /proc/self"),
        ("/proc/self/state", "does not exist, and cannot be created in /proc/self"),
    ] {
        let ended = at(Path::new(place));
        assert!(ended.code.is_some_and(|code| code != 0), "{}{}", ended.out, ended.err);
        assert!(ended.err.contains(text), "{place}: {}{}", ended.out, ended.err);
    }
    fs::write(&state, "").unwrap();
    let ended = at(&state);
    ended.assert_code(78);
    assert!(ended.err.contains("is not a directory"), "{}", ended.err);
}

#[test]
fn looks_for_the_files_of_the_file_broker_before_the_first_start() {
    let directory = written(&format!(
        "state_directory = \"state\"\n[sources.a]\nsecret = \"{SECRET}\"\n[broker.file]\ndirectory = \"state/events\"\n"
    ));
    let ended = Program::new(["check", "--connect", "--config", "bridge.toml"]).within(directory.path()).run();
    ended.assert_code(0);
    assert!(ended.out.contains("good: the directory state/events will be created at start"), "{}", ended.out);
    assert!(!directory.path().join("state").exists());
}

/// Runs a command on a broken settings file.
fn run_on(toml: &str, arguments: &[&str]) -> Ended {
    let directory = written(toml);
    let all = ["--config", "bridge.toml"].iter().chain(arguments);
    Program::new(all).within(directory.path()).run()
}

fn admin_of(daemon: &Daemon) -> String {
    format!("[admin]\nlisten = {:?}\n", daemon.admin)
}

#[test]
fn judges_the_health_of_the_bridge_and_not_of_its_settings() {
    let bridge = Bridge::start(|setup| setup);
    let admin = admin_of(&bridge.daemon);
    for more in [
        "[sources.plextrac]\nsecret_file = \"/no/such\"\n",
        "[sources.plextrac\n",
        "typo\n",
        "[ingress]\nlisten = 5\nunknown = 1\n",
        "[sources.plextrac]\nsecret = \"unfinished\n[broker.kafka]\n",
    ] {
        for toml in [format!("{admin}{more}"), format!("{more}{admin}")] {
            let ended = run_on(&toml, &["healthcheck"]);
            ended.assert_code(0);
            assert_eq!(ended.out, "live\n", "{toml}");
            assert_eq!(ended.err, "", "{toml}");
        }
    }
    let ended = run_on(
        "[admin]\nlisten = \"127.0.0.1:1\"\n",
        &["healthcheck", "--ready", "--address", &bridge.daemon.admin],
    );
    ended.assert_code(0);
    assert_eq!(ended.out, "ready\n");
    // By the environment; and a wildcard is asked on loopback.
    let port = bridge.daemon.admin.rsplit(':').next().unwrap();
    let wildcard = Program::new(["healthcheck", "--config", "/no/such"])
        .variable("PLEXTRAC_BRIDGE__ADMIN__LISTEN", format!("0.0.0.0:{port}"));
    let ended = wildcard.variable("SSL_CERT_FILE", "/no/such").variable("SSL_CERT_DIR", "/no/such").run();
    ended.assert_code(0);
    // One of IPv6 stands for both families.
    let wildcard = Program::new(["healthcheck", "--config", "/no/such"]);
    wildcard.variable("PLEXTRAC_BRIDGE__ADMIN__LISTEN", format!("[::]:{port}")).run().assert_code(0);
    let ended = Program::new(["healthcheck", "--address", "nonsense"]).run();
    ended.assert_code(1);
    assert!(ended.err.contains("give --address, such as 127.0.0.1:8081"), "{}", ended.err);
    let ended = Program::new(["healthcheck", "--config", "/no/such", "--address", "127.0.0.1:1"]).run();
    ended.assert_code(1);
    assert!(ended.err.starts_with("error: http://127.0.0.1:1/livez: "), "{}", ended.err);
}

#[test]
fn reads_letters_and_journal_without_sound_settings() {
    let setup = Setup::on_files();
    let daemon = setup.start();
    assert_eq!(request_once(&daemon, b"{", &[]).status, 400);
    wait_for("the body is kept", LIMIT, || (daemon.status().number("/invalid/events") == 1).then_some(()));
    let toml = format!("state_directory = {:?}\n[sources.plextrac]\nsecret_file = \"/no/such\"\n", setup.state());
    let listed = run_on(&toml, &["dead-letters", "list", "--invalid", "--json"]);
    listed.assert_code(0);
    let letter: Value = serde_json::from_str(&listed.out).unwrap();
    run_on(&toml, &["dead-letters", "show", "--invalid", letter["id"].as_str().unwrap()]).assert_code(0);
    run_on(&toml, &["journal", "verify"]).assert_code(0);
    // The daemon has the settings that these need.
    run_on(&toml, &["dead-letters", "drop", "--invalid", "--all"]).assert_code(0);
    assert_eq!(daemon.status().number("/invalid/events"), 0);
    daemon.stop();
    let replay = run_on(&toml, &["dead-letters", "replay"]);
    replay.assert_code(78);
    assert!(replay.err.contains("cannot read /no/such"), "{}", replay.err);
    let state = setup.state().display().to_string();
    let by_systemd = Program::new(["dead-letters", "list"]).variable("STATE_DIRECTORY", &state).run();
    by_systemd.assert_code(0);
    let unknown = Program::new(["journal", "verify", "--config", "/no/such"]).run();
    unknown.assert_code(78);
    assert!(unknown.err.contains("the state directory is not known"), "{}", unknown.err);
}

#[test]
fn verifies_the_journal_of_a_state_directory_and_no_other_directory() {
    let setup = Setup::on_missing_files().text("ack", "journaled").text("publish.timeout", "60s");
    let daemon = setup.start();
    assert_eq!(request_once(&daemon, &Payload::new("kept").body(), &[]).status, 200);
    daemon.kill();
    let state = setup.state().display().to_string();
    let journal = setup.state().join("journal").display().to_string();
    for directory in [&state, &journal] {
        let ended = Program::new(["journal", "verify", directory]).run();
        ended.assert_code(0);
        assert!(ended.out.contains(&format!("{journal}: 1 unsettled and 0 settled records")), "{}", ended.out);
    }
    let empty = tempfile::tempdir().unwrap();
    let place = empty.path().display();
    let ended = Program::new(["journal", "verify", &place.to_string()]).run();
    ended.assert_code(1);
    assert!(ended.err.contains(&format!("there is no journal in {place}: ")), "{}", ended.err);
    let ended = Program::new(["journal", "verify", "--json", &place.to_string()]).run();
    ended.assert_code(1);
    let json: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(json["sound"], false, "{json}");
}

#[test]
fn sends_to_http_without_certificates_of_authorities() {
    let bridge = Bridge::start(|setup| setup);
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("secret"), SECRET).unwrap();
    let run = |url: &str| {
        let program = Program::new(["send", "--secret-file", "secret", url]).within(directory.path());
        program.variable("SSL_CERT_FILE", "/no/such").variable("SSL_CERT_DIR", "/no/such").run()
    };
    run(&format!("http://{}/webhooks/plextrac", bridge.daemon.ingress)).assert_code(0);
    let ended = run(&format!("https://{}/webhooks/plextrac", bridge.daemon.ingress));
    ended.assert_code(1);
    assert!(ended.err.contains("cannot load the system's certificates"), "{}", ended.err);
}

#[test]
fn puts_no_half_edited_settings_in_force_because_a_secret_is_renewed() {
    let setup = Setup::on_files();
    let secret = setup.directory().join("secret");
    fs::write(&secret, SECRET).unwrap();
    let setup = setup
        .by_default("sources.plextrac.secret")
        .text("sources.plextrac.secret_file", &secret.display().to_string())
        .failpoints("reload.look=20ms");
    let daemon = setup.start();
    // A mistake of an unfinished edit that is sound by itself.
    let edited = setup.clone().text("sources.plextrac.path", "/unfinished");
    edited.file();
    fs::write(&secret, "another secret, 0123456789").unwrap();
    daemon.wait_until("the renewed secret is in force", LIMIT, |status| {
        status.0["reload"]["error"].is_null() && !status.0["reload"].is_null()
    });
    let body = Payload::new("cuid-1").body();
    assert_eq!(request_once(&daemon, &body, &[]).status, 401, "the path is still there, the secret is new");
    fs::write(edited.directory().join("config.toml"), "typo").unwrap();
    fs::write(&secret, SECRET).unwrap();
    wait_for("the first secret is in force again", LIMIT, || {
        (request_once(&daemon, &body, &[]).status == 200).then_some(())
    });
    edited.file();
    daemon.reload();
    assert_eq!(request_once(&daemon, &body, &[]).status, 404, "only a request puts the settings file in force");
}
