//! The clients that are not the bridge's: `read.py` reads a broker, `admin.py` changes one.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Deserializer, Value};

use super::wait::test_file;

/// `$PYTHON` (the Makefile's), else what `tests/setup.sh` makes.
fn interpreter() -> PathBuf {
    if let Some(python) = std::env::var_os("PYTHON") {
        return python.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"), PathBuf::from);
    cache.join("plextrac-bridge/venv/bin/python")
}

fn run(script: &str, order: &Value) -> Vec<Value> {
    let python = interpreter();
    let done = Command::new(&python)
        .arg(test_file(&format!("suite/support/{script}")))
        .arg(order.to_string())
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; set PYTHON or run `make test`", python.display()));
    let text = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{script} {order}: {text}");
    Deserializer::from_slice(&done.stdout)
        .into_iter()
        .collect::<Result<_, _>>()
        .unwrap_or_else(|error| panic!("{script} {order}: {error}"))
}

/// All messages of a place, in the broker's order.
pub(crate) fn read(order: &Value) -> Vec<Value> {
    run("read.py", order)
}

/// One change of a broker; waits until it is done.
pub(crate) fn admin(order: &Value) -> Vec<Value> {
    run("admin.py", order)
}
