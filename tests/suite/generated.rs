//! The output for other programs: schemas, completions, manual pages.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Stdio;

const REFERENCE: &str = include_str!("../../config/default.toml");
use serde_json::Value;

use crate::support::Program;

fn printed(arguments: &[&str]) -> String {
    let ended = Program::new(arguments).run();
    ended.assert_code(0);
    assert!(ended.err.is_empty(), "{}", ended.err);
    ended.out
}

/// The keys of the reference, each with its default: `broker.kafka.topic`.
fn reference() -> BTreeMap<String, Value> {
    let mut defaults = BTreeMap::new();
    let mut table = "";
    for line in REFERENCE.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            table = name;
        } else if let Some((key, rest)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            // The values of the reference are written as in JSON; a comment follows.
            let value = serde_json::Deserializer::from_str(rest).into_iter().next();
            let value = value.and_then(Result::ok).unwrap_or_else(|| panic!("{line}: not as in JSON"));
            defaults.insert(format!("{table}.{key}").trim_start_matches('.').to_owned(), value);
        }
    }
    defaults
}

/// The keys of the schema, down to the tables that the reference has, each with its default if it has one.
fn keys_of_the_schema(schema: &Value, at: &str, into: &mut BTreeMap<String, Value>) {
    for (name, below) in schema["properties"].as_object().into_iter().flatten() {
        let key = format!("{at}.{name}").trim_start_matches('.').to_owned();
        match (below["type"].as_str(), below.get("patternProperties")) {
            (_, Some(pattern)) => {
                let source = pattern.as_object().and_then(|pattern| pattern.values().next());
                keys_of_the_schema(source.expect("a pattern has a schema"), &format!("{key}.plextrac"), into);
            }
            (Some("object"), None) if below.get("properties").is_some() => keys_of_the_schema(below, &key, into),
            _ => {
                into.insert(key, below["default"].clone());
            }
        }
    }
}

#[test]
fn the_schema_of_the_settings_has_every_setting_with_its_default_and_no_other() {
    let schema: Value = serde_json::from_str(&printed(&["schema", "settings"])).expect("it is JSON");
    let mut keys = BTreeMap::new();
    keys_of_the_schema(&schema, "", &mut keys);
    // A secret's file counts as the secret.
    let secrets = ["secret", "password", "uri", "token"];
    keys.retain(|key, _| !secrets.iter().any(|secret| key.ends_with(&format!(".{secret}_file"))));
    let reference = reference();
    let all: BTreeSet<&String> = keys.keys().chain(reference.keys()).collect();
    let differ = all.into_iter().filter(|key| keys.get(*key) != reference.get(*key));
    let differ: Vec<_> = differ.map(|key| (key, keys.get(key), reference.get(key))).collect();
    assert!(differ.is_empty(), "in the schema and in the reference: {differ:#?}");
}

#[test]
fn prints_the_schemas_of_the_documentation() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema");
    for (of, file) in [
        ("payload", "payload.schema.json"),
        ("documented-payload", "documented-payload.schema.json"),
        ("settings", "settings.schema.json"),
        ("asyncapi", "asyncapi.yaml"),
    ] {
        let documented = fs::read_to_string(directory.join(file)).expect("the document is there");
        assert_eq!(printed(&["schema", of]), documented, "{of}");
    }
    Program::new(["schema"]).run().assert_code(2);
    Program::new(["schema", "bogus"]).run().assert_code(2);
}

#[test]
fn prints_completions_that_the_shell_can_read() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = printed(&["completions", shell]);
        for word in ["dead-letters", "healthcheck", "log-format"] {
            assert!(script.contains(word), "{shell}: {word} is not in it");
        }
    }
    let script = printed(&["completions", "bash"]);
    let asked = format!(
        "{script}\nCOMP_WORDS=(plextrac-bridge dead-l) COMP_CWORD=1\n\
         _plextrac__bridge plextrac-bridge dead-l plextrac-bridge\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    );
    let ended = Program::other("bash", ["--norc", "-s"]).input(asked).run();
    ended.assert_code(0);
    assert_eq!(ended.out, "dead-letters\n", "{}", ended.err);
    Program::new(["completions", "cmd"]).run().assert_code(2);
}

#[test]
fn writes_a_manual_page_for_every_command() {
    let page = printed(&["man"]);
    assert!(page.contains(".TH plextrac-bridge 1"), "{page}");
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = directory.path().display().to_string();
    assert_eq!(printed(&["man", "--directory", &path]), format!("wrote the pages to {path}\n"));
    for name in ["plextrac-bridge", "plextrac-bridge-serve", "plextrac-bridge-dead-letters-replay"] {
        let page = fs::read_to_string(directory.path().join(format!("{name}.1"))).expect(name);
        assert!(page.contains(".SH SYNOPSIS"), "{name}: {page}");
    }
    let ended = Program::new(["man", "--directory", "/no/such"]).run();
    ended.assert_code(1);
    assert!(ended.err.starts_with("error: cannot write to /no/such: "), "{}", ended.err);
}

#[test]
fn exits_with_1_if_its_output_cannot_be_written() {
    for arguments in [&["completions", "bash"][..], &["man"], &["schema", "payload"], &["demo", "--once"]] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = Program::new(arguments).into_command();
        let ended = command.stdin(Stdio::null()).stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.starts_with("error: cannot write to standard output: No space left"), "{arguments:?}: {said}");
    }
}
