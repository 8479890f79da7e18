//! Loading and checking the settings; every part declares its own beside its code.

mod defaults;
mod environment;
mod section;
#[cfg(test)]
pub(crate) mod testing;
mod units;

pub use defaults::TEXT as REFERENCE;
pub use section::{Problems, Section, nearest};
