//! Opening: lists the segments, validates headers, finds the append position. Reads only headers and the last segment.

use std::fs::{self, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::process::state_directory;
use crate::queue::journal::files::{self, Fill, Segment};
use crate::queue::journal::format::{BLOCK, Header, MARK_BYTES, Mark, VERSION, index};
use crate::queue::journal::reader::Reader;
use crate::queue::journal::scan::{Item, Records};
use crate::queue::journal::segments::{SegmentAllocator, Used};
use crate::queue::journal::settings::Settings;
use crate::queue::journal::writer::{Active, Writer};

/// The tries to read a header, and the pause between two.
const TRIES: usize = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// An opened journal.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The allocator, for the queue's lock.
    pub(crate) layout: SegmentAllocator,
    /// The writer, for its thread.
    pub(crate) writer: Writer,
    /// The reader, for delivery.
    pub(crate) reader: Reader,
    /// The sequences that are not settled: from the watermark to the next.
    pub(crate) recovered: Range<u64>,
    /// The damage that no sequence accounts for: a torn end, unsound headers and watermarks.
    pub(crate) damaged: u64,
    /// The findings, for the log.
    pub(crate) findings: Vec<String>,
}

/// The state of a directory, as its headers describe it.
#[derive(Debug, Default)]
pub(super) struct DirectoryState {
    /// Segments with a sound header, oldest first.
    pub(super) sound: Vec<(Segment, Header)>,
    /// Segments never used; all zeros.
    pub(super) blank: Vec<Segment>,
    /// Segments with two unsound copies of the header, or cut off before them.
    pub(super) garbage: Vec<Segment>,
    /// The numbers and lengths of segments with an unreadable header block.
    pub(super) unreadable: Vec<(u32, u64)>,
    pub(super) watermark: u64,
    /// The damaged files, with a description.
    pub(super) damage: Vec<(u32, &'static str)>,
}

/// Reads all headers.
pub(super) fn survey(directory: &Path) -> io::Result<DirectoryState> {
    let mut survey = DirectoryState::default();
    let (segments, unreadable) = files::read_headers(directory)?;
    for files::UnreadableSegment { number, .. } in unreadable {
        let length = fs::metadata(files::path(directory, number)).map_or(0, |file| file.len());
        survey.damage.push((number, "its header cannot be read from the disk: what the segment held is lost"));
        survey.unreadable.push((number, length));
    }
    for segment in segments {
        let (number, block) = (segment.number, &segment.block);
        if let Some(version) = block.unknown {
            return Err(io::Error::other(format!(
                "{} is of version {version} of the journal's format, and this program reads version {VERSION}; start the \
                 plextrac-bridge that wrote it (or a later one), or move the directory away",
                files::path(directory, number).display()
            )));
        }
        let Some(header) = block.header else {
            // Segments get their name when they are whole: one without a whole header block was cut off.
            if block.blank && segment.length >= BLOCK {
                survey.blank.push(segment);
            } else {
                let text = if block.blank {
                    "the file is cut off: what the segment held is lost"
                } else {
                    "both copies of the header are damaged: what the segment held is lost"
                };
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

/// Reads all headers, some more than once, and puts files aside whose header cannot be read: a later start that could read
/// it would take its records for those that have their numbers since.
fn settled_survey(directory: &Path) -> io::Result<DirectoryState> {
    let mut found = survey(directory)?;
    for _ in 1..TRIES {
        if found.unreadable.is_empty() {
            break;
        }
        thread::sleep(PAUSE);
        found = survey(directory)?;
    }
    for (number, _) in &found.unreadable {
        let path = files::path(directory, *number);
        fs::rename(&path, path.with_extension("unreadable")).map_err(|error| files::at(&path, &error))?;
        for (_, text) in found.damage.iter_mut().filter(|(damaged, _)| damaged == number) {
            *text = "its header cannot be read from the disk: what the segment held is lost; the file's name ends in \
                     .unreadable now";
        }
    }
    Ok(found)
}

/// Opens a journal, creates what is missing and repairs a torn end.
///
/// # Errors
/// It cannot be read or written, or another version of this program wrote it. Damage is no error.
pub(crate) fn open(directory: &Path, settings: &Settings) -> io::Result<Opened> {
    state_directory::create_directory(directory).map_err(|error| files::at(directory, &error))?;
    files::remove_new(directory).map_err(|error| files::at(directory, &error))?;
    let survey = settled_survey(directory)?;
    let mut findings: Vec<String> = survey
        .damage
        .iter()
        .map(|(number, text)| format!("{}: {text}", files::path(directory, *number).display()))
        .collect();
    let mut damaged = findings.len() as u64;
    for (segment, header) in &survey.sound {
        if segment.block.uneven || segment.block.unsound_slots > 0 {
            repair_header(directory, segment, header)?;
        }
    }
    let used = |(segment, header): &(Segment, Header)| {
        let limit = header.size.min(segment.length);
        let (number, first, bytes) = (segment.number, header.first, segment.length);
        Used { number, first, bytes, limit, filled: limit, made: true }
    };
    let mut used: Vec<Used> = survey.sound.iter().map(used).collect();
    let (mut next, mut active) = (survey.watermark.max(1), None);
    if let (Some((segment, header)), Some(used)) = (survey.sound.last(), used.last_mut()) {
        let last = resume(directory, segment, *header, survey.watermark)?;
        damaged += last.findings.len() as u64;
        findings.extend(last.findings);
        (next, used.filled, active) = (last.next.max(survey.watermark), last.filled, last.active);
    }
    let first = used.first().map_or(next, |oldest| oldest.first).max(survey.watermark);
    let size = settings.effective_segment();
    let mut layout = SegmentAllocator::new(settings.max_bytes, size, next);
    let writer = Writer::new(directory.to_owned(), size, active)?;
    for segment in survey.blank.iter().chain(&survey.garbage).filter(|segment| segment.length != size) {
        // Cut off, or left from other settings, or not a segment any more.
        let _ = fs::remove_file(files::path(directory, segment.number));
    }
    arrange(directory, &mut layout, used, &survey, first);
    if layout.is_empty()
        && let Some(number) = layout.grow()
    {
        files::create(directory, number, size, Fill::Zeroed)?;
        layout.grown(number, true);
    }
    state_directory::sync_directory(directory)?;
    let reader = Reader::new(directory.to_owned());
    Ok(Opened { layout, writer, reader, recovered: first..next, damaged, findings })
}

/// Adds the existing segments to the layout, and deletes those that the settings have no room for.
fn arrange(directory: &Path, layout: &mut SegmentAllocator, used: Vec<Used>, survey: &DirectoryState, first: u64) {
    let size = layout.segment_bytes();
    let spares = |segments: &[Segment]| -> Vec<u32> {
        segments.iter().filter(|segment| segment.length == size).map(|segment| segment.number).collect()
    };
    for number in spares(&survey.blank) {
        layout.add_spare(number);
    }
    for used in used {
        layout.add_used(used);
    }
    let mut deleted = layout.release(first);
    // Recycled last: an operator may still recover something from them.
    for number in spares(&survey.garbage) {
        layout.add_spare(number);
    }
    deleted.extend(layout.surplus());
    for number in deleted {
        // If it cannot be removed, it is overwritten when its number is used again.
        let _ = fs::remove_file(files::path(directory, number));
    }
}

/// Rewrites the header block from its sound parts, so that its damage is reported once.
fn repair_header(directory: &Path, segment: &Segment, header: &Header) -> io::Result<()> {
    let path = files::path(directory, segment.number);
    let block = header.block(&segment.block.slot.unwrap_or_default());
    // A truncated file does not grow: its size is counted.
    let length = index(segment.length.min(BLOCK));
    let write = || {
        let file = OpenOptions::new().write(true).open(&path)?;
        file.write_all_at(&block[..length], 0)?;
        file.sync_data()
    };
    write().map_err(|error| files::at(&path, &error))
}

/// The segment to which writing continues.
struct Last {
    /// None if the file was truncated: the watermark goes to the next one.
    active: Option<Active>,
    filled: u64,
    next: u64,
    findings: Vec<String>,
}

/// The end of the records in the last segment.
#[derive(Debug)]
struct SegmentEnd {
    /// The offset of the next record.
    offset: u64,
    /// The sequence of the next record.
    next: u64,
    /// There is no sound end mark.
    is_torn: bool,
    /// The offset of the first unsettled record, or of the end.
    unsettled: u64,
}

/// Reads the last segment to its end. All records below the watermark are settled.
fn find_end(records: &mut Records, watermark: u64) -> io::Result<SegmentEnd> {
    let mut unsettled = records.offset();
    // A damaged record counts only if something sound follows it; otherwise it may belong to a commit that was never
    // complete.
    let (mut offset, mut next) = (records.offset(), records.sequence());
    loop {
        match records.next()? {
            Item::Record { sequence, .. } => {
                (offset, next) = (records.offset(), sequence + 1);
                if sequence < watermark {
                    unsettled = offset;
                }
            }
            Item::Damaged { .. } => {}
            Item::End { at, is_marked: true } => {
                return Ok(SegmentEnd { offset: at, next: records.sequence(), is_torn: false, unsettled });
            }
            Item::End { .. } => return Ok(SegmentEnd { offset, next, is_torn: true, unsettled }),
        }
    }
}

/// Finds the end of the last segment, where writing continues, and repairs it if a crash or the disk tore it.
fn resume(directory: &Path, segment: &Segment, header: Header, watermark: u64) -> io::Result<Last> {
    let path = files::path(directory, segment.number);
    let named = |error| files::at(&path, &error);
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(named)?;
    let mut records = Records::new(directory, file.try_clone().map_err(named)?, segment, header);
    let mut end = find_end(&mut records, watermark)?;
    // A file shorter than its header says lacks records.
    let is_short = segment.length < header.size;
    let mut findings = records.take_findings();
    let is_readable = findings.is_empty();
    let mut has_remains = false;
    if end.is_torn {
        if is_short {
            end.next = records.sequence().max(end.next + 1);
        }
        findings.push(format!(
            "{}: the end of the journal is torn at byte {}; its contents were never acknowledged, or the disk \
             damaged them",
            path.display(),
            end.offset
        ));
    } else {
        has_remains = records.has_remains()?;
    }
    // Do not append to a truncated segment: every later start would report a torn end. The same holds for one that
    // lacks records below the watermark (its numbers would have a gap), or that has an unreadable block.
    let lacks = end.next < watermark || end.offset + MARK_BYTES > header.size;
    let is_full = is_short || lacks || !is_readable;
    let repair = || {
        if !is_full && (end.is_torn || has_remains) {
            // Bytes behind the end must not look like a record later.
            files::zero(&file, end.offset + MARK_BYTES, header.size)?;
            file.write_all_at(&Mark::end(end.next).encode(header.salt).0, end.offset)?;
        }
        // The bytes read may be in the page cache only, and a failed sync has marked them as written: the records still
        // to be delivered are written again.
        if is_readable {
            files::write_again(&file, end.unsettled..header.size.min(end.offset + MARK_BYTES))?;
        }
        file.sync_data()
    };
    repair().map_err(named)?;
    let slot = segment.block.slot.unwrap_or_default();
    let active = (!is_short).then_some(Active { number: segment.number, file, salt: header.salt, slot });
    let filled = if is_full { header.size.min(segment.length) } else { end.offset };
    Ok(Last { active, filled, next: end.next, findings })
}
