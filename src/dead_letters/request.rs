//! Requests about letters and their progress, as they go over the control socket.

use serde_json::{Value, json};

use crate::dead_letters::Filter;

/// The version of both.
const VERSION: u64 = 1;

/// The action on the letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Publish them again; each goes when it is stored.
    Replay,
    /// Delete them.
    Drop,
}

impl Action {
    /// Its name.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Drop => "drop",
        }
    }
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

/// The validation of the bodies of *invalid*.
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
    /// The action.
    pub(crate) action: Action,
    /// Where.
    pub(crate) kind: StoreKind,
    /// With which letters.
    pub(crate) filter: Filter,
    /// For *invalid*.
    pub(crate) validity: Validity,
}

/// The reason why a request cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadRequest(String);

impl Request {
    /// The request as the body that the daemon reads.
    #[must_use]
    pub(crate) fn json(&self) -> Value {
        json!({
            "version": VERSION, "action": self.action.name(), "store": self.kind.directory(), "filter": self.filter.json(),
            "lenient": self.validity == Validity::Lenient, "as_is": self.validity == Validity::AsIs,
        })
    }

    /// Reads what [`Self::json`] wrote. A field that is unknown or missing is refused: it would choose other letters.
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
            validity: match (value["lenient"].as_bool(), value["as_is"].as_bool()) {
                (Some(_), Some(true)) => Validity::AsIs,
                (Some(true), Some(false)) => Validity::Lenient,
                (Some(false), Some(false)) => Validity::AsConfigured,
                _ => return Err(bad("`lenient` or `as_is` is neither true nor false".into())),
            },
        })
    }
}

/// The state of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RequestState {
    /// Working, or waiting for its turn or for the broker.
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

/// The progress of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The state.
    pub(crate) state: RequestState,
    /// Letters that match.
    pub(crate) selected: u64,
    /// The number of those that are done, whatever became of them.
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
    /// The obstacle.
    pub(crate) error: Option<String>,
}

impl Progress {
    /// A request that ended before anything was done.
    #[must_use]
    pub(crate) fn refused(error: String) -> Self {
        Self { state: RequestState::Failed, error: Some(error), ..Self::default() }
    }

    /// Ends it early: what was neither stored nor deleted is left as it is.
    pub(crate) fn give_up(&mut self, error: String) {
        self.state = RequestState::Failed;
        self.error = Some(error);
        self.skipped = self.selected.saturating_sub(self.published + self.dead_lettered + self.dropped);
    }

    /// The progress as `--json` and the socket have it.
    #[must_use]
    pub(crate) fn json(&self) -> Value {
        json!({
            "version": VERSION, "state": self.state.name(), "selected": self.selected, "done": self.done,
            "published": self.published, "dead_lettered": self.dead_lettered, "dropped": self.dropped,
            "skipped": self.skipped, "unreadable": self.unreadable, "error": self.error,
        })
    }

    /// Reads a line that [`Self::json`] wrote.
    #[must_use]
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
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
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        let filter = Filter { ids: vec!["a".into()], ..Filter::default() };
        Request { action: Action::Drop, kind: StoreKind::Invalid, filter, validity: Validity::Lenient }
    }

    #[test]
    fn reads_the_request_that_it_wrote() {
        for validity in [Validity::AsConfigured, Validity::Lenient, Validity::AsIs] {
            for action in [Action::Replay, Action::Drop] {
                let request = Request { action, validity, ..request() };
                assert_eq!(Request::parse(request.json().to_string().as_bytes()), Ok(request));
            }
        }
    }

    #[test]
    fn refuses_a_request_that_it_does_not_understand() {
        for (field, value) in [
            ("version", json!(9)),
            ("action", json!("x")),
            ("store", json!(1)),
            ("filter", json!({"x": 1})),
            ("as_is", json!(null)),
        ] {
            let mut bad = request().json();
            bad[field] = value;
            assert!(Request::parse(bad.to_string().as_bytes()).is_err(), "{bad}");
        }
        assert!(Request::parse(b"{\"vers").is_err());
    }

    #[test]
    fn reads_the_progress_that_it_wrote_and_counts_what_is_left_when_it_is_given_up() {
        let mut progress =
            Progress { selected: 9, done: 5, published: 2, dead_lettered: 1, dropped: 1, ..Progress::default() };
        progress.give_up("the broker is away".into());
        assert_eq!(progress.skipped, 5);
        assert_eq!(Progress::parse(progress.json().to_string().as_bytes()), Some(progress));
        assert_eq!(Progress::parse(b"{\"state\":\"done\"}"), None);
    }
}
