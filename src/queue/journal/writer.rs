//! Writing: one commit is one write and one fdatasync for all waiting events. Runs on the writer's thread alone.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;

use crate::process::{failpoint, is_exhausted};
use crate::queue::journal::files::{self, Fill, at};
use crate::queue::journal::format::{HEADER_BYTES, Header, Mark, WatermarkSlot};
use crate::queue::journal::record::Record;
use crate::queue::journal::segments::{Place, SegmentAllocator};

/// The largest buffer that is kept: an idle writer need not hold the memory of one large commit.
const BUFFER: usize = 1 << 20;

/// The reasons why a commit did not happen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommitError {
    /// No segment could be created or opened for it. Nothing of this run is written: undo its places and try later.
    #[error("failed to make another segment of the journal: {0}; {advice}", advice = advice(.0))]
    NoSpace(io::Error),
    /// Final: the state on disk is unknown, and trying again would not reveal it.
    #[error(
        "failed to write the journal: {0}; check the disk, then start again: all that was acknowledged is kept"
    )]
    Failed(io::Error),
}

fn advice(error: &io::Error) -> &'static str {
    if is_exhausted(files::cause(error)) {
        "raise the limit of open files or of memory"
    } else {
        "free some disk space there"
    }
}

/// The segment to which records are written.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) number: u32,
    pub(super) file: File,
    pub(super) salt: u64,
    /// The watermark as last written.
    pub(super) slot: WatermarkSlot,
}

/// Writes records, watermarks and segments.
#[derive(Debug)]
pub(crate) struct Writer {
    directory: PathBuf,
    /// Kept open, so that its removal is noticed even when there is no segment.
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
        let opened = first.starts_segment.then(|| self.make(first.segment)).transpose()?;
        let written = self.write(run, watermark, opened);
        self.check(written)
    }

    fn refuse_broken(&self) -> Result<(), CommitError> {
        if self.broken {
            let error = io::Error::other("a write failed before");
            return Err(CommitError::Failed(at(&self.directory, &error)));
        }
        Ok(())
    }

    /// After an I/O error in an existing segment nothing more is written.
    fn check(&mut self, done: io::Result<()>) -> Result<(), CommitError> {
        done.map_err(|error| {
            self.broken = true;
            let place = self.active.as_ref().map(|active| files::path(&self.directory, active.number));
            CommitError::Failed(at(place.as_ref().unwrap_or(&self.directory), &error))
        })
    }

    /// Opens the segment; creates it if it does not exist as a spare.
    fn make(&mut self, number: u32) -> Result<File, CommitError> {
        let path = files::path(&self.directory, number);
        let created = match fs::metadata(&path) {
            Ok(spare) if spare.len() == self.segment => Ok(()),
            _ => self.create(number, Fill::Zeroed),
        };
        let open = || OpenOptions::new().write(true).open(&path).map_err(|error| at(&path, &error));
        created.and_then(|()| open()).map_err(|error| match error.kind() {
            // These do not disappear by themselves.
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                self.broken = true;
                CommitError::Failed(error)
            }
            // Among these a lack of descriptors, which any sender can cause.
            _ => CommitError::NoSpace(error),
        })
    }

    /// Begins another use of a segment: an end mark, then the header that makes it count, both safe on disk before any
    /// record. In this order a process that ends in between leaves a spare, not a segment with a torn end.
    fn recycle(&mut self, file: File, number: u32, first: u64, watermark: u64) -> io::Result<()> {
        // What freed it must be on disk before its old records go.
        if let Some(active) = self.active.as_mut().filter(|active| active.slot.watermark != watermark) {
            active.note(watermark)?;
            active.file.sync_data()?;
        }
        let header = Header { size: self.segment, salt: fastrand::u64(..), first };
        let slot = WatermarkSlot { counter: 1, watermark };
        file.write_all_at(&Mark::end(first).encode(header.salt).0, HEADER_BYTES)?;
        file.write_all_at(&header.block(&slot), 0)?;
        file.sync_data()?;
        self.active = Some(Active { number, file, salt: header.salt, slot });
        failpoint::pass("journal.recycle")
    }

    /// Writes a run, first the header of the segment that was opened for it.
    fn write(&mut self, run: &[(Place, Record<'_>)], watermark: u64, opened: Option<File>) -> io::Result<()> {
        let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) else { return Ok(()) };
        if let Some(file) = opened {
            self.recycle(file, first.segment, first.sequence, watermark)?;
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

    /// Writes the watermark without fsync; the next commit syncs it.
    ///
    /// # Errors
    /// Always [`CommitError::Failed`].
    pub(crate) fn note(&mut self, watermark: u64) -> Result<(), CommitError> {
        self.refuse_broken()?;
        let noted = self.active.as_mut().map_or(Ok(()), |active| active.note(watermark));
        self.check(noted)
    }

    /// Syncs everything that was written, before the writer ends.
    ///
    /// # Errors
    /// Always [`CommitError::Failed`].
    pub(crate) fn sync(&mut self) -> Result<(), CommitError> {
        self.refuse_broken()?;
        let synced = self.active.as_ref().map_or(Ok(()), Active::sync);
        self.check(synced)
    }

    /// Creates a spare with all its blocks, safe on disk.
    ///
    /// # Errors
    /// Usually the disk is full; the partial file is removed.
    pub(crate) fn create(&mut self, segment: u32, how: Fill) -> io::Result<()> {
        files::create(&self.directory, segment, self.segment, how)
    }

    /// Deletes released segments, the oldest first.
    pub(crate) fn delete(&mut self, segments: &[u32]) {
        for segment in segments {
            // If it cannot be removed, it is overwritten when its number is used again.
            let _ = fs::remove_file(files::path(&self.directory, *segment));
        }
    }

    /// Fails if the journal was removed: records written to it would not survive this process.
    ///
    /// # Errors
    /// The journal does not exist.
    pub(crate) fn is_there(&self) -> io::Result<()> {
        let file = self.active.as_ref().map_or(&self.handle, |active| &active.file);
        if file.metadata()?.nlink() == 0 {
            let error = io::Error::new(io::ErrorKind::NotFound, "the journal has been removed");
            return Err(at(&self.directory, &error));
        }
        Ok(())
    }

    /// Creates spares at the start until this many bytes of records fit, as far as the limit allows; returns how many
    /// fit.
    ///
    /// # Errors
    /// Usually the disk is full; the files created so far stay.
    pub(crate) fn allocate(&mut self, layout: &mut SegmentAllocator, bytes: u64) -> io::Result<u64> {
        let mut made = Ok(());
        while made.is_ok() && layout.left() < bytes {
            let Some(number) = layout.grow() else { break };
            made = files::create(&self.directory, number, self.segment, Fill::Reserved);
            layout.grown(number, made.is_ok());
        }
        layout.keep_existing(bytes);
        made.map(|()| layout.left())
    }
}

impl Active {
    fn note(&mut self, watermark: u64) -> io::Result<()> {
        if watermark == self.slot.watermark {
            return Ok(());
        }
        let slot = WatermarkSlot { counter: self.slot.counter + 1, watermark };
        let (offset, bytes) = slot.place(self.salt);
        self.file.write_all_at(&bytes, offset as u64)?;
        self.slot = slot;
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        failpoint::pass("journal.sync")?;
        self.file.sync_data()
    }
}
