//! The admin port: every series from the start, health that follows the buffer and the stop, status, the page.
//!
//! Length: the one list of all series, and the shape of `/status` field by field.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{
    Answer, Bridge, Client, LIMIT, Payload, Program, Setup, get, request_once, until_closed, wait_until,
};

/// The series that exist from the start with 0, or with their current value (`*`), for one source with one secret.
const SERIES: &str = r#"
events_received_total{source="plextrac"}
events_accepted_total{source="plextrac"}
events_duplicate_total{source="plextrac"}
events_probe_total{source="plextrac"}
events_rejected_total{reason="signature|malformed|invalid|too_large|timeout|encoding|method|disconnected|buffer_full|draining|unavailable",source="plextrac"}
requests_total{code="200|400|401|405|408|413|415|422|503",source="plextrac"}
requests_total{code="400",source="none"}
requests_total{code="404",source="none"}
requests_total{code="431",source="none"}
signatures_matched_total{secret_id="default",source="plextrac"}
events_recovered_total
events_replayed_total
events_dead_lettered_total{reason="too_large|unroutable|no_destination|not_authorised|other"}
events_withdrawn_total
events_lost_total{reason="exit|refused|damaged"}
invalid_kept_total{reason="invalid|malformed|probe"}
publish_retries_total
publish_out_of_order_total
broker_errors_total{kind="connect|authentication|tls|lost|refused|not_now"}
journal_damaged_records_total
config_reloads_total{result="success|failure"}
ready *
buffer_events
buffer_bytes
buffer_capacity_events *
buffer_capacity_bytes *
in_flight_events
oldest_event_timestamp_seconds
last_published_timestamp_seconds
broker_connected *
broker_waiting
addresses_waiting
journal_events
journal_bytes *
journal_capacity_bytes *
dead_letters_events
dead_letters_bytes
dead_letters_capacity_bytes *
connections_open
connections_capacity *
config_last_reload_successful *
tls_certificate_not_after_timestamp_seconds
accounting_mismatch_events
request_duration_seconds_count{source="plextrac"}
request_duration_seconds_sum{source="plextrac"}
publish_duration_seconds_count
publish_duration_seconds_sum
delivery_duration_seconds_count
delivery_duration_seconds_sum
journal_sync_duration_seconds_count *
journal_sync_duration_seconds_sum *
"#;

/// The series above, with `a|b` expanded; whether each must be 0.
fn promised() -> Vec<(String, bool)> {
    let mut all = Vec::new();
    for line in SERIES.lines().filter(|line| !line.is_empty()) {
        let (name, is_zero) = line.strip_suffix(" *").map_or((line, true), |name| (name, false));
        let choices = name.split('"').find(|part| part.contains('|'));
        match choices {
            None => all.push((name.to_owned(), is_zero)),
            Some(choices) => {
                all.extend(choices.split('|').map(|choice| (name.replace(choices, choice), is_zero)));
            }
        }
    }
    all
}

fn admin(bridge: &Bridge, method: &str, path: &str) -> Answer {
    let mut client = Client::connect(&bridge.daemon.admin).expect("the admin port listens");
    client.send(method, path, &[], b"").unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

/// The commit that the program was built from.
const REVISION: &str = match option_env!("PLEXTRAC_BRIDGE_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

#[test]
fn has_every_series_from_the_start() {
    let bridge = Bridge::start(|setup| setup);
    let text = bridge.daemon.get("/metrics").text();
    let found: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("plextrac_bridge_"))
        .filter(|line| !line.contains("_bucket{") && !line.starts_with("build_info"))
        .filter_map(|line| line.rsplit_once(' '))
        .collect();
    let promised = promised();
    for (name, is_zero) in &promised {
        let value = found.iter().find(|(found, _)| found == name).map(|(_, value)| *value);
        assert!(value.is_some(), "no series {name} in:\n{text}");
        assert!(!is_zero || value == Some("0"), "{name} starts with {value:?}");
    }
    for (name, _) in &found {
        assert!(promised.iter().any(|(promised, _)| promised == name), "a series that nobody promised: {name}");
    }
    for (series, value) in [
        ("buffer_capacity_events", "100000"),
        ("buffer_capacity_bytes", "67108864"),
        ("connections_capacity", "4096"),
        ("dead_letters_capacity_bytes", "268435456"),
        ("journal_capacity_bytes", "8388608"),
        ("config_last_reload_successful", "1"),
        ("ready", "1"),
    ] {
        assert!(text.contains(&format!("plextrac_bridge_{series} {value}\n")), "{series} is not {value}:\n{text}");
    }
    let version = format!(
        "plextrac_bridge_build_info{{ack=\"buffered\",revision=\"{REVISION}\",version=\"{}\"}} 1\n",
        env!("CARGO_PKG_VERSION")
    );
    assert!(text.contains(&version), "no {version} in:\n{text}");
    for series in
        ["process_cpu_seconds_total", "process_open_fds", "process_resident_memory_bytes", "process_max_fds"]
    {
        assert!(text.contains(&format!("\n{series} ")), "no {series} in:\n{text}");
    }
    assert_eq!(
        bridge.daemon.get("/metrics").header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
}

#[test]
fn has_the_histograms_in_the_promised_range() {
    let bridge = Bridge::start(|setup| setup);
    let text = bridge.daemon.get("/metrics").text();
    let bounds = |name: &str| -> Vec<f64> {
        let series = text.lines().filter_map(|line| line.strip_prefix(&format!("plextrac_bridge_{name}_bucket{{")));
        let bounds = series.filter_map(|line| line.split("le=\"").nth(1)?.split('"').next()?.parse().ok());
        bounds.filter(|bound: &f64| bound.is_finite()).collect()
    };
    for (name, least, most) in
        [("request_duration_seconds", 0.0005, 5.0), ("delivery_duration_seconds", 0.001, 86_400.0)]
    {
        let bounds = bounds(name);
        assert!(bounds.is_sorted(), "{name}: {bounds:?}");
        assert_eq!((bounds.first(), bounds.last()), (Some(&least), Some(&most)), "{name}: {bounds:?}");
    }
}

#[test]
fn passes_promtool_before_and_after_events() {
    let bridge = Bridge::start(|setup| setup);
    for round in 0..2 {
        let text = bridge.daemon.get("/metrics").text();
        let checked = Program::other("promtool", ["check", "metrics"]).input(text).run();
        checked.assert_code(0);
        assert_eq!(checked.err, "", "promtool in round {round}");
        let body = Payload::new(format!("round {round}")).body();
        assert_eq!(request_once(&bridge.daemon, &body, &[]).status, 200);
        bridge.daemon.wait_until_empty();
    }
    let published =
        bridge.daemon.metric("events_published_total", &[("event", "ReportPublished"), ("target_type", "report")]);
    assert_eq!(published, 2, "published events of this pair");
}

#[test]
fn follows_the_events_of_at_most_a_hundred_pairs() {
    let bridge = Bridge::start(|setup| setup);
    for number in 0..105 {
        let payload = Payload { event: format!("Event/{number}"), ..Payload::new(format!("pair {number}")) };
        assert_eq!(request_once(&bridge.daemon, &payload.body(), &[]).status, 200);
        bridge.accepted(&payload.body());
        bridge.daemon.wait_until_empty();
    }
    let text = bridge.daemon.get("/metrics").text();
    let pairs: Vec<&str> =
        text.lines().filter(|line| line.starts_with("plextrac_bridge_events_published_total{")).collect();
    assert_eq!(pairs.len(), 101, "100 pairs and the others: {pairs:?}");
    let other = "plextrac_bridge_events_published_total{event=\"other\",target_type=\"other\"} 5";
    assert!(pairs.contains(&other), "no {other} in {pairs:?}");
    assert!(pairs.iter().any(|pair| pair.contains("event=\"Event_0\"")), "not in address form: {pairs:?}");
    bridge.stop();
}

#[test]
fn turns_unready_when_the_buffer_is_full_and_ready_below_90_percent() {
    let bridge = Bridge::start_without_broker(|setup| setup.raw("buffer.max_events", "10"));
    let ready = || {
        let answer = admin(&bridge, "GET", "/readyz");
        (answer.status, answer.text())
    };
    for number in 0..10 {
        assert_eq!(ready(), (200, "ready\n".to_owned()), "with {number} of 10 events");
        let body = Payload::new(format!("event {number}")).body();
        assert_eq!(request_once(&bridge.daemon, &body, &[]).status, 200);
        bridge.accepted(&body);
    }
    let (status, text) = ready();
    assert_eq!(status, 503, "with 10 of 10 events: {text}");
    assert!(text.starts_with("not ready\nbuffer full: 10 of 10 events, "), "the reasons: {text}");
    let shown = bridge.daemon.status().0;
    assert_eq!(shown["ready"], false, "on /status");
    assert!(
        shown["reasons"][0].as_str().is_some_and(|text| text.starts_with("buffer full")),
        "{}",
        shown["reasons"]
    );
    assert_eq!(bridge.daemon.metric("ready", &[]), 0, "in the metrics");
    assert_eq!(admin(&bridge, "GET", "/livez").status, 200, "a full buffer is no reason to be restarted");
    bridge.bring_the_broker_back();
    wait_until("it is ready again", LIMIT, || ready().0 == 200);
    assert!(bridge.daemon.metric("buffer_events", &[]) < 9, "ready again below 90 %");
    bridge.stop();
}

#[test]
fn is_unready_but_serves_during_the_delay_of_the_stop() {
    let bridge = Bridge::start(|setup| setup.text("shutdown.delay", "60s"));
    bridge.daemon.terminate();
    wait_until("it is unready", LIMIT, || admin(&bridge, "GET", "/readyz").status == 503);
    let text = admin(&bridge, "GET", "/readyz").text();
    assert_eq!(text, "not ready\ndraining: the bridge is stopping\n", "the reason");
    assert_eq!(admin(&bridge, "GET", "/livez").status, 200, "it is still alive");
    let body = Payload::new("late").body();
    assert_eq!(request_once(&bridge.daemon, &body, &[]).status, 200, "it still serves");
    bridge.accepted(&body);
    bridge.check();
    // A second signal ends the delay.
    bridge.daemon.terminate();
    let (stopped, arrived) = bridge.ended();
    assert_eq!((stopped.code, stopped.count("published"), arrived.len()), (Some(0), 1, 1), "{}", stopped.last);
}

#[test]
fn answers_get_and_head_only_and_lets_nothing_be_loaded() {
    let bridge = Bridge::start(|setup| setup);
    let paths = ["/", "/page.css", "/page.js", "/livez", "/readyz", "/metrics", "/status", "/nothing"];
    for path in paths {
        let answer = admin(&bridge, "GET", path);
        assert_eq!(answer.status, if path == "/nothing" { 404 } else { 200 }, "GET {path}");
        assert!(!answer.body.is_empty(), "GET {path} has no body");
        let policy = answer.header("content-security-policy").unwrap_or_default();
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.split(';').any(|part| part.trim() == rule), "{path}: no {rule} in {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{path}: {policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
        let head = format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let text = until_closed(&bridge.daemon.admin, head.as_bytes());
        assert!(text.starts_with(&format!("HTTP/1.1 {} ", answer.status)), "HEAD {path}: {text}");
        assert!(text.ends_with("\r\n\r\n"), "HEAD {path} has a body: {text}");
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let answer = admin(&bridge, method, path);
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.header("allow"), Some("GET, HEAD"), "{method} {path}");
        }
    }
    let page = admin(&bridge, "GET", "/").text();
    for attribute in ["src=\"", "href=\"", "action=\"", "url("] {
        for target in page.split(attribute).skip(1).filter_map(|rest| rest.split(['"', ')']).next()) {
            assert!(!target.starts_with("http") && !target.starts_with("//"), "the page asks others: {target}");
        }
    }
    assert!(!page.contains("<style") && !page.contains(" style=") && !page.contains(" onclick="), "inline: {page}");
    let script = admin(&bridge, "GET", "/page.js").text();
    assert!(!script.contains("innerHTML") && !script.contains("eval("), "the script writes HTML: {script}");
    bridge.stop();
}

#[test]
#[expect(clippy::too_many_lines, reason = "the one list of all fields")]
fn shows_how_things_stand_as_json() {
    let bridge = Bridge::start(|setup| setup);
    assert_eq!(request_once(&bridge.daemon, &Payload::new("shown").body(), &[]).status, 200);
    let status = bridge.daemon.wait_until_empty().0;
    assert_eq!(bridge.daemon.get("/status").header("content-type"), Some("application/json"));
    let keys = |value: &Value| value.as_object().map(|object| object.keys().cloned().collect::<BTreeSet<_>>());
    let expected = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>());
    for (pointer, names) in [
        (
            "",
            &[
                "accounting",
                "ack",
                "broker",
                "buffer",
                "connections",
                "dead_letters",
                "invalid",
                "journal",
                "ready",
                "reasons",
                "reload",
                "revision",
                "settings",
                "sources",
                "time_seconds",
                "unknown_paths",
                "uptime_seconds",
                "version",
            ][..],
        ),
        (
            "/accounting",
            &[
                "accepted",
                "dead_lettered",
                "duplicate",
                "held",
                "lost",
                "mismatch",
                "probe",
                "published",
                "received",
                "recovered",
                "rejected",
                "replayed",
                "withdrawn",
            ],
        ),
        (
            "/buffer",
            &[
                "bytes",
                "capacity_bytes",
                "capacity_events",
                "events",
                "in_flight_events",
                "oldest_event_timestamp_seconds",
            ],
        ),
        (
            "/broker",
            &[
                "findings",
                "last_error",
                "last_published_timestamp_seconds",
                "location",
                "name",
                "since_timestamp_seconds",
                "state",
                "waiting",
            ],
        ),
        ("/connections", &["capacity", "open"]),
        ("/dead_letters", &["bytes", "capacity_bytes", "events"]),
        ("/invalid", &["bytes", "capacity_bytes", "dropped", "events", "kept"]),
        ("/journal", &["bytes", "capacity_bytes", "damaged", "events", "failed", "recovered", "unreadable"]),
        (
            "/sources/0",
            &[
                "accepted",
                "deviations",
                "duplicate",
                "last",
                "name",
                "path",
                "probe",
                "received",
                "recent_refusals",
                "rejected",
                "secrets",
                "signed",
                "validation",
            ],
        ),
        ("/sources/0/secrets/0", &["id", "last_used_timestamp_seconds", "matched"]),
    ] {
        let value = status.pointer(pointer).unwrap_or_else(|| panic!("nothing at {pointer}: {status}"));
        assert_eq!(keys(value), expected(names), "the fields at {pointer:?}");
    }
    assert_eq!(status["accounting"]["published"], 1, "{}", status["accounting"]);
    let (broker, last) = (&status["broker"]["state"], &status["sources"][0]["last"]["outcome"]);
    assert_eq!((broker, last), (&json!("connected"), &json!("accepted")), "{status}");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"), "the version");
}

#[test]
fn shows_the_mode_and_no_journal_without_a_state_directory() {
    for mode in ["buffered", "journaled", "published"] {
        let bridge = Bridge::start(|setup| setup.text("ack", mode));
        assert_eq!(bridge.daemon.status().text("/ack"), mode);
        assert!(bridge.daemon.status().0["journal"].is_object(), "{mode}: {}", bridge.daemon.status().0);
        bridge.stop();
    }
    let bridge = Bridge::start(|setup| setup);
    let status = bridge.daemon.status().0;
    let journal = &status["journal"];
    for (field, value) in
        [("events", json!(0)), ("recovered", json!(0)), ("damaged", json!(0)), ("failed", json!(null))]
    {
        assert_eq!(journal[field], value, "`{field}` of the journal: {journal}");
    }
    assert_eq!(journal["capacity_bytes"], 8 << 20, "{journal}");
    bridge.stop();
    let bridge = Bridge::start(Setup::without_state);
    assert_eq!(bridge.daemon.status().0["journal"], json!(null));
    assert_eq!(bridge.daemon.metric("journal_capacity_bytes", &[]), 0, "there is none");
    assert_eq!(bridge.daemon.metric("dead_letters_capacity_bytes", &[]), 0, "there are none");
    bridge.stop();
}

#[test]
fn says_what_to_do_about_a_refusal() {
    let bridge = Bridge::start(|setup| setup);
    let body = Payload::new("refused").body();
    let answer = request_once(&bridge.daemon, &body, &[("Content-Encoding", "gzip")]);
    assert_eq!(answer.status, 415);
    let rejected = bridge.daemon.status().0["sources"][0]["rejected"].clone();
    assert_eq!((&rejected[0]["reason"], &rejected[0]["count"]), (&json!("encoding"), &json!(1)), "{rejected}");
    assert!(rejected[0]["advice"].as_str().is_some_and(|advice| advice.contains("compress")), "{rejected}");
}

#[test]
fn shows_why_the_broker_is_away() {
    let bridge = Bridge::start_without_broker(|setup| setup);
    let status = bridge.daemon.wait_until("an error", LIMIT, |status| !status.0["broker"]["last_error"].is_null());
    let broker = &status.0["broker"];
    assert_eq!(
        (&broker["state"], &broker["last_error"]["kind"]),
        (&json!("connecting"), &json!("connect")),
        "{broker}"
    );
    let text = broker["last_error"]["text"].as_str().unwrap_or_default();
    assert!(text.contains("cannot create the directory"), "{broker}");
    assert_eq!(bridge.daemon.metric("broker_connected", &[]), 0, "in the metrics");
    assert!(bridge.daemon.metric("broker_errors_total", &[("kind", "connect")]) > 0, "in the metrics");
    assert_eq!(admin(&bridge, "GET", "/readyz").status, 200, "events can still be accepted");
    bridge.bring_the_broker_back();
    bridge.daemon.wait_until("the broker", LIMIT, |status| status.text("/broker/state") == "connected");
    bridge.stop();
}

#[test]
fn serves_no_page_if_it_is_turned_off() {
    let bridge = Bridge::start(|setup| setup.raw("admin.page", "false"));
    for path in ["/", "/page.js", "/page.css"] {
        assert_eq!(admin(&bridge, "GET", path).status, 404, "{path}");
    }
    assert_eq!(admin(&bridge, "GET", "/status").status, 200, "/status stays");
}

#[test]
fn answers_probes_beside_a_crowd_of_silent_connections() {
    let bridge = Bridge::start(|setup| setup);
    // The admin port has a limit of its own, which the senders' connections do not use up.
    let crowd: Vec<Client> = (0..300).map(|_| bridge.connect()).collect();
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(get(&bridge.daemon.admin, path).unwrap().status, 200, "{path}");
    }
    drop(crowd);
    bridge.stop();
}

#[test]
fn serves_without_an_admin_port() {
    let directory = tempfile::tempdir().unwrap();
    let toml = "[ingress]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"\"\n[sources.a]\nunsigned = true\n[broker.file]\n";
    std::fs::write(directory.path().join("bridge.toml"), toml).unwrap();
    let mut command = Program::new(["serve", "--config", "bridge.toml", "--log-format", "json"])
        .within(directory.path())
        .variable("STATE_DIRECTORY", directory.path().join("state"))
        .into_command();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut lines = lines.map(|line| serde_json::from_str::<Value>(&line).unwrap());
    let listening = lines.find(|line| line["message"] == "listening").expect("it listens");
    assert_eq!(listening.get("admin"), None, "an address that nobody listens on: {listening}");
    let ingress = listening["ingress"].as_str().unwrap();
    let body = Payload::new("no admin").body();
    let answer = Client::connect(ingress).unwrap().send("POST", "/webhooks/plextrac", &[], &body).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(directory.path().join("state/dead-letters").is_dir(), "the state directory of systemd is not used");
    Program::other("kill", [child.id().to_string()]).run().assert_code(0);
    let stopped = lines.find(|line| line["message"] == "stopped").expect("the last line");
    assert_eq!((&stopped["published"], &stopped["lost"]), (&json!(1), &json!(0)), "{stopped}");
    assert!(child.wait().unwrap().success(), "the exit status");
}
