//! What holds accepted events between enqueue and publish.

mod buffer;
pub mod journal;

pub use buffer::{Buffer, Refused, Settlement, limits};
