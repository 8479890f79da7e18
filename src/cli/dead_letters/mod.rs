//! `dead-letters`: look at what the broker refused, or at invalid bodies, publish it again, or delete it.

mod change;
mod daemon;
mod list;
mod progress;

use std::time::{Duration, SystemTime};

use crate::dead_letters::{Filter, StoreKind};
use crate::settings::Flags;
use clap::{Args, Subcommand};

use crate::cli::{CommandResult, examples};

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
    fn filter(&self) -> Filter {
        let Self { reason, event, id, older_than, newer_than } = self;
        let filter =
            Filter { reasons: reason.clone(), events: event.clone(), ids: id.clone(), ..Filter::default() };
        filter.aged(*older_than, *newer_than, SystemTime::now())
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
