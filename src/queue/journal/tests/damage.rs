//! Every kind of damage: it never prevents a start, only the damaged records are lost, and the damage is reported.

use std::fs;
use std::path::Path;

use crate::process::failpoint::set_unreadable_here;
use crate::queue::journal::format::{HEADER_BYTES, Header, Mark, WatermarkSlot};
use crate::queue::journal::tests::rig::{Rig, record};
use crate::queue::journal::{Settings, is_unreadable, open, verify};

const SETTINGS: Settings = Settings { max_bytes: 4 * 8192, segment_bytes: 8192 };
const BODIES: [&str; 3] = ["{\"event\":\"one\"}", "{\"event\":\"two, longer\"}", "{\"event\":\"three\"}"];

/// A journal of one segment with three records, and their offsets; the last is the offset of the end mark.
fn three() -> (Rig, [usize; 4]) {
    let mut rig = Rig::new(SETTINGS.max_bytes, SETTINGS.segment_bytes);
    let mut places = [0; 4];
    for (at, body) in BODIES.iter().enumerate() {
        let place = rig.append(body);
        places[at] = usize::try_from(place.offset).unwrap();
        places[at + 1] = places[at] + usize::try_from(record(place.sequence, body).length()).unwrap();
    }
    (rig, places)
}

fn segment(journal: &Path) -> std::path::PathBuf {
    journal.join("00000000.segment")
}

/// The findings of a start with these bytes of the one segment: sequences read, damage reported by start and reader.
struct Recovered {
    rig: Rig,
    read: Vec<u64>,
    damaged: u64,
}

fn start_with(bytes: &[u8]) -> Recovered {
    let rig = Rig::new(SETTINGS.max_bytes, SETTINGS.segment_bytes);
    let mut rig = rig.reopen_after(SETTINGS, |journal| fs::write(segment(journal), bytes).unwrap());
    let batch = rig.read_all();
    let damaged = rig.damaged + batch.damaged;
    assert_eq!(rig.findings.len() + batch.findings.len() > 0, damaged > 0, "{:?} {batch:?}", rig.findings);
    for stored in &batch.records {
        let index = usize::try_from(stored.sequence - 1).unwrap();
        assert_eq!(&*stored.body, BODIES[index].as_bytes(), "a body is right or absent");
    }
    let read = batch.records.iter().map(|stored| stored.sequence).collect();
    Recovered { rig, read, damaged }
}

/// Checks that an opened journal takes records and returns them, and that its next start finds no damage at the end.
fn continues(found: Recovered) {
    let mut rig = found.rig;
    let next = rig.layout.next();
    rig.append("{\"event\":\"after\"}");
    assert_eq!(rig.bodies().last().unwrap(), &(next, "{\"event\":\"after\"}".to_owned()));
    let mut rig = rig.reopen();
    assert_eq!((rig.damaged, rig.layout.next()), (0, next + 1), "{:?}", rig.findings);
    assert_eq!(rig.bodies().last().unwrap().0, next);
}

fn bytes_of(rig: &Rig) -> Vec<u8> {
    fs::read(rig.path(0)).unwrap()
}

#[test]
fn loses_of_a_flipped_byte_only_the_record_that_it_hit_and_tells_it() {
    let (rig, places) = three();
    let sound = bytes_of(&rig);
    let end = places[3] + 16;
    let in_header = |at: usize| at < places[0];
    // The two copies, and both watermark slots (one is used so far).
    let with_meaning = |at: usize| at % 512 < if at < 1024 { 44 } else { 20 } && at < 2048;
    for at in (0..2048).filter(|at| with_meaning(*at)).chain(places[0]..end) {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x20;
        let found = start_with(&bytes);
        let hit = (0..3).find(|record| (places[*record]..places[record + 1]).contains(&at));
        let expected: Vec<u64> =
            (1..=3).filter(|sequence| Some(sequence - 1) != hit.map(|hit| hit as u64)).collect();
        // Zeros behind a record's sum have no meaning.
        let is_padding = hit.is_some_and(|hit| {
            let length = Mark::decode(&sound[places[hit]..places[hit] + 16]).length as usize;
            at >= places[hit] + 16 + length + 4
        });
        if is_padding {
            assert_eq!((found.read.as_slice(), found.damaged), (&[1, 2, 3][..], 0), "byte {at}");
        } else if in_header(at) {
            assert_eq!((found.read.as_slice(), found.damaged), (&[1, 2, 3][..], 1), "byte {at}");
        } else {
            assert_eq!((&found.read, found.damaged), (&expected, 1), "byte {at}");
        }
        if at % 16 == 3 {
            continues(found);
        }
    }
}

#[test]
fn verifies_what_is_damaged_and_where_and_changes_nothing() {
    let (rig, places) = three();
    let report = verify(&rig.directory()).unwrap();
    assert_eq!((report.records(), report.unsettled(), report.damaged(), report.next), (3, 3, 0, 4));
    let mut bytes = bytes_of(&rig);
    bytes[places[1] + 30] ^= 1;
    fs::write(rig.path(0), &bytes).unwrap();
    let report = verify(&rig.directory()).unwrap();
    assert_eq!((report.records(), report.damaged(), report.lost()), (2, 1, 1));
    assert_eq!(report.segments[0].damage[0].offset, places[1] as u64);
    let json = report.to_json();
    assert_eq!(
        (json["sound"].as_bool(), json["segments"][0]["damage"][0]["records"].as_u64()),
        (Some(false), Some(1))
    );
    bytes[places[3]] ^= 1;
    bytes[7] ^= 1;
    fs::write(rig.path(0), &bytes).unwrap();
    assert_eq!(verify(&rig.directory()).unwrap().damaged(), 3, "also the end and a header");
    assert_eq!(bytes_of(&rig), bytes);
}

#[test]
fn counts_the_record_that_a_cut_file_lacks() {
    let (rig, places) = three();
    let sound = bytes_of(&rig);
    for length in places[2]..places[3] {
        let found = start_with(&sound[..length]);
        assert_eq!((found.read.as_slice(), found.rig.layout.next()), (&[1, 2][..], 4), "cut at {length}");
        assert_eq!(found.damaged, 2, "the record and the torn end, cut at {length}");
        let mut rig = found.rig;
        let place = rig.append("{}");
        assert!(place.starts_segment && place.sequence == 4, "no records are appended to a truncated file");
        let mut rig = rig.reopen();
        assert_eq!(rig.bodies().last(), Some(&(4, "{}".into())));
    }
    for length in [0, 1, 43, 44, 600, 4095, 4096, 4097] {
        start_with(&sound[..length]);
    }
}

#[test]
fn forgets_a_last_commit_that_was_never_complete() {
    let (rig, places) = three();
    let sound = bytes_of(&rig);
    // The file keeps its length: bytes that a crash did not write are those from before, mostly zeros.
    for length in places[2]..places[3] {
        let mut bytes = sound.clone();
        bytes[length..].fill(0);
        let found = start_with(&bytes);
        let whole = bytes[places[2]..places[3]] == sound[places[2]..places[3]];
        let next = if whole { 4 } else { 3 };
        assert_eq!((found.rig.layout.next(), found.damaged), (next, 1), "zeros from {length}");
        continues(found);
    }
}

#[test]
fn takes_zeros_and_garbage_behind_the_end_for_nothing() {
    let (rig, places) = three();
    let sound = bytes_of(&rig);
    let garbage = |bytes: &mut [u8]| {
        bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = at.to_le_bytes()[0].wrapping_mul(151) ^ 7);
    };
    let mut bytes = sound.clone();
    garbage(&mut bytes[places[3] + 16..]);
    let found = start_with(&bytes);
    assert_eq!((found.read.as_slice(), found.damaged), (&[1, 2, 3][..], 0));
    continues(found);
    let mut bytes = sound.clone();
    garbage(&mut bytes[places[3]..]);
    let found = start_with(&bytes);
    assert_eq!((found.read.as_slice(), found.damaged), (&[1, 2, 3][..], 1), "the end mark itself");
    continues(found);
}

#[test]
fn does_not_take_what_an_incomplete_commit_left_behind_the_end_for_records() {
    let (mut rig, places) = three();
    let before = bytes_of(&rig);
    let run: Vec<_> = (4..6).map(|_| rig.reserve("{\"event\":\"torn\"}").unwrap()).collect();
    let records: Vec<_> =
        run.iter().map(|place| (*place, record(place.sequence, "{\"event\":\"torn\"}"))).collect();
    rig.writer.commit(&records, 1).unwrap();
    // Only later parts of it reached the disk: the end mark of the previous commit still exists.
    let mut bytes = bytes_of(&rig);
    bytes[places[3]..places[3] + 16].copy_from_slice(&before[places[3]..places[3] + 16]);
    let found = start_with(&bytes);
    assert_eq!((found.read.as_slice(), found.damaged), (&[1, 2, 3][..], 0));
    let mut rig = found.rig;
    let place = rig.append("{}");
    let mut bytes = bytes_of(&rig);
    let end = usize::try_from(place.offset + record(4, "{}").length()).unwrap();
    bytes[end] ^= 1;
    let rig = rig.reopen_after(SETTINGS, |journal| fs::write(segment(journal), bytes).unwrap());
    assert_eq!((rig.layout.next(), rig.damaged), (5, 1), "the old record 5 does not reappear");
}

#[test]
fn keeps_the_sound_records_of_a_torn_commit_and_counts_those_between() {
    let (rig, places) = three();
    let mut bytes = bytes_of(&rig);
    bytes[places[0]..places[1]].fill(0);
    bytes[places[3]..places[3] + 16].fill(0);
    let found = start_with(&bytes);
    assert_eq!((found.read.as_slice(), found.damaged), (&[2, 3][..], 2));
}

#[test]
fn does_not_stop_at_an_empty_file_or_at_garbage() {
    for (name, content, damaged) in [
        ("00000007.segment", &b""[..], 1),
        ("00000007.segment", &[0; 100], 1),
        ("00000007.segment", &[0; 8192], 0),
        ("00000007.new", b"", 0),
        ("00000007.new", &[0; 100], 0),
        ("00000007.segment", &[7; 8192], 1),
        ("00000007.segment", &[7; 100], 1),
        ("notes.txt", b"what a person left", 0),
        ("7.segment", b"not our name", 0),
    ] {
        let (rig, _) = three();
        let mut rig = rig.reopen_after(SETTINGS, |journal| fs::write(journal.join(name), content).unwrap());
        assert_eq!((rig.damaged, rig.findings.len() as u64), (damaged, damaged), "{name}");
        assert_eq!(rig.bodies().len(), 3);
        for _ in 0..5 {
            rig.append(&" ".repeat(1500));
            rig.settle(rig.layout.next() - 1);
        }
        assert!(rig.disk() <= SETTINGS.max_bytes + 18, "with the files that are not segments");
    }
}

#[test]
fn counts_a_segment_that_was_cut_off_to_nothing_as_damaged_once() {
    let (rig, _) = three();
    let cut = |rig: Rig| rig.reopen_after(SETTINGS, |journal| fs::write(segment(journal), b"").unwrap());
    let rig = cut(rig);
    assert_eq!((rig.damaged, rig.findings.len()), (1, 1), "{:?}", rig.findings);
    assert!(rig.findings[0].contains("00000000.segment"), "{:?}", rig.findings);
    let mut rig = rig.reopen();
    assert_eq!(rig.damaged, 0, "it was reported");
    rig.append("{}");
    fs::write(rig.path(0), b"").unwrap();
    assert_eq!(verify(&rig.directory()).unwrap().damaged(), 1);
}

#[test]
fn loses_of_a_segment_without_a_header_its_own_records_alone() {
    let mut rig = Rig::new(SETTINGS.max_bytes, SETTINGS.segment_bytes);
    // Two of these fill a segment.
    for _ in 0..5 {
        rig.append(&"x".repeat(1500));
    }
    let mut rig = rig.reopen_after(SETTINGS, |journal| {
        let path = journal.join("00000001.segment");
        let mut bytes = fs::read(&path).unwrap();
        bytes[..1024].fill(1);
        fs::write(path, bytes).unwrap();
    });
    assert_eq!((rig.damaged, rig.layout.next()), (1, 6));
    let batch = rig.read_all();
    assert_eq!((batch.damaged, batch.findings.len()), (2, 1), "{batch:?}");
    assert_eq!(batch.records.iter().map(|stored| stored.sequence).collect::<Vec<_>>(), [1, 2, 5]);
}

#[test]
fn tells_the_damaged_end_mark_of_a_segment_that_was_left_and_loses_nothing() {
    let mut rig = Rig::new(SETTINGS.max_bytes, SETTINGS.segment_bytes);
    let places: Vec<_> = (0..3).map(|_| rig.append(&"x".repeat(1500))).collect();
    let end = usize::try_from(places[1].offset + record(2, &"x".repeat(1500)).length()).unwrap();
    let mut bytes = bytes_of(&rig);
    bytes[end + 9] ^= 1;
    fs::write(rig.path(0), bytes).unwrap();
    let batch = rig.read_all();
    assert_eq!((batch.records.len(), batch.damaged, batch.findings.len()), (3, 0, 1), "{:?}", batch.findings);
    assert_eq!(verify(&rig.directory()).unwrap().damaged(), 1);
}

#[test]
fn falls_back_to_the_oldest_record_where_the_watermark_is_damaged() {
    let (mut rig, _) = three();
    rig.writer.note(2).unwrap();
    let mut rig = rig.reopen();
    assert_eq!(rig.first, 2);
    rig.writer.note(3).unwrap();
    let rig = rig.reopen_after(SETTINGS, |journal| {
        let mut bytes = fs::read(segment(journal)).unwrap();
        bytes[1024] ^= 1;
        bytes[1536 + 8] ^= 1;
        fs::write(segment(journal), bytes).unwrap();
    });
    assert_eq!((rig.first, rig.damaged, rig.findings.len()), (1, 1, 1));
    assert_eq!(rig.reopen().damaged, 0, "reported once");
}

#[test]
fn goes_on_above_a_watermark_that_is_above_all_records() {
    let (mut rig, places) = three();
    rig.writer.note(4).unwrap();
    let mut bytes = bytes_of(&rig);
    bytes[places[1]..].fill(0);
    let found = start_with(&bytes);
    assert_eq!((found.rig.first, found.rig.layout.next(), found.read.len()), (4, 4, 0));
    let mut rig = found.rig;
    rig.append("{\"event\":\"new\"}");
    let mut rig = rig.reopen();
    assert_eq!(
        rig.bodies(),
        [(4, "{\"event\":\"new\"}".to_owned())],
        "a new record is never taken for a settled one"
    );
}

#[test]
fn refuses_only_a_sound_header_of_another_version() {
    let (rig, _) = three();
    let journal = rig.directory();
    let header = Header { size: 8192, salt: 1, first: 9 };
    let mut block = header.block(&WatermarkSlot::default());
    block[8] = 2;
    let sum = crc32c::crc32c(&block[..40]);
    for at in [0, 512] {
        block[at + 8] = 2;
        block[at + 40..at + 44].copy_from_slice(&sum.to_le_bytes());
    }
    let path = journal.join("00000001.segment");
    let mut bytes = block.to_vec();
    bytes.resize(8192, 0);
    fs::write(&path, &bytes).unwrap();
    let error = open(&journal, &SETTINGS).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("is of version 2") && text.contains("reads version 1") && text.contains("00000001"),
        "{text}"
    );
    assert_eq!(verify(&journal).unwrap_err().to_string(), text);
    for at in [0, 512] {
        bytes[at + 20] ^= 1;
    }
    fs::write(&path, &bytes).unwrap();
    let opened = open(&journal, &SETTINGS).unwrap();
    assert_eq!((opened.damaged, opened.recovered), (1, 1..4), "an unsound one says nothing");
    assert_eq!(HEADER_BYTES, 4096);
}

#[test]
fn skips_a_block_that_cannot_be_read_and_appends_behind_it_in_another_segment() {
    let mut rig = Rig::new(1 << 20, 64 << 10);
    for _ in 0..60 {
        rig.append(&"y".repeat(400));
    }
    set_unreadable_here(&[("journal.unreadable", 9000)]);
    let mut rig = rig.reopen();
    assert_eq!((rig.damaged, rig.layout.next()), (1, 61), "{:?}", rig.findings);
    assert!(rig.findings[0].contains("the block at byte 8192 cannot be read"), "{:?}", rig.findings);
    let place = rig.append("fresh");
    assert!(place.starts_segment && place.sequence == 61, "{place:?}");
    let end = rig.layout.next();
    let error = rig.reader.read(1, end, 100, 1 << 20).unwrap_err();
    assert!(is_unreadable(&error) && error.to_string().contains(".segment: "), "{error}");
    rig.reader.skip_unreadable();
    let batch = rig.reader.read(1, end, 100, 1 << 20).unwrap();
    assert!((8..=10).contains(&batch.damaged), "{} of 400 bytes in 4 KiB", batch.damaged);
    assert_eq!((batch.next, batch.records.len() as u64 + batch.damaged), (62, 61));
    assert!(batch.findings.iter().any(|text| text.contains("the block at byte 8192")), "{:?}", batch.findings);
    let report = verify(&rig.directory()).unwrap();
    assert_eq!(report.lost(), batch.damaged, "{report:?}");
    set_unreadable_here(&[]);
}

#[test]
fn takes_a_disk_that_gives_no_header_back_for_a_failing_one() {
    let mut rig = Rig::new(1 << 20, 64 << 10);
    rig.append("a");
    let journal = rig.directory();
    set_unreadable_here(&[("journal.unreadable", 0)]);
    assert!(open(&journal, &Settings { max_bytes: 1 << 20, segment_bytes: 64 << 10 }).is_err());
    rig.reader.skip_unreadable();
    assert!(rig.reader.read(1, 2, 100, 1 << 20).is_err(), "nothing is skipped where nothing can be read");
    set_unreadable_here(&[]);
    assert_eq!(rig.bodies().len(), 1, "nothing was lost");
}
