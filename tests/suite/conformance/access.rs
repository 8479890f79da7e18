//! Credentials and certificates.

use super::rig::{Remote, judge};
use crate::support::{LIMIT, Load, SECRET, Setup, said};

/// Never right, and never to be seen.
const WRONG: &str = "wrong-secret-4711";

pub(super) fn says_that_credentials_are_wrong_and_shows_no_secret<R: Remote>(test: &str) {
    let rig = R::new(test);
    let setup = Setup::new(&rig.with_password(WRONG)).level("trace");
    let daemon = setup.start();
    Load { events: 20, ..Load::default() }.send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until("the reason is shown", LIMIT, |status| {
        status.text("/broker/last_error/kind") == "authentication"
    });
    assert!(!status.text("/broker/last_error/text").is_empty());
    assert_ne!(status.text("/broker/state"), "connected");
    assert_eq!(status.count("held"), 20);
    assert!(daemon.metric("broker_errors_total", &[("kind", "authentication")]) > 0);
    let reason = status.text("/broker/last_error/text").replace('"', "\\\"");
    daemon.wait_for_line("why there is no connection", |line| line.to_string().contains(&reason));
    let shown = [status.0.to_string(), daemon.get("/metrics").text(), daemon.get("/").text(), daemon.log()];
    drop(daemon);
    let done = setup.run(&["check", "--connect"]);
    let checked = said(&done);
    assert_eq!(done.status.code(), Some(1), "{checked}");
    for text in shown.iter().chain([&checked]) {
        for secret in [WRONG, SECRET] {
            let at = text.find(secret);
            assert!(
                at.is_none(),
                "a secret is shown: ..{}",
                &text[at.unwrap_or(0).saturating_sub(200)..].chars().take(400).collect::<String>()
            );
        }
    }
}

pub(super) fn publishes_over_tls_with_a_known_authority<R: Remote>(test: &str) {
    let rig = R::new(test);
    let setup = Setup::new(&rig.over_tls().text("ca_file", rig.authority()));
    let daemon = setup.start();
    let sent = Load { events: 200, ..Load::default() }.send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until_empty();
    assert_eq!(judge(&rig, &setup, &sent, &status, 0), 0);
}

pub(super) fn refuses_a_certificate_of_an_unknown_authority<R: Remote>(test: &str) {
    let rig = R::new(test);
    let daemon = Setup::new(&rig.over_tls()).start();
    Load { events: 5, ..Load::default() }.send(&daemon.ingress).all_accepted();
    let status =
        daemon.wait_until("the reason is shown", LIMIT, |status| !status.0["broker"]["last_error"].is_null());
    assert_eq!(status.text("/broker/last_error/kind"), "tls", "{}", status.0["broker"]);
    assert_eq!((status.count("held"), status.count("published")), (5, 0));
}
