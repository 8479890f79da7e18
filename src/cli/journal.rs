//! `journal`: inspects the journal on disk. `verify` reads all of it and changes nothing.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::queue::journal::{Report, SegmentReport, verify};
use crate::settings::Flags;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::cli::{self, CommandResult, examples, exit, say};

#[derive(Debug, Args)]
pub(super) struct JournalOptions {
    #[command(subcommand)]
    action: JournalAction,
}

#[derive(Debug, Subcommand)]
enum JournalAction {
    /// Read every record of the journal and report damage; change nothing
    ///
    /// Works while a daemon runs. Exit status: 0 if sound or empty, 1 if damaged or unreadable.
    #[command(after_help = examples("journal verify"))]
    Verify(Verify),
}

#[derive(Debug, Args)]
struct Verify {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// The journal's directory, or the state directory that it is in [default: journal/ in `state_directory`]
    directory: Option<PathBuf>,
}

pub(super) fn run(flags: &Flags, options: &JournalOptions) -> CommandResult {
    let JournalAction::Verify(options) = &options.action;
    let directory = match &options.directory {
        Some(directory) => journal_of(directory),
        None => cli::state_directory(flags)?.join("journal"),
    };
    let fail = |text: String| {
        if options.json {
            say(json!({ "sound": false, "directory": directory.display().to_string(), "error": text }));
            ExitCode::FAILURE
        } else {
            cli::failed(text)
        }
    };
    if let Err(error) = std::fs::metadata(&directory)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(fail(format!(
            "cannot read {}: {error}; run this as the daemon's user, or as root",
            directory.display()
        )));
    }
    if !directory.is_dir() {
        let place = directory.display();
        let text = format!(
            "there is no journal at {place}; a bridge with a `state_directory` creates one at its first start: name its \
             settings file with --config, or the journal's directory"
        );
        return Err(fail(text));
    }
    let report = verify(&directory).map_err(|error| fail(format!("failed to open the journal: {error}")))?;
    if report.is_none() && options.directory.is_some() {
        let text = "it has no file of one; name the directory `journal` in the state directory";
        return Err(fail(format!("there is no journal in {}: {text}", directory.display())));
    }
    if options.json {
        let mut object = report.to_json();
        object["directory"] = directory.display().to_string().into();
        say(object);
    } else {
        show(&directory, &report);
    }
    Ok(exit(report.damaged() == 0))
}

/// The journal of a directory: a state directory has it in another one.
fn journal_of(directory: &Path) -> PathBuf {
    let below = directory.join("journal");
    if below.is_dir() { below } else { directory.to_owned() }
}

fn show(directory: &Path, report: &Report) {
    if !report.segments.is_empty() {
        say(format_args!("{:<18}{:>14}{:>10}{:>14}{:>9}", "segment", "first", "records", "bytes", "damaged"));
    }
    for segment in &report.segments {
        show_segment(segment);
    }
    say(format_args!(
        "{}: {} unsettled and {} settled records in {} segment(s), {} spare(s), {} bytes; watermark {}, next {}",
        directory.display(),
        report.unsettled(),
        report.settled(),
        report.segments.len(),
        report.spares,
        report.bytes,
        report.watermark,
        report.next
    ));
    if report.damaged() == 0 {
        say(if report.records() == 0 { "sound and empty" } else { "sound" });
    } else {
        say(format_args!(
            "damaged in {} place(s), {} record(s) lost; the bridge starts nevertheless and publishes the sound ones. While \
             one is running, a torn end may be a commit in progress: try again",
            report.damaged(),
            report.lost()
        ));
    }
}

fn show_segment(segment: &SegmentReport) {
    let name = segment.file.file_name().unwrap_or_default().to_string_lossy();
    let first = segment.first.map_or_else(|| "?".into(), |first| first.to_string());
    say(format_args!(
        "{name:<18}{first:>14}{:>10}{:>14}{:>9}",
        segment.records,
        segment.bytes,
        segment.damage.len()
    ));
    for damage in &segment.damage {
        say(format_args!("  at byte {}: {}", damage.offset, damage.text));
    }
}
