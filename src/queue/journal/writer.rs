//! Writing: one commit is one write and one fdatasync for all who wait. Runs on the writer's thread alone.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;

use crate::process::failpoint;
use crate::queue::journal::files::{self, Fill, at};
use crate::queue::journal::format::{HEADER_BYTES, Header, Mark, WatermarkSlot};
use crate::queue::journal::layout::{Place, SegmentAllocator};
use crate::queue::journal::record::Record;

/// A buffer larger than this is not kept: idle memory need not hold what one large commit took.
const BUFFER: usize = 1 << 20;

/// Why a commit did not happen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommitError {
    /// No segment could be made for it. Nothing of this run is written: undo its places, try later.
    #[error("failed to make another segment of the journal: {0}; make room there")]
    NoSpace(io::Error),
    /// Final: what is on disk is not known any more, and trying again would not tell.
    #[error(
        "failed to write the journal: {0}; see to the disk, then start again: all that was acknowledged is kept"
    )]
    Failed(io::Error),
}

/// The segment that records go to.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) number: u32,
    pub(super) file: File,
    pub(super) salt: u64,
    /// The watermark as written last.
    pub(super) slot: WatermarkSlot,
}

/// Writes records, watermarks and segments.
#[derive(Debug)]
pub(crate) struct Writer {
    directory: PathBuf,
    /// Open, so that its removal is seen where no segment is.
    handle: File,
    segment: u64,
    active: Option<Active>,
    buffer: Vec<u8>,
    broken: bool,
}

impl Writer {
    pub(super) fn new(directory: PathBuf, segment: u64, active: Option<Active>) -> io::Result<Self> {
        let handle = File::open(&directory).map_err(|error| at(&directory, &error))?;
        Ok(Self { directory, handle, segment, active, buffer: Vec::new(), broken: false })
    }

    /// Writes records with consecutive places in one segment, and makes them safe on disk.
    ///
    /// # Errors
    /// See [`CommitError`]. After `Failed` nothing is written any more.
    pub(crate) fn commit(&mut self, run: &[(Place, Record<'_>)], watermark: u64) -> Result<(), CommitError> {
        let Some((first, _)) = run.first() else { return Ok(()) };
        self.refuse_broken()?;
        if first.opens {
            self.make(first.segment)?;
        }
        let written = self.write(run, watermark);
        self.check(written)
    }

    fn refuse_broken(&self) -> Result<(), CommitError> {
        if self.broken {
            let error = io::Error::other("a write failed before");
            return Err(CommitError::Failed(at(&self.directory, &error)));
        }
        Ok(())
    }

    /// An error in an existing segment is the last one.
    fn check(&mut self, done: io::Result<()>) -> Result<(), CommitError> {
        done.map_err(|error| {
            self.broken = true;
            let place = self.active.as_ref().map(|active| files::path(&self.directory, active.number));
            CommitError::Failed(at(place.as_ref().unwrap_or(&self.directory), &error))
        })
    }

    /// Makes the segment if it is not there as a spare.
    fn make(&mut self, number: u32) -> Result<(), CommitError> {
        match fs::metadata(files::path(&self.directory, number)) {
            Ok(spare) if spare.len() == self.segment => Ok(()),
            _ => self.create(number).map_err(|error| match error.kind() {
                // These do not pass by themselves.
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    self.broken = true;
                    CommitError::Failed(error)
                }
                _ => CommitError::NoSpace(error),
            }),
        }
    }

    /// Begins another use of a segment: an end mark, then the header that makes it count, both safe on disk before any
    /// record. In this order a process that dies in between leaves a spare, not a segment with a torn end.
    fn recycle(&mut self, number: u32, first: u64, watermark: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(files::path(&self.directory, number))?;
        let header = Header { size: self.segment, salt: fastrand::u64(..), first };
        let slot = WatermarkSlot { counter: 1, watermark };
        file.write_all_at(&Mark::end(first).encode(header.salt).0, HEADER_BYTES)?;
        file.write_all_at(&header.block(&slot), 0)?;
        file.sync_data()?;
        self.active = Some(Active { number, file, salt: header.salt, slot });
        failpoint::pass("journal.recycle")
    }

    fn write(&mut self, run: &[(Place, Record<'_>)], watermark: u64) -> io::Result<()> {
        let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) else { return Ok(()) };
        if first.opens {
            self.recycle(first.segment, first.sequence, watermark)?;
        }
        let active = self.active.as_mut().filter(|active| active.number == first.segment);
        let active = active.ok_or_else(|| io::Error::other("the place is in another segment"))?;
        self.buffer.clear();
        for (place, record) in run {
            if place.offset != first.offset + self.buffer.len() as u64 {
                return Err(io::Error::other("the places do not follow one another"));
            }
            record.encode(place.sequence, active.salt, &mut self.buffer);
        }
        self.buffer.extend_from_slice(&Mark::end(last.sequence + 1).encode(active.salt).0);
        failpoint::pass("journal.write")?;
        active.note(watermark)?;
        active.file.write_all_at(&self.buffer, first.offset)?;
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER);
        failpoint::pass("journal.written")?;
        active.sync()?;
        failpoint::pass("journal.synced")?;
        self.is_there()
    }

    /// Writes the watermark, without making it safe: it is the next commit's company.
    ///
    /// # Errors
    /// Always [`CommitError::Failed`].
    pub(crate) fn note(&mut self, watermark: u64) -> Result<(), CommitError> {
        self.refuse_broken()?;
        let noted = self.active.as_mut().map_or(Ok(()), |active| active.note(watermark));
        self.check(noted)
    }

    /// Makes all that was written safe on disk: for the end.
    ///
    /// # Errors
    /// Always [`CommitError::Failed`].
    pub(crate) fn sync(&mut self) -> Result<(), CommitError> {
        self.refuse_broken()?;
        let synced = self.active.as_ref().map_or(Ok(()), Active::sync);
        self.check(synced)
    }

    /// Makes a spare, with all its blocks, safe on disk.
    ///
    /// # Errors
    /// No room, mostly; what was made of it is removed.
    pub(crate) fn create(&mut self, segment: u32) -> io::Result<()> {
        files::create(&self.directory, segment, self.segment, Fill::Fingerprint)
    }

    /// Deletes segments that were released, the oldest first.
    pub(crate) fn delete(&mut self, segments: &[u32]) {
        for segment in segments {
            // One that stays is written over when its number is used again.
            let _ = fs::remove_file(files::path(&self.directory, *segment));
        }
    }

    /// Fails where somebody has removed the journal: what is written would be gone with this process.
    ///
    /// # Errors
    /// It is not there.
    pub(crate) fn is_there(&self) -> io::Result<()> {
        let file = self.active.as_ref().map_or(&self.handle, |active| &active.file);
        if file.metadata()?.nlink() == 0 {
            let error = io::Error::new(io::ErrorKind::NotFound, "somebody has removed the journal");
            return Err(at(&self.directory, &error));
        }
        Ok(())
    }

    /// Makes spares at the start until so many bytes of records fit, as far as the limit allows; says how many do.
    ///
    /// # Errors
    /// No room, mostly; what was made so far stays.
    pub(crate) fn allocate(&mut self, layout: &mut SegmentAllocator, bytes: u64) -> io::Result<u64> {
        while layout.left() < bytes {
            let Some(number) = layout.grow() else { break };
            let made = files::create(&self.directory, number, self.segment, Fill::Reserved);
            layout.grown(number, made.is_ok());
            made?;
        }
        Ok(layout.left())
    }
}

impl Active {
    fn note(&mut self, watermark: u64) -> io::Result<()> {
        if watermark == self.slot.watermark {
            return Ok(());
        }
        let slot = WatermarkSlot { counter: self.slot.counter + 1, watermark };
        let (offset, bytes) = slot.place(self.salt);
        self.file.write_all_at(&bytes, offset)?;
        self.slot = slot;
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        failpoint::pass("journal.sync")?;
        self.file.sync_data()
    }
}
