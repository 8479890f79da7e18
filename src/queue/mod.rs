//! What holds accepted events between enqueue and publish: the buffer in memory, and the journal on disk.

mod buffer;
mod disk;
pub mod journal;
mod settlement;
#[cfg(test)]
mod together;
mod writer;

pub use buffer::{Ack, Buffer, Mode, Reach, Refused, Spilling, Taken, limits};
pub use disk::Backlog;
pub use settlement::Settlement;
pub use writer::Journaling;
