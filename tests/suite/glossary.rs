//! The glossary against the code: a name has one meaning, so a type name is declared once. And the pages of `docs/` name
//! files that exist.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::layers::{File, assert_none, files};

/// The one name that each part has a type of.
const EACH_PART: &str = "Settings";

/// The text of a file of this repository.
fn page(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The parts of a text between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The type names of the glossary, each with its word.
fn listed(glossary: &str) -> Vec<(String, String)> {
    let rows = glossary.lines().filter(|line| line.starts_with("| **"));
    let mut listed = Vec::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, word, _, types, _] = cells[..] else { panic!("not three columns: {row}") };
        let before = listed.len();
        listed.extend(quoted(types).map(|name| (name.to_owned(), word.trim_matches('*').to_owned())));
        assert!(listed.len() > before, "no type for {word}");
    }
    listed
}

/// Whether a text is the path of one source file; `NAME` in it stands for several.
fn is_path_of_source(text: &str) -> bool {
    let is_source = Path::new(text).extension().is_some_and(|extension| extension == "rs");
    is_source && text.contains('/') && !text.contains("NAME") && !text.contains(char::is_whitespace)
}

/// Whether only tests use a file.
fn is_of_tests(path: &str) -> bool {
    path.split('/').any(|part| ["tests", "tests.rs", "testing.rs"].contains(&part))
}

/// The name of the type that a line declares. Associated types, which are indented, are none.
fn declared(line: &str) -> Option<&str> {
    let code = line.trim_start();
    let code = match code.strip_prefix("pub") {
        Some(rest) => {
            rest.strip_prefix('(').map_or(rest, |rest| rest.split_once(')').map_or(rest, |(_, rest)| rest))
        }
        None => code,
    };
    let (kind, rest) = code.trim_start().split_once(' ')?;
    let is_type = match kind {
        "struct" | "enum" | "trait" | "union" => true,
        "type" => !line.starts_with(' '),
        _ => false,
    };
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    Some(&rest[..end]).filter(|name| is_type && !name.is_empty())
}

/// The lines of a file before its tests.
fn before_tests(text: &str) -> impl Iterator<Item = &str> {
    let end = text.find("\n#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end].lines()
}

/// The files that declare each type name.
fn declarations(files: &[File]) -> BTreeMap<&str, Vec<&str>> {
    let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for file in files.iter().filter(|file| !is_of_tests(&file.path)) {
        for name in before_tests(&file.text).filter_map(declared) {
            all.entry(name).or_default().push(&file.path);
        }
    }
    all
}

#[test]
fn every_type_of_the_glossary_is_declared_once() {
    let (glossary, files) = (page("docs/glossary.md"), files());
    let (listed, declared) = (listed(&glossary), declarations(&files));
    assert!(listed.len() >= 25, "the glossary has only {} types: this test reads it wrongly", listed.len());
    let mut problems = Vec::new();
    for (name, word) in &listed {
        match declared.get(name.as_str()) {
            None => problems.push(format!("`{name}` ({word}) is not declared in src/")),
            Some(places) if places.len() > 1 && name != EACH_PART => {
                problems.push(format!("`{name}` ({word}) is declared in {}", places.join(", ")));
            }
            Some(_) => {}
        }
        if listed.iter().filter(|(other, _)| other == name).count() > 1 {
            problems.push(format!("`{name}` is listed under two words"));
        }
    }
    assert_none("one meaning per word (docs/glossary.md)", &problems);
}

#[test]
fn every_type_name_is_declared_once() {
    let files = files();
    let declared = declarations(&files);
    assert!(declared.len() > 100, "src/ has only {} types: this test reads it wrongly", declared.len());
    let twice = declared.iter().filter(|(name, places)| places.len() > 1 && **name != EACH_PART);
    let problems: Vec<String> =
        twice.map(|(name, places)| format!("`{name}` is declared in {}", places.join(", "))).collect();
    assert_none("a type name is declared once", &problems);
}

#[test]
fn the_pages_name_files_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages =
        vec!["CONTRIBUTING.md".to_owned(), "docs/architecture.md".to_owned(), "docs/glossary.md".to_owned()];
    for entry in fs::read_dir(root.join("docs/adr")).expect("docs/adr/ can be read").flatten() {
        pages.push(format!("docs/adr/{}", entry.file_name().to_string_lossy()));
    }
    let (mut problems, mut count) = (Vec::new(), 0);
    for name in &pages {
        for file in quoted(&page(name)).filter(|text| is_path_of_source(text)) {
            count += 1;
            if !root.join("src").join(file).exists() && !root.join(file).exists() {
                problems.push(format!("{name}: no file {file}"));
            }
        }
    }
    assert!(count > 20, "the pages name only {count} files: this test reads them wrongly");
    assert_none("pages name files that exist, from src/ or from the root on", &problems);
}

#[test]
fn declarations_are_distinguished_from_other_lines() {
    let lines = [
        ("pub struct A {", Some("A")),
        ("    pub(in crate::cli) enum B<'a> {", Some("B")),
        ("pub(crate) trait C: Send {", Some("C")),
        ("type D = u64;", Some("D")),
        ("    type DeliveryOpaque = usize;", None),
        ("    structure of a thing", None),
        ("pub fn e() {", None),
        ("use crate::f;", None),
    ];
    for (line, name) in lines {
        assert_eq!(declared(line), name, "{line}");
    }
}
