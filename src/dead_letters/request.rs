//! Requests about letters and their progress, as they go over the control socket.

use serde::{Deserialize, Serialize};

use crate::dead_letters::Filter;
use crate::dead_letters::versioned::{decode, encode};

/// The action on the letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    /// Publish them again; each goes when it is stored.
    Replay,
    /// Delete them.
    Drop,
}

/// Which store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StoreKind {
    /// Events that the broker refused.
    DeadLetters,
    /// Signed bodies that were not published.
    Invalid,
}

impl StoreKind {
    /// Its directory in the state directory.
    pub(crate) fn directory(self) -> &'static str {
        match self {
            Self::DeadLetters => "dead-letters",
            Self::Invalid => "invalid",
        }
    }
}

/// The validation of the bodies of letters.
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    /// The action.
    pub(crate) action: Action,
    /// For *invalid*: whatever was kept.
    pub(crate) as_is: bool,
    /// With which letters.
    pub(crate) filter: Filter,
    /// For *invalid*: every object with a field.
    pub(crate) lenient: bool,
    /// Where.
    pub(crate) store: StoreKind,
}

impl Request {
    /// The validation of the bodies that it is about: those of dead letters were accepted.
    pub(super) fn validity(&self) -> Validity {
        match (self.store, self.as_is, self.lenient) {
            (StoreKind::DeadLetters, ..) | (_, true, _) => Validity::AsIs,
            (_, _, true) => Validity::Lenient,
            _ => Validity::AsConfigured,
        }
    }

    /// The request as the body that the daemon reads.
    pub(crate) fn json(&self) -> String {
        encode(self)
    }

    /// Reads what [`Self::json`] wrote. A field that is unknown or missing is refused: it would choose other letters.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        decode(text)
    }
}

/// The state of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RequestState {
    /// Working, or waiting for its turn or for the broker.
    #[default]
    Running,
    /// All that it could do is done.
    Done,
    /// It was given up.
    #[serde(other)]
    Failed,
}

/// The progress of a request. The fields are in the order of its JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Refused again, and kept again.
    pub(crate) dead_lettered: u64,
    /// The number of those that are done, whatever became of them.
    pub(crate) done: u64,
    /// Deleted.
    pub(crate) dropped: u64,
    /// The obstacle.
    pub(crate) error: Option<String>,
    /// Confirmed by the broker.
    pub(crate) published: u64,
    /// Letters that match.
    pub(crate) selected: u64,
    /// Left as they are: not valid, or not delivered.
    pub(crate) skipped: u64,
    /// The state.
    pub(crate) state: RequestState,
    /// Lines that are no letters, and files that cannot be read; they stay.
    pub(crate) unreadable: u64,
}

impl Progress {
    /// A request that ended before anything was done.
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
    pub(crate) fn json(&self) -> String {
        encode(self)
    }

    /// Reads a line that [`Self::json`] wrote.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        decode(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn request() -> Request {
        let filter = Filter { ids: vec!["a".into()], ..Filter::default() };
        Request { action: Action::Drop, as_is: false, filter, lenient: true, store: StoreKind::Invalid }
    }

    #[test]
    fn reads_the_request_that_it_wrote() {
        let text = "{\"action\":\"drop\",\"as_is\":false,\"filter\":{\"events\":[],\"ids\":[\"a\"],\"reasons\":[],\
                    \"since\":null,\"until\":null},\"lenient\":true,\"store\":\"invalid\",\"version\":1}";
        assert_eq!(request().json(), text);
        for (as_is, lenient) in [(false, false), (false, true), (true, false)] {
            for action in [Action::Replay, Action::Drop] {
                for store in [StoreKind::Invalid, StoreKind::DeadLetters] {
                    let request = Request { action, as_is, lenient, store, ..request() };
                    assert!(request.json().contains(store.directory()));
                    assert_eq!(Request::parse(request.json().as_bytes()), Ok(request));
                }
            }
        }
    }

    #[test]
    fn takes_what_was_accepted_as_it_is_and_what_was_not_as_it_is_told() {
        let of = |store, as_is, lenient| Request { as_is, lenient, store, ..request() }.validity();
        assert_eq!(of(StoreKind::DeadLetters, false, false), Validity::AsIs);
        assert_eq!(of(StoreKind::Invalid, false, false), Validity::AsConfigured);
        assert_eq!(of(StoreKind::Invalid, false, true), Validity::Lenient);
        assert_eq!(of(StoreKind::Invalid, true, false), Validity::AsIs);
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
            let mut bad: Value = serde_json::from_str(&request().json()).unwrap();
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
        let text = "{\"dead_lettered\":1,\"done\":5,\"dropped\":1,\"error\":\"the broker is away\",\"published\":2,\
                    \"selected\":9,\"skipped\":5,\"state\":\"failed\",\"unreadable\":0,\"version\":1}";
        assert_eq!(progress.json(), text);
        assert_eq!(Progress::parse(text.as_bytes()), Some(progress));
        let running = Progress::default();
        assert_eq!(Progress::parse(running.json().as_bytes()), Some(running));
        assert_eq!(Progress::parse(b"{\"state\":\"done\"}"), None);
    }
}
