//! The desk: requests to a daemon, each a file in `dead-letters/requests/`, and beside it a file with the progress.
//!
//! Both are written under another name and renamed, so that nobody reads half of one.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::dead_letters::store::create;
use crate::dead_letters::{BadRequest, Progress, Request, StoreKind};
use crate::process::state_directory::{give_to_the_owner, sync_directory};

/// The directory of the requests, below that of the dead letters.
const KEPT_IN: &str = "requests";

/// A file under its other name that is older was left by a crash.
const STALE: Duration = Duration::from_mins(1);

/// Whether a file must outlive a power cut: a progress that does not is only reported anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sync {
    Yes,
    No,
}

/// The directory of the requests: a client leaves them there, a daemon looks after them.
#[derive(Clone, Debug)]
pub(crate) struct Desk(PathBuf);

impl Desk {
    /// The desk in this state directory.
    #[must_use]
    pub(crate) fn within(state: &Path) -> Self {
        Self(state.join(StoreKind::DeadLetters.directory()).join(KEPT_IN))
    }

    /// Makes the directory, and removes what earlier clients and crashes have left. A request that is not done stays.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub(crate) fn open(&self) -> io::Result<()> {
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
    pub(crate) fn leave(&self, request: &Request) -> io::Result<String> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let name = format!("{:013}-{:08x}", since.as_millis(), fastrand::u32(..));
        self.put(&name, "json", &request.json(), Sync::Yes)?;
        Ok(name)
    }

    /// The names of the requests, oldest first.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
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
    pub(crate) fn has(&self, name: &str) -> bool {
        self.path(name, "json").exists()
    }

    /// Reads a request; one that cannot be understood is put aside as `.bad`.
    ///
    /// # Errors
    /// The file cannot be read; the request inside, what is wrong with it.
    pub(crate) fn read(&self, name: &str) -> io::Result<Result<Request, BadRequest>> {
        let path = self.path(name, "json");
        let request = Request::parse(&fs::read(&path)?);
        if request.is_err() {
            fs::rename(&path, self.path(name, "bad"))?;
        }
        Ok(request)
    }

    /// How far a request is; none before the daemon has looked at it.
    #[must_use]
    pub(crate) fn progress(&self, name: &str) -> Option<Progress> {
        Progress::parse(&fs::read(self.path(name, "progress")).ok()?)
    }

    /// Writes down how far it is.
    ///
    /// # Errors
    /// The disk fails.
    pub(crate) fn report(&self, name: &str, progress: &Progress) -> io::Result<()> {
        self.put(name, "progress", &progress.json(), Sync::No)
    }

    /// Removes a request that is done, or taken back; what is written of its progress stays.
    ///
    /// # Errors
    /// The disk fails.
    pub(crate) fn close(&self, name: &str) -> io::Result<()> {
        remove(&self.path(name, "json"))
    }

    /// Removes what is written of its progress.
    ///
    /// # Errors
    /// The disk fails.
    pub(crate) fn forget(&self, name: &str) -> io::Result<()> {
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
            sync_directory(&self.0)?;
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
    use serde_json::json;

    use super::*;
    use crate::dead_letters::{Action, Filter, Validity};

    fn request() -> Request {
        let filter = Filter { ids: vec!["a".into()], ..Filter::default() };
        Request { action: Action::Drop, kind: StoreKind::Invalid, filter, validity: Validity::Lenient }
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
    fn reads_every_way_to_look_at_bodies_and_what_an_earlier_version_wrote() {
        let (_directory, desk) = desk();
        for validity in [Validity::AsConfigured, Validity::Lenient, Validity::AsIs] {
            let request = Request { action: Action::Replay, validity, ..request() };
            let name = desk.leave(&request).unwrap();
            assert_eq!(desk.read(&name).unwrap(), Ok(request.clone()));
            let mut earlier = request.json();
            earlier.as_object_mut().unwrap().remove("as_is");
            desk.put("earlier", "json", &earlier, Sync::No).unwrap();
            let read = desk.read("earlier").unwrap().unwrap().validity;
            let is_lenient = validity == Validity::Lenient;
            assert_eq!(read, if is_lenient { Validity::Lenient } else { Validity::AsConfigured });
        }
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
