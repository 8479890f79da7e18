//! The state directory: made where it is missing, and held by one process at a time.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be made, read or written.
    #[error("cannot use the state directory {path}: {source}")]
    Unusable {
        /// The directory or file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Another process holds it.
    #[error("another plextrac-bridge uses the state directory {0}; stop it, or give this one its own")]
    Locked(String),
}

impl StateError {
    /// For this directory or file.
    pub fn unusable(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Unusable { path, source }
    }
}

/// How often it is tried to take the lock: a command that asks whether a daemon runs holds it for a moment.
const TRIES: u32 = 10;

/// Makes the directory where it is missing, and takes its lock, which is held as long as the file lives.
///
/// # Errors
/// It cannot be used, or another process holds it.
pub fn lock(directory: &Path) -> Result<File, StateError> {
    if !directory.is_dir() {
        fs::DirBuilder::new().mode(0o700).create(directory).map_err(StateError::unusable(directory))?;
    }
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
    crate::letters::give_to_the_owner(&file, directory);
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(StateError::Locked(directory.display().to_string())),
        Err(fs::TryLockError::Error(error)) => Err(StateError::unusable(&path)(error)),
    }
}

/// Whether a process holds the state directory at this moment.
#[must_use]
pub fn is_held(directory: &Path) -> bool {
    matches!(try_lock(directory), Err(StateError::Locked(_)))
}
