//! The language of the code and its pages: doc lines start with a verb or a noun, and people are senders, clients,
//! operators or callers. Checks the mechanical patterns only.

use std::fs;
use std::path::{Path, PathBuf};

use crate::layers::{assert_none, files};

/// Words that no doc line starts with: it starts with a verb in the third person, or a noun with its article.
const STARTS: [&str; 10] = ["What", "Where", "Who", "Whom", "Whose", "Whoever", "Of", "When", "How", "Why"];

/// Words and phrases that no line has.
const WORDS: [&str; 19] = [
    "he",
    "him",
    "his",
    "nobody",
    "somebody",
    "whoever",
    "stranger",
    "strangers",
    "mend",
    "mends",
    "mended",
    "mending",
    "one who",
    "is gone",
    "are gone",
    "in vain",
    "same breath",
    "on its way",
    "on their way",
];

/// The word of the list with which a line starts a doc paragraph; `before` is the line before it.
fn doc_start(before: &str, line: &str) -> Option<&'static str> {
    let text = |line: &str| {
        let line = line.trim_start();
        line.strip_prefix("///").or_else(|| line.strip_prefix("//!")).map(|text| text.trim().to_owned())
    };
    let is_first = text(before).is_none_or(|before| before.is_empty());
    let first = text(line)?.split_whitespace().next()?.to_owned();
    STARTS.into_iter().find(|word| is_first && *word == first)
}

/// The first word or phrase of the list that a line has, whatever the case.
fn odd_word(line: &str) -> Option<&'static str> {
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    let line = line.to_lowercase();
    WORDS.into_iter().find(|word| {
        line.match_indices(word)
            .any(|(at, _)| !line[..at].ends_with(is_letter) && !line[at + word.len()..].starts_with(is_letter))
    })
}

/// The problems of a text, each with its path and line.
fn problems(path: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut before = "";
    for (at, line) in text.lines().enumerate() {
        if let Some(word) = doc_start(before, line) {
            problems.push(format!("{path}:{}: a doc line starts with {word}", at + 1));
        }
        if let Some(word) = odd_word(line) {
            problems.push(format!("{path}:{}: {word:?}", at + 1));
        }
        before = line;
    }
    problems
}

/// The pages and settings of the repository that the rule covers.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = ["README.md", "SECURITY.md", "CONTRIBUTING.md"].map(|page| root.join(page)).to_vec();
    for folder in ["docs", "docs/adr", "config", "src/admin/page"] {
        let entries = fs::read_dir(root.join(folder)).expect("the folder can be read").flatten();
        pages.extend(entries.map(|entry| entry.path()).filter(|path| {
            let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            ["md", "toml", "html", "js", "css"].contains(&extension)
        }));
    }
    pages
}

#[test]
fn the_code_keeps_to_plain_words() {
    let files = files();
    let all: Vec<String> =
        files.iter().flat_map(|file| problems(&format!("src/{}", file.path), &file.text)).collect();
    assert_none("doc lines and words (see CONTRIBUTING.md)", &all);
}

#[test]
fn the_pages_keep_to_plain_words() {
    let pages = pages();
    assert!(pages.len() > 15, "only {} pages: this test reads the wrong place", pages.len());
    let read = |path: &PathBuf| fs::read_to_string(path).expect("a page is UTF-8");
    let all: Vec<String> =
        pages.iter().flat_map(|path| problems(&path.display().to_string(), &read(path))).collect();
    assert_none("words of README, docs, settings and page", &all);
}

#[test]
fn odd_lines_are_told_from_plain_ones() {
    let paragraph = ["/// The size of a body.", "///", "/// What is left of it."];
    assert_eq!(problems("a", &paragraph.join("\n")), ["a:3: a doc line starts with What"]);
    assert!(problems("a", "/// Reads a body.\n/// When it is large, slowly.").is_empty(), "within a paragraph");
    assert!(problems("a", "// When nothing waits, it ends.").is_empty(), "an ordinary comment");
    assert_eq!(odd_word("    //! Nobody waits."), Some("nobody"));
    assert_eq!(odd_word("the file is gone"), Some("is gone"));
    assert_eq!(odd_word("mend()"), Some("mend"));
    assert_eq!(odd_word("the recommended header; nobody_waits"), None);
}
