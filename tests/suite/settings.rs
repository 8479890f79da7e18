//! Settings, good and bad, through `check`: every mistake with its place and the correction, all at once.
//!
//! Length: the one table of all messages about settings, and every default word for word.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use crate::support::{Ended, Program, sign};

const SECRET: &str = "a secret of the settings' tests";
const SOURCE: &str = "[sources.plextrac]\nsecret = \"a secret of the settings' tests\"\n";
const BROKER: &str = "[broker.file]\ndirectory = \"events\"\n";

const NO_SOURCE: &str = "no source of webhooks; add:\n\n  [sources.plextrac]\n  \
                         secret_file = \"/etc/plextrac-bridge/secret\"   # what PlexTrac's webhook form has\n";
const NO_BROKER: &str = "no broker; add one:\n\n  [broker.kafka]\n  \
                         bootstrap_servers = \"localhost:9092\"   # or [broker.rabbitmq], [broker.nats], [broker.file]\n";
const NO_SECRET: &str = "no secret; set `secret`, `secret_file` or `secrets` to what PlexTrac's webhook form has, or \
                         `unsigned = true`";
const DURATION: &str = "expected a duration such as \"500ms\", \"5s\", \"10m\" or \"1h\"";
const SIZE: &str = "expected a size such as \"512B\", \"256KiB\", \"64MiB\" or \"1GiB\"";
const ADDRESS: &str = "expected an IP address with a port, such as \"127.0.0.1:8080\" or \"[::]:8080\"";

/// A settings file in a directory of its own, and variables.
struct Settings {
    directory: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl Settings {
    fn new(toml: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("bridge.toml"), toml).unwrap();
        Self { directory, variables: Vec::new() }
    }

    /// The settings of a file source and broker, and more.
    fn good(more: &str) -> Self {
        Self::new(&format!("{SOURCE}{BROKER}{more}"))
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// `PLEXTRAC_BRIDGE__...`
    fn set(self, name: &str, value: &str) -> Self {
        self.variable(&format!("PLEXTRAC_BRIDGE__{name}"), value)
    }

    /// Writes a file beside the settings.
    fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        let program = Program::new(arguments).within(self.directory.path());
        self.variables.iter().fold(program, |program, (name, value)| program.variable(name, value)).run()
    }

    fn check(&self) -> Ended {
        self.run(&["check", "--config", "bridge.toml"])
    }

    /// Exactly these errors, in any order.
    #[track_caller]
    fn refused(&self, errors: &[&str]) {
        let ended = self.check();
        ended.assert_code(78);
        assert_eq!(ended.out, "", "errors go to standard error alone");
        let mut found: Vec<&str> =
            ended.err.split("error: ").skip(1).map(|error| error.trim_end_matches('\n')).collect();
        let mut errors: Vec<&str> = errors.iter().map(|error| error.trim_end_matches('\n')).collect();
        found.sort_unstable();
        errors.sort_unstable();
        assert_eq!(found, errors, "the errors; all of it:\n{}", ended.err);
    }

    /// Good, with exactly these warnings and a source that has these secrets.
    #[track_caller]
    fn accepted<S: AsRef<str>>(&self, warnings: &[S], source: &str) {
        let ended = self.check();
        ended.assert_code(0);
        let warnings =
            warnings.iter().fold(String::new(), |all, warning| all + "warning: " + warning.as_ref() + "\n");
        assert_eq!(sources(&ended), format!("{warnings}source {source}\nsettings: good\n"), "standard output");
        assert_eq!(ended.err, "", "standard error");
    }
}

/// The output of `check` without files, notes and addresses, which have a test of their own.
fn sources(ended: &Ended) -> String {
    let others = ["file ", "note: ", "webhooks: "];
    let is_other = |line: &&str| others.iter().any(|start| line.starts_with(start));
    ended.out.split_inclusive('\n').filter(|line| !is_other(line)).collect()
}

const DEFAULT_SOURCE: &str = "plextrac: /webhooks/plextrac (secrets: default)";

#[test]
fn takes_a_source_and_a_broker_and_asks_for_nothing_else() {
    Settings::good("").accepted::<&str>(&[], DEFAULT_SOURCE);
}

#[test]
fn names_the_nearest_right_key() {
    for (toml, error) in [
        ("[ingress]\nlisen = \"x\"", "`ingress.lisen` in bridge.toml: unknown key; did you mean `ingress.listen`?"),
        ("[ingrss]\nlisten = \"x\"", "`ingrss` in bridge.toml: unknown key; did you mean `ingress`?"),
        ("[log]\nlevle = \"x\"", "`log.levle` in bridge.toml: unknown key; did you mean `log.level`?"),
        ("[shutdown]\nx = 1", "`shutdown.x` in bridge.toml: unknown key; known here: delay, grace"),
        (
            "directorry = 1",
            "`broker.file.directorry` in bridge.toml: unknown key; did you mean `broker.file.directory`?",
        ),
        (
            "[[broker.file.routes]]\nevent = \"E\"\nnam = \"x\"",
            "`broker.file.routes[0].nam` in bridge.toml: unknown key; did you mean `broker.file.routes[0].name`?",
        ),
        (
            "[[broker.file.routes]]\nevent = \"E\"\ntopic = \"x\"",
            "`broker.file.routes[0].topic` in bridge.toml: unknown key; known here: event, name, target_type",
        ),
        (
            "[log]\nlevel = \"inof\"",
            "`log.level` in bridge.toml: expected one of \"info\", \"error\", \"warn\", \"debug\", \"trace\", found \"inof\"; did you mean \"info\"?",
        ),
        (
            "name = \"{evnt}\"",
            "`broker.file.name` in bridge.toml: unknown placeholder {evnt}, did you mean {event}?; known here: {event} {targetType} {source}",
        ),
    ] {
        Settings::good(toml).refused(&[error]);
    }
    let top = Settings::new(&format!("colour = 1\n{SOURCE}{BROKER}"));
    top.refused(&["`colour` in bridge.toml: unknown key; known here: ack, admin, broker, buffer, dead_letters, deduplication, \
                   ingress, invalid, journal, log, publish, shutdown, sources, state_directory"]);
}

#[test]
fn wants_exactly_one_broker() {
    Settings::new(SOURCE).refused(&[NO_BROKER]);
    Settings::new(&format!("{SOURCE}[broker.kafak]\ntopic = \"x\"\n")).refused(&[
        "`broker.kafak` in bridge.toml: no such broker; did you mean [broker.kafka]?; there are kafka, rabbitmq, nats, file",
    ]);
    Settings::new(&format!("{SOURCE}[broker.pulsar]\n"))
        .refused(&["`broker.pulsar` in bridge.toml: no such broker; there are kafka, rabbitmq, nats, file"]);
    let two = format!("{SOURCE}{BROKER}[broker.kafka]\n");
    Settings::new(&two).refused(&[
        "several brokers: `broker.file` in bridge.toml, `broker.kafka`; keep one, and remove the others",
    ]);
    Settings::good("").set("BROKER__KAFKA__TOPIC", "x").refused(&[
        "several brokers: `broker.file` in bridge.toml, environment variable PLEXTRAC_BRIDGE__BROKER__KAFKA__TOPIC; keep \
         one, and remove the others",
    ]);
}

#[test]
fn wants_a_source_with_a_name_a_path_and_a_secret() {
    Settings::new(BROKER).refused(&[NO_SOURCE]);
    Settings::new(&format!("[sources.plextrac]\n{BROKER}"))
        .refused(&[&format!("`sources.plextrac.secret`: {NO_SECRET}")]);
    let source = |lines: &str| Settings::new(&format!("{lines}\nsecret = \"{SECRET}\"\n{BROKER}"));
    source("[sources.Plextrac]").refused(&[
        "`sources.Plextrac` in bridge.toml: a source's name starts with a-z and continues with a-z, 0-9 and _",
    ]);
    source("[sources.a]\npath = \"x\"")
        .refused(&["`sources.a.path` in bridge.toml: \"x\" is not a path; it starts with `/` and has no query"]);
    source("[sources.a]\npath = \"/x?y\"")
        .refused(&["`sources.a.path` in bridge.toml: \"/x?y\" is not a path; it starts with `/` and has no query"]);
    source(&format!("[sources.a]\nsecret = \"{SECRET}\"\n[sources.b]"))
        .refused(&["`sources.b.path`: the source \"a\" has the path \"/webhooks/plextrac\" already"]);
    source("[sources.a]\nvalidation = \"lenint\"").refused(&[
        "`sources.a.validation` in bridge.toml: expected one of \"strict\", \"lenient\", found \"lenint\"; did you mean \"lenient\"?",
    ]);
}

#[test]
fn tells_what_was_expected_and_what_was_found() {
    for (toml, error) in [
        ("[ingress]\nheader_timeout = 5", format!("`ingress.header_timeout` in bridge.toml: {DURATION}, found 5")),
        ("[ingress]\nbody_timeout = \"5\"", format!("`ingress.body_timeout` in bridge.toml: {DURATION}, found \"5\"")),
        ("[shutdown]\ngrace = \"1d\"", format!("`shutdown.grace` in bridge.toml: {DURATION}, found \"1d\"")),
        ("[shutdown]\ngrace = \"-1s\"", format!("`shutdown.grace` in bridge.toml: {DURATION}, found \"-1s\"")),
        ("[ingress]\nbody_timeout = \"0s\"", "`ingress.body_timeout` in bridge.toml: must be above 0".to_owned()),
        ("[ingress]\nmax_body = 262144", format!("`ingress.max_body` in bridge.toml: {SIZE}, found 262144")),
        ("[buffer]\nmax_bytes = \"64MB\"", format!("`buffer.max_bytes` in bridge.toml: {SIZE}, found \"64MB\"")),
        ("[ingress]\nmax_body = \"0B\"", "`ingress.max_body` in bridge.toml: must be from \"1B\" to \"1GiB\"".to_owned()),
        ("[ingress]\nlisten = 8080", format!("`ingress.listen` in bridge.toml: {ADDRESS}, found 8080")),
        ("[ingress]\nlisten = \"\"", format!("`ingress.listen` in bridge.toml: {ADDRESS}, found \"\"")),
        ("[admin]\nlisten = \"localhost:1\"", format!("`admin.listen` in bridge.toml: {ADDRESS}, found \"localhost:1\"")),
        ("[admin]\npage = \"yes\"", "`admin.page` in bridge.toml: expected true or false, found \"yes\"".to_owned()),
        ("[ingress]\nthreads = 2000", "`ingress.threads` in bridge.toml: expected a whole number, 0 to 1024, found 2000".to_owned()),
        ("[ingress]\nthreads = 1.5", "`ingress.threads` in bridge.toml: expected a whole number, found 1.5".to_owned()),
        ("[buffer]\nmax_events = 0", "`buffer.max_events` in bridge.toml: expected a whole number, at least 1, found 0".to_owned()),
        ("[buffer]\nmax_events = \"1\"", "`buffer.max_events` in bridge.toml: expected a whole number, found \"1\"".to_owned()),
        (
            "[dead_letters]\nmax_bytes = \"1B\"",
            "`dead_letters.max_bytes` (1 bytes) has no room for a dead letter with a body of `ingress.max_body` \
             (983040 bytes): raise it to at least \"1984KiB\""
                .to_owned(),
        ),
        ("[buffer]\nmax_bytes = \"1KiB\"", "`buffer.max_bytes` is below `ingress.max_body` + 512 B: the largest event would never fit".to_owned()),
        ("[journal]\nmax_bytes = 5", format!("`journal.max_bytes` in bridge.toml: {SIZE}, found 5")),
        ("[journal]\nsegment_bytes = \"16MB\"", format!("`journal.segment_bytes` in bridge.toml: {SIZE}, found \"16MB\"")),
        ("[deduplication]\nwindow = 10", format!("`deduplication.window` in bridge.toml: {DURATION}, found 10")),
        ("[deduplication]\nmax_entries = \"many\"", "`deduplication.max_entries` in bridge.toml: expected a whole number, found \"many\"".to_owned()),
        ("[publish]\ntimeout = 4", format!("`publish.timeout` in bridge.toml: {DURATION}, found 4")),
        ("[publish]\nretry_min = \"3s\"", "`publish.retry_max`: is below `publish.retry_min`".to_owned()),
        ("[log]\nformat = 1", "`log.format` in bridge.toml: expected one of \"auto\", \"text\", \"json\", found 1".to_owned()),
        ("[[broker.file.routes]]\nname = \"x\"", "`broker.file.routes[0].event`: missing or empty; a route names the event it takes".to_owned()),
        ("name = \"a/b\"", "`broker.file.name` in bridge.toml: \"a/b\" is not a legal file name; use letters, digits, `_`, `-` and `.`".to_owned()),
    ] {
        Settings::good(toml).refused(&[&error]);
    }
    Settings::new(&format!("log = 5\n{SOURCE}{BROKER}"))
        .refused(&["`log` in bridge.toml: expected a table, found a number"]);
    Settings::new(&format!("state_directory = \"/no/such\"\n{SOURCE}{BROKER}"))
        .refused(&["`state_directory` in bridge.toml: neither /no/such nor its parent exists; create /no"]);
}

#[test]
fn tells_all_problems_at_once() {
    let toml = "[ingress]\nlisten = 1\nthread = 1\n[admin]\npage = 1\n[sources.plextrac]\n[broker.kafak]\n";
    Settings::new(toml).set("LOG__LEVEL", "loud").refused(&[
        &format!("`ingress.listen` in bridge.toml: {ADDRESS}, found 1"),
        "`ingress.thread` in bridge.toml: unknown key; did you mean `ingress.threads`?",
        "`admin.page` in bridge.toml: expected true or false, found 1",
        &format!("`sources.plextrac.secret`: {NO_SECRET}"),
        "`broker.kafak` in bridge.toml: no such broker; did you mean [broker.kafka]?; there are kafka, rabbitmq, nats, file",
        "environment variable PLEXTRAC_BRIDGE__LOG__LEVEL: expected one of \"info\", \"error\", \"warn\", \"debug\", \"trace\", found \"loud\"",
    ]);
    Settings::new("").refused(&[NO_SOURCE, NO_BROKER]);
}

#[test]
fn takes_networks_and_addresses_for_trusted_proxies() {
    let good = "[ingress]\ntrusted_proxies = [\"10.0.0.0/8\", \"127.0.0.1\", \"2001:db8::/32\"]";
    Settings::good(good).accepted::<&str>(&[], DEFAULT_SOURCE);
    Settings::good("").set("INGRESS__TRUSTED_PROXIES", "[\"::1\"]").accepted::<&str>(&[], DEFAULT_SOURCE);
    Settings::good("[ingress]\ntrusted_proxies = [\"10.0.0.0/33\", \"proxy\"]").refused(&[
        "`ingress.trusted_proxies` in bridge.toml: \"10.0.0.0/33\" is not a network; write it as \"10.0.0.0/8\" or \"2001:db8::/32\"",
        "`ingress.trusted_proxies` in bridge.toml: \"proxy\" is not a network; write it as \"10.0.0.0/8\" or \"2001:db8::/32\"",
    ]);
}

#[test]
fn takes_every_mode_and_wants_a_state_directory_for_the_journaled_one() {
    let mode = |mode: &str| Settings::new(&format!("ack = \"{mode}\"\n{SOURCE}{BROKER}"));
    mode("buffered").accepted::<&str>(&[], DEFAULT_SOURCE);
    mode("published").accepted::<&str>(&[], DEFAULT_SOURCE);
    mode("journald").refused(&[
        "`ack` in bridge.toml: expected one of \"buffered\", \"journaled\", \"published\", found \"journald\"; did you mean \"journaled\"?",
    ]);
    let without = mode("journaled");
    let ended = without.check();
    ended.assert_code(78);
    assert!(ended.err.contains("`state_directory`") && ended.err.contains("journaled"), "{}", ended.err);
    // It does not serve in another mode, either.
    let ended = without.run(&["serve", "--config", "bridge.toml"]);
    ended.assert_code(78);
    assert!(!ended.err.contains("listening"), "{}", ended.err);
    let state = without.directory.path().join("state").display().to_string();
    without.variable("STATE_DIRECTORY", &state).accepted::<&str>(&[], DEFAULT_SOURCE);
    Settings::new(&format!("ack = \"journaled\"\nstate_directory = \"state\"\n{SOURCE}{BROKER}"))
        .accepted::<&str>(&[], DEFAULT_SOURCE);
    let parent = Settings::new(&format!("ack = \"journaled\"\nstate_directory = \"/no/such\"\n{SOURCE}{BROKER}"));
    parent.refused(&["`state_directory` in bridge.toml: neither /no/such nor its parent exists; create /no"]);
}

#[test]
fn lets_the_environment_override_the_file() {
    let settings = Settings::good("[ingress]\nthreads = 7\nmax_body = 5\n");
    settings.refused(&[&format!("`ingress.max_body` in bridge.toml: {SIZE}, found 5")]);
    let settings = settings.set("INGRESS__MAX_BODY", "1MiB");
    settings.accepted::<&str>(&[], DEFAULT_SOURCE);
    // An empty variable counts as absent.
    Settings::good("[admin]\npage = 5")
        .set("ADMIN__PAGE", "")
        .refused(&["`admin.page` in bridge.toml: expected true or false, found 5"]);
    Settings::good("").set("INGRESS__LISTEN", "").accepted::<&str>(&[], DEFAULT_SOURCE);
}

#[test]
fn names_the_variable_that_is_wrong() {
    for (name, value, error) in [
        ("INGRESS__LISEN", "x", "unknown key; did you mean `ingress.listen`?".to_owned()),
        ("INGRES__LISTEN", "x", "unknown key; did you mean `ingress`?".to_owned()),
        ("INGRESS_LISTEN", "x", "unknown key; did you mean PLEXTRAC_BRIDGE__INGRESS__LISTEN?".to_owned()),
        ("INGRES_LISTEN", "x", "unknown key; did you mean PLEXTRAC_BRIDGE__INGRESS__LISTEN?".to_owned()),
        ("STATE__DIRECTORY", "x", "unknown key; did you mean PLEXTRAC_BRIDGE__STATE_DIRECTORY?".to_owned()),
        ("BROKER_KAFKA__TOPIC", "x", "unknown key; did you mean PLEXTRAC_BRIDGE__BROKER__KAFKA__TOPIC?".to_owned()),
        ("BROKER__KAFKA_TOPIC", "x", "unknown key; did you mean PLEXTRAC_BRIDGE__BROKER__KAFKA__TOPIC?".to_owned()),
        (
            "SOURCES__PLEXTRAC_SECRET",
            SECRET,
            "unknown key; did you mean PLEXTRAC_BRIDGE__SOURCES__PLEXTRAC__SECRET?".to_owned(),
        ),
        ("INGRESS__LISTEN", "8080", format!("{ADDRESS}, found \"8080\"")),
        ("INGRESS__THREADS", "many", "expected a whole number, found \"many\"".to_owned()),
        ("ADMIN__PAGE", "maybe", "expected true or false, found \"maybe\"".to_owned()),
        ("BUFFER__MAX_BYTES", "5", format!("{SIZE}, found \"5\"")),
        (
            "ACK",
            "journald",
            "expected one of \"buffered\", \"journaled\", \"published\", found \"journald\"; did you mean \"journaled\"?"
                .to_owned(),
        ),
        (
            "SOURCES__PLEXTRAC__SECRETS",
            "[{id=\"a\",value=\"hunter2hunter2hunter2\"}]",
            "`sources.plextrac.secrets` is set in the file only".to_owned(),
        ),
        ("BROKER__FILE__ROUTES", "[]", "`broker.file.routes` is set in the file only".to_owned()),
        ("SOURCES__PLEXTRAC", SECRET, "expected a table, found a text".to_owned()),
    ] {
        let settings = Settings::good("").set(name, value);
        let errors = settings.check().err;
        let expected = format!("error: environment variable PLEXTRAC_BRIDGE__{name}: {error}\n");
        assert!(errors.contains(&expected), "{name}={value}: {expected} is not among:\n{errors}");
        assert!(
            !errors.contains("hunter2") && !errors.contains(SECRET),
            "{name}: an error shows a secret:\n{errors}"
        );
    }
}

#[test]
fn refuses_a_variable_for_a_whole_table_beside_one_for_a_key_in_it() {
    let settings = Settings::good("").set("INGRESS", SECRET).set("INGRESS__LISTEN", "127.0.0.1:0");
    settings.refused(&[
        "environment variable PLEXTRAC_BRIDGE__INGRESS: environment variable PLEXTRAC_BRIDGE__INGRESS__LISTEN is \
         given, too; remove one of the two",
    ]);
    let settings = Settings::good("").set("SOURCES", "x").set("SOURCES__PLEXTRAC__PATH", "/x");
    settings.refused(&[
        "environment variable PLEXTRAC_BRIDGE__SOURCES: environment variable PLEXTRAC_BRIDGE__SOURCES__PLEXTRAC__PATH \
         is given, too; remove one of the two",
    ]);
    // An empty variable is none.
    Settings::good("").set("INGRESS", "").set("INGRESS__LISTEN", "127.0.0.1:0").check().assert_code(0);
}

#[test]
fn takes_everything_from_the_environment() {
    let settings = Settings::new("")
        .set("SOURCES__PLEXTRAC__SECRET", SECRET)
        .set("SOURCES__PLEXTRAC__PATH", "/x")
        .set("BROKER__NATS__SERVERS", r#"["nats://a:1", "nats://b:1"]"#)
        .set("INGRESS__THREADS", "3")
        .set("ADMIN__PAGE", "false");
    settings.accepted::<&str>(&[], "plextrac: /x (secrets: default)");
    let settings = settings.set("BROKER__NATS__SERVERS", "nats://a:1");
    let errors = settings.check().err;
    let expected = "environment variable PLEXTRAC_BRIDGE__BROKER__NATS__SERVERS: expected a list such as [\"a\", \"b\"], found a text";
    assert!(errors.contains(expected), "{expected} is not among:\n{errors}");
}

#[test]
fn is_not_harmed_by_what_kubernetes_injects() {
    Settings::good("")
        .variable("PLEXTRAC_BRIDGE_PORT", "tcp://10.0.0.1:8080")
        .variable("PLEXTRAC_BRIDGE_SERVICE_HOST", "10.0.0.1")
        .variable("PLEXTRAC_BRIDGE_SERVICE_PORT", "8080")
        .variable("PLEXTRAC_BRIDGE_PORT_8080_TCP", "tcp://10.0.0.1:8080")
        .variable("PLEXTRAC_BRIDGE_PORT_8080_TCP_PROTO", "tcp")
        .accepted::<&str>(&[], DEFAULT_SOURCE);
}

#[test]
fn takes_a_secret_of_digits_from_the_environment() {
    for secret in
        ["12345678901234567890", "0123456789012345.5", "true true true true", "[\"is this\", \"a list?\"]"]
    {
        let settings =
            Settings::new(&format!("[sources.plextrac]\n{BROKER}")).set("SOURCES__PLEXTRAC__SECRET", secret);
        settings.accepted::<&str>(&[], DEFAULT_SOURCE);
        let signed = settings.directory.path().join("body");
        fs::write(&signed, "{}").unwrap();
        let ended = settings.run(&["--config", "bridge.toml", "sign", "body"]);
        assert_eq!(ended.out.trim_end(), sign(secret, b"{}"), "signed with {secret}: {}", ended.err);
    }
    Settings::new(BROKER).set("SOURCES__PLEXTRAC__SECRET", "123").accepted(
        &["environment variable PLEXTRAC_BRIDGE__SOURCES__PLEXTRAC__SECRET: the secret is shorter than 16 bytes"],
        DEFAULT_SOURCE,
    );
}

#[test]
fn takes_a_secret_from_a_file_and_cuts_one_newline() {
    let settings = Settings::new(&format!("[sources.plextrac]\nsecret_file = \"secret\"\n{BROKER}"));
    for (text, secret, doubt) in [
        (format!("{SECRET}\n"), SECRET.to_owned(), ""),
        (format!("{SECRET}\r\n"), SECRET.to_owned(), ""),
        (SECRET.to_owned(), SECRET.to_owned(), ""),
        (format!("{SECRET}\n\n"), format!("{SECRET}\n"), "ends with a line break"),
        (format!(" {SECRET} \n"), format!(" {SECRET} "), "begins with a blank and ends with a blank"),
    ] {
        settings.file("secret", &text, 0o600);
        let doubt = format!(
            "`sources.plextrac.secret_file` in bridge.toml: secret: the secret {doubt}: it is part of the secret; remove \
             it unless the sender's secret has it too"
        );
        let is_doubted = doubt.contains(" with ");
        settings.accepted(if is_doubted { std::slice::from_ref(&doubt) } else { &[] }, DEFAULT_SOURCE);
        settings.file("body", "{}", 0o600);
        let ended = settings.run(&["--config", "bridge.toml", "sign", "body"]);
        assert_eq!(ended.out.trim_end(), sign(&secret, b"{}"), "the secret of {text:?}: {}", ended.err);
    }
    let path = settings.file("secret", SECRET, 0o644);
    let warning = "`sources.plextrac.secret_file` in bridge.toml: secret can be read by all users; chmod o-r it";
    settings.accepted(&[warning], DEFAULT_SOURCE);
    for text in ["", "\n"] {
        settings.file("secret", text, 0o600);
        settings.refused(&["`sources.plextrac.secret_file` in bridge.toml: secret is empty"]);
    }
    fs::remove_file(path).unwrap();
    settings.refused(&[
        "`sources.plextrac.secret_file` in bridge.toml: cannot read secret: No such file or directory (os error 2)",
    ]);
}

#[test]
fn shows_no_name_of_a_file_that_may_be_the_secret_itself() {
    let unshown = "cannot read the file of that name, which is not shown: it may be the secret itself, or an address \
                   with one: No such file or directory (os error 2)";
    for (name, shown) in [(SECRET, false), ("/etc/no+such/aGVsbG8gd29ybGQ=", false), ("/no/such/secret-file", true)]
    {
        let settings = Settings::new(&format!("[sources.plextrac]\nsecret_file = \"{name}\"\n{BROKER}"));
        let text = if shown {
            format!("cannot read {name}: No such file or directory (os error 2)")
        } else {
            unshown.to_owned()
        };
        settings.refused(&[&format!("`sources.plextrac.secret_file` in bridge.toml: {text}")]);
    }
}

#[test]
fn takes_a_secret_file_that_a_variable_names() {
    let settings = Settings::new(BROKER);
    let path = settings.file("secret", SECRET, 0o600).display().to_string();
    settings.set("SOURCES__PLEXTRAC__SECRET_FILE", &path).accepted::<&str>(&[], DEFAULT_SOURCE);
}

#[test]
fn takes_a_secret_only_once() {
    let source = |lines: &str| Settings::new(&format!("[sources.plextrac]\n{lines}\n{BROKER}"));
    let both = source(&format!("secret = \"{SECRET}\"\nsecret_file = \"secret\""));
    both.file("secret", SECRET, 0o600);
    both.refused(&["`sources.plextrac.secret_file` in bridge.toml: `sources.plextrac.secret` in bridge.toml is given, too; keep one"]);
    source(&format!("secret = \"{SECRET}\"\nsecrets = [{{ id = \"a\", value = \"{SECRET}\" }}]")).refused(&[
        "`sources.plextrac.secrets` in bridge.toml: `sources.plextrac.secret` in bridge.toml is given, too; put \
         all into `secrets`, and remove the other",
    ]);
    source(&format!("secret = \"{SECRET}\"\nunsigned = true"))
        .refused(&["`sources.plextrac.unsigned` in bridge.toml: a source with a secret cannot be unsigned, and \
         `sources.plextrac.secret` in bridge.toml gives one; remove one of the two"]);
    source("unsigned = true").accepted(
        &["`sources.plextrac.unsigned` in bridge.toml: anyone who reaches /webhooks/plextrac can publish events"],
        "plextrac: /webhooks/plextrac (unsigned)",
    );
    source("secret = \"short\"").accepted(
        &["`sources.plextrac.secret` in bridge.toml: the secret is shorter than 16 bytes"],
        DEFAULT_SOURCE,
    );
}

#[test]
fn names_the_variable_that_gives_a_secret_beside_that_of_the_file() {
    let source = |lines: &str| {
        let settings = Settings::new(&format!("[sources.plextrac]\n{lines}\n{BROKER}"));
        settings.file("secret", SECRET, 0o600);
        settings
    };
    let secrets = format!("secrets = [{{ id = \"a\", value = \"{SECRET}\" }}]");
    for (lines, key, name, value, text) in [
        (&*secrets, "secrets", "SECRET", SECRET, "is given, too; put all into `secrets`, and remove the other"),
        (
            &secrets,
            "secrets",
            "SECRET_FILE",
            "secret",
            "is given, too; put all into `secrets`, and remove the other",
        ),
        ("secret_file = \"secret\"", "secret_file", "SECRET", SECRET, "is given, too; keep one"),
        ("unsigned = true", "unsigned", "SECRET", SECRET, "gives one; remove one of the two"),
        ("unsigned = true", "unsigned", "SECRET_FILE", "secret", "gives one; remove one of the two"),
    ] {
        let begin = if key == "unsigned" { "a source with a secret cannot be unsigned, and " } else { "" };
        source(lines).set(&format!("SOURCES__PLEXTRAC__{name}"), value).refused(&[&format!(
            "`sources.plextrac.{key}` in bridge.toml: {begin}environment variable \
             PLEXTRAC_BRIDGE__SOURCES__PLEXTRAC__{name} {text}"
        )]);
    }
    let other = source(&format!("secret = \"{SECRET}\"")).set("SOURCES__PLEXTRAC__SECRET_FILE", "secret");
    other.refused(&[
        "environment variable PLEXTRAC_BRIDGE__SOURCES__PLEXTRAC__SECRET_FILE: `sources.plextrac.secret` in \
                     bridge.toml is given, too; keep one",
    ]);
    // An empty variable is none.
    source(&secrets).set("SOURCES__PLEXTRAC__SECRET", "").check().assert_code(0);
}

#[test]
fn takes_several_secrets_with_an_id_each() {
    let source = |secrets: &str| Settings::new(&format!("[sources.plextrac]\nsecrets = [{secrets}]\n{BROKER}"));
    let good =
        source(&format!("{{ id = \"2026-11\", value = \"{SECRET}\" }}, {{ id = \"2026-12\", file = \"secret\" }}"));
    good.file("secret", SECRET, 0o600);
    good.accepted::<&str>(&[], "plextrac: /webhooks/plextrac (secrets: 2026-11, 2026-12)");
    source(&format!("{{ id = \"a\", value = \"{SECRET}\" }}, {{ id = \"a\", value = \"{SECRET}\" }}"))
        .refused(&["`sources.plextrac.secrets[1].id` in bridge.toml: two secrets have the id \"a\""]);
    source(&format!("{{ id = \"b c\", value = \"{SECRET}\" }}")).refused(&[
        "`sources.plextrac.secrets[0].id` in bridge.toml: a secret has an id of letters, digits, `.`, `_` and `-`",
    ]);
    let missing = |at: usize, place: &str| {
        format!("`sources.plextrac.secrets[{at}].value`{place}: missing; give `value` or `file`")
    };
    let sound = format!("{{ id = \"b\", value = \"{SECRET}\" }}");
    for (blank, place) in [
        ("{ id = \"a\" }", ""),
        ("{ id = \"a\", file = \"\" }", ""),
        ("{ id = \"a\", value = \"\" }", " in bridge.toml"),
        ("{ id = \"a\", file = \"\", value = \"\" }", " in bridge.toml"),
    ] {
        source(blank).refused(&[&missing(0, place)]);
        source(&format!("{blank}, {sound}")).refused(&[&missing(0, place)]);
        source(&format!("{sound}, {blank}")).refused(&[&missing(1, place)]);
    }
}

#[test]
fn quotes_no_line_of_a_file_that_is_not_toml() {
    for (toml, error) in [
        ("[sources.plextrac\n", "line 1, column 18: invalid table header, expected `.`, `]`"),
        ("ack = \"buffered\"\nack = \"x\"\n", "line 2, column 1: duplicate key `ack` in document root"),
        ("[sources.plextrac]\nsecret = hunter2hunter2\n", "line 2, column 10: invalid string, expected `\"`, `'`"),
        (
            "[sources.plextrac]\nsecret = 98765432109876543210\n",
            "line 2, column 10: number too large to fit in target type",
        ),
        ("[sources.plextrac]\nsecret = \"hunter2hunter2\n", "line 2, column 25: invalid basic string"),
    ] {
        let settings = Settings::new(toml);
        settings.refused(&[&format!("bridge.toml: {error}")]);
    }
}

#[test]
fn shows_no_secret_that_stands_in_the_wrong_place() {
    for toml in [
        "[sources]\nplextrac = \"hunter2hunter2\"\n[broker.file]",
        "[sources.plextrac]\nsecrets = \"hunter2hunter2\"\n[broker.file]",
        "[sources.plextrac]\nsecrets = [\"hunter2hunter2\"]\n[broker.file]",
        "[sources.plextrac]\nsecret = [\"hunter2hunter2\"]\n[broker.file]",
        "[sources.plextrac]\nsecret = { value = \"hunter2hunter2\" }\n[broker.file]",
        "[sources.plextrac]\nsecrte = \"hunter2hunter2\"\n[broker.file]",
        "sources = \"hunter2hunter2\"\n[broker.file]",
        "[sources.plextrac]\nsecret = \"hunter2hunter2\nx = 1",
        "[sources.plextrac]\nsecrets = [{ id = \"a\", valu = \"hunter2hunter2\" }]\n[broker.file]",
        "[sources.plextrac]\nsecret = \"hunter2hunter2\"\nunsigned = true\n[broker.file]",
        "[sources.a]\nunsigned = true\n[broker.rabbitmq]\nuri = \"amqp:/user:hunter2hunter2@host\"",
        "[sources.a]\nunsigned = true\n[broker.rabbitmq]\nuris = [\"amqp://user:hunter2hunter2@host:x\"]",
        "[sources.a]\nunsigned = true\n[broker.rabbitmq]\nuris = \"amqp://user:hunter2hunter2@host\"",
        "[sources.a]\nunsigned = true\n[broker.rabbitmq]\nuris = [\"amqp://user:hunter2hunter2@a/v\", \"amqp://b/w\"]",
        "[sources.a]\nunsigned = true\n[broker.rabbitmq]\nuri = \"amqp://user:12/hunter2@host/\"",
        "[sources.a]\nunsigned = true\n[broker.rabbitmq]\nuri = \"amqp://user:p@hunter2/w#rd@host/\"",
        "[sources.a]\nunsigned = true\n[broker.rabbitmq]\nuris = [\"amqp://hunter2:12/x@host/\"]",
        "[sources.a]\nunsigned = true\n[broker.rabbitmq]\nuris = [\"amqp://a/\", \"amqp://hunter2#x@host/\"]",
        "[sources.a]\nunsigned = true\n[broker.rabbitmq]\npassword = [\"hunter2hunter2\"]",
        "[sources.a]\nunsigned = true\n[broker.nats]\nservers = [\"nats://user:hunter2hunter2@host:x\"]",
        "[sources.a]\nunsigned = true\n[broker.nats]\nservers = \"nats://user:hunter2hunter2@host:4222\"",
        "[sources.a]\nunsigned = true\n[broker.nats]\nservers = [\"nats://user:12/hunter2@host\"]",
        "[sources.a]\nunsigned = true\n[broker.nats]\nservers = [\"nats://user:p@hunter2?x@host\"]",
        "[sources.a]\nunsigned = true\n[broker.nats]\ntoken = [\"hunter2hunter2\"]",
        "[sources.a]\nunsigned = true\n[broker.kafka]\nbootstrap_servers = \"user:hunter2@host:9092\"",
        "[sources.a]\nunsigned = true\n[broker.kafka]\nbootstrap_servers = \"kafka://user:hunter2,x@host:9092\"",
        "[sources.a]\nunsigned = true\n[broker.kafka]\noauth_token_endpoint = \"https://user:12/hunter2@host/\"\noauth_client_id = \"a\"\noauth_client_secret = \"b\"",
        "[sources.a]\nunsigned = true\n[broker.kafka]\npassword = { a = \"hunter2hunter2\" }",
        "[sources.a]\nunsigned = true\n[broker.kafka]\nproperties = \"hunter2hunter2\"",
        "[sources.a]\nunsigned = true\n[broker.kafka.properties]\n\"sasl.password\" = \"hunter2hunter2\"",
    ] {
        let settings = Settings::new(toml);
        for arguments in
            [&["check", "--config", "bridge.toml"][..], &["check", "--json", "--config", "bridge.toml"]]
        {
            let ended = settings.run(arguments);
            ended.assert_code(78);
            assert!(
                !format!("{}{}", ended.out, ended.err).contains("hunter2"),
                "{toml}: a secret shows:\n{}",
                ended.err
            );
        }
    }
}

/// A `/`, `?` or `#` that is not encoded ends what is taken for user and password before the password ends.
#[test]
fn takes_no_uri_whose_password_may_go_on_after_the_host() {
    let advice = "the password, or what comes after the host, has a character that must be percent-encoded there: / as \
                  %2F, ? as %3F, # as %23, @ as %40";
    let read = |broker: &str| Settings::new(&format!("{SOURCE}[broker.{broker}"));
    for password in ["12/se", "p@ss/w#rd", "a?b", "a#b", "a/b", "12@b/c"] {
        read(&format!("rabbitmq]\nuri = \"amqp://u:{password}@h/\""))
            .refused(&[&format!("`broker.rabbitmq.uri` in bridge.toml: {advice}")]);
        read(&format!("rabbitmq]\nuris = [\"amqps://a/\", \"amqps://u:{password}@h/\"]"))
            .refused(&[&format!("`broker.rabbitmq.uris` in bridge.toml: [not shown]: {advice}")]);
        read(&format!("nats]\nservers = [\"nats://u:{password}@h\"]"))
            .refused(&[&format!("`broker.nats.servers` in bridge.toml: [not shown]: {advice}")]);
        let oauth = "oauth_client_id = \"a\"\noauth_client_secret = \"b\"\nsecurity_protocol = \"sasl_ssl\"\n\
                     sasl_mechanism = \"OAUTHBEARER\"";
        read(&format!("kafka]\noauth_token_endpoint = \"https://u:{password}@h/\"\n{oauth}"))
            .refused(&[&format!("`broker.kafka.oauth_token_endpoint` in bridge.toml: {advice}")]);
    }
    let file = read("rabbitmq]\nuri_file = \"uri\"");
    file.file("uri", "amqp://u:12/se@h/", 0o600);
    file.refused(&[&format!("`broker.rabbitmq.uri_file` in bridge.toml: {advice}")]);
    let encoded = "amqp://u:p%40ss%2Fw%23rd%3F@h/%2f";
    read(&format!("rabbitmq]\nuri = \"{encoded}\"")).accepted::<&str>(&[], DEFAULT_SOURCE);
}

#[test]
fn reads_the_file_that_config_names_before_or_after_the_command() {
    let settings = Settings::good("");
    for arguments in [["check", "--config", "bridge.toml"], ["--config", "bridge.toml", "check"]] {
        settings.run(&arguments).assert_code(0);
    }
    settings.run(&["check", "--config=bridge.toml"]).assert_code(0);
    let missing = settings.run(&["check", "--config", "none.toml"]);
    missing.assert_code(78);
    assert_eq!(missing.err, "error: --config none.toml: cannot read it: No such file or directory (os error 2)\n");
    let directory = settings.run(&["--config", ".", "check"]);
    directory.assert_code(78);
    assert_eq!(directory.err, "error: --config .: not a file\n");
    for level in ["--log-level", "--log-format"] {
        let ended = settings.run(&["--config", "bridge.toml", level, "loud", "check"]);
        ended.assert_code(2);
        assert!(ended.err.contains(&format!("invalid value 'loud' for '{level}")), "{level}: {}", ended.err);
    }
}

#[test]
fn lets_flags_override_the_environment() {
    let settings = Settings::good("[log]\nlevel = \"x\"").set("LOG__LEVEL", "y");
    settings.run(&["--config", "bridge.toml", "--log-level", "warn", "check"]).assert_code(0);
    // A wrong argument is not a wrong setting.
    let wrong = settings.run(&["--config", "bridge.toml", "--log-level", "wran", "check"]);
    wrong.assert_code(2);
    assert!(wrong.err.contains("'--log-level <LEVEL>'"), "{}", wrong.err);
}

#[test]
fn prints_the_settings_in_force_with_the_origin_of_each_and_no_secret() {
    let uris = "[\"amqp://guest:hunter2@a:5672/%2f\"]";
    let file = format!(
        "{SOURCE}[broker.rabbitmq]\nuris = {uris}\npassword = \"hunter2\"\nusername = \"bridge\"\n\
         routes = [{{ event = \"E\", routing_key = \"r\" }}]\n[publish]\nmax_in_flight = 7\n"
    );
    let settings = Settings::new(&file)
        .set("BUFFER__MAX_EVENTS", "5")
        .variable("STATE_DIRECTORY", "/var/lib:/var/tmp")
        .variable("PLEXTRAC_BRIDGE_DEFAULTS", "more.toml");
    settings.file("more.toml", "[publish]\nmax_in_flight = 9\n[ingress]\nthreads = 3\n", 0o600);
    let ended = settings.run(&["check", "--print", "--config", "bridge.toml", "--log-level", "warn"]);
    for line in [
        "ack = \"buffered\"   # default",
        "buffer.max_events = \"5\"   # environment variable PLEXTRAC_BRIDGE__BUFFER__MAX_EVENTS",
        "broker.rabbitmq.password = \"[secret]\"   # bridge.toml",
        "broker.rabbitmq.routes = [{\"event\":\"E\",\"routing_key\":\"r\"}]   # bridge.toml",
        "broker.rabbitmq.uri = \"amqp://localhost:5672/%2f\"   # default",
        "broker.rabbitmq.uris = [\"amqp://a:5672/%2f\"]   # bridge.toml",
        "broker.rabbitmq.username = \"bridge\"   # bridge.toml",
        "ingress.threads = 3   # more.toml",
        "log.format = \"auto\"   # default",
        "log.level = \"warn\"   # --log-level",
        "publish.max_in_flight = 7   # bridge.toml",
        "sources.plextrac.secret = \"[secret]\"   # bridge.toml",
        "state_directory = \"/var/lib\"   # environment variable STATE_DIRECTORY",
    ] {
        assert!(ended.out.lines().any(|printed| printed == line), "no {line} in:\n{}{}", ended.out, ended.err);
    }
    assert!(!ended.out.contains("hunter2") && !ended.out.contains(SECRET), "{}", ended.out);
    let json = settings.run(&["check", "--print", "--json", "--config", "bridge.toml"]);
    let json: serde_json::Value = serde_json::from_str(&json.out).expect("it is JSON");
    let expected = serde_json::json!({ "value": 7, "origin": "bridge.toml" });
    assert_eq!(json["settings"]["publish.max_in_flight"], expected);
}

#[test]
fn refuses_addresses_and_routes_that_cannot_work() {
    Settings::good("[ingress]\nlisten = \"127.0.0.1:8081\"")
        .refused(&["`ingress.listen` and `admin.listen` are the same address; the admin port needs its own"]);
    for (ingress, admin) in [
        ("0.0.0.0:8080", "127.0.0.1:8080"),
        ("127.0.0.1:8080", "0.0.0.0:8080"),
        ("[::]:8080", "127.0.0.1:8080"),
        ("[::1]:8080", "[::]:8080"),
        ("[::]:8080", "0.0.0.0:8080"),
    ] {
        Settings::good(&format!("[ingress]\nlisten = \"{ingress}\"\n[admin]\nlisten = \"{admin}\"")).refused(&[&format!(
            "`ingress.listen` ({ingress}) and `admin.listen` ({admin}) collide: one is every address of the machine; \
             the admin port needs another port"
        )]);
    }
    for (ingress, admin) in [
        ("0.0.0.0:8080", "[::1]:8080"),
        ("127.0.0.1:8080", "127.0.0.2:8080"),
        ("0.0.0.0:8080", "127.0.0.1:8081"),
        ("0.0.0.0:0", "127.0.0.1:0"),
    ] {
        Settings::good(&format!("[ingress]\nlisten = \"{ingress}\"\n[admin]\nlisten = \"{admin}\""))
            .check()
            .assert_code(0);
    }
    Settings::good("[[broker.file.routes]]\nevent = \"\"\nname = \"x\"").refused(&[
        "`broker.file.routes[0].event` in bridge.toml: missing or empty; a route names the event it takes",
    ]);
}

#[test]
fn says_as_json_what_is_wrong_and_what_is_good() {
    let json = |settings: &Settings| -> (Option<i32>, serde_json::Value) {
        let ended = settings.run(&["check", "--json", "--config", "bridge.toml"]);
        (ended.code, serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}: {}", ended.out)))
    };
    let (code, good) = json(&Settings::good(""));
    assert_eq!(
        (code, good),
        (
            Some(0),
            serde_json::json!({
                "good": true, "errors": [], "warnings": [], "notes": [], "findings": [],
                "files": [{ "path": "bridge.toml", "of": "settings" }],
                "ingress": "127.0.0.1:8080", "admin": "127.0.0.1:8081", "state_directory": null,
            })
        )
    );
    let (code, bad) = json(&Settings::good("[admin]\npage = 1"));
    let error = "`admin.page` in bridge.toml: expected true or false, found 1";
    assert_eq!(
        (code, bad),
        (Some(78), serde_json::json!({ "good": false, "errors": [error], "warnings": [], "findings": [] }))
    );
}

#[test]
fn takes_the_state_directory_of_systemd() {
    let missing = Settings::good("").variable("STATE_DIRECTORY", "/no/such");
    missing.refused(&["`state_directory`: neither /no/such nor its parent exists; create /no"]);
    // systemd separates several with colons: the first.
    let settings = Settings::good("");
    let state = settings.directory.path().join("state").display().to_string();
    settings.variable("STATE_DIRECTORY", &format!("{state}:/no/such")).accepted::<&str>(&[], DEFAULT_SOURCE);
    // The file's own goes first.
    let own = Settings::new(&format!("state_directory = \"state\"\n{SOURCE}{BROKER}"));
    own.variable("STATE_DIRECTORY", "/no/such").accepted::<&str>(&[], DEFAULT_SOURCE);
}

#[test]
fn loads_the_files_that_come_with_it() {
    for broker in ["kafka", "rabbitmq", "nats"] {
        let file = format!("{}/config/{broker}.toml", env!("CARGO_MANIFEST_DIR"));
        let check = || Program::new(["--config", &file, "check"]);
        let ended = check().variable("PLEXTRAC_BRIDGE__SOURCES__PLEXTRAC__SECRET", SECRET).run();
        ended.assert_code(0);
        assert_eq!(sources(&ended), format!("source {DEFAULT_SOURCE}\nsettings: good\n"), "{broker}");
        let without = check().run();
        without.assert_code(78);
        assert_eq!(without.err, format!("error: `sources.plextrac.secret`: {NO_SECRET}\n"), "{broker}");
    }
}

#[test]
fn has_every_default_that_was_promised() {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/default.toml")).unwrap();
    let mut found = Vec::new();
    let mut section = "";
    for line in text.lines() {
        // No value of the reference has this in it but the one of an AMQP URI, which has no blank before.
        let line = line.split(" #").next().unwrap_or_default().trim();
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
        } else if let Some((key, value)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            found.push(format!("{section}|{key} = {value}"));
        }
    }
    let promised: Vec<String> = PROMISED
        .iter()
        .flat_map(|(section, lines)| lines.split('\n').map(move |line| format!("{section}|{}", line.trim())))
        .collect();
    for line in &promised {
        assert!(found.contains(line), "not in config/default.toml: {line}");
    }
    for line in &found {
        assert!(promised.contains(line), "in config/default.toml, but nobody promised it: {line}");
    }
}

/// The settings with their defaults: other values or names would break those who rely on them.
const PROMISED: [(&str, &str); 17] = [
    ("", "ack = \"buffered\"\nstate_directory = \"\""),
    (
        "ingress",
        "listen = \"127.0.0.1:8080\"
        threads = 0
        max_body = \"960KiB\"
        max_connections = 4096
        header_timeout = \"5s\"
        idle_timeout = \"75s\"
        body_timeout = \"4s\"
        trusted_proxies = []",
    ),
    ("ingress.tls", "certificate_file = \"\"\nkey_file = \"\"\nclient_ca_file = \"\""),
    (
        "sources.plextrac",
        "path = \"/webhooks/plextrac\"
        secret = \"\"
        secrets = []
        unsigned = false
        validation = \"lenient\"",
    ),
    ("buffer", "max_events = 100000\nmax_bytes = \"64MiB\""),
    ("journal", "max_bytes = \"1GiB\"\nsegment_bytes = \"16MiB\""),
    ("deduplication", "window = \"10m\"\nmax_entries = 100000"),
    (
        "publish",
        "max_in_flight = 1000\ntimeout = \"4s\"\nretry_min = \"100ms\"\nretry_max = \"2s\"\nrefuse_after = \"1m\"\nheaders = \"cloudevents\"",
    ),
    (
        "broker.kafka",
        "bootstrap_servers = \"localhost:9092\"
        topic = \"plextrac-events\"
        key = \"{event}.{targetType}\"
        topology = \"declare\"
        partitions = -1
        replication_factor = -1
        security_protocol = \"plaintext\"
        sasl_mechanism = \"\"
        username = \"\"
        password = \"\"
        oauth_token_endpoint = \"\"
        oauth_client_id = \"\"
        oauth_client_secret = \"\"
        oauth_scope = \"\"
        ca_file = \"\"
        certificate_file = \"\"
        key_file = \"\"
        properties = {}
        properties_file = \"\"
        routes = []",
    ),
    (
        "broker.rabbitmq",
        "uri = \"amqp://guest:guest@localhost:5672/%2f\"
        uris = []
        username = \"\"
        password = \"\"
        oauth_token_endpoint = \"\"
        oauth_client_id = \"\"
        oauth_client_secret = \"\"
        oauth_scope = \"\"
        exchange = \"plextrac\"
        routing_key = \"{event}.{targetType}\"
        topology = \"declare\"
        queue = \"plextrac-events\"
        ca_file = \"\"
        certificate_file = \"\"
        key_file = \"\"
        routes = []",
    ),
    (
        "broker.nats",
        "servers = [\"nats://localhost:4222\"]
        subject = \"plextrac.{event}.{targetType}\"
        stream = \"PLEXTRAC\"
        topology = \"declare\"
        stream_subjects = []
        stream_replicas = 1
        duplicate_window = \"10m\"
        domain = \"\"
        api_prefix = \"\"
        inbox_prefix = \"_INBOX\"
        credentials_file = \"\"
        nkey_seed_file = \"\"
        username = \"\"
        password = \"\"
        token = \"\"
        tls_first = false
        ca_file = \"\"
        certificate_file = \"\"
        key_file = \"\"
        routes = []",
    ),
    ("broker.file", "directory = \"events\"\nname = \"{event}.{targetType}\"\nroutes = []"),
    ("dead_letters", "max_bytes = \"256MiB\""),
    ("invalid", "max_bytes = \"64MiB\""),
    ("admin", "listen = \"127.0.0.1:8081\"\npage = true\nhosts = []"),
    ("log", "format = \"auto\"\nlevel = \"info\""),
    ("shutdown", "delay = \"0s\"\ngrace = \"20s\""),
];
