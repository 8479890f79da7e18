//! The queue of accepted events between enqueue and publish: the buffer in memory, and the journal on disk.

mod buffer;
mod disk;
pub(crate) mod journal;
mod mode;
mod parked;
mod settlement;
mod stop;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use buffer::{Buffer, Taken, limits};
pub(crate) use disk::{Backlog, UnsettledRecord};
pub(crate) use mode::{Ack, Mode, NotTaken};
pub(crate) use settlement::{EventEnd, Settlement};
pub(crate) use stop::SpillResult;
pub(crate) use writer::Journaling;
