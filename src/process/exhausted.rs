//! Errors that say nothing of what was asked for: the process or the system has no more descriptors or memory.

use std::io;

use rustix::io::Errno;

/// Whether it is such an error. It goes away by itself, and any sender that opens connections can cause it.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    let known = [Errno::MFILE, Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
    error.kind() == io::ErrorKind::OutOfMemory || known.contains(&error.raw_os_error())
}
