//! The start: what is there, what of it is sound, where to go on. Only headers are read, and the last segment.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::process::state_directory;
use crate::queue::journal::chain::{SegmentScanner, UnreadableBlocks};
use crate::queue::journal::files::{self, Fill, Segment};
use crate::queue::journal::format::{Header, MARK_BYTES, Mark, VERSION};
use crate::queue::journal::layout::{SegmentAllocator, Used};
use crate::queue::journal::reader::Reader;
use crate::queue::journal::settings::Settings;
use crate::queue::journal::tail;
use crate::queue::journal::writer::{Active, Writer};

/// Why a journal cannot be opened. Damage is no reason.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Another version of this program wrote it.
    #[error(
        "{} is of version {version} of the journal's format, and this program reads version {VERSION}; start the \
         plextrac-bridge that wrote it (or a later one), or move the directory away", file.display()
    )]
    Version {
        /// The segment that says so.
        file: PathBuf,
        /// What it says.
        version: u32,
    },
    /// It cannot be read or written.
    #[error("failed to open the journal: {0}")]
    Io(#[from] io::Error),
}

/// A journal that was opened.
#[derive(Debug)]
pub(crate) struct Opened {
    /// For the queue's lock.
    pub(crate) layout: SegmentAllocator,
    /// For the writer's thread.
    pub(crate) writer: Writer,
    /// For delivery.
    pub(crate) reader: Reader,
    /// The sequences that are not settled: from the watermark to the next.
    pub(crate) recovered: Range<u64>,
    /// Damage found that no sequence accounts for: a torn end, unsound headers and watermarks.
    pub(crate) damaged: u64,
    /// What was found, for the log.
    pub(crate) findings: Vec<String>,
}

/// What the headers of a directory say.
#[derive(Debug, Default)]
pub(super) struct DirectoryState {
    /// With a sound header, oldest first.
    pub(super) sound: Vec<(Segment, Header)>,
    /// Never used, or made half; all zeros.
    pub(super) blank: Vec<Segment>,
    /// Both copies of the header are unsound.
    pub(super) garbage: Vec<Segment>,
    /// Numbers and lengths of those whose header is in an unreadable block.
    pub(super) unreadable: Vec<(u32, u64)>,
    pub(super) watermark: u64,
    /// What is damaged: the file, and how.
    pub(super) damage: Vec<(u32, &'static str)>,
}

/// Reads all headers.
pub(super) fn survey(directory: &Path) -> Result<DirectoryState, OpenError> {
    let mut survey = DirectoryState::default();
    let (segments, unreadable) = files::look_at_all(directory)?;
    for files::UnreadableSegment { number, .. } in unreadable {
        let length = fs::metadata(files::path(directory, number)).map_or(0, |file| file.len());
        survey.damage.push((number, "its header cannot be read from the disk: what the segment held is lost"));
        survey.unreadable.push((number, length));
    }
    for segment in segments {
        let (number, block) = (segment.number, &segment.block);
        if let Some(version) = block.unknown {
            return Err(OpenError::Version { file: files::path(directory, number), version });
        }
        let Some(header) = block.header else {
            if block.blank {
                survey.blank.push(segment);
            } else {
                let text = "both copies of the header are damaged: what the segment held is lost";
                survey.damage.push((number, text));
                survey.garbage.push(segment);
            }
            continue;
        };
        if block.unsound_copies > 0 {
            survey.damage.push((number, "one copy of the header is damaged; the other is sound"));
        }
        if block.unsound_slots > 0 {
            let text = "a watermark is damaged: what was settled since the one before is published again";
            survey.damage.push((number, text));
        }
        survey.watermark = survey.watermark.max(block.slot.map_or(0, |slot| slot.watermark));
        survey.sound.push((segment, header));
    }
    Ok(survey)
}

/// Opens a journal, makes what is missing of it and mends what is torn.
///
/// # Errors
/// See [`OpenError`].
pub(crate) fn open(directory: &Path, settings: &Settings) -> Result<Opened, OpenError> {
    state_directory::create_directory(directory).map_err(|error| files::at(directory, &error))?;
    let survey = survey(directory)?;
    let mut findings: Vec<String> = survey
        .damage
        .iter()
        .map(|(number, text)| format!("{}: {text}", files::path(directory, *number).display()))
        .collect();
    let mut damaged = findings.len() as u64;
    for (segment, header) in &survey.sound {
        if segment.block.uneven || segment.block.unsound_slots > 0 {
            mend(directory, segment, header)?;
        }
    }
    let mut next = survey.watermark.max(1);
    let mut used = Vec::new();
    let mut active = None;
    for (at, (segment, header)) in survey.sound.iter().enumerate() {
        let limit = header.size.min(segment.length);
        let (number, first, bytes) = (segment.number, header.first, segment.length);
        used.push(Used { number, first, bytes, limit, filled: limit, made: true });
        if at + 1 == survey.sound.len() {
            let last = last(directory, segment, *header, survey.watermark)?;
            damaged += last.findings.len() as u64;
            findings.extend(last.findings);
            next = last.next.max(survey.watermark);
            if let Some(used) = used.last_mut() {
                used.filled = last.filled;
            }
            active = last.active;
        }
    }
    let first = used.first().map_or(next, |oldest| oldest.first).max(survey.watermark);
    let size = settings.effective_segment();
    let mut layout = SegmentAllocator::new(settings.max_bytes, size, next);
    let writer = Writer::new(directory.to_owned(), size, active)?;
    for segment in survey.blank.iter().chain(&survey.garbage).filter(|segment| segment.length != size) {
        // Made half, or left from other settings, or no segment at all any more.
        let _ = fs::remove_file(files::path(directory, segment.number));
    }
    arrange(directory, &mut layout, used, &survey, first);
    if layout.is_empty()
        && let Some(number) = layout.grow()
    {
        files::create(directory, number, size, Fill::Fingerprint)?;
        layout.grown(number, true);
    }
    state_directory::sync_directory(directory)?;
    let reader = Reader::new(directory.to_owned());
    Ok(Opened { layout, writer, reader, recovered: first..next, damaged, findings })
}

/// Tells the layout what is there, and deletes what the settings have no room for.
fn arrange(directory: &Path, layout: &mut SegmentAllocator, used: Vec<Used>, survey: &DirectoryState, first: u64) {
    let size = layout.segment_bytes();
    let spares = |segments: &[Segment]| -> Vec<u32> {
        segments.iter().filter(|segment| segment.length == size).map(|segment| segment.number).collect()
    };
    for (number, length) in &survey.unreadable {
        layout.add_unusable(*number, *length);
    }
    for number in spares(&survey.blank) {
        layout.add_spare(number);
    }
    for used in used {
        layout.add_used(used);
    }
    let mut deleted = layout.release(first);
    // Recycled last: a person may still find something in them.
    for number in spares(&survey.garbage) {
        layout.add_spare(number);
    }
    deleted.extend(layout.surplus());
    for number in deleted {
        // One that stays is written over when its number is used again.
        let _ = fs::remove_file(files::path(directory, number));
    }
}

/// Writes the header's block again from what of it is sound, so that its damage is told once.
fn mend(directory: &Path, segment: &Segment, header: &Header) -> io::Result<()> {
    let path = files::path(directory, segment.number);
    let block = header.block(&segment.block.slot.unwrap_or_default());
    // A file that was cut does not grow: its size is counted.
    let length = usize::try_from(segment.length).unwrap_or(usize::MAX).min(block.len());
    let write = || {
        let file = OpenOptions::new().write(true).open(&path)?;
        file.write_all_at(&block[..length], 0)?;
        file.sync_data()
    };
    write().map_err(|error| files::at(&path, &error))
}

/// The segment in which writing goes on.
struct Last {
    /// None where the file was cut: the watermark goes to the next one.
    active: Option<Active>,
    filled: u64,
    next: u64,
    findings: Vec<String>,
}

fn last(directory: &Path, segment: &Segment, header: Header, watermark: u64) -> io::Result<Last> {
    let path = files::path(directory, segment.number);
    let read = || -> io::Result<Last> {
        let short = segment.length < header.size;
        let mut chain = SegmentScanner::new(File::open(&path)?, header, segment.length);
        chain.handle_unreadable(UnreadableBlocks::Skip);
        let tail = tail::find(&mut chain, short, watermark)?;
        let unreadable = chain.take_skipped();
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        // Do not append to a truncated segment: every later start would report a torn end. Nor to one that lacks records
        // below the watermark (its numbers would have a gap), or that has an unreadable block.
        let lacks = tail.next < watermark || tail.offset + MARK_BYTES > header.size;
        let full = short || lacks || !unreadable.is_empty();
        if !full && (tail.torn || tail.stale) {
            // Nothing behind the end may look like a record later.
            files::zero(&file, tail.offset + MARK_BYTES, header.size)?;
            file.write_all_at(&Mark::end(tail.next).encode(header.salt).0, tail.offset)?;
        }
        // What was read may be in the page cache only, and a sync that failed has marked it as written: the records that
        // are still to be delivered are written again.
        if unreadable.is_empty() {
            files::write_again(&file, tail.unsettled..header.size.min(tail.offset + MARK_BYTES))?;
        }
        file.sync_data()?;
        let unread =
            unreadable.iter().map(|block| format!("{}: the block at byte {block} cannot be read", path.display()));
        let torn = tail.torn.then(|| {
            format!(
                "{}: the end of the journal is torn at byte {}; what stood there was never acknowledged, or the disk \
                 damaged it",
                path.display(),
                tail.offset
            )
        });
        let slot = segment.block.slot.unwrap_or_default();
        let active = (!short).then_some(Active { number: segment.number, file, salt: header.salt, slot });
        let filled = if full { header.size.min(segment.length) } else { tail.offset };
        Ok(Last { active, filled, next: tail.next, findings: unread.chain(torn).collect() })
    };
    read().map_err(|error| files::at(&path, &error))
}
