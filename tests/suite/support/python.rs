//! The Python scripts of the tests: `read.py` reads a broker, `admin.py` changes one, `schema.py` knows the documents,
//! `https.py` is a sender.

use std::collections::BTreeMap;
use std::io::{BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use serde_json::{Deserializer, Value, json};

use super::Delivered;
use super::wait::test_file;

/// The directory in which `tests/setup.sh` installs.
pub(crate) fn cache() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"), PathBuf::from);
    cache.join("plextrac-bridge")
}

/// `$PYTHON` (the Makefile's), or the one that `tests/setup.sh` installs.
pub(crate) fn interpreter() -> PathBuf {
    std::env::var_os("PYTHON").map_or_else(|| cache().join("venv/bin/python"), PathBuf::from)
}

/// Line by line: a long run reads back more than a process should hold twice.
fn run<T>(script: &str, order: &Value, parse: impl Fn(Value) -> T) -> Vec<T> {
    let python = interpreter();
    let mut child = Command::new(&python)
        .arg(test_file(&format!("suite/support/{script}")))
        .arg(order.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}; set PYTHON or run `make test`", python.display()));
    let mut stderr = child.stderr.take().expect("stderr is piped");
    let complaints = thread::spawn(move || {
        let mut text = Vec::new();
        // Unreadable output is only missing in the message.
        let _ = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let lines = Deserializer::from_reader(BufReader::new(child.stdout.take().expect("stdout is piped")));
    let read: Result<Vec<T>, _> = lines.into_iter().map(|line| line.map(&parse)).collect();
    let status = child.wait().expect("it is our child");
    let text = complaints.join().expect("the reader does not panic");
    assert!(status.success(), "{script} {order}: {text}");
    read.unwrap_or_else(|error| panic!("{script} {order}: {error}"))
}

/// All messages of a place, in the broker's order.
pub(crate) fn read(order: &Value) -> Vec<Delivered> {
    run("read.py", order, |line| Delivered::from(&line))
}

/// Whether a schema in `docs/schema/` accepts each of these bodies, and then each of its own examples.
pub(crate) fn fit_the_schema(schema: &str, bodies: &[&str]) -> Vec<bool> {
    run("schema.py", &json!({"schema": schema, "bodies": bodies}), |line| line == true)
}

/// The names of the headers in the document for this broker, and whether a message always has them.
pub(crate) fn documented_headers(broker: &str) -> BTreeMap<String, bool> {
    run("schema.py", &json!({"headers": broker}), |line| {
        (line[0].as_str().unwrap_or_default().to_owned(), line[1] == true)
    })
    .into_iter()
    .collect()
}

/// One request over HTTPS by Python's own client.
pub(crate) fn https(order: &Value) -> Value {
    run("https.py", order, |line| line).pop().expect("it prints one line")
}

/// One change of a broker; waits until it is done.
pub(crate) fn admin(order: &Value) -> Vec<Value> {
    run("admin.py", order, |line| line)
}
