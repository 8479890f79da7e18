//! The life of segments: rolling over, recycling, the limit, other settings, a full disk, a removed directory.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::queue::journal::tests::rig::{Rig, record};
use crate::queue::journal::{CommitError, Fill, Settings};

const SEGMENT: u64 = 8192;

fn text(sequence: u64) -> String {
    format!("{sequence}:{}", "x".repeat(usize::try_from(sequence * 37 % 1400).unwrap()))
}

#[test]
fn gives_back_what_it_took_over_many_segments_and_never_passes_its_limit() {
    let mut rig = Rig::new(5 * SEGMENT, SEGMENT);
    let mut opened = 0;
    for sequence in 1..=400 {
        if let Some(number) = rig.layout.wants_spare() {
            let made = rig.writer.create(number, Fill::Zeroed).is_ok();
            rig.layout.prepared(number, made);
        }
        opened += u32::from(rig.append(&text(sequence)).starts_segment);
        assert!(rig.disk() <= 5 * SEGMENT);
        assert_eq!(rig.disk(), rig.layout.total());
        // A backlog that grows and shrinks.
        if sequence % 5 == 0 {
            let expected: Vec<_> = (rig.first..=sequence).map(|sequence| (sequence, text(sequence))).collect();
            assert_eq!(rig.bodies(), expected);
            rig.settle(sequence - sequence % 4);
            assert_eq!(rig.disk(), rig.layout.total());
        }
        if sequence % 100 == 50 {
            rig.writer.note(rig.first).unwrap();
            let (first, next) = (rig.first, rig.layout.next());
            rig = rig.reopen();
            assert_eq!((rig.first, rig.layout.next(), rig.damaged), (first, next, 0));
        }
    }
    assert!(opened > 60, "{opened}");
}

#[test]
fn is_full_at_its_limit_and_takes_more_once_something_is_settled() {
    let mut rig = Rig::new(3 * SEGMENT, SEGMENT);
    let body = "x".repeat(3900);
    for _ in 0..3 {
        rig.append(&body);
    }
    assert_eq!(rig.reserve(&body), None);
    assert_eq!((rig.disk(), rig.layout.capacity()), (3 * SEGMENT, 3 * SEGMENT));
    rig.settle(2);
    assert!(rig.append(&body).starts_segment);
    assert_eq!(rig.disk(), 3 * SEGMENT);
    // The watermark is in no segment but the recycled one, and the oldest does not exist any more: that is no loss.
    let mut rig = rig.reopen();
    assert_eq!((rig.first, rig.damaged), (2, 0));
    assert_eq!(rig.bodies().len(), 3);
}

#[test]
fn takes_the_sequence_of_the_oldest_segment_where_the_watermark_is_older() {
    let mut rig = Rig::new(2 * SEGMENT, SEGMENT);
    let body = "x".repeat(3900);
    rig.append(&body);
    rig.append(&body);
    let deleted = rig.layout.release(2);
    assert!(deleted.is_empty());
    let place = rig.reserve(&body).unwrap();
    // The writer got an older watermark.
    rig.writer.commit(&[(place, record(3, &body))], 1).unwrap();
    let mut rig = rig.reopen();
    assert_eq!((rig.first, rig.damaged), (2, 0));
    assert_eq!(rig.read_all().damaged, 0);
}

#[test]
fn opens_what_other_settings_left_and_keeps_to_the_new_limit() {
    let mut rig = Rig::new(8 * SEGMENT, SEGMENT);
    let mut sequence = 0;
    for (max_bytes, segment_bytes) in
        [(8 * SEGMENT, SEGMENT), (20 * SEGMENT, 2 * SEGMENT), (9 * SEGMENT, SEGMENT), (40 * SEGMENT, 3 * SEGMENT)]
    {
        rig.writer.note(rig.first).unwrap();
        let expected = rig.bodies();
        rig = rig.reopen_after(Settings { max_bytes, segment_bytes }, |_| {});
        assert_eq!((rig.bodies(), rig.damaged), (expected, 0));
        for _ in 0..60 {
            sequence += 1;
            rig.append(&text(sequence));
            rig.settle(sequence.saturating_sub(5).max(1));
            assert_eq!(rig.disk(), rig.layout.total());
            assert!(rig.disk() <= max_bytes);
        }
        assert_eq!(rig.bodies().len(), 6);
    }
}

#[test]
fn leaves_no_gap_of_settled_records_where_a_segment_of_another_size_is_deleted() {
    let settings = |segment_bytes| Settings { max_bytes: 8 * SEGMENT, segment_bytes };
    let body = "x".repeat(3900);
    let mut rig = Rig::new(8 * SEGMENT, SEGMENT);
    rig.append(&body);
    rig = rig.reopen_after(settings(2 * SEGMENT), |_| {});
    rig.append(&body);
    rig = rig.reopen_after(settings(SEGMENT), |_| {});
    let active = [rig.append(&body), rig.append(&body), rig.append(&body)][2].segment;
    rig.settle(rig.layout.next() - 1);
    // The watermark was not written, so the rest of the settled ones is read again, and nothing is missed.
    let mut rig = rig.reopen();
    let batch = rig.read_all();
    assert_eq!((batch.damaged, batch.next), (0, 6), "{:?}", batch.findings);
    assert!(rig.path(active).exists());
}

#[test]
fn deletes_spares_that_a_smaller_limit_has_no_room_for() {
    let mut rig = Rig::new(8 * SEGMENT, SEGMENT);
    assert!(rig.writer.allocate(&mut rig.layout, 8 * SEGMENT).unwrap() < 8 * SEGMENT);
    assert_eq!((rig.disk(), rig.layout.total()), (8 * SEGMENT, 8 * SEGMENT));
    let rig = rig.reopen_after(Settings { max_bytes: 3 * SEGMENT, segment_bytes: SEGMENT }, |_| {});
    assert_eq!((rig.disk(), rig.layout.total()), (3 * SEGMENT, 3 * SEGMENT));
}

#[test]
fn makes_room_for_so_many_bytes_at_the_start_and_uses_it() {
    let mut rig = Rig::new(8 * SEGMENT, SEGMENT);
    let room = rig.writer.allocate(&mut rig.layout, 15_000).unwrap();
    assert_eq!((room, rig.disk()), (4 * (SEGMENT - 4096 - 16), 4 * SEGMENT));
    let body = "x".repeat(3900);
    for _ in 0..4 {
        rig.append(&body);
    }
    assert_eq!(rig.disk(), 4 * SEGMENT, "nothing else was made");
    let mut rig = rig.reopen();
    assert_eq!(rig.bodies().len(), 4);
}

#[test]
fn forgets_a_run_that_no_segment_could_be_made_for_and_goes_on_later() {
    let mut rig = Rig::new(4 * SEGMENT, SEGMENT);
    let body = "x".repeat(3900);
    rig.append(&body);
    // An obstacle in place of the next file.
    fs::create_dir(rig.path(1)).unwrap();
    let place = rig.reserve(&body).unwrap();
    let later = rig.reserve(&body).unwrap();
    let refused = rig.writer.commit(&[(place, record(2, &body))], 1);
    assert!(matches!(&refused, Err(CommitError::NoSpace(_))), "{refused:?}");
    assert!(refused.unwrap_err().to_string().contains("00000001.segment"));
    rig.layout.undo(&place);
    assert!(later.sequence == 3 && rig.layout.next() == 2);
    fs::remove_dir(rig.path(1)).unwrap();
    rig.append("{}");
    let place = rig.append(&body);
    assert!(place.starts_segment && place.sequence == 3);
    let mut rig = rig.reopen();
    assert_eq!((rig.bodies().len(), rig.damaged), (3, 0));
}

#[test]
fn acknowledges_nothing_once_the_journal_was_removed() {
    let mut rig = Rig::new(4 * SEGMENT, SEGMENT);
    rig.writer.is_there().unwrap();
    rig.append("{}");
    fs::remove_dir_all(rig.directory()).unwrap();
    let place = rig.reserve("{}").unwrap();
    let failed = rig.writer.commit(&[(place, record(2, "{}"))], 1);
    assert!(matches!(&failed, Err(CommitError::Failed(_))), "{failed:?}");
    assert!(rig.writer.is_there().is_err());
    let again = rig.writer.commit(&[(place, record(2, "{}"))], 1);
    assert!(again.unwrap_err().to_string().contains("a write failed before"), "nothing is tried again");
    let mut rig = Rig::new(4 * SEGMENT, SEGMENT);
    fs::remove_dir_all(rig.directory()).unwrap();
    let place = rig.reserve("{}").unwrap();
    assert!(matches!(rig.writer.commit(&[(place, record(1, "{}"))], 1), Err(CommitError::Failed(_))));
}

#[test]
fn keeps_others_out_of_its_files() {
    let mut rig = Rig::new(4 * SEGMENT, SEGMENT);
    rig.append("{}");
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(rig.directory()), mode(rig.path(0))), (0o700, 0o600));
}

#[test]
fn reads_what_is_committed_while_the_writer_goes_on_and_recycles() {
    let mut rig = Rig::new(4 * SEGMENT, SEGMENT);
    let mut place = 1;
    for sequence in 1..=300 {
        rig.append(&text(sequence));
        if sequence % 3 == 0 {
            // The reader reaches the end mark, and passes it once something follows it.
            let batch = rig.reader.read(place, sequence + 1, 2, 1 << 20).unwrap();
            let bodies: Vec<_> = batch.records.iter().map(|stored| stored.body.len()).collect();
            let expected: Vec<_> = (place..batch.next).map(|sequence| text(sequence).len()).collect();
            assert_eq!((bodies, batch.damaged), (expected, 0));
            let next = rig.reader.read(batch.next, sequence + 1, 10, 1 << 20).unwrap();
            assert_eq!((next.next, next.damaged), (sequence + 1, 0), "{:?}", next.findings);
            place = next.next;
            rig.settle(place);
        }
    }
    assert_eq!(rig.reader.read(place, place, 1, 1).unwrap().records.len(), 0);
}

#[test]
fn reads_on_one_thread_what_another_writes_and_recycles() {
    const LAST: u64 = 600;
    let mut rig = Rig::new(4 * SEGMENT, SEGMENT);
    let (committed, settled) = (AtomicU64::new(1), AtomicU64::new(1));
    let (layout, writer, reader) = (&mut rig.layout, &mut rig.writer, &mut rig.reader);
    // Both sides end if the other one fails.
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            while layout.next() <= LAST && settled.load(Ordering::Acquire) < u64::MAX {
                let watermark = settled.load(Ordering::Acquire);
                writer.delete(&layout.release(watermark));
                let body = text(layout.next());
                let Some(place) = layout.reserve(record(layout.next(), &body).length()) else {
                    thread::yield_now();
                    continue;
                };
                writer.commit(&[(place, record(place.sequence, &body))], watermark).unwrap();
                committed.store(layout.next(), Ordering::Release);
            }
        });
        let mut next = 1;
        let mut findings = Vec::new();
        while next <= LAST && findings.is_empty() {
            let finished = writing.is_finished();
            let end = committed.load(Ordering::Acquire);
            assert!(!finished || end > LAST, "the writer failed");
            if end == next {
                thread::yield_now();
            }
            let batch = reader.read(next, end, 5, 2000).unwrap();
            findings.extend(batch.findings);
            for stored in &batch.records {
                let right = stored.sequence == next && *stored.body == *text(next).as_bytes();
                findings.extend((!right).then(|| format!("{next} is {stored:?}")));
                next += 1;
            }
            settled.store(if findings.is_empty() { next } else { u64::MAX }, Ordering::Release);
        }
        assert_eq!(findings, [] as [&str; 0]);
    });
}

#[test]
fn reads_from_anywhere_and_gives_one_record_however_large() {
    let mut rig = Rig::new(8 << 20, 2 << 20);
    let large = "x".repeat(1 << 20);
    for sequence in 1..=4 {
        rig.append(if sequence == 2 { &large } else { "{}" });
    }
    for from in [4, 2, 1, 3] {
        let batch = rig.reader.read(from, 5, 10, 1).unwrap();
        assert_eq!((batch.records.len(), batch.records[0].sequence, batch.next), (1, from, from + 1));
    }
    assert_eq!(rig.read_all().records[1].body.len(), 1 << 20);
}

#[test]
fn counts_what_no_segment_has() {
    let mut rig = Rig::new(4 * SEGMENT, SEGMENT);
    rig.append("{}");
    fs::remove_file(rig.path(0)).unwrap();
    let batch = rig.read_all();
    assert_eq!((batch.next, batch.damaged, batch.findings.len()), (2, 1, 1));
}

/// The segment of the first two was used again after these were chosen to be read.
#[test]
fn finds_what_is_there_behind_two_records_that_are_gone() {
    let mut rig = Rig::new(4 * SEGMENT, SEGMENT);
    // Two of these fill a segment.
    for _ in 0..5 {
        rig.append(&"x".repeat(1500));
    }
    rig.settle(3);
    for _ in 0..2 {
        rig.append(&"x".repeat(1500));
    }
    let batch = rig.reader.find(&[1, 2, 3, 5], usize::MAX).unwrap();
    assert_eq!(batch.records.iter().map(|stored| stored.sequence).collect::<Vec<_>>(), [3, 5]);
}
