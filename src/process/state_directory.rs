//! The state directory: created if it is missing, and held by one process at a time. Also how every directory is
//! created and made safe on disk.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{Access, access};
use rustix::io::Errno;

use crate::process::failpoint;

/// The reasons why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// It cannot be created, read or written.
    #[error("cannot use the state directory {path}: {source}")]
    Unusable {
        /// The directory or file.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// Another process holds it.
    #[error("another plextrac-bridge uses the state directory {0}; stop it, or give this one its own")]
    Locked(String),
}

impl StateError {
    /// An error of this directory or file.
    pub(crate) fn unusable(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Unusable { path, source }
    }
}

/// The number of attempts to take the lock: a command that checks whether a daemon runs holds it for a moment.
const TRIES: u32 = 10;

/// Creates the directory if it is missing, and takes its lock, which is held as long as the file is open.
///
/// # Errors
/// The directory cannot be used, or another process holds it.
pub(crate) fn lock(directory: &Path) -> Result<File, StateError> {
    create_directory(directory).map_err(StateError::unusable(directory))?;
    for _ in 1..TRIES {
        match try_lock(directory) {
            Err(StateError::Locked(_)) => std::thread::sleep(Duration::from_millis(10)),
            other => return other,
        }
    }
    try_lock(directory)
}

fn try_lock(directory: &Path) -> Result<File, StateError> {
    let path = directory.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(StateError::unusable(&path))?;
    give_to_the_owner(&file, directory);
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(StateError::Locked(directory.display().to_string())),
        Err(fs::TryLockError::Error(error)) => Err(StateError::unusable(&path)(error)),
    }
}

/// Gives a file to the owner of its directory: a command that root runs must leave no file that the daemon's user
/// cannot read. If that is not possible, the daemon reports it when it opens the file.
pub(crate) fn give_to_the_owner(file: &File, directory: &Path) {
    if let (Ok(is), Ok(owner)) = (file.metadata(), fs::metadata(directory))
        && is.uid() != owner.uid()
    {
        let _ = std::os::unix::fs::fchown(file, Some(owner.uid()), Some(owner.gid()));
    }
}

/// Creates a directory (0700) if it is missing, and makes its name in its parent safe on disk.
///
/// # Errors
/// The parent is missing, cannot be written, or cannot be synced.
pub(crate) fn create_directory(directory: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {
            let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
            sync_directory(parent.unwrap_or(Path::new(".")))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// The reason why a start could not write the directory, or what it finds there; asks the system and changes nothing.
pub(crate) fn obstacle(directory: &Path) -> Option<String> {
    const CONTENTS: [&str; 4] = ["lock", "journal", "dead-letters", "invalid"];
    let advice = "give it to the daemon's user, or run this as that user";
    let ask = |path: &Path, wanted: Access| {
        let refused = access(path, wanted).err().filter(|errno| *errno != Errno::NOENT)?;
        Some(format!("cannot write {}: {}; {advice}", path.display(), io::Error::from(refused)))
    };
    let of_directory = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    match fs::metadata(directory) {
        Ok(metadata) if !metadata.is_dir() => Some(format!("{} is not a directory", directory.display())),
        Ok(_) => ask(directory, of_directory).or_else(|| {
            let contents = CONTENTS.map(|name| directory.join(name));
            contents.iter().find_map(|path| ask(path, if path.is_dir() { of_directory } else { Access::WRITE_OK }))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent =
                directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let refused = access(parent, Access::WRITE_OK | Access::EXEC_OK).err()?;
            let (error, parent) = (io::Error::from(refused), parent.display());
            Some(format!("{} does not exist, and cannot be created in {parent}: {error}", directory.display()))
        }
        Err(error) => Some(format!("cannot use {}: {error}; {advice}", directory.display())),
    }
}

/// Makes the names in a directory safe on disk. A file system that does not support this (some network file systems)
/// causes a warning, once for each directory.
///
/// # Errors
/// The disk fails. The text names the directory.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    static WARNED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let sync = || failpoint::pass("directory.sync").and_then(|()| File::open(directory)?.sync_all());
    let Err(error) = sync() else { return Ok(()) };
    let is_unsupported = [Errno::INVAL, Errno::OPNOTSUPP].map(|errno| Some(errno.raw_os_error()));
    if !is_unsupported.contains(&error.raw_os_error()) {
        return Err(io::Error::new(error.kind(), format!("cannot sync {}: {error}", directory.display())));
    }
    if WARNED.lock().insert(directory.to_owned()) {
        tracing::warn!(
            directory = %directory.display(),
            "the file system cannot sync a directory ({error}): after a power failure a file created shortly before may \
             be missing"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::failpoint::set_here;

    #[test]
    fn syncs_the_parent_of_a_directory_that_it_creates() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("state");
        set_here(&[("directory.sync", io::ErrorKind::Other)]);
        let error = create_directory(&directory).unwrap_err().to_string();
        assert!(error.contains(&format!("cannot sync {}:", parent.path().display())), "{error}");
        assert!(create_directory(&directory).is_ok(), "it exists by now");
        set_here(&[]);
        assert!(sync_directory(&directory).is_ok());
    }
}
