//! The limit of open files: raised to what the system allows, and compared with what the settings need.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::app::Settings;

/// The admin port's connections, the files of the state directory, and the client of the broker.
const OTHERS: u64 = 192;

/// Descriptors of each thread of the ingress: its listening socket, what its runtime needs, and the connection that it
/// has accepted and that waits.
const OF_A_THREAD: u64 = 8;

/// Raises the soft limit to the hard one; warns where that is below what the settings need.
pub(super) fn raise(settings: &Settings) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Only where the limit was changed at this moment, by another program.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
    let connections = settings.ingress.max_connections as u64;
    let needed = connections + settings.ingress.threads as u64 * OF_A_THREAD + OTHERS;
    // None: there is no limit.
    if let Some(open) = getrlimit(Resource::Nofile).current.filter(|open| *open < needed) {
        tracing::warn!(
            "at most {open} files may be open, and `ingress.max_connections` = {connections} needs {needed}: connections \
             beyond the limit wait; raise it (LimitNOFILE, ulimit -Hn) or lower the setting"
        );
    }
}
