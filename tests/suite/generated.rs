//! The output for other programs: schemas, completions, manual pages.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{PATH, Program, Setup};

const REFERENCE: &str = include_str!("../../config/default.toml");

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

/// Compares a file, or the part of a page between the marks of this name, with what it is generated from. With
/// `REGENERATE` in the environment it is written instead: `make generated`.
fn is_current(file: &str, part: Option<&str>, generated: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let old = fs::read_to_string(&path).expect("the file exists");
    let new = part.map_or_else(
        || generated.to_owned(),
        |part| {
            let (begin, end) = (format!("<!-- {part}: generated -->\n"), format!("<!-- end of {part} -->\n"));
            let (head, rest) = old.split_once(&begin).unwrap_or_else(|| panic!("{file}: no {begin}"));
            let (_, tail) = rest.split_once(&end).unwrap_or_else(|| panic!("{file}: no {end}"));
            format!("{head}{begin}{generated}{end}{tail}")
        },
    );
    if std::env::var_os("REGENERATE").is_some() {
        fs::write(&path, new).expect("the file can be written");
    } else {
        assert!(old == new, "{file} is not what it is generated from: `make generated` writes it");
    }
}

fn settings_schema() -> Value {
    serde_json::from_str(&printed(&["schema", "settings"])).expect("it is JSON")
}

#[test]
fn the_schema_of_the_settings_has_every_setting_with_its_default_and_no_other() {
    let mut keys = BTreeMap::new();
    keys_of_the_schema(&settings_schema(), "", &mut keys);
    // A secret's file counts as the secret.
    let secrets = ["secret", "password", "uri", "token", "oauth_client_secret"];
    keys.retain(|key, _| !secrets.iter().any(|secret| key.ends_with(&format!(".{secret}_file"))));
    let reference = reference();
    let all: BTreeSet<&String> = keys.keys().chain(reference.keys()).collect();
    let differ = all.into_iter().filter(|key| keys.get(*key) != reference.get(*key));
    let differ: Vec<_> = differ.map(|key| (key, keys.get(key), reference.get(key))).collect();
    assert!(differ.is_empty(), "in the schema and in the reference: {differ:#?}");
}

#[test]
fn the_schema_of_the_settings_is_the_one_of_the_documentation() {
    is_current("docs/schema/settings.schema.json", None, &printed(&["schema", "settings"]));
}

/// The schema of the settings as the chart has it: no secrets, no defaults, no rules between settings.
fn for_the_chart(schema: &Value) -> Value {
    const DROPPED: [&str; 6] = ["allOf", "default", "description", "minProperties", "maxProperties", "writeOnly"];
    match schema {
        Value::Object(members) => {
            let kept = members
                .iter()
                .filter(|(name, below)| !DROPPED.contains(&name.as_str()) && below["$ref"] != "#/$defs/secret");
            kept.map(|(name, below)| (name.clone(), for_the_chart(below))).collect()
        }
        Value::Array(items) => items.iter().map(for_the_chart).collect(),
        // An address with a user is a secret.
        Value::String(text) if text.ends_with("://") => format!("{text}[^@]+$").into(),
        Value::String(text) => text.replace("#/$defs/", "#/definitions/").into(),
        other => other.clone(),
    }
}

#[test]
fn the_values_of_the_chart_have_the_schema_of_the_settings() {
    const FILE: &str = "deploy/helm/plextrac-bridge/values.schema.json";
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE)).expect("the file exists");
    let mut values: Value = serde_json::from_str(&text).expect("it is JSON");
    let settings = settings_schema();
    values["definitions"]["settings"] = serde_json::json!({
        "type": "object",
        "additionalProperties": false,
        "properties": for_the_chart(&settings["properties"]),
    });
    is_current(FILE, None, &format!("{values:#}\n"));
}

/// The values that a schema allows, in a few words.
fn kind(schema: &Value, meaning: &str) -> String {
    let range = [("from", &schema["minimum"]), ("to", &schema["maximum"])];
    let range = range.iter().filter(|(_, end)| !end.is_null()).map(|(word, end)| format!(" {word} {end}"));
    match (schema["$ref"].as_str(), schema["enum"].as_array(), schema["type"].as_str()) {
        (Some(name), ..) => name.trim_start_matches("#/$defs/").to_owned(),
        (_, Some(words), _) => {
            let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
            let are_explained = words.iter().all(|word| meaning.contains(word));
            if are_explained { "word".to_owned() } else { words.join(", ") }
        }
        (_, _, Some("integer")) => format!("integer{}", range.collect::<String>()),
        (_, _, Some("array")) if schema["items"]["type"] == "object" => "list of tables".to_owned(),
        (_, _, Some("array")) => "list of strings".to_owned(),
        (_, _, Some("object")) => "table".to_owned(),
        (_, _, Some(name)) => name.to_owned(),
        _ => "address".to_owned(),
    }
}

/// The reference of the settings: a section for each table of `config/default.toml`, in its order.
fn settings_page() -> String {
    let schema = settings_schema();
    let schema_of = |table: &str, key: &str| {
        let path = table.split('.').filter(|name| !name.is_empty()).chain([key]);
        path.fold(&schema, |at, name| match at.get("patternProperties") {
            Some(any) => any.as_object().and_then(|any| any.values().next()).unwrap_or(&Value::Null),
            None => &at["properties"][name],
        })
    };
    let reference = reference();
    let mut page = Vec::new();
    let mut table = "";
    let heading = |name: &str, about: &str| {
        format!("\n### {name}\n{about}\n| key | default | kind | meaning |\n|---|---|---|---|\n")
    };
    page.push(heading("At the top", ""));
    for line in REFERENCE.lines() {
        if let Some((name, rest)) = line.strip_prefix('[').and_then(|line| line.split_once(']')) {
            table = name;
            let about = rest.trim().trim_start_matches("# ");
            let about = if about.is_empty() { String::new() } else { format!("{}.\n", sentence(about)) };
            page.push(heading(&format!("`[{name}]`"), &about));
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            let setting = schema_of(table, key);
            let meaning = setting["description"].as_str().unwrap_or_default().replace('|', "\\|");
            let (default, kind) = (&setting["default"], kind(setting, &meaning));
            page.push(format!("| `{key}` | `{default}` | {kind} | {meaning} |\n"));
            let file = format!("{key}_file");
            if !schema_of(table, &file).is_null() && !reference.contains_key(&format!("{table}.{file}")) {
                page.push(format!("| `{file}` | | file | a file with it, in place of `{key}` |\n"));
            }
        }
    }
    page.push("\n".to_owned());
    page.concat()
}

/// The text with a capital at its start.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[test]
fn the_page_of_the_settings_is_their_description() {
    is_current("docs/settings.md", Some("reference"), &settings_page());
}

/// The list of metrics, from what a bridge shows that has received every kind of sample.
fn metrics_page() -> String {
    let setup = Setup::on_files();
    let daemon = setup.start();
    let url = format!("http://{}{PATH}", daemon.ingress);
    assert_eq!(setup.run(&["send", "--sample", "all", &url]).status.code(), Some(0));
    daemon.wait_until_empty();
    let shown = daemon.get("/metrics").text();
    let mut page = vec!["| name | type | labels | meaning |\n|---|---|---|---|\n".to_owned()];
    let mut lines = shown.lines().peekable();
    while let Some((name, help)) = lines.next().and_then(|line| line.strip_prefix("# HELP ")?.split_once(' ')) {
        let kind = lines.next().and_then(|line| line.rsplit(' ').next()).unwrap_or_default();
        let mut labels = BTreeSet::new();
        while let Some(series) = lines.next_if(|line| !line.starts_with('#')) {
            let pairs =
                series.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(pairs, _)| pairs);
            // A value may hold commas; what follows the last one before `="` is a label.
            labels.extend(
                pairs.split("=\"").filter_map(|text| text.rsplit(',').next()).filter(|label| is_label(label)),
            );
        }
        labels.remove("le");
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let name = name.trim_start_matches("plextrac_bridge_");
        page.push(format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", ")));
    }
    page.concat()
}

fn is_label(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

#[test]
fn the_page_of_the_metrics_has_every_metric() {
    is_current("docs/monitoring.md", Some("metrics"), &metrics_page());
}

#[test]
fn prints_the_schemas_of_the_documentation() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema");
    for (of, file) in [
        ("payload", "payload.schema.json"),
        ("documented-payload", "documented-payload.schema.json"),
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
