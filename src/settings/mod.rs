//! Loading and checking the settings; every part declares its own beside its code.

mod environment;
mod section;
mod units;

pub use section::{Problems, Section, nearest};
