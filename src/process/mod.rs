//! The process around the parts: log, state directory, systemd, the stop, and the faults that tests inject.

mod exhausted;
pub(crate) mod failpoint;
mod listen;
pub(crate) mod logs;
pub(crate) mod shutdown;
pub(crate) mod state_directory;
pub(crate) mod systemd;

pub(crate) use exhausted::is_exhausted;
pub(crate) use listen::listen;
