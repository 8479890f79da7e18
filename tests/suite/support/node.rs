//! The other implementation: bodies and signatures made by Node's own `JSON.stringify` and `crypto`, of payloads that a
//! test names, or of every known kind.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use super::Program;

/// A body as the sender would send it.
#[derive(Clone, Debug)]
pub(crate) struct Signed {
    /// The header.
    pub(crate) signature: String,
    /// The bytes.
    pub(crate) body: Vec<u8>,
}

/// Has payloads written and signed by Node. `sign.js` describes how unusual strings are requested.
pub(crate) fn node_signs(secret: &str, payloads: &[Value]) -> Vec<Signed> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/support/sign.js");
    let recipes = Value::from(payloads).to_string();
    let ended = Program::other("node", [script, secret]).input(recipes).run();
    ended.assert_code(0);
    let signed: Vec<Signed> = ended
        .out
        .lines()
        .map(|line| {
            let (signature, body) = line.split_once(' ').expect("a line of the script has two parts");
            Signed { signature: signature.to_owned(), body: BASE64_STANDARD.decode(body).expect("it is base64") }
        })
        .collect();
    assert_eq!(signed.len(), payloads.len(), "Node signed another number of payloads");
    signed
}

/// An event as the sender may send it, and the headers that consumers must see.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// A description of the special case.
    pub(crate) name: String,
    /// The bytes and the header.
    pub(crate) signed: Signed,
    /// The event id.
    pub(crate) id: String,
    /// The CloudEvents type.
    pub(crate) event_type: String,
    /// The CloudEvents subject.
    pub(crate) subject: Option<String>,
    /// The departures from the documented payload, sorted: `text:missing`.
    pub(crate) deviations: Vec<String>,
}

/// Every known kind of payload: this many events, all different, and the bodies of connection tests. One seed always
/// gives the same.
pub(crate) fn known_payloads(secret: &str, seed: u32, events: usize) -> (Vec<Known>, Vec<Signed>) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/support/payloads.js");
    let ended = Program::other("node", [script, secret, &seed.to_string(), &events.to_string()]).run();
    ended.assert_code(0);
    let (mut known, mut probes) = (Vec::new(), Vec::new());
    for line in ended.out.lines() {
        let line: Value = serde_json::from_str(line).expect("a line of the script is JSON");
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let body = BASE64_STANDARD.decode(text("body")).expect("it is base64");
        let signed = Signed { signature: text("signature"), body };
        if line["kind"] == "probe" {
            probes.push(signed);
            continue;
        }
        let deviations = line["deviations"].as_array().into_iter().flatten();
        known.push(Known {
            name: text("name"),
            signed,
            id: text("id"),
            event_type: text("type"),
            subject: line["subject"].as_str().map(str::to_owned),
            deviations: deviations.map(|deviation| deviation.as_str().unwrap_or_default().to_owned()).collect(),
        });
    }
    assert_eq!(known.len(), events, "Node made another number of events");
    assert!(!probes.is_empty(), "Node made no connection test");
    (known, probes)
}
