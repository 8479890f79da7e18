//! `dead-letters`: look at what the broker refused, or at invalid bodies, publish it again, or delete it.

mod change;
mod daemon;
mod list;
mod progress;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use crate::dead_letters::{Filter, StoreKind};
use crate::settings::Flags;
use crate::status::KeptReason;
use clap::{Args, Subcommand};

use crate::cli::{self, CommandResult, complain, examples};

#[derive(Debug, Subcommand)]
pub(super) enum DeadLetters {
    /// List dead letters: time, reason, event, id, address, text; never bodies
    #[command(after_help = examples("dead-letters list"))]
    List(list::List),
    /// Show dead letters in full, bodies included
    #[command(after_help = examples("dead-letters show"))]
    Show(list::Show),
    /// Publish dead letters again, to the addresses in the current settings; each is deleted once the broker has stored it
    #[command(after_help = examples("dead-letters replay"))]
    Replay(change::Replay),
    /// Delete dead letters
    #[command(after_help = examples("dead-letters drop"))]
    Drop(change::Drop),
}

/// Which store.
#[derive(Debug, Args)]
struct Which {
    /// Use the signed bodies that were not published, instead of the events that the broker refused
    #[arg(long)]
    invalid: bool,
}

impl Which {
    fn kind(&self) -> StoreKind {
        if self.invalid { StoreKind::Invalid } else { StoreKind::DeadLetters }
    }
}

/// Which letters; each may be given several times.
#[derive(Debug, Args)]
struct Chosen {
    /// Only letters with this reason
    #[arg(long, value_name = "REASON", value_parser = ["too_large", "unroutable", "no_destination", "not_authorised", "other", "invalid", "malformed", "probe"])]
    reason: Vec<String>,
    /// Only letters of this event
    #[arg(long, value_name = "EVENT")]
    event: Vec<String>,
    /// Only the letter with this id
    #[arg(long, value_name = "ID")]
    id: Vec<String>,
    /// Only letters older than this, such as 90s, 15m, 1h or 30d
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Only letters newer than this, such as 90s, 15m, 1h or 30d
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,
}

impl Chosen {
    /// The choice among the letters of this store.
    ///
    /// # Errors
    /// None can match it.
    fn filter(&self, which: &Which) -> Result<Filter, String> {
        if let Some(why) = self.matches_nothing(which) {
            return Err(why);
        }
        let Self { reason, event, id, older_than, newer_than } = self;
        let filter =
            Filter { reasons: reason.clone(), events: event.clone(), ids: id.clone(), ..Filter::default() };
        Ok(filter.aged(*older_than, *newer_than, SystemTime::now()))
    }

    fn matches_nothing(&self, which: &Which) -> Option<String> {
        let is_kept = |reason: &str| KeptReason::ALL.iter().any(|kept| kept.name() == reason);
        if let Some(reason) = self.reason.iter().find(|reason| is_kept(reason) != which.invalid) {
            let (what, advice) = if which.invalid {
                ("bodies that were not published", "leave --invalid out")
            } else {
                ("dead letters", "add --invalid")
            };
            return Some(format!("{what} never have the reason `{reason}`; {advice}"));
        }
        if self.id.iter().any(String::is_empty) {
            return Some("--id is empty: every letter has one".to_owned());
        }
        let (older, newer) = (self.older_than?, self.newer_than?);
        let [shown_older, shown_newer] = [older, newer].map(humantime::format_duration);
        (older >= newer).then(|| format!("nothing is older than {shown_older} and newer than {shown_newer}"))
    }
}

/// Reports arguments that make no sense together.
fn wrong_arguments(why: &str) -> ExitCode {
    complain(why);
    ExitCode::from(2)
}

/// The reason why nothing can be read or changed here: a state directory that does not exist was hardly meant.
fn missing(state: &Path) -> Option<String> {
    let is_missing = state.metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound);
    is_missing.then(|| {
        format!(
            "there is no {}; name the state directory in `state_directory` or PLEXTRAC_BRIDGE__STATE_DIRECTORY",
            state.display()
        )
    })
}

/// The directory of a store, which need not exist, in a state directory, which must.
fn directory(flags: &Flags, which: &Which) -> Result<PathBuf, ExitCode> {
    let state = cli::state_directory(flags)?;
    match missing(&state) {
        Some(why) => Err(cli::failed(why)),
        None => Ok(state.join(which.kind().directory())),
    }
}

pub(super) fn run(flags: &Flags, command: &DeadLetters) -> CommandResult {
    match command {
        DeadLetters::List(options) => list::list(flags, options),
        DeadLetters::Show(options) => list::show(flags, options),
        DeadLetters::Replay(options) => change::replay(flags, options),
        DeadLetters::Drop(options) => change::drop(flags, options),
    }
}
