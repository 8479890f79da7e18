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

/// Everything in the repository that its users read: pages, settings, what is deployed, and the examples.
fn pages() -> Vec<PathBuf> {
    const KINDS: [&str; 17] = [
        "md", "toml", "html", "js", "css", "yml", "yaml", "json", "tpl", "txt", "py", "go", "sh", "service",
        "socket", "mod", "spec",
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let top = ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "docker-compose.yml", "Makefile"];
    let mut pages = top.map(|page| root.join(page)).to_vec();
    let mut folders =
        ["docs", "config", "deploy", "examples", "src/admin/page"].map(|folder| root.join(folder)).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the folder can be read").flatten() {
            let (path, kind) = (entry.path(), entry.file_type().expect("its kind is known"));
            let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            let is_page = KINDS.contains(&extension) || path.ends_with("Dockerfile");
            // Installed packages, and secrets of whoever works here.
            let is_foreign = ["node_modules", "secrets"].iter().any(|name| path.ends_with(name));
            if kind.is_dir() && !is_foreign {
                folders.push(path);
            } else if kind.is_file() && is_page && !path.ends_with("package-lock.json") {
                pages.push(path);
            }
        }
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
    for folder in ["docs/adr", "deploy/prometheus", "deploy/grafana/dashboards", "deploy/helm", "examples"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        assert!(pages.iter().any(|page| page.starts_with(&folder)), "nothing of {}", folder.display());
    }
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
