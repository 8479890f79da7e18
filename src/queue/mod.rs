//! What holds accepted events between enqueue and publish: the buffer in memory, and the journal on disk.

mod buffer;
mod disk;
pub mod journal;
mod mode;
#[cfg(test)]
mod model;
mod settlement;
mod stop;
#[cfg(test)]
mod together;
mod writer;

pub use buffer::{Buffer, Reach, Taken, limits};
pub use disk::Backlog;
pub use mode::{Ack, Mode, Refused};
pub use settlement::Settlement;
pub use stop::Spilling;
pub use writer::Journaling;
