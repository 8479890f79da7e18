//! The files of the journal's directory: their names and header blocks, and how they are created.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::process::{failpoint, state_directory};
use crate::queue::journal::format::{BLOCK_LENGTH, HeaderBlock, index};

const SUFFIX: &str = ".segment";
/// The extension of a segment that is being created.
const NEW: &str = "new";
/// The size of the pieces in which zeros are written.
const PIECE: usize = 1 << 20;

fn name(number: u32) -> String {
    format!("{number:08}{SUFFIX}")
}

/// The path of a segment.
pub(super) fn path(directory: &Path, number: u32) -> PathBuf {
    directory.join(name(number))
}

/// The numbers of all segments, in no order. Other files are ignored.
pub(super) fn list(directory: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        let file_name = entry?.file_name();
        let number = file_name.to_str().and_then(|text| text.strip_suffix(SUFFIX)?.parse().ok());
        if let Some(number) = number
            && *file_name == *name(number)
        {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

/// A segment as found on disk.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u32,
    /// The length of the file, whatever its header says.
    pub(super) length: u64,
    pub(super) block: HeaderBlock,
}

/// Opens a segment for reading and reads its header block; none if the file does not exist (any more).
pub(super) fn read_header(directory: &Path, number: u32) -> io::Result<Option<(File, Segment)>> {
    let path = path(directory, number);
    let named = |error| at(&path, &error);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(named(error)),
    };
    let metadata = file.metadata().map_err(named)?;
    if !metadata.is_file() {
        return Ok(None);
    }
    let mut bytes = [0; BLOCK_LENGTH];
    failpoint::unreadable("journal.header", number.into(), u64::from(number) + 1).map_err(named)?;
    read_some(&file, &mut bytes, 0).map_err(named)?;
    let segment = Segment { number, length: metadata.len(), block: HeaderBlock::parse(&bytes) };
    Ok(Some((file, segment)))
}

/// A segment whose header is in an unreadable block.
#[derive(Debug)]
pub(super) struct UnreadableSegment {
    pub(super) number: u32,
    pub(super) error: io::Error,
}

/// All segments that exist now, and those with an unreadable header block. If no header at all can be read, the disk
/// has failed, not a block.
pub(super) fn read_headers(directory: &Path) -> io::Result<(Vec<Segment>, Vec<UnreadableSegment>)> {
    let (mut segments, mut unreadable) = (Vec::new(), Vec::new());
    for number in list(directory).map_err(|error| at(directory, &error))? {
        match read_header(directory, number) {
            Ok(Some((_, segment))) => segments.push(segment),
            Ok(None) => {}
            Err(error) if is_unreadable(&error) => unreadable.push(UnreadableSegment { number, error }),
            Err(error) => return Err(error),
        }
    }
    if segments.is_empty()
        && let Some(UnreadableSegment { error, .. }) = unreadable.pop()
    {
        return Err(error);
    }
    segments.sort_unstable_by_key(|segment| (segment.block.header.map(|header| header.first), segment.number));
    Ok((segments, unreadable))
}

/// Whether the error means that the disk, or the checksums of its file system, cannot return the block.
#[must_use]
pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    let known = [Errno::IO, Errno::BADMSG, Errno::UCLEAN].map(|errno| Some(errno.raw_os_error()));
    known.contains(&cause(error).raw_os_error())
}

/// The error of the system, without the path.
pub(super) fn cause(error: &io::Error) -> &io::Error {
    error.get_ref().and_then(|inner| inner.downcast_ref::<Placed>()).map_or(error, |placed| &placed.error)
}

/// Reads until the buffer is full or the file ends; returns the number of bytes.
pub(super) fn read_some(file: &File, buffer: &mut [u8], from: u64) -> io::Result<usize> {
    failpoint::unreadable("journal.unreadable", from, from + buffer.len() as u64)?;
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], from + length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// The length of the next piece of a range, which may be empty.
fn piece_length(from: u64, to: u64) -> usize {
    index(to.saturating_sub(from).min(PIECE as u64))
}

/// Writes zeros.
pub(super) fn zero(file: &File, from: u64, to: u64) -> io::Result<()> {
    let piece = vec![0; piece_length(from, to)];
    let mut offset = from;
    while offset < to {
        let length = piece_length(offset, to);
        file.write_all_at(&piece[..length], offset)?;
        offset += length as u64;
    }
    Ok(())
}

/// Rewrites bytes of a file in place, so that a later sync makes them safe whatever happened to earlier syncs.
pub(super) fn write_again(file: &File, range: Range<u64>) -> io::Result<()> {
    let mut offset = range.start;
    let mut piece = vec![0; piece_length(offset, range.end)];
    while offset < range.end {
        let length = piece_length(offset, range.end);
        let read = read_some(file, &mut piece[..length], offset)?;
        if read == 0 {
            break;
        }
        file.write_all_at(&piece[..read], offset)?;
        offset += read as u64;
    }
    Ok(())
}

/// The way in which a new file gets its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    /// Zeros are written: later writes change nothing but data.
    Zeroed,
    /// The room is reserved, which is quick; the first write to each block costs a little more.
    Reserved,
}

/// Creates a new segment with all its blocks, safe on disk. It has its name only then: a segment that is too short was cut
/// off, never partly created. The remains of a failure are removed.
pub(super) fn create(directory: &Path, number: u32, size: u64, how: Fill) -> io::Result<()> {
    let path = path(directory, number);
    let new = path.with_extension(NEW);
    let made = make(&new, size, how)
        .and_then(|()| fs::rename(&new, &path))
        .and_then(|()| state_directory::sync_directory(directory));
    if made.is_err() {
        // It holds nothing, and what cannot be removed now is overwritten by the next attempt.
        let _ = fs::remove_file(&new);
        let _ = fs::remove_file(&path);
    }
    made.map_err(|error| at(&path, &error))
}

/// Removes what a crash left of segments that were being created.
pub(super) fn remove_new(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == NEW) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn make(path: &Path, size: u64, how: Fill) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    failpoint::pass("journal.create")?;
    // Also when zeros are written: a disk without room is not filled to its last block first.
    let reserved = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size)
        .map(|()| true)
        .or_else(|error| if error == Errno::OPNOTSUPP { Ok(false) } else { Err(error) })?;
    if how == Fill::Zeroed || !reserved {
        zero(&file, 0, size)?;
    }
    file.sync_all()
}

/// An I/O error with its path.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", path.display())]
struct Placed {
    path: PathBuf,
    error: io::Error,
}

/// Adds the path to an I/O error.
pub(super) fn at(path: &Path, error: &io::Error) -> io::Error {
    let inner = match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    };
    io::Error::new(error.kind(), Placed { path: path.to_owned(), error: inner })
}
