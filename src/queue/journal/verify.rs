//! Verification of a whole journal without changing it: every record of every segment in use.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::queue::journal::files::{self, Segment};
use crate::queue::journal::format::{Header, VERSION};
use crate::queue::journal::open::{DirectoryState, survey};
use crate::queue::journal::scan::{Item, Records, describe};

/// The number of attempts: a running daemon recycles and writes segments while they are read, so apparent damage is
/// checked again.
const ATTEMPTS: usize = 3;

/// One damaged place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    /// The offset in the file.
    pub(crate) offset: u64,
    /// The number of sequences without a sound record because of it.
    pub(crate) records: u64,
    /// A description of the damage.
    pub(crate) text: String,
}

/// One segment in use.
#[derive(Clone, Debug)]
pub(crate) struct SegmentReport {
    /// Its file.
    pub(crate) file: PathBuf,
    /// The sequence that it starts with; none if its header is damaged.
    pub(crate) first: Option<u64>,
    /// The number of sound records.
    pub(crate) records: u64,
    /// The number of those below the watermark.
    pub(crate) settled: u64,
    /// The size on disk.
    pub(crate) bytes: u64,
    /// The damage found.
    pub(crate) damage: Vec<Damage>,
}

/// The result of a verification.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// The segments in use, oldest first.
    pub(crate) segments: Vec<SegmentReport>,
    /// The number of segments without unsettled records, waiting to be used (again).
    pub(crate) spares: u64,
    /// The oldest unsettled sequence.
    pub(crate) watermark: u64,
    /// The sequence of the next record.
    pub(crate) next: u64,
    /// The size of all files.
    pub(crate) bytes: u64,
}

impl SegmentReport {
    /// A segment of which nothing but its header was read.
    fn new(directory: &Path, survey: &DirectoryState, number: u32, bytes: u64, first: Option<u64>) -> Self {
        let file = files::path(directory, number);
        let mut report = Self { file, first, records: 0, settled: 0, bytes, damage: Vec::new() };
        for (_, text) in survey.damage.iter().filter(|(damaged, _)| *damaged == number) {
            report.note(0, 0, *text);
        }
        report
    }

    fn note(&mut self, offset: u64, records: u64, text: impl Into<String>) {
        self.damage.push(Damage { offset, records, text: text.into() });
    }
}

impl Report {
    fn sum(&self, of: impl Fn(&SegmentReport) -> u64) -> u64 {
        self.segments.iter().map(of).sum()
    }

    /// Whether there is no file of a journal.
    pub(crate) fn is_none(&self) -> bool {
        self.segments.is_empty() && self.spares == 0
    }

    /// The number of sound records in segments in use.
    pub(crate) fn records(&self) -> u64 {
        self.sum(|segment| segment.records)
    }

    /// The number of sound records that were settled.
    pub(crate) fn settled(&self) -> u64 {
        self.sum(|segment| segment.settled)
    }

    /// The number of sound records still to be published.
    pub(crate) fn unsettled(&self) -> u64 {
        self.records() - self.settled()
    }

    /// The number of damaged places.
    pub(crate) fn damaged(&self) -> u64 {
        self.sum(|segment| segment.damage.len() as u64)
    }

    /// The number of sequences without a sound record.
    pub(crate) fn lost(&self) -> u64 {
        self.sum(|segment| segment.damage.iter().map(|damage| damage.records).sum())
    }

    /// The report as JSON.
    pub(crate) fn to_json(&self) -> Value {
        let damage =
            |damage: &Damage| json!({ "offset": damage.offset, "records": damage.records, "text": damage.text });
        let segment = |segment: &SegmentReport| {
            json!({
                "file": segment.file.display().to_string(),
                "first": segment.first,
                "records": segment.records,
                "settled": segment.settled,
                "bytes": segment.bytes,
                "damage": segment.damage.iter().map(damage).collect::<Vec<_>>(),
            })
        };
        json!({
            "version": VERSION,
            "sound": self.damaged() == 0,
            "segments": self.segments.iter().map(segment).collect::<Vec<_>>(),
            "spares": self.spares,
            "records": self.records(),
            "settled": self.settled(),
            "unsettled": self.unsettled(),
            "damaged": self.damaged(),
            "lost": self.lost(),
            "watermark": self.watermark,
            "next": self.next,
            "bytes": self.bytes,
        })
    }
}

/// Reads a whole journal, also while a daemon writes it; changes nothing.
///
/// # Errors
/// It cannot be read, or another version of this program wrote it.
pub(crate) fn verify(directory: &Path) -> io::Result<Report> {
    let mut report = read_all(directory)?;
    for _ in 1..ATTEMPTS {
        if report.damaged() == 0 {
            break;
        }
        report = read_all(directory)?;
    }
    Ok(report)
}

fn read_all(directory: &Path) -> io::Result<Report> {
    let survey = survey(directory)?;
    let mut report = Report {
        segments: Vec::new(),
        spares: survey.blank.len() as u64,
        watermark: survey.watermark,
        next: survey.watermark.max(1),
        bytes: bytes(&survey),
    };
    let mut expected = survey.sound.first().map_or(1, |(_, header)| header.first).max(survey.watermark);
    report.watermark = expected;
    for (at, (segment, header)) in survey.sound.iter().enumerate() {
        let following = survey.sound.get(at + 1).map(|(_, header)| header.first);
        if following.is_some_and(|first| first <= survey.watermark) {
            report.spares += 1;
            continue;
        }
        let mut found = SegmentReport::new(directory, &survey, segment.number, segment.length, Some(header.first));
        if header.first > expected {
            found.note(0, header.first - expected, "the records before it are lost");
        }
        let end = walk(directory, segment, *header, following, survey.watermark, &mut found)?;
        expected = following.map_or(end, |first| end.min(first)).max(survey.watermark);
        report.next = report.next.max(expected);
        report.segments.push(found);
    }
    let garbage = survey.garbage.iter().map(|segment| (segment.number, segment.length));
    for (number, length) in garbage.chain(survey.unreadable.iter().copied()) {
        report.segments.push(SegmentReport::new(directory, &survey, number, length, None));
    }
    Ok(report)
}

fn bytes(survey: &DirectoryState) -> u64 {
    let sound = survey.sound.iter().map(|(segment, _)| segment);
    let found = sound.chain(&survey.blank).chain(&survey.garbage).map(|segment| segment.length);
    found.chain(survey.unreadable.iter().map(|(_, length)| *length)).sum()
}

/// Reads all records of a segment; returns the sequence after the last.
fn walk(
    directory: &Path,
    segment: &Segment,
    header: Header,
    following: Option<u64>,
    watermark: u64,
    found: &mut SegmentReport,
) -> io::Result<u64> {
    let Some((file, _)) = files::read_header(directory, segment.number)? else { return Ok(header.first) };
    let mut records = Records::new(directory, file, segment, header);
    let is_last = following.is_none();
    loop {
        match records.next()? {
            Item::Record { sequence, .. } => {
                found.records += 1;
                found.settled += u64::from(sequence < watermark);
            }
            Item::Damaged { sequences, at } => {
                found.note(at, sequences.end - sequences.start, describe(&sequences));
            }
            Item::End { is_marked: true, .. } => break,
            Item::End { at, .. } => {
                let text = if is_last {
                    "the end is torn: its contents were never acknowledged, or the disk damaged them"
                } else {
                    "no sound end mark; missing records are reported with the next segment"
                };
                found.note(at, 0, text);
                break;
            }
        }
    }
    for block in records.take_skipped() {
        found.note(block, 0, "the block cannot be read from the disk");
    }
    if records.is_recycled()? {
        found.damage.clear();
    }
    Ok(records.sequence())
}
