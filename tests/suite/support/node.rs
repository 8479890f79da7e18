//! The other implementation: bodies and signatures made by Node's own `JSON.stringify` and `crypto`.

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

/// Has payloads written and signed by Node. `sign.js` says how odd strings are asked for.
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
