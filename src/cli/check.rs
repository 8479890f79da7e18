//! `check`: settings, templates, secrets; with `--connect` the broker, its topology and size limits.

use std::process::ExitCode;
use std::time::Duration;

use crate::app::{Settings, load};
use crate::brokers::{ConnectError, ErrorKind, Finding};
use crate::process::state_directory::obstacle;
use crate::settings::{Effective, Findings, Flags, SettingsError, to_json};
use clap::Args;
use serde_json::json;
use tokio::runtime::Builder;

use crate::cli::{self, CommandResult, EX_CONFIG, exit, say};

/// The time limit for the broker: longer than every client's own time-outs.
const INSPECT_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct CheckOptions {
    /// Also connect to the broker and check topology and limits, without changing anything
    #[arg(long)]
    connect: bool,
    /// Also print the settings in force, each with its origin; secrets are not shown
    #[arg(long)]
    print: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(flags: &Flags, options: &CheckOptions) -> CommandResult {
    let (settings, mut read) = match load(flags) {
        Ok(loaded) => loaded,
        Err(SettingsError(problems)) => {
            if options.json {
                say(json!({ "good": false, "errors": problems, "warnings": [], "findings": [] }));
            } else {
                problems.iter().for_each(cli::complain);
            }
            return Err(ExitCode::from(EX_CONFIG));
        }
    };
    read.warnings.extend(settings.journal_problem());
    let effective = settings.fingerprint.effective();
    if !options.json {
        show(&settings, &read);
        for (key, Effective { value, origin }) in effective.iter().filter(|_| options.print) {
            say(format_args!("{key} = {value}   # {origin}"));
        }
    }
    let obstacle = settings.state_directory.as_deref().and_then(obstacle);
    let obstacle = obstacle.map(|text| format!("`state_directory`: {text}"));
    if !options.json {
        match &obstacle {
            Some(text) => cli::complain(text),
            None => say("settings: good"),
        }
    }
    let (findings, error) = match inspect(&settings, options.connect) {
        Ok(findings) => (findings, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let missing = findings.iter().any(|finding| matches!(finding, Finding::Missing(_)));
    let is_broker_good = error.is_none() && !missing;
    let good = is_broker_good && obstacle.is_none();
    if options.json {
        let errors: Vec<String> = obstacle.into_iter().chain(error.iter().map(ToString::to_string)).collect();
        let findings: Vec<_> = findings
            .iter()
            .map(|finding| {
                let (level, text) = parts(finding);
                json!({ "level": level, "text": text })
            })
            .collect();
        let files: Vec<_> = read.files.iter().map(|(path, of)| json!({ "path": path, "of": of })).collect();
        let mut result = json!({
            "good": good, "errors": errors, "warnings": read.warnings, "notes": read.notes, "findings": findings,
            "files": files, "ingress": settings.ingress.listen, "admin": settings.admin.listen,
            "state_directory": settings.state_directory,
        });
        if options.print {
            result["settings"] = to_json(effective);
        }
        say(result);
    } else {
        for finding in &findings {
            let (level, text) = parts(finding);
            say(format_args!("{level}: {text}"));
        }
        if let Some(error) = &error {
            cli::complain(error);
        } else if options.connect {
            say(if is_broker_good { "broker: good" } else { "broker: something is missing" });
        }
    }
    Ok(exit(good))
}

/// Prints the files that were read, what was found in them, and the addresses and sources in force.
fn show(settings: &Settings, read: &Findings) {
    if !read.files.iter().any(|(_, of)| of == "settings") {
        say("file: no settings file");
    }
    for (path, of) in &read.files {
        say(format_args!("file {}: {of}", path.display()));
    }
    read.notes.iter().for_each(|note| say(format_args!("note: {note}")));
    read.warnings.iter().for_each(|warning| say(format_args!("warning: {warning}")));
    let admin = settings.admin.listen.map_or_else(|| "off".to_owned(), |address| address.to_string());
    let state = settings.state_directory.as_ref().map_or_else(|| "none".into(), |path| path.to_string_lossy());
    say(format_args!("webhooks: {}, admin port: {admin}, state directory: {state}", settings.ingress.listen));
    for source in &settings.sources {
        let secrets: Vec<&str> = source.secrets.iter().map(|named| &*named.id).collect();
        let signed =
            if source.is_signed() { format!("secrets: {}", secrets.join(", ")) } else { "unsigned".to_owned() };
        say(format_args!("source {}: {} ({signed})", source.name, source.path));
    }
}

fn parts(finding: &Finding) -> (&'static str, &str) {
    match finding {
        Finding::Good(text) => ("good", text),
        Finding::Warning(text) => ("warning", text),
        Finding::Missing(text) => ("missing", text),
    }
}

fn inspect(settings: &Settings, connect: bool) -> Result<Vec<Finding>, ConnectError> {
    if !connect {
        return Ok(Vec::new());
    }
    let failed = |text: String| ConnectError::new(ErrorKind::Connect, text);
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed(format!("cannot start: {error}")))?;
    let mut broker = settings.broker.broker(&settings.terms());
    let inspected = runtime.block_on(async { tokio::time::timeout(INSPECT_TIMEOUT, broker.inspect()).await });
    runtime.shutdown_background();
    let silent = format!("{} at {} did not answer within {INSPECT_TIMEOUT:?}", broker.name(), broker.location());
    inspected.unwrap_or_else(|_| Err(failed(silent)))
}
