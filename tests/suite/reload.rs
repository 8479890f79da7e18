//! Settings read again by a running daemon: secrets and certificates under load, bad files, what needs a restart.
//!
//! Length: each setting that a reload changes, and each way in which one is rejected, is a test of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::dead_letters::REFUSE;
use crate::support::{
    Authority, Client, Daemon, LIMIT, Load, PATH, Pair, Payload, SECRET, Setup, Status, Table, files, request_once,
    sign, wait_until,
};

const OTHER: &str = "another secret of this test, 0123456789";

/// The status of one request with a body of its own, signed with this secret.
fn post(daemon: &Daemon, path: &str, secret: &str, cuid: &str) -> u16 {
    let body = Payload::new(cuid).body();
    let signature = sign(secret, &body);
    let headers = [("X-Authorization-HMAC-256", signature.as_str())];
    let answer = Client::connect(&daemon.ingress).and_then(|mut client| client.send("POST", path, &headers, &body));
    answer.expect("the daemon answers").status
}

fn secret_file(directory: &Path, name: &str, secret: &str) -> String {
    let (path, new) = (directory.join(name), directory.join("new file"));
    fs::write(&new, secret).expect("the directory can be written");
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).expect("the file is ours");
    // Never seen half-written.
    fs::rename(&new, &path).expect("the directory can be written");
    path.display().to_string()
}

/// These secrets, by their files in the test's directory.
fn with_secrets(setup: &Setup, ids: &[&str]) -> Setup {
    let file = |id: &&str| {
        let path = setup.directory().join(id);
        format!("{{ id = {id:?}, file = {path:?} }}")
    };
    let list = ids.iter().map(file).collect::<Vec<_>>().join(", ");
    setup.clone().text("sources.plextrac.secret", "").raw("sources.plextrac.secrets", format!("[{list}]"))
}

#[track_caller]
fn assert_good(status: &Status, changed: &[&str], needs_restart: &[&str]) {
    let reload = &status.0["reload"];
    assert_eq!((reload["result"].as_str(), reload["error"].as_str()), (Some("success"), None), "{reload}");
    assert_eq!(
        (&reload["changed"], &reload["needs_restart"]),
        (&json!(changed), &json!(needs_restart)),
        "{reload}"
    );
}

#[test]
fn rotates_a_secret_and_a_certificate_under_load_without_a_failed_request() {
    let authority = Authority::new();
    let setup = Setup::on_files();
    secret_file(setup.directory(), "old", SECRET);
    secret_file(setup.directory(), "new", OTHER);
    let (certificate, key) = authority.issue_until(3000).write(setup.directory(), "server");
    let setup = with_secrets(&setup, &["old"])
        .text("ingress.tls.certificate_file", &certificate.display().to_string())
        .text("ingress.tls.key_file", &key.display().to_string());
    let daemon = setup.start();
    let load = Load { events: 1_000_000, rate: 500, tls: Some(authority.client(None)), ..Load::default() };
    let running = load.start(&daemon.ingress);
    let goes_on = || {
        let before = running.sent();
        wait_until("the load goes on", LIMIT, || running.sent() > before + 100);
    };
    goes_on();
    let mut kept = Client::connect_over_tls(&daemon.ingress, &authority.client(None)).expect("it is trusted");
    let post = |client: &mut Client, secret: &str, cuid: &str| {
        let body = Payload::new(cuid).body();
        let answer = client.send("POST", PATH, &[("X-Authorization-HMAC-256", &sign(secret, &body))], &body);
        let answer = answer.expect("the daemon answers");
        (answer.status, answer.header("connection").map(str::to_owned))
    };
    with_secrets(&setup, &["old", "new"]).file();
    assert_good(&daemon.reload(), &["sources.plextrac.secrets"], &[]);
    assert_eq!(post(&mut kept, SECRET, "kept-1"), (200, None), "other secrets concern no connection");
    goes_on();
    authority.issue_until(4000).write(setup.directory(), "server");
    assert_good(&daemon.reload(), &["ingress.tls.certificate_file", "ingress.tls.key_file"], &[]);
    assert_eq!(daemon.metric("tls_certificate_not_after_timestamp_seconds", &[]), 64_060_588_800);
    assert_eq!(post(&mut kept, SECRET, "kept-2"), (200, Some("close".to_owned())), "other certificates do");
    goes_on();
    let good = fs::read_to_string(setup.directory().join("config.toml")).expect("it is there");
    for bad in [&good[..good.len() / 2], "[ingress]\nlisten = 1\n", "", &format!("{good}\n[ingres]\na = 1\n")] {
        fs::write(setup.directory().join("config.toml"), bad).expect("it can be written");
        assert_eq!(daemon.reload().text("/reload/result"), "failure", "{bad}");
        goes_on();
    }
    let sent = running.end().all_accepted();
    assert!(sent.0.len() > 600, "{} were sent", sent.0.len());
    with_secrets(&setup, &["new"]).file();
    assert_good(&daemon.reload(), &["sources.plextrac.secrets"], &[]);
    let mut client = Client::connect_over_tls(&daemon.ingress, &authority.client(None)).expect("it is trusted");
    assert_eq!(post(&mut client, SECRET, "refused"), (401, None));
    assert_eq!(post(&mut client, OTHER, "accepted"), (200, None));
    let matched = |id: &str| daemon.metric("signatures_matched_total", &[("secret_id", id)]);
    assert_eq!((matched("old"), matched("new")), (sent.accepted() + 2, 1), "the removed one is still counted");
    let status = daemon.status();
    assert_eq!(status.0.pointer("/sources/0/secrets").and_then(|list| list.as_array()).map(Vec::len), Some(1));
    assert_eq!(status.count("mismatch"), 0);
    daemon.wait_until_empty();
    let stopped = daemon.stop();
    assert_eq!(stopped.code, Some(0), "{}", stopped.log);
    for secret in [SECRET, OTHER, "PRIVATE KEY"] {
        assert!(!stopped.log.contains(secret), "a secret is in the log");
    }
}

#[test]
fn keeps_everything_where_something_is_wrong_and_says_why() {
    let authority = Authority::new();
    let setup = Setup::on_files();
    let (certificate, key) = authority.issue().write(setup.directory(), "server");
    let setup = setup
        .text("ingress.tls.certificate_file", &certificate.display().to_string())
        .text("ingress.tls.key_file", &key.display().to_string());
    let daemon = setup.start();
    assert_eq!(daemon.metric("config_last_reload_successful", &[]), 1, "before the first");
    assert!(daemon.status().0["reload"].is_null());
    let client = || Client::connect_over_tls(&daemon.ingress, &authority.client(None)).expect("the pair is kept");
    let serves = |cuid: &str| {
        let body = Payload::new(cuid).body();
        let answer = client().send("POST", PATH, &[("X-Authorization-HMAC-256", &sign(SECRET, &body))], &body);
        assert_eq!(answer.expect("the daemon answers").status, 200);
    };
    let file = setup.directory().join("config.toml");
    // Each with a change that is right by itself and must not take effect.
    let moved = setup.clone().text("sources.plextrac.path", "/elsewhere");
    let wrong = |number: u64, text: &str| {
        let status = daemon.reload();
        assert_eq!(status.text("/reload/result"), "failure", "{text}");
        assert!(status.text("/reload/error").contains(text), "not {text:?} in {}", status.0["reload"]);
        let line = daemon.wait_for_line("what is wrong", |line| {
            let message = line["message"].as_str().unwrap_or_default();
            message.starts_with("the settings were not reloaded; the old ones stay in force: ")
                && message.contains(text)
        });
        assert_eq!(line["level"], "ERROR");
        assert_eq!(daemon.metric("config_reloads_total", &[("result", "failure")]), number);
        assert_eq!(daemon.metric("config_last_reload_successful", &[]), 0);
        serves(&format!("cuid-{number}"));
    };
    moved.clone().text("ingress.liste", "x").file();
    wrong(1, "`ingress.liste` in ");
    let whole = fs::read_to_string(moved.file()).expect("it is there");
    fs::write(&file, &whole[..whole.len() - 8]).expect("it can be written");
    wrong(2, "config.toml: ");
    moved.clone().text("sources.second.secret_file", "/no/such").file();
    wrong(3, "`sources.second.secret_file` in ");
    moved.file();
    fs::write(&key, authority.issue().key).expect("it can be written");
    wrong(4, "does not belong to the first certificate");
    moved.clone().text("buffer.max_bytes", "100KiB").text("ingress.max_body", "1KiB").file();
    let (_, key) = authority.issue().write(setup.directory(), "server");
    wrong(5, "`buffer.max_bytes` is below `ingress.max_body` + 512 B");
    fs::remove_file(&file).expect("it is there");
    wrong(6, "cannot read it");
    setup.file();
    assert_good(&daemon.reload(), &["ingress.tls.certificate_file", "ingress.tls.key_file"], &[]);
    assert_eq!(daemon.metric("config_last_reload_successful", &[]), 1);
    serves("cuid-7");
    let stopped = daemon.stop();
    let key = fs::read_to_string(key).expect("it is there");
    assert!(!stopped.log.contains(&key[40..60]) && !stopped.log.contains(SECRET), "a secret is in the log");
}

#[test]
fn keeps_a_valid_certificate_where_the_new_one_is_not_and_looks_again() {
    let authority = Authority::new();
    let setup = Setup::on_files().failpoints("reload.look=20ms");
    let write = |pair: Pair| pair.write(setup.directory(), "server");
    let (certificate, key) = write(authority.issue_until(3000));
    let daemon = setup
        .clone()
        .text("ingress.tls.certificate_file", &certificate.display().to_string())
        .text("ingress.tls.key_file", &key.display().to_string())
        .start();
    let expiry = || daemon.metric("tls_certificate_not_after_timestamp_seconds", &[]);
    let rejected = |what: &str| {
        daemon.wait_until(what, LIMIT, |status| {
            let error = status.0["reload"]["error"].as_str().unwrap_or_default();
            error.contains(what) && error.contains("server.crt")
        });
        assert_eq!(expiry(), 32_503_680_000, "the old pair stays");
        Client::connect_over_tls(&daemon.ingress, &authority.client(None)).expect("the pair is kept");
    };
    write(authority.issue_until(2020));
    rejected("the certificate ended at 2020-01-01T00:00:00Z");
    // It is looked at again until it is valid, although no file changes any more.
    write(authority.issue_from(SystemTime::now() + Duration::from_secs(5)));
    rejected("the certificate is not valid before");
    daemon.wait_until("the reload", LIMIT, |status| status.text("/reload/result") == "success");
    assert_eq!(expiry(), 64_060_588_800);
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn notices_by_itself_that_a_secret_changed() {
    let setup = Setup::on_files().failpoints("reload.look=20ms").text("sources.plextrac.secret", "");
    let file = secret_file(setup.directory(), "secret", SECRET);
    let daemon = setup.text("sources.plextrac.secret_file", &file).start();
    assert_eq!(post(&daemon, PATH, SECRET, "cuid-1"), 200);
    secret_file(Path::new(&file).parent().expect("it is in a directory"), "secret", OTHER);
    let status = daemon.wait_until("the reload", LIMIT, |status| status.text("/reload/result") == "success");
    assert_good(&status, &["sources.plextrac.secret_file"], &[]);
    assert_eq!(post(&daemon, PATH, SECRET, "cuid-2"), 401);
    assert_eq!(post(&daemon, PATH, OTHER, "cuid-2"), 200);
    fs::remove_file(&file).expect("it is there");
    let status = daemon.wait_until("the next one", LIMIT, |status| status.text("/reload/result") == "failure");
    assert!(status.text("/reload/error").contains("`sources.plextrac.secret_file`"), "{}", status.0["reload"]);
    assert_eq!(post(&daemon, PATH, OTHER, "cuid-3"), 200);
    assert_eq!(daemon.metric("config_reloads_total", &[("result", "failure")]), 1, "once for each change");
    let stopped = daemon.stop();
    assert!(!stopped.log.contains(SECRET) && !stopped.log.contains(OTHER), "a secret is in the log");
}

#[test]
fn a_refused_settings_file_stays_reported_until_an_asked_reload_succeeds() {
    let setup = Setup::on_files().failpoints("reload.look=20ms").text("sources.plextrac.secret", "");
    let file = secret_file(setup.directory(), "secret", SECRET);
    let setup = setup.text("sources.plextrac.secret_file", &file);
    let daemon = setup.start();
    let reloads = |result: &str| daemon.metric("config_reloads_total", &[("result", result)]);
    let is_refused = |what: &str| {
        let reload = daemon.status().0["reload"].clone();
        assert_eq!(reload["result"], "failure", "{what}: {reload}");
        assert!(
            reload["error"].as_str().is_some_and(|error| error.contains("`ingress.liste`")),
            "{what}: {reload}"
        );
        assert_eq!(daemon.metric("config_last_reload_successful", &[]), 0, "{what}");
    };
    setup.clone().text("ingress.liste", "x").file();
    daemon.reload();
    is_refused("at first");
    secret_file(setup.directory(), "secret", OTHER);
    wait_until("the new secret", LIMIT, || reloads("success") == 1);
    is_refused("after a change of a secret");
    assert_eq!(post(&daemon, PATH, OTHER, "cuid-1"), 200, "the new secret is in force");
    setup.file();
    assert_good(&daemon.reload(), &[], &[]);
    assert_eq!(daemon.metric("config_last_reload_successful", &[]), 1);
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn a_refused_settings_file_stays_reported_where_a_secret_changed_with_it() {
    let setup = Setup::on_files().text("sources.plextrac.secret", "");
    let file = secret_file(setup.directory(), "secret", SECRET);
    let setup = setup.text("sources.plextrac.secret_file", &file).failpoints("reload.look=2s");
    let daemon = setup.start();
    setup.clone().text("ingress.liste", "x").file();
    secret_file(setup.directory(), "secret", OTHER);
    daemon.reload();
    // The secret is read again by itself, with the old settings; as a rule after the file.
    for result in ["failure", "success"] {
        wait_until(result, LIMIT, || daemon.metric("config_reloads_total", &[("result", result)]) == 1);
    }
    let status = daemon.status();
    assert_eq!(status.text("/reload/result"), "failure", "{}", status.0["reload"]);
    assert_eq!(daemon.metric("config_last_reload_successful", &[]), 0);
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn names_what_needs_a_restart_and_keeps_it() {
    let setup = Setup::on_files();
    let daemon = setup.start();
    let changed = setup.clone().text("ack", "published").text("ingress.listen", "127.0.0.1:1");
    changed.raw("publish.max_in_flight", "7").text("log.level", "debug").text("shutdown.grace", "7s").file();
    let needs_restart = ["ack", "ingress.listen", "publish.max_in_flight"];
    let status = daemon.reload();
    assert_good(&status, &["ack", "ingress.listen", "publish.max_in_flight", "shutdown.grace"], &needs_restart);
    assert_eq!(status.text("/ack"), "buffered");
    let in_force = |status: &Status, key: &str| status.0["settings"][key]["value"].clone();
    let kept = ["ack", "publish.max_in_flight", "shutdown.grace"].map(|key| in_force(&status, key));
    assert_eq!(kept, [json!("buffered"), json!(1000), json!("7s")]);
    let line = daemon.wait_for_line("what needs a restart", |line| line["needs_restart"].is_string());
    assert_eq!((&line["needs_restart"], &line["level"]), (&json!(needs_restart.join(", ")), &json!("WARN")));
    assert_eq!(request_once(&daemon, &Payload::new("cuid-1").body(), &[]).status, 200);
    assert_good(&daemon.reload(), &[], &needs_restart);
    setup.file();
    let changed = ["ack", "ingress.listen", "publish.max_in_flight", "shutdown.grace"];
    assert_good(&daemon.reload(), &changed, &[]);
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn takes_everything_of_the_broker_and_no_other_broker() {
    let setup = Setup::on_files();
    let daemon = setup.start();
    let (here, elsewhere) = (setup.directory().join("events"), setup.directory().join("elsewhere"));
    let table = |directory: &Path| Table::new("file").text("directory", directory.display().to_string());
    let delivered = |cuid: &str| {
        assert_eq!(post(&daemon, PATH, SECRET, cuid), 200);
        let body = Payload::new(cuid).body();
        let status = daemon.wait_until_empty();
        assert_eq!((status.count("lost"), status.count("mismatch")), (0, 0));
        let there = files::read(&elsewhere).into_iter();
        setup
            .delivered()
            .into_iter()
            .chain(there)
            .filter(|event| event.body == body)
            .map(|event| event.address)
            .collect::<Vec<_>>()
    };
    assert_eq!(delivered("a"), ["ReportPublished.report"]);
    let routed = table(&elsewhere).text("name", "{source}");
    setup.clone().with_broker(&routed.clone().route(&[("event", "ReportPublished"), ("name", "routed")])).file();
    let changed = ["broker.file.directory", "broker.file.name", "broker.file.routes"];
    assert_good(&daemon.reload(), &changed, &[]);
    assert_eq!(delivered("b"), ["routed"]);
    assert_eq!(daemon.status().text("/broker/location"), elsewhere.display().to_string());
    setup.clone().with_broker(&routed).file();
    assert_good(&daemon.reload(), &["broker.file.routes"], &[]);
    assert_eq!(delivered("c"), ["plextrac"]);
    setup.clone().with_broker(&table(&here).text("name", "a/b")).file();
    assert!(daemon.reload().text("/reload/error").contains("is not a legal file name"));
    assert_eq!(delivered("d"), ["plextrac"]);
    // Another broker takes effect after a restart, and so do its routes.
    setup.clone().with_broker(&Table::new("nats").text("subject", "a.{event}")).file();
    let status = daemon.reload();
    for key in ["broker.file.name", "broker.nats.subject", "broker.nats.servers"] {
        assert!(
            status.0["reload"]["needs_restart"].as_array().is_some_and(|list| list.contains(&json!(key))),
            "{key}"
        );
    }
    let line = daemon.wait_for_line("what becomes of the files", |line| {
        line["message"].as_str().is_some_and(|text| text.contains("are not read again"))
    });
    assert_eq!((line["level"].as_str(), line["running"].as_str()), (Some("WARN"), Some("file")));
    assert_eq!(delivered("e"), ["plextrac"]);
    setup.file();
    assert_eq!(daemon.reload().0["reload"]["needs_restart"], json!([]));
    assert_eq!(delivered("f"), ["ReportPublished.report"]);
    assert!(files::read(&elsewhere).len() >= 2);
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn removes_sources_and_restores_them_with_their_counters() {
    let setup = Setup::on_files();
    let daemon = setup.start();
    assert_eq!(post(&daemon, PATH, SECRET, "cuid-1"), 200);
    let moved = setup.clone().text("sources.plextrac.path", "/moved").text("sources.second.path", "/second");
    let moved = moved.text("sources.second.secret", OTHER);
    moved.file();
    let keys = ["sources.plextrac.path", "sources.second.path", "sources.second.secret"];
    let status = daemon.reload();
    assert_eq!(status.text("/reload/result"), "success", "{}", status.0["reload"]);
    for key in keys {
        assert!(status.0["reload"]["changed"].as_array().is_some_and(|list| list.contains(&json!(key))), "{key}");
    }
    let received = |source: &str| daemon.metric("events_received_total", &[("source", source)]);
    assert_eq!((received("plextrac"), received("second")), (1, 0), "the new one exists from now on");
    assert_eq!([post(&daemon, PATH, SECRET, "a"), post(&daemon, "/moved", SECRET, "b")], [404, 200]);
    assert_eq!([post(&daemon, "/second", SECRET, "c"), post(&daemon, "/second", OTHER, "c")], [401, 200]);
    assert_eq!(post(&daemon, "/moved", SECRET, "cuid-1"), 200);
    assert_eq!(daemon.metric("events_duplicate_total", &[("source", "plextrac")]), 1, "known from before");
    setup.file();
    let status = daemon.reload();
    assert_eq!(status.0["sources"].as_array().map(Vec::len), Some(1));
    assert_eq!((received("plextrac"), received("second")), (3, 2), "no counter is taken back");
    moved.file();
    let status = daemon.reload();
    assert_eq!((status.number("/sources/1/received"), status.number("/sources/1/accepted")), (2, 1));
    assert_eq!(post(&daemon, "/second", OTHER, "d"), 200);
    assert_eq!(received("second"), 3);
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("mismatch"), status.count("published")), (0, 4));
    assert_eq!(setup.delivered().len(), 4);
}

#[test]
fn applies_limits() {
    let setup = Setup::on_missing_files();
    let daemon = setup.start();
    let post = |cuid: &str| post(&daemon, PATH, SECRET, cuid);
    assert_eq!([post("a"), post("a"), post("b")], [200; 3]);
    assert_eq!(daemon.status().count("duplicate"), 1);
    let limited = setup.clone().raw("buffer.max_events", "3").text("deduplication.window", "0s");
    limited.raw("ingress.max_connections", "50").text("ingress.header_timeout", "300ms").file();
    let keys = ["buffer.max_events", "deduplication.window", "ingress.header_timeout", "ingress.max_connections"];
    assert_good(&daemon.reload(), &keys, &[]);
    assert_eq!(daemon.metric("connections_capacity", &[]), 50);
    assert_eq!(daemon.metric("buffer_capacity_events", &[]), 3);
    assert_eq!([post("a"), post("c")], [200, 503], "no duplicate any more, and then it is full");
    assert_eq!(daemon.get("/readyz").status, 503);
    assert!(Client::connect(&daemon.ingress).expect("it listens").is_closed_by_server());
    setup.file();
    daemon.reload();
    assert_eq!(daemon.get("/readyz").status, 200, "there is room again");
    assert_eq!(post("c"), 200);
    setup.bring_the_broker_back();
    assert_eq!(daemon.wait_until_empty().count("published"), 4);
}

#[test]
fn reserves_room_for_the_stop_of_a_larger_buffer_or_rejects_it() {
    let setup = Setup::on_missing_files().text("buffer.max_bytes", "2MiB").text("ingress.max_body", "1MiB");
    let setup = setup.text("journal.max_bytes", "64MiB");
    let size = || setup.segments().iter().map(|(_, size)| size).sum::<u64>();
    let larger = setup.clone().text("buffer.max_bytes", "16MiB");
    let daemon = setup.start();
    let (before, created) = (size(), setup.segments().len());
    assert!(before < 16 << 20, "{before}");
    larger.file();
    assert_good(&daemon.reload(), &["buffer.max_bytes"], &[]);
    assert!(size() >= 16 << 20, "{}", size());
    assert_eq!(daemon.stop().code, Some(0));
    fs::remove_dir_all(setup.state()).expect("it is there");
    // The disk has room for one more.
    let daemon = setup.clone().failpoints(&format!("journal.create=full@{}+", created + 2)).start();
    assert_eq!(size(), before);
    larger.file();
    let status = daemon.reload();
    assert_eq!(status.text("/reload/result"), "failure");
    assert!(status.text("/reload/error").contains("`buffer.max_bytes`"), "{}", status.0["reload"]);
    assert_eq!(daemon.metric("buffer_capacity_bytes", &[]), 2 << 20);
    wait_until("what it took is free again", LIMIT, || size() == before);
    assert!(status.0["journal"]["failed"].is_null(), "{}", status.0["journal"]);
    assert_eq!(post(&daemon, PATH, SECRET, "cuid-1"), 200);
    setup.bring_the_broker_back();
    daemon.wait_until_empty();
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn a_larger_limit_of_dead_letters_makes_room_for_what_waits() {
    let setup = Setup::on_files().failpoints(REFUSE);
    let setup = setup.text("ingress.max_body", "16KiB").text("dead_letters.max_bytes", "128KiB");
    let daemon = setup.start();
    let send = |cuid: &str| {
        assert_eq!(request_once(&daemon, &Payload::new(cuid).body_of(12 << 10), &[]).status, 200);
    };
    let is_full = || daemon.get("/readyz").text().contains("no room for a letter");
    for number in 0..20 {
        send(&format!("cuid-{number}"));
    }
    wait_until("the store is full", LIMIT, is_full);
    assert!(daemon.status().count("held") > 0, "what is refused waits");
    // One that the largest body in force does not fit changes nothing.
    setup.clone().text("ingress.max_body", "1KiB").text("dead_letters.max_bytes", "70KiB").file();
    let status = daemon.reload();
    assert!(status.text("/reload/error").contains("`dead_letters.max_bytes`"), "{}", status.0["reload"]);
    assert_eq!(status.number("/dead_letters/capacity_bytes"), 128 << 10);
    setup.clone().text("dead_letters.max_bytes", "1MiB").file();
    let status = daemon.reload();
    assert_good(&status, &["dead_letters.max_bytes"], &[]);
    assert_eq!(status.number("/dead_letters/capacity_bytes"), 1 << 20);
    assert_eq!(daemon.metric("dead_letters_capacity_bytes", &[]), 1 << 20);
    let status = daemon.wait_until("nothing waits", LIMIT, |status| status.count("held") == 0);
    assert_eq!((status.count("dead_lettered"), setup.dead_letters().len()), (20, 20));
    wait_until("ready again", LIMIT, || daemon.get("/readyz").status == 200);
    // A smaller one drops nothing: what is refused waits again.
    setup.file();
    assert_good(&daemon.reload(), &["dead_letters.max_bytes"], &[]);
    send("cuid-20");
    wait_until("the store is full again", LIMIT, is_full);
    assert_eq!((daemon.status().count("held"), setup.dead_letters().len()), (1, 20));
    setup.clone().text("dead_letters.max_bytes", "1MiB").file();
    assert_good(&daemon.reload(), &["dead_letters.max_bytes"], &[]);
    daemon.wait_until("it is written", LIMIT, |status| status.count("dead_lettered") == 21);
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn another_limit_of_invalid_bodies_holds_for_the_next_one() {
    let setup = Setup::on_files().strict().text("invalid.max_bytes", "8KiB");
    let daemon = setup.start();
    let mut count = 0;
    let mut keep = |most: u64| {
        for _ in 0..40 {
            assert_eq!(request_once(&daemon, format!(r#"{{"event":"{count:04}"}}"#).as_bytes(), &[]).status, 422);
            count += 1;
            let status = daemon.wait_until("it is kept", LIMIT, |status| status.number("/invalid/kept") == count);
            assert!(status.number("/invalid/bytes") <= most, "{}", status.0["invalid"]);
        }
        daemon.status().number("/invalid/dropped")
    };
    let reload = |limit: &str| {
        setup.clone().text("invalid.max_bytes", limit).file();
        assert_good(&daemon.reload(), &["invalid.max_bytes"], &[]);
        daemon.status().number("/invalid/capacity_bytes")
    };
    let dropped = keep(8 << 10);
    assert!(dropped > 0, "it was full");
    assert_eq!(reload("64KiB"), 64 << 10);
    assert_eq!(keep(64 << 10), dropped);
    assert_eq!(reload("8KiB"), 8 << 10);
    assert!(keep(8 << 10) > dropped);
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn open_connections_wait_as_long_as_the_new_settings_say() {
    let setup = Setup::on_files();
    let daemon = setup.start();
    let connect = || {
        let mut client = Client::connect(&daemon.ingress).expect("the daemon listens");
        assert_eq!(client.send("GET", PATH, &[], b"").expect("the daemon answers").status, 405);
        client
    };
    let mut idle = connect();
    setup.clone().text("ingress.idle_timeout", "200ms").file();
    assert_good(&daemon.reload(), &["ingress.idle_timeout"], &[]);
    assert_eq!(idle.send("GET", PATH, &[], b"").expect("the daemon answers").status, 405);
    assert!(idle.is_closed_by_server(), "it is idle for longer than it may be");
    setup.file();
    assert_good(&daemon.reload(), &["ingress.idle_timeout"], &[]);
    let mut slow = connect();
    setup.clone().text("ingress.header_timeout", "200ms").file();
    assert_good(&daemon.reload(), &["ingress.header_timeout"], &[]);
    slow.write(b"POST / HTTP/1.1\r\n").expect("the daemon reads");
    assert!(slow.is_closed_by_server(), "its head takes longer than it may");
}

#[test]
fn a_request_that_has_begun_ends_with_the_settings_it_began_with() {
    let setup = Setup::on_files();
    let daemon = setup.start();
    let body = Payload::new("cuid-1").body();
    let signature = sign(SECRET, &body);
    let mut client = Client::connect(&daemon.ingress).expect("the daemon listens");
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: bridge\r\nX-Authorization-HMAC-256: {signature}\r\nContent-Length: {}\r\n\
         Expect: 100-continue\r\n\r\n",
        body.len()
    );
    client.write(head.as_bytes()).expect("the daemon reads");
    // The handler reads the body now.
    assert_eq!(client.answer().expect("the daemon answers").status, 100);
    setup.text("sources.plextrac.secret", OTHER).file();
    assert_good(&daemon.reload(), &["sources.plextrac.secret"], &[]);
    client.write(&body).expect("the daemon reads");
    assert_eq!(client.answer().expect("the daemon answers").status, 200);
    let again = client.send("POST", PATH, &[("X-Authorization-HMAC-256", &signature)], &body);
    assert_eq!(again.expect("the daemon answers").status, 401, "the next one on the same connection");
}
