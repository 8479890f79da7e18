//! Requests about letters and their progress, as the two files on the [`super::Desk`] have them.

use serde_json::{Value, json};

use crate::dead_letters::Filter;

/// The version of both files.
const VERSION: u64 = 1;

/// What to do with the letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Publish them again; each goes when it is stored.
    Replay,
    /// Delete them.
    Drop,
}

/// Which store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreKind {
    /// Events that the broker refused.
    DeadLetters,
    /// Signed bodies that were not published.
    Invalid,
}

impl StoreKind {
    /// Its directory in the state directory.
    #[must_use]
    pub(crate) fn directory(self) -> &'static str {
        match self {
            Self::DeadLetters => "dead-letters",
            Self::Invalid => "invalid",
        }
    }
}

/// How the bodies of *invalid* are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Validity {
    /// As their source says today.
    AsConfigured,
    /// An object with a field is enough.
    Lenient,
    /// Whatever they are.
    AsIs,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// What to do.
    pub(crate) action: Action,
    /// Where.
    pub(crate) kind: StoreKind,
    /// With which letters.
    pub(crate) filter: Filter,
    /// For *invalid*.
    pub(crate) validity: Validity,
}

/// Why a request cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadRequest(String);

impl Request {
    pub(super) fn json(&self) -> Value {
        let action = match self.action {
            Action::Replay => "replay",
            Action::Drop => "drop",
        };
        json!({
            "version": VERSION, "action": action, "store": self.kind.directory(), "filter": self.filter.json(),
            "lenient": self.validity == Validity::Lenient, "as_is": self.validity == Validity::AsIs,
        })
    }

    pub(super) fn parse(text: &[u8]) -> Result<Self, BadRequest> {
        let bad = |text: String| BadRequest(text);
        let value: Value = serde_json::from_slice(text).map_err(|error| bad(error.to_string()))?;
        match value["version"].as_u64() {
            Some(VERSION) => {}
            Some(version) => return Err(bad(format!("version {version}, this program reads {VERSION}"))),
            None => return Err(bad("no `version`".into())),
        }
        Ok(Self {
            action: match value["action"].as_str() {
                Some("replay") => Action::Replay,
                Some("drop") => Action::Drop,
                _ => return Err(bad("`action` is neither replay nor drop".into())),
            },
            kind: match value["store"].as_str() {
                Some("dead-letters") => StoreKind::DeadLetters,
                Some("invalid") => StoreKind::Invalid,
                _ => return Err(bad("`store` is neither dead-letters nor invalid".into())),
            },
            filter: Filter::parse(&value["filter"]).map_err(bad)?,
            validity: match (value["lenient"].as_bool(), value["as_is"].as_bool().unwrap_or_default()) {
                (Some(_), true) => Validity::AsIs,
                (Some(true), false) => Validity::Lenient,
                (Some(false), false) => Validity::AsConfigured,
                (None, _) => return Err(bad("`lenient` is neither true nor false".into())),
            },
        })
    }
}

/// Where a request stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RequestState {
    /// Under way, or waiting for its turn or for the broker.
    #[default]
    Running,
    /// All that it could do is done.
    Done,
    /// It was given up.
    Failed,
}

impl RequestState {
    /// Its name.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// How far a request is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Where it stands.
    pub(crate) state: RequestState,
    /// Letters that match.
    pub(crate) selected: u64,
    /// Of them: looked after, whatever became of them.
    pub(crate) done: u64,
    /// Confirmed by the broker.
    pub(crate) published: u64,
    /// Refused again, and kept again.
    pub(crate) dead_lettered: u64,
    /// Deleted.
    pub(crate) dropped: u64,
    /// Left as they are: not valid, or not delivered.
    pub(crate) skipped: u64,
    /// Lines that are no letters; they stay.
    pub(crate) unreadable: u64,
    /// What stands in the way.
    pub(crate) error: Option<String>,
    /// The last file that the request is about.
    pub(crate) up_to: u64,
}

impl Progress {
    /// As `--json` and the file have it.
    #[must_use]
    pub(crate) fn json(&self) -> Value {
        json!({
            "version": VERSION, "state": self.state.name(), "selected": self.selected, "done": self.done,
            "published": self.published, "dead_lettered": self.dead_lettered, "dropped": self.dropped,
            "skipped": self.skipped, "unreadable": self.unreadable, "error": self.error, "up_to": self.up_to,
        })
    }

    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(text).ok()?;
        let count = |name: &str| value[name].as_u64();
        Some(Self {
            state: match value["state"].as_str()? {
                "running" => RequestState::Running,
                "done" => RequestState::Done,
                _ => RequestState::Failed,
            },
            selected: count("selected")?,
            done: count("done")?,
            published: count("published")?,
            dead_lettered: count("dead_lettered")?,
            dropped: count("dropped")?,
            skipped: count("skipped")?,
            unreadable: count("unreadable")?,
            error: value["error"].as_str().map(str::to_owned),
            up_to: count("up_to")?,
        })
    }
}
