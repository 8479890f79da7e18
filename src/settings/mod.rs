//! Loading and checking the settings; every part declares its own beside its code.
//!
//! `section` (with `units` and `environment`) is the ground that every part reads its table from; `load` stands on top
//! of all parts.

mod defaults;
mod environment;
mod load;
mod section;
#[cfg(test)]
pub(crate) mod testing;
mod units;
mod written;

pub use defaults::TEXT as REFERENCE;
pub use load::{DEFAULT_FILE, Flags, Settings, SettingsError, load, load_from};
pub use section::{Problems, Section, nearest};
pub use written::{Watch, Written};
