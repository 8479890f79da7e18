//! Restarts after an interruption: no event is lost, and no old record is taken for a new one.

use std::fs::{self, File};

use crate::process::failpoint::set_unreadable_here;
use crate::queue::journal::tests::rig::{Rig, record};
use crate::queue::journal::{Record, Settings};

/// Its records are unknown to the start, and their numbers are given to others.
#[test]
fn never_reads_again_what_a_start_could_not_read() {
    let mut rig = Rig::new(1 << 20, 8192);
    let body = "x".repeat(3900);
    let last = [rig.append(&body), rig.append(&body)][1];
    assert_eq!((last.sequence, last.segment), (2, 1));
    set_unreadable_here(&[("journal.header", last.segment.into())]);
    let mut rig = rig.reopen();
    assert_eq!((rig.damaged, rig.layout.next()), (1, 2), "{:?}", rig.findings);
    assert!(rig.directory().join("00000001.unreadable").exists());
    assert!(rig.findings[0].contains("00000001.segment: its header") && rig.findings[0].contains(".unreadable"));
    set_unreadable_here(&[]);
    for body in ["other", "another"] {
        rig.append(body);
    }
    let expected = [(1, body), (2, "other".to_owned()), (3, "another".to_owned())];
    assert_eq!(rig.bodies(), expected);
    let mut rig = rig.reopen();
    assert_eq!((rig.damaged, rig.bodies().as_slice()), (0, &expected[..]));
}

/// The order on disk: first that they are settled, then the end of the old records.
#[test]
fn loses_nothing_where_the_reuse_of_a_segment_is_interrupted() {
    let mut rig = Rig::new(2 * 8192, 8192);
    let body = "x".repeat(3900);
    rig.append(&body);
    rig.append(&body);
    rig.settle(2);
    let (reused, last) = (rig.path(0), rig.path(1));
    let before = fs::read(&reused).unwrap();
    rig.append(&body);
    let noted = fs::read(&last).unwrap();
    // The header of the reused one was not written, and its first record is overwritten.
    let mut torn = fs::read(&reused).unwrap();
    torn[..4096].copy_from_slice(&before[..4096]);
    let mut rig = rig.reopen_after(Settings { max_bytes: 2 * 8192, segment_bytes: 8192 }, |_| {
        fs::write(&reused, &torn).unwrap();
        fs::write(&last, &noted).unwrap();
    });
    assert_eq!((rig.damaged, rig.first, rig.bodies()), (0, 2, vec![(2, body)]), "{:?}", rig.findings);
}

#[test]
fn finds_one_event_however_often_a_crash_came_before_the_watermark() {
    let mut rig = Rig::new(1 << 20, 64 << 10);
    for renewals in [0, 1, 1, 1] {
        for event in 1..=2 {
            let body = format!("event {event}");
            let record = Record { renewals, ..record(event, &body) };
            let place = rig.layout.reserve(record.length()).unwrap();
            rig.writer.commit(&[(place, record)], 1).unwrap();
        }
    }
    for (from, renewed, repeated) in [(1, vec![], vec![3, 4, 5, 6, 7, 8]), (3, vec![3, 4], vec![5, 6, 7, 8])] {
        let found = rig.reader.renewals(&(from..9)).unwrap();
        let sequences: Vec<u64> = found.renewed.iter().map(|record| record.sequence).collect();
        assert_eq!((sequences, found.repeated), (renewed, repeated));
    }
}

#[test]
fn writes_again_at_the_start_what_is_still_to_be_delivered() {
    let mut rig = Rig::new(1 << 20, 64 << 10);
    rig.append("settled");
    rig.append("not settled");
    rig.settle(2);
    rig.writer.note(2).unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH;
    let path = rig.path(0);
    File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    let mut rig = rig.reopen();
    assert!(fs::metadata(&path).unwrap().modified().unwrap() > old, "an earlier sync may have failed");
    assert_eq!(rig.bodies(), [(2, "not settled".to_owned())]);
}
