//! `dead-letters list` and `show`: reading, without a lock, while a daemon may be writing.

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;

use crate::dead_letters::{Filter, Letter, Lines, files};
use crate::settings::Flags;
use clap::Args;
use serde_json::{Value, json};

use crate::cli::dead_letters::{Chosen, Which, directory, wrong_arguments};
use crate::cli::{self, CommandResult, complain, exit, say};

#[derive(Debug, Args)]
pub(in crate::cli) struct List {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    chosen: Chosen,
    /// Print one JSON object for each, without its body
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Show {
    #[command(flatten)]
    which: Which,
    /// Ids of the letters to show
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// Print the lines as they are stored
    #[arg(long, conflicts_with = "body")]
    json: bool,
    /// Print only the body, byte for byte; for one id
    #[arg(long)]
    body: bool,
}

/// Calls `see` with each letter that matches, and its line; reports files that cannot be read, and then the lines that are
/// no letters. Whether all could be read.
fn each(directory: &Path, filter: &Filter, mut see: impl FnMut(Letter, &[u8])) -> Result<bool, ExitCode> {
    let cannot = |error| cli::failed(format_args!("cannot read {}: {error}", directory.display()));
    let (mut is_whole, mut unread, mut first) = (true, 0u64, None);
    for (_, path) in files(directory).map_err(cannot)? {
        let read = Lines::open(&path).and_then(|lines| {
            for (at, line) in lines.into_iter().flatten().enumerate() {
                let line = line?;
                match Letter::parse(&line) {
                    Ok(letter) if filter.matches(&letter) => see(letter, &line),
                    Ok(_) => {}
                    Err(why) => {
                        unread += 1;
                        first.get_or_insert_with(|| format!("{} line {}: {why}", path.display(), at + 1));
                    }
                }
            }
            Ok(())
        });
        if let Err(error) = read {
            complain(error);
            is_whole = false;
        }
    }
    if let Some(first) = &first {
        complain(format_args!("{unread} lines cannot be read, and are kept; the first: {first}"));
    }
    Ok(is_whole && first.is_none())
}

pub(super) fn list(flags: &Flags, options: &List) -> CommandResult {
    let filter = options.chosen.filter(&options.which).map_err(|why| wrong_arguments(&why))?;
    let directory = directory(flags, &options.which)?;
    let width = width();
    let (mut count, mut bytes) = (0u64, 0u64);
    let is_whole = each(&directory, &filter, |letter, line| {
        if options.json {
            say(without_body(line));
        } else {
            if count == 0 {
                say(row(width, ["time", "reason", "event", "id", "address", "text"]));
            }
            let time = humantime::format_rfc3339_seconds(letter.time).to_string();
            let Letter { reason, event, id, address, text, .. } = &letter;
            say(row(width, [&time, reason, event, id, address, text]));
        }
        count += 1;
        bytes += line.len() as u64 + 1;
    })?;
    if !options.json {
        say(format_args!("{count} in {}, {bytes} bytes", directory.display()));
    }
    Ok(exit(is_whole))
}

fn without_body(line: &[u8]) -> Value {
    let mut value: Value = serde_json::from_slice(line).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("body");
        fields.remove("body_base64");
    }
    value
}

/// The columns of the terminal; without one, lines are as long as they are.
fn width() -> usize {
    let size = std::io::stdout().is_terminal().then(terminal_size::terminal_size).flatten();
    size.map_or(usize::MAX, |(width, _)| usize::from(width.0))
}

/// A line of the table, cut at the width.
fn row(width: usize, [time, reason, event, id, address, text]: [&str; 6]) -> String {
    let line = format!("{time:<20}  {reason:<14}  {event:<20}  {id:<38}  {address:<20}  {text}");
    shown(line.trim_end()).chars().take(width).collect()
}

/// A text without control characters, which must not reach the terminal.
fn shown(text: &str) -> String {
    text.replace(char::is_control, " ")
}

pub(super) fn show(flags: &Flags, options: &Show) -> CommandResult {
    let directory = directory(flags, &options.which)?;
    let filter = Filter { ids: options.ids.clone(), ..Filter::default() };
    let mut found: Vec<(Letter, Vec<u8>)> = Vec::new();
    let mut good = each(&directory, &filter, |letter, line| found.push((letter, line.to_vec())))?;
    for id in &options.ids {
        if !found.iter().any(|(letter, _)| letter.id == *id) {
            complain(format_args!(
                "no letter {id} in {}; `dead-letters list` shows all letters",
                directory.display()
            ));
            good = false;
        }
    }
    if options.body {
        return body(&found, good);
    }
    for (at, (letter, line)) in found.iter().enumerate() {
        if options.json {
            say(String::from_utf8_lossy(line));
        } else {
            if at > 0 {
                say("");
            }
            describe(letter);
        }
    }
    Ok(exit(good))
}

/// The bytes of one body; the same letter kept twice has one.
fn body(found: &[(Letter, Vec<u8>)], good: bool) -> CommandResult {
    let Some((first, _)) = found.first() else { return Err(ExitCode::FAILURE) };
    if found.iter().any(|(letter, _)| letter.body != first.body) {
        return Err(cli::failed("several letters match; give one id"));
    }
    cli::print(&first.body);
    Ok(exit(good))
}

fn describe(letter: &Letter) {
    let time = |time| humantime::format_rfc3339_millis(time).to_string();
    let none = || "-".to_owned();
    let fields = [
        ("id", letter.id.clone()),
        ("reason", letter.reason.clone()),
        ("text", letter.text.clone()),
        ("kept", time(letter.time)),
        ("received", time(letter.received)),
        ("attempts", letter.attempts.to_string()),
        ("source", letter.source.clone()),
        ("event", letter.event.clone()),
        ("address", letter.address.clone()),
        ("key", letter.key.clone()),
        ("signature", letter.signature.clone().unwrap_or_else(none)),
        ("traceparent", letter.traceparent.clone().unwrap_or_else(none)),
        ("headers", json!(letter.headers).to_string()),
        ("body", format!("{} bytes", letter.body.len())),
    ];
    for (name, value) in fields {
        say(format_args!("{name:<12} {}", shown(&value)));
    }
    // Whatever a body holds, no control character reaches the terminal.
    let text = String::from_utf8_lossy(&letter.body);
    say(text.replace(|c: char| c.is_control() && c != '\n' && c != '\t', "\u{fffd}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_a_row_at_the_width_and_lets_no_control_character_through() {
        let line = row(usize::MAX, ["t", "r", "e", "i", "a", "red \x1b[31m\nnext"]);
        assert!(line.ends_with("red  [31m next"), "{line:?}");
        assert_eq!(row(10, ["2026-11-22", "r", "e", "i", "a", "x"]).chars().count(), 10);
    }

    #[test]
    fn leaves_the_body_out() {
        assert_eq!(without_body(br#"{"id":"a","body":"secret","body_base64":"c2VjcmV0"}"#), json!({ "id": "a" }));
    }
}
