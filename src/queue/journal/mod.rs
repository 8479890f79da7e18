//! The journal: accepted events on disk, in prewritten, recycled segments. It owns the format, the arithmetic of places
//! and limits, writing, reading and recovery; not the threads that do this, nor the ledger. `docs/journal.md` describes
//! the format.

mod files;
mod format;
mod open;
mod reader;
mod recent;
mod record;
mod renewals;
mod scan;
mod segments;
mod settings;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

pub(crate) use files::{Fill, is_unreadable};
pub(crate) use format::index;
pub(crate) use open::{Opened, open};
pub(crate) use reader::{Batch, Reader};
pub(crate) use recent::recent;
pub(crate) use record::{Record, Stored};
pub(crate) use renewals::FoundRenewals;
pub(crate) use segments::{Place, SegmentAllocator};
pub(crate) use settings::Settings;
pub(crate) use verify::{Report, SegmentReport, verify};
pub(crate) use writer::{CommitError, Writer};
