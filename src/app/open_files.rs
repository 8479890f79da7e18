//! The limit of open files: raised to what the system allows, and compared with what the settings need.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::app::Settings;

/// Descriptors for the admin port's connections, the files of the state directory, and the client of the broker.
const OTHERS: u64 = 192;

/// Descriptors of each ingress thread: its listening socket, those of its runtime, and an accepted connection that
/// waits for a permit.
const OF_A_THREAD: u64 = 8;

/// Raises the soft limit to the hard one.
pub(super) fn raise() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // It fails only if another program changed the limit at this moment.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

/// The problem if the hard limit is below what the settings need.
pub(super) fn problem(settings: &Settings) -> Option<String> {
    let connections = settings.ingress.max_connections as u64;
    let needed = connections + settings.ingress.threads as u64 * OF_A_THREAD + OTHERS;
    // None means that there is no limit.
    let open = getrlimit(Resource::Nofile).maximum.filter(|open| *open < needed)?;
    Some(format!(
        "at most {open} files may be open, and `ingress.max_connections` = {connections} needs {needed}: connections \
         beyond the limit wait; raise it (LimitNOFILE, ulimit -Hn) or lower the setting"
    ))
}
