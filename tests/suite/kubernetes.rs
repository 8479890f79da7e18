//! The environment of a pod: variables of services, and variables that undo settings of the image.
//!
//! The chart itself is checked by `tests/chart/check.sh`.

use crate::support::{Payload, Setup, request_once};

/// The variables that Kubernetes injects into each pod of a namespace with a service named `plextrac-bridge`.
const INJECTED: [(&str, &str); 13] = [
    ("KUBERNETES_PORT", "tcp://10.96.0.1:443"),
    ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
    ("KUBERNETES_SERVICE_PORT", "443"),
    ("PLEXTRAC_BRIDGE_PORT", "tcp://10.0.0.1:8080"),
    ("PLEXTRAC_BRIDGE_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
    ("PLEXTRAC_BRIDGE_PORT_8080_TCP_ADDR", "10.0.0.1"),
    ("PLEXTRAC_BRIDGE_PORT_8080_TCP_PORT", "8080"),
    ("PLEXTRAC_BRIDGE_PORT_8080_TCP_PROTO", "tcp"),
    ("PLEXTRAC_BRIDGE_SERVICE_HOST", "10.0.0.1"),
    ("PLEXTRAC_BRIDGE_SERVICE_PORT", "8080"),
    ("PLEXTRAC_BRIDGE_SERVICE_PORT_WEBHOOKS", "8080"),
    ("PLEXTRAC_BRIDGE_ADMIN_SERVICE_HOST", "10.0.0.2"),
    ("PLEXTRAC_BRIDGE_ADMIN_PORT_8081_TCP", "tcp://10.0.0.2:8081"),
];

/// Starts with these variables, takes one event and delivers it.
fn assert_works(variables: &[(&'static str, &str)]) {
    let setup = variables.iter().fold(Setup::on_files(), |setup, (name, value)| setup.variable(name, value));
    let daemon = setup.start();
    assert!(daemon.ingress.starts_with("127.0.0.1:"), "listens at {}, not where the file says", daemon.ingress);
    assert_eq!(daemon.get("/readyz").status, 200, "ready");
    let body = Payload::new("cuid-1").body();
    assert_eq!(request_once(&daemon, &body, &[]).status, 200);
    let stopped = daemon.stop();
    assert_eq!((stopped.code, stopped.count("published")), (Some(0), 1), "{}", stopped.log);
    assert!(!stopped.log.contains("PLEXTRAC_BRIDGE"), "a variable is complained about: {}", stopped.log);
    assert!(setup.state().is_dir(), "the state directory is where the file says");
    let bodies: Vec<Vec<u8>> = setup.delivered().into_iter().map(|delivered| delivered.body).collect();
    assert_eq!(bodies, [body], "what was delivered");
}

#[test]
fn starts_with_the_variables_that_kubernetes_injects() {
    assert_works(&INJECTED);
}

#[test]
fn resets_settings_of_the_image_by_empty_variables() {
    assert_works(&[
        ("PLEXTRAC_BRIDGE__INGRESS__LISTEN", ""),
        ("PLEXTRAC_BRIDGE__ADMIN__LISTEN", ""),
        ("PLEXTRAC_BRIDGE__STATE_DIRECTORY", ""),
    ]);
}
