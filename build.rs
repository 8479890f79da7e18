//! Records the commit that is built, for `--version` and `build_info`: `PLEXTRAC_BRIDGE_REVISION` if a build sets it, else
//! what git says, else nothing.

use std::path::Path;
use std::process::Command;

const VARIABLE: &str = "PLEXTRAC_BRIDGE_REVISION";

/// Enough digits of a commit to find it.
const LENGTH: usize = 12;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let set = std::env::var(VARIABLE).ok().filter(|revision| !revision.is_empty());
    if let Some(revision) = set.or_else(of_git) {
        let revision: String = revision.chars().take(LENGTH).collect();
        println!("cargo::rustc-env={VARIABLE}={revision}");
    }
}

fn of_git() -> Option<String> {
    // Not the commit of a repository that this source only lies in, as a package of a distribution may.
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    // A commit or a checkout changes the log of HEAD. A file that is missing would be looked at in each build.
    for name in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", name])?;
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
