//! The content of the file broker: its files read as a broker's reader would.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use super::Delivered;

/// All lines of all files of a directory; none if there is no directory. A line that a crash tore is skipped: it was
/// never confirmed.
pub(crate) fn read(directory: &Path) -> Vec<Delivered> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let bytes = fs::read(entry.path()).expect("the files can be read");
        let address = entry.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        all.extend(lines.map(|line| message(&address, line)));
    }
    all
}

fn message(address: &str, mut line: Value) -> Delivered {
    line["address"] = address.into();
    if let Some(text) = line["body"].as_str() {
        line["body"] = BASE64_STANDARD.encode(text).into();
    } else {
        line["body"] = line["body_base64"].take();
    }
    Delivered::from(&line)
}
