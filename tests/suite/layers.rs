//! The rules of the house, kept by reading `src/`: imports point down and never in a circle, one owner per crate, every file says
//! what it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A file of `src/`, read.
pub(crate) struct File {
    /// From `src/` on: `brokers/file.rs`.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl File {
    /// Folder or file right below `src/`: `brokers`, `metrics`.
    fn part(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// The lines that are code: neither comments nor the tests at the end.
    fn code(&self) -> impl Iterator<Item = &str> {
        let lines =
            self.text.lines().take_while(|line| line.trim() != "#[cfg(test)]" || self.path.ends_with("mod.rs"));
        lines.filter(|line| !line.trim_start().starts_with("//"))
    }

    /// The modules of this crate that the code names: `settings`, and below it `settings::load`.
    fn imports(&self) -> BTreeSet<String> {
        let code: String = self.code().collect::<Vec<_>>().join("\n");
        let mut found = BTreeSet::new();
        for (at, start) in code.match_indices("crate::") {
            let rest = &code[at + start.len()..];
            // `use crate::{a, b::c};` names several.
            let list = rest.strip_prefix('{').and_then(|rest| rest.split('}').next());
            let names: Vec<&str> = list.map_or_else(|| vec![rest], |list| list.split(',').collect());
            for name in names {
                let path: String =
                    name.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || "_:".contains(*c)).collect();
                let path = path.trim_end_matches(':');
                found.insert(path.split("::").next().unwrap_or_default().to_owned());
                found.insert(path.split("::").take(2).collect::<Vec<_>>().join("::"));
            }
        }
        found
    }

    /// The module that it is: `crate::brokers::file`.
    fn module(&self) -> String {
        let name = self.path.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
        if name == "lib" { "crate".to_owned() } else { format!("crate::{name}") }
    }

    /// The path that each `use` imports, from `crate` where it is in this crate, and whether it is exported.
    fn used(&self) -> Vec<(String, bool)> {
        let (code, module) = (self.code().collect::<Vec<_>>().join("\n"), self.module());
        let absolute = |path: String| match path.strip_prefix("super::") {
            Some(path) => format!("{}::{path}", module.rsplit_once("::").map_or("", |(parent, _)| parent)),
            None if !path.starts_with("crate::") && self.path.ends_with("mod.rs") => format!("{module}::{path}"),
            None => path,
        };
        let mut used = Vec::new();
        for statement in code.split(';') {
            let mut lines = statement.lines().map(str::trim);
            let Some(line) = lines.find(|line| format!(" {line}").contains(" use ")) else { continue };
            let tree = line.split_once("use ").map_or("", |(_, tree)| tree).to_owned() + &lines.collect::<String>();
            used.extend(expanded(&tree).into_iter().map(|path| (absolute(path), line.starts_with("pub"))));
        }
        used
    }

    /// Whether the code names a crate.
    fn uses(&self, name: &str) -> bool {
        self.code().any(|line| {
            line.match_indices(name).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                let behind = &line[at + name.len()..];
                before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':')
                    && (behind.starts_with("::") || (behind.starts_with(';') && line.contains("use ")))
            })
        })
    }
}

/// `a::{b, c::{d, e}}` is `a::b`, `a::c::d` and `a::c::e`.
fn expanded(tree: &str) -> Vec<String> {
    let Some((stem, list)) = tree.split_once('{') else { return vec![tree.trim().to_owned()] };
    let mut depth = 0;
    let list = list.trim_end().strip_suffix('}').unwrap_or(list);
    let parts = list.split(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    let paths = parts.filter(|part| !part.trim().is_empty()).flat_map(expanded);
    paths.map(|path| format!("{}{path}", stem.trim()).trim_end_matches("::self").to_owned()).collect()
}

/// The file that declares what a path means: exports are followed.
fn declaring<'f>(path: &str, modules: &BTreeMap<String, &'f File>) -> Option<&'f File> {
    let (path, _) = path.split_once(" as ").unwrap_or((path, ""));
    let ends = path.match_indices("::").map(|(at, _)| at).chain([path.len()]);
    let end = ends.filter(|end| modules.contains_key(&path[..*end])).last()?;
    let (file, item) = (modules[&path[..end]], path[end..].split("::").nth(1).unwrap_or_default());
    for (export, _) in file.used().iter().filter(|(_, is_exported)| *is_exported) {
        let name = export.rsplit([':', ' ']).next().unwrap_or_default();
        if name == item && !item.is_empty() {
            return declaring(export, modules);
        }
        if name == "*" {
            let kinds = ["struct", "enum", "trait", "fn", "type", "const", "static"];
            let found = declaring(&export.replace('*', item), modules).filter(|file| {
                let words = file.text.split(|c: char| !c.is_alphanumeric() && c != '_').collect::<Vec<_>>();
                words.windows(2).any(|pair| kinds.contains(&pair[0]) && pair[1] == item)
            });
            if found.is_some() {
                return found;
            }
        }
    }
    Some(file)
}

pub(crate) fn files() -> Vec<File> {
    fn walk(directory: &Path, root: &Path, into: &mut Vec<File>) {
        for entry in fs::read_dir(directory).expect("src/ can be read").flatten() {
            let path: PathBuf = entry.path();
            if path.is_dir() {
                walk(&path, root, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file is UTF-8");
                let name = path.strip_prefix(root).expect("it is below src/").display().to_string();
                into.push(File { path: name, text });
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    walk(&root, &root, &mut all);
    assert!(all.len() > 40, "src/ has only {} files: this test reads the wrong place", all.len());
    all
}

/// No problem, or all of them.
#[track_caller]
pub(crate) fn assert_none(rule: &str, problems: &[String]) {
    assert!(problems.is_empty(), "{rule}:\n  {}", problems.join("\n  "));
}

/// The modules that each part may use, beside itself.
fn allowed(part: &str) -> &'static [&'static str] {
    match part {
        "ingress" => &["dead_letters", "queue", "metrics", "status", "event", "settings", "process"],
        "delivery" => &["dead_letters", "queue", "brokers", "metrics", "status", "event", "settings", "process"],
        "admin" => &["queue", "metrics", "status", "settings", "process"],
        // Replays go into the queue.
        "dead_letters" => &["queue", "metrics", "status", "event", "settings", "process"],
        "queue" | "brokers" => &["metrics", "status", "event", "settings", "process"],
        "metrics" => &["status", "event", "settings", "process"],
        "status" => &["event", "settings", "process"],
        "event" | "process" => &["settings"],
        _ => &[],
    }
}

#[test]
fn imports_point_down_only() {
    let mut problems = Vec::new();
    for file in files() {
        let part = file.part();
        // The edge, the assembly and the map know everything by their nature.
        if ["main", "cli", "app", "lib"].contains(&part) {
            continue;
        }
        for import in file.imports().iter().filter(|import| !import.contains("::")) {
            if !allowed(part).contains(&import.as_str()) && *import != part {
                problems.push(format!("src/{} uses crate::{import}", file.path));
            }
        }
    }
    assert_none("imports point down only (the map in src/lib.rs)", &problems);
}

#[test]
fn no_imports_form_a_circle() {
    let files = files();
    let files = files.iter().filter(|file| !file.path.contains("tests"));
    let modules: BTreeMap<String, &File> = files.map(|file| (file.module(), file)).collect();
    let mut edges = BTreeSet::new();
    for file in modules.values() {
        let only_exports = file.path.ends_with("mod.rs");
        for (path, _) in file.used().iter().filter(|(_, is_exported)| !(only_exports && *is_exported)) {
            edges.extend(declaring(path, &modules).map(|used| (&file.path, &used.path)));
        }
    }
    edges.retain(|(user, used)| user != used);
    assert!(edges.len() > 400, "only {} imports were found: this test reads them wrongly", edges.len());
    // What imports nothing, and what nothing imports, is in no circle, until only circles are left.
    let mut before = usize::MAX;
    while edges.len() < before {
        before = edges.len();
        let (users, used): (BTreeSet<_>, BTreeSet<_>) = edges.iter().copied().unzip();
        edges.retain(|edge| used.contains(edge.0) && users.contains(edge.1));
    }
    let problems: Vec<_> = edges.iter().map(|(user, used)| format!("src/{user} uses src/{used}")).collect();
    assert_none("no file imports what imports it, directly or by others", &problems);
}

#[test]
fn ingress_and_brokers_know_nothing_of_each_other() {
    let mut problems = Vec::new();
    for file in files() {
        let (forbidden, crates): (&[&str], &[&str]) = match file.part() {
            "ingress" => (&["brokers", "delivery", "admin", "app"], &["rdkafka", "lapin", "async_nats"]),
            // The client of a token endpoint is one of HTTP.
            "brokers" if file.path == "brokers/oauth.rs" => {
                (&["ingress", "queue", "delivery", "admin", "app"], &[])
            }
            "brokers" => {
                (&["ingress", "queue", "delivery", "admin", "app"], &["hyper", "hyper_util", "http_body_util"])
            }
            "queue" => (&["ingress", "delivery", "brokers", "admin", "app"], &["hyper"]),
            "delivery" => (&["ingress", "admin", "app"], &["hyper"]),
            _ => continue,
        };
        let imports = file.imports();
        let modules = forbidden.iter().filter(|name| imports.contains(**name));
        problems.extend(modules.map(|name| format!("src/{} uses crate::{name}", file.path)));
        let crates = crates.iter().filter(|name| file.uses(name));
        problems.extend(crates.map(|name| format!("src/{} uses {name}", file.path)));
    }
    assert_none("ingress never sees brokers, brokers never see ingress, queue, delivery or hyper", &problems);
}

#[test]
fn every_crate_with_an_owner_stays_with_it() {
    let owners = [
        ("rdkafka", "brokers/kafka"),
        ("openssl_sys", "brokers/kafka"),
        ("lapin", "brokers/rabbitmq"),
        ("async_nats", "brokers/nats"),
        ("figment", "settings/"),
        ("prometheus", "metrics.rs"),
    ];
    let mut problems = Vec::new();
    for (name, owner) in owners {
        let users: Vec<File> = files().into_iter().filter(|file| file.uses(name)).collect();
        assert!(!users.is_empty(), "no file uses {name}: this test looks for the wrong word");
        let others = users.iter().filter(|file| !file.path.starts_with(owner));
        problems.extend(others.map(|file| format!("src/{} uses {name}, which belongs to src/{owner}", file.path)));
    }
    assert_none("one owner per crate", &problems);
}

#[test]
fn a_mod_rs_only_declares_and_exports() {
    let mut problems = Vec::new();
    // The commands' mod.rs holds the arguments, which all of its files share.
    for file in files().into_iter().filter(|file| file.path.ends_with("mod.rs") && file.part() != "cli") {
        let code: String = file.code().collect::<Vec<_>>().join("\n");
        for item in ["fn ", "struct ", "enum ", "trait ", "impl ", "impl<", "macro_rules!"] {
            let found = code.lines().any(|line| {
                let line = line.trim_start();
                let line = line.strip_prefix("pub ").unwrap_or(line);
                let line = line.find(") ").filter(|_| line.starts_with("pub(")).map_or(line, |at| &line[at + 2..]);
                line.starts_with(item)
            });
            if found {
                problems.push(format!("src/{} has a `{}`", file.path, item.trim()));
            }
        }
    }
    assert_none("a mod.rs declares and exports, nothing else", &problems);
}

#[test]
fn every_file_says_what_it_is_and_a_long_one_why() {
    let mut problems = Vec::new();
    for file in files() {
        if !file.text.starts_with("//! ") {
            problems.push(format!("src/{} does not open with `//!`", file.path));
        }
        let head = file.text.lines().take_while(|line| line.starts_with("//!"));
        let says_why = head.clone().any(|line| line.starts_with("//! Length: "));
        if file.text.lines().count() > 400 && !says_why {
            problems.push(format!("src/{} has more than 400 lines and no `//! Length: <why>`", file.path));
        }
        if head.count() > 8 && file.path != "lib.rs" {
            problems.push(format!("src/{} has a head of more than 8 lines; only the map is longer", file.path));
        }
    }
    assert_none("every file says in a few lines what it is", &problems);
}

/// `record` in the line of a folder is a file below it, or in the folder of the name before it: `journal/format`, `record`.
#[test]
fn the_map_names_files_that_exist() {
    let files = files();
    let map = &files.iter().find(|file| file.path == "lib.rs").expect("there is a map").text;
    let (_, map) = map.split_once("# The map").expect("the head of lib.rs has it");
    let (map, _) = map.split_once("# The rules").expect("the rules follow it");
    let stems: BTreeSet<&str> =
        files.iter().filter_map(|file| file.path.rsplit('/').next()?.strip_suffix(".rs")).collect();
    let folders: BTreeSet<&str> = files.iter().filter_map(|file| Some(file.path.split_once('/')?.0)).collect();
    let (mut count, mut problems) = (0, Vec::new());
    for name in map.split('`').skip(1).step_by(2).filter(|name| !name.starts_with('/') && !name.contains('.')) {
        count += 1;
        let name = name.trim_end_matches('/');
        let is_path = |file: &File| file.path.ends_with(&format!("/{name}.rs"));
        let exists = if name.contains('/') { files.iter().any(is_path) } else { stems.contains(name) };
        if !exists && !folders.contains(name) && !files.iter().any(|file| file.path.contains(&format!("/{name}/")))
        {
            problems.push(format!("no file of the name `{name}`"));
        }
    }
    assert!(count > 60, "the map names only {count} files: this test reads it wrongly");
    assert_none("the map names files that exist", &problems);
}
