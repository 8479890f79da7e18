//! Requests to a daemon: a file in `dead-letters/requests/`, and beside it a file with the progress.
//!
//! Both are written under another name and renamed, so that nobody reads half of one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::letters::Filter;
use crate::letters::store::{create, give_to_the_owner};

/// The version of both files.
const VERSION: u64 = 1;

/// The directory of the requests, below that of the dead letters.
pub const KEPT_IN: &str = "requests";

/// A file under its other name that is older was left by a crash.
const STALE: Duration = Duration::from_mins(1);

/// What to do with the letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Publish them again; each goes when it is stored.
    Replay,
    /// Delete them.
    Drop,
}

/// Which store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Events that the broker refused.
    DeadLetters,
    /// Signed bodies that were answered 422.
    Invalid,
}

impl Kind {
    /// Its directory in the state directory.
    #[must_use]
    pub fn directory(self) -> &'static str {
        match self {
            Self::DeadLetters => "dead-letters",
            Self::Invalid => "invalid",
        }
    }
}

/// How the bodies of *invalid* are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// As their source says today.
    AsConfigured,
    /// An object with `event` is enough.
    Lenient,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub action: Action,
    /// Where.
    pub kind: Kind,
    /// With which letters.
    pub filter: Filter,
    /// For *invalid*.
    pub validity: Validity,
}

/// Why a request cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadRequest(String);

impl Request {
    fn json(&self) -> Value {
        let action = match self.action {
            Action::Replay => "replay",
            Action::Drop => "drop",
        };
        json!({
            "version": VERSION, "action": action, "store": self.kind.directory(), "filter": self.filter.json(),
            "lenient": self.validity == Validity::Lenient,
        })
    }

    fn parse(text: &[u8]) -> Result<Self, BadRequest> {
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
                Some("dead-letters") => Kind::DeadLetters,
                Some("invalid") => Kind::Invalid,
                _ => return Err(bad("`store` is neither dead-letters nor invalid".into())),
            },
            filter: Filter::parse(&value["filter"]).map_err(bad)?,
            validity: match value["lenient"].as_bool() {
                Some(true) => Validity::Lenient,
                Some(false) => Validity::AsConfigured,
                None => return Err(bad("`lenient` is neither true nor false".into())),
            },
        })
    }
}

/// Where a request stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestState {
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
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// How far a request is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Where it stands.
    pub state: RequestState,
    /// Letters that match.
    pub selected: u64,
    /// Of them: looked after, whatever became of them.
    pub done: u64,
    /// Confirmed by the broker.
    pub published: u64,
    /// Refused again, and kept again.
    pub dead_lettered: u64,
    /// Deleted.
    pub dropped: u64,
    /// Left as they are: not valid, or not delivered.
    pub skipped: u64,
    /// Lines that are no letters; they stay.
    pub unreadable: u64,
    /// What stands in the way.
    pub error: Option<String>,
    /// The last file that the request is about.
    pub up_to: u64,
}

impl Progress {
    /// As `--json` and the file have it.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "version": VERSION, "state": self.state.name(), "selected": self.selected, "done": self.done,
            "published": self.published, "dead_lettered": self.dead_lettered, "dropped": self.dropped,
            "skipped": self.skipped, "unreadable": self.unreadable, "error": self.error, "up_to": self.up_to,
        })
    }

    fn parse(text: &[u8]) -> Option<Self> {
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

/// Whether a file must outlive a power cut: a progress that does not is only reported anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sync {
    Yes,
    No,
}

/// The directory of the requests: a client leaves them there, a daemon looks after them.
#[derive(Clone, Debug)]
pub struct Desk(PathBuf);

impl Desk {
    /// The desk in this state directory.
    #[must_use]
    pub fn within(state: &Path) -> Self {
        Self(state.join(Kind::DeadLetters.directory()).join(KEPT_IN))
    }

    /// Makes the directory, and removes what earlier clients and crashes have left. A request that is not done stays.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(&self) -> io::Result<()> {
        create(&self.0)?;
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let path = entry.path();
            let is = |wanted: &str| path.extension().is_some_and(|extension| extension == wanted);
            let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
            let is_orphan = is("progress") && !path.with_extension("json").exists();
            if is_orphan || (is("tmp") && age > STALE) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Leaves a request; its name.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn leave(&self, request: &Request) -> io::Result<String> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let name = format!("{:013}-{:08x}", since.as_millis(), fastrand::u32(..));
        self.put(&name, "json", &request.json(), Sync::Yes)?;
        Ok(name)
    }

    /// The names of the requests, oldest first.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json")
                && let Some(name) = path.file_stem().and_then(|stem| stem.to_str())
            {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Whether a request still waits or is under way.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.path(name, "json").exists()
    }

    /// Reads a request; one that cannot be understood is put aside as `.bad`.
    ///
    /// # Errors
    /// The file cannot be read; the request inside, what is wrong with it.
    pub fn read(&self, name: &str) -> io::Result<Result<Request, BadRequest>> {
        let path = self.path(name, "json");
        let request = Request::parse(&fs::read(&path)?);
        if request.is_err() {
            fs::rename(&path, self.path(name, "bad"))?;
        }
        Ok(request)
    }

    /// How far a request is; none before the daemon has looked at it.
    #[must_use]
    pub fn progress(&self, name: &str) -> Option<Progress> {
        Progress::parse(&fs::read(self.path(name, "progress")).ok()?)
    }

    /// Writes down how far it is.
    ///
    /// # Errors
    /// The disk fails.
    pub fn report(&self, name: &str, progress: &Progress) -> io::Result<()> {
        self.put(name, "progress", &progress.json(), Sync::No)
    }

    /// Removes a request that is done, or taken back; what is written of its progress stays.
    ///
    /// # Errors
    /// The disk fails.
    pub fn close(&self, name: &str) -> io::Result<()> {
        remove(&self.path(name, "json"))
    }

    /// Removes what is written of its progress.
    ///
    /// # Errors
    /// The disk fails.
    pub fn forget(&self, name: &str) -> io::Result<()> {
        remove(&self.path(name, "progress"))
    }

    fn path(&self, name: &str, extension: &str) -> PathBuf {
        self.0.join(format!("{name}.{extension}"))
    }

    fn put(&self, name: &str, extension: &str, value: &Value, sync: Sync) -> io::Result<()> {
        let temporary = self.path(name, &format!("{extension}.tmp"));
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        give_to_the_owner(&file, &self.0);
        file.write_all(format!("{value}\n").as_bytes())?;
        if sync == Sync::Yes {
            file.sync_data()?;
        }
        fs::rename(&temporary, self.path(name, extension))?;
        if sync == Sync::Yes {
            File::open(&self.0)?.sync_all()?;
        }
        Ok(())
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        let filter = Filter { ids: vec!["a".into()], ..Filter::default() };
        Request { action: Action::Drop, kind: Kind::Invalid, filter, validity: Validity::Lenient }
    }

    fn desk() -> (tempfile::TempDir, Desk) {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("dead-letters")).unwrap();
        let desk = Desk::within(directory.path());
        desk.open().unwrap();
        (directory, desk)
    }

    #[test]
    fn keeps_a_request_until_it_is_closed_and_its_progress_until_it_is_forgotten() {
        let (_directory, desk) = desk();
        let name = desk.leave(&request()).unwrap();
        assert_eq!(desk.names().unwrap(), [name.as_str()]);
        assert_eq!(desk.read(&name).unwrap(), Ok(request()));
        assert_eq!(desk.progress(&name), None);
        let progress =
            Progress { selected: 3, done: 2, error: Some("away".into()), up_to: 7, ..Progress::default() };
        desk.report(&name, &progress).unwrap();
        desk.open().unwrap();
        assert_eq!(desk.progress(&name), Some(progress), "a start keeps it while the request is there");
        desk.close(&name).unwrap();
        assert!(!desk.has(&name) && desk.progress(&name).is_some());
        desk.open().unwrap();
        assert_eq!(desk.progress(&name), None, "a start removes it afterwards");
    }

    #[test]
    fn puts_a_bad_request_aside() {
        let (_directory, desk) = desk();
        let good = request().json();
        for (field, value) in
            [("version", json!(9)), ("action", json!("x")), ("store", json!(1)), ("filter", json!({"x": 1}))]
        {
            let mut bad = good.clone();
            bad[field] = value;
            desk.put("bad", "json", &bad, Sync::No).unwrap();
            assert!(desk.read("bad").unwrap().is_err(), "{bad}");
            assert!(!desk.has("bad") && desk.path("bad", "bad").exists());
        }
        fs::write(desk.path("torn", "json"), "{\"vers").unwrap();
        assert!(desk.read("torn").unwrap().is_err());
    }

    #[test]
    fn takes_no_half_written_request_for_one() {
        let (_directory, desk) = desk();
        fs::write(desk.path("x", "json.tmp"), "{").unwrap();
        assert_eq!(desk.names().unwrap(), [""; 0]);
        desk.open().unwrap();
        assert!(desk.path("x", "json.tmp").exists(), "somebody may be writing it");
    }
}
