//! The journal: accepted events on disk, in prewritten, recycled segments. It owns the format, the arithmetic of places
//! and limits, writing, reading and recovery; not the threads that do it, nor the books. `docs/journal.md` is the format.

mod chain;
mod files;
mod format;
mod layout;
mod open;
mod reader;
mod recent;
mod record;
mod settings;
mod tail;
mod verify;
mod writer;

#[cfg(test)]
mod damage;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod model;
#[cfg(test)]
mod rig;

pub use files::is_unreadable;
pub use format::VERSION;
pub use layout::{Layout, Place};
pub use open::{OpenError, Opened, open};
pub use reader::{Batch, Reader};
pub use recent::recent;
pub use record::{Record, Stored};
pub use settings::Settings;
pub use verify::{Damage, Report, SegmentReport, verify};
pub use writer::{CommitError, Writer};
