//! The journal of a test, in a directory of its own, driven as the queue drives it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use crate::queue::journal::{
    Batch, Opened, Place, Reader, Record, SegmentAllocator, Settings, Writer, files, open,
};

/// The time at which the record of this sequence was received.
pub(in crate::queue::journal) fn received(sequence: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000 + sequence)
}

/// A record as the tests write it.
pub(in crate::queue::journal) fn record(sequence: u64, body: &str) -> Record<'_> {
    Record {
        received: received(sequence),
        source: "main",
        signature: Some(&[b'a'; 64]),
        verified: true,
        traceparent: None,
        renewals: 0,
        body: body.as_bytes(),
    }
}

pub(in crate::queue::journal) struct Rig {
    directory: TempDir,
    settings: Settings,
    pub(in crate::queue::journal) layout: SegmentAllocator,
    pub(in crate::queue::journal) writer: Writer,
    pub(in crate::queue::journal) reader: Reader,
    pub(in crate::queue::journal) first: u64,
    pub(in crate::queue::journal) damaged: u64,
    pub(in crate::queue::journal) findings: Vec<String>,
}

impl Rig {
    pub(in crate::queue::journal) fn new(max_bytes: u64, segment_bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { max_bytes, segment_bytes };
        let opened = open(&directory.path().join("journal"), &settings).unwrap();
        assert_eq!((opened.damaged, opened.recovered.clone()), (0, 1..1));
        Self::from(directory, settings, opened)
    }

    fn from(directory: TempDir, settings: Settings, opened: Opened) -> Self {
        let Opened { layout, writer, reader, recovered, damaged, findings } = opened;
        assert_eq!(layout.next(), recovered.end);
        Self { directory, settings, layout, writer, reader, first: recovered.start, damaged, findings }
    }

    pub(in crate::queue::journal) fn directory(&self) -> PathBuf {
        self.directory.path().join("journal")
    }

    /// Ends abruptly and starts again, perhaps with other settings, after `between`.
    pub(in crate::queue::journal) fn reopen_after(self, settings: Settings, between: impl FnOnce(&Path)) -> Self {
        let Self { directory, .. } = self;
        let journal = directory.path().join("journal");
        between(&journal);
        let opened = open(&journal, &settings).unwrap();
        Self::from(directory, settings, opened)
    }

    pub(in crate::queue::journal) fn reopen(self) -> Self {
        let settings = self.settings;
        self.reopen_after(settings, |_| {})
    }

    pub(in crate::queue::journal) fn reserve(&mut self, body: &str) -> Option<Place> {
        self.layout.reserve(record(self.layout.next(), body).length())
    }

    /// Writes one record and syncs it; returns its place.
    pub(in crate::queue::journal) fn append(&mut self, body: &str) -> Place {
        let place = self.reserve(body).unwrap();
        self.writer.commit(&[(place, record(place.sequence, body))], self.first).unwrap();
        place
    }

    /// Settles everything below.
    pub(in crate::queue::journal) fn settle(&mut self, watermark: u64) {
        self.first = watermark;
        let deleted = self.layout.release(watermark);
        self.writer.delete(&deleted);
    }

    pub(in crate::queue::journal) fn read_all(&mut self) -> Batch {
        let end = self.layout.next();
        self.read(self.first, end)
    }

    pub(in crate::queue::journal) fn read(&mut self, from: u64, end: u64) -> Batch {
        let mut all = Batch { next: from, ..Batch::default() };
        while all.next < end {
            let batch = self.reader.read(all.next, end, 3, 5000).unwrap();
            assert!(batch.next > all.next, "a read that does not move: {batch:?}");
            assert_eq!(batch.records.len() as u64 + batch.damaged, batch.next - all.next);
            all.next = batch.next;
            all.damaged += batch.damaged;
            all.records.extend(batch.records);
            all.findings.extend(batch.findings);
        }
        all
    }

    /// The bodies and sequences of all unsettled records.
    pub(in crate::queue::journal) fn bodies(&mut self) -> Vec<(u64, String)> {
        let batch = self.read_all();
        let body = |body: &[u8]| String::from_utf8(body.into()).unwrap();
        batch.records.iter().map(|stored| (stored.sequence, body(&stored.body))).collect()
    }

    /// The sum of the sizes of all files.
    pub(in crate::queue::journal) fn disk(&self) -> u64 {
        fs::read_dir(self.directory()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    }

    pub(in crate::queue::journal) fn path(&self, number: u32) -> PathBuf {
        files::path(&self.directory(), number)
    }
}
