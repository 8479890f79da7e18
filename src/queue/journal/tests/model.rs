//! The journal against a model: a list of what is committed, and a watermark.

use proptest::prelude::*;

use crate::queue::journal::tests::rig::{Rig, record};
use crate::queue::journal::{Fill, Place, Settings, verify};

const SEGMENT: u64 = 8192;
const LIMIT: u64 = 4 * SEGMENT;

#[derive(Clone, Debug)]
enum JournalStep {
    /// Reserves these, commits this many runs of them, and loses the rest as a crash would.
    Append {
        sizes: Vec<usize>,
        runs: usize,
    },
    /// Settles this share of what is held, in percent.
    Settle(u64),
    Note,
    Spare,
    Read {
        most: usize,
    },
    Reopen,
    /// Starts again with segments of this many blocks.
    Resize(u64),
}

fn step() -> impl Strategy<Value = JournalStep> {
    let sizes = prop::collection::vec(prop_oneof![4 => 0_usize..300, 1 => 1000_usize..3900], 1..8);
    prop_oneof![
        6 => (sizes, 0_usize..9).prop_map(|(sizes, runs)| JournalStep::Append { sizes, runs }),
        4 => (0_u64..=100).prop_map(JournalStep::Settle),
        1 => Just(JournalStep::Note),
        1 => Just(JournalStep::Spare),
        3 => (1_usize..20).prop_map(|most| JournalStep::Read { most }),
        2 => Just(JournalStep::Reopen),
        1 => (2_u64..5).prop_map(JournalStep::Resize),
    ]
}

struct JournalModel {
    rig: Rig,
    /// The bodies of the sequences from 1 on.
    bodies: Vec<String>,
    /// The minimum watermark that a start finds.
    persisted: u64,
    segment: u64,
    /// The position at which delivery reads.
    cursor: u64,
}

impl JournalModel {
    fn next(&self) -> u64 {
        self.bodies.len() as u64 + 1
    }

    fn body(&self, sequence: u64) -> &str {
        &self.bodies[usize::try_from(sequence - 1).unwrap()]
    }

    fn append(&mut self, sizes: &[usize], runs: usize) {
        let mut places: Vec<(Place, String)> = Vec::new();
        for size in sizes {
            let body = format!("{}{}", self.rig.layout.next(), "y".repeat(*size));
            match self.rig.reserve(&body) {
                Some(place) => places.push((place, body)),
                None => break,
            }
        }
        let chunks: Vec<_> = places.chunk_by(|(one, _), (other, _)| one.segment == other.segment).collect();
        for (at, run) in chunks.iter().enumerate() {
            if at >= runs {
                self.rig.layout.undo(&run[0].0);
                break;
            }
            let records: Vec<_> = run.iter().map(|(place, body)| (*place, record(place.sequence, body))).collect();
            self.rig.writer.commit(&records, self.rig.first).unwrap();
            self.persisted = self.rig.first;
            self.bodies.extend(run.iter().map(|(_, body)| body.clone()));
        }
        assert_eq!(self.rig.layout.next(), self.next());
    }

    fn read(&mut self, most: usize) {
        let end = self.next();
        self.cursor = self.cursor.max(self.rig.first).min(end);
        let batch = self.rig.reader.read(self.cursor, end, most, 2000).unwrap();
        assert_eq!((batch.damaged, batch.next), (0, self.cursor + batch.records.len() as u64), "{batch:?}");
        for (stored, sequence) in batch.records.iter().zip(self.cursor..) {
            assert_eq!((stored.sequence, &*stored.body), (sequence, self.body(sequence).as_bytes()));
        }
        assert_eq!(batch.records.is_empty(), self.cursor == end);
        self.cursor = batch.next;
    }

    fn reopen(self, segment: u64) -> Self {
        let Self { rig, bodies, persisted, .. } = self;
        let last = rig.first;
        let rig = rig.reopen_after(Settings { max_bytes: LIMIT, segment_bytes: segment }, |_| {});
        assert_eq!((rig.damaged, rig.layout.next()), (0, bodies.len() as u64 + 1), "{:?}", rig.findings);
        assert!(rig.first >= persisted && rig.first <= last, "{} of {persisted}..={last}", rig.first);
        let (persisted, cursor) = (rig.first, rig.first);
        Self { rig, bodies, persisted, segment, cursor }
    }

    fn check(&mut self) {
        assert!(self.rig.disk() <= LIMIT);
        assert_eq!(self.rig.disk(), self.rig.layout.total());
        assert!(self.rig.layout.bytes() <= self.rig.layout.total());
    }

    fn check_all(&mut self) {
        let expected: Vec<_> =
            (self.rig.first..self.next()).map(|sequence| (sequence, self.body(sequence).to_owned())).collect();
        assert_eq!(self.rig.bodies(), expected);
        let report = verify(&self.rig.directory()).unwrap();
        assert_eq!(report.damaged(), 0, "{report:?}");
        assert!(report.unsettled() >= expected.len() as u64);
        assert_eq!(report.next, self.next());
    }
}

fn run(steps: &[JournalStep]) {
    let rig = Rig::new(LIMIT, SEGMENT);
    let mut model = JournalModel { rig, bodies: Vec::new(), persisted: 1, segment: SEGMENT, cursor: 1 };
    for step in steps {
        match step {
            JournalStep::Append { sizes, runs } => model.append(sizes, *runs),
            JournalStep::Settle(percent) => {
                let held = model.next() - model.rig.first;
                model.rig.settle(model.rig.first + held * percent / 100);
            }
            JournalStep::Note => {
                model.rig.writer.note(model.rig.first).unwrap();
                // Before the first record there is no segment to write it to.
                model.persisted = model.rig.first;
            }
            JournalStep::Spare => {
                if let Some(number) = model.rig.layout.wants_spare() {
                    model.rig.writer.create(number, Fill::Zeroed).unwrap();
                    model.rig.layout.prepared(number, true);
                }
            }
            JournalStep::Read { most } => model.read(*most),
            JournalStep::Reopen => {
                let segment = model.segment;
                model = model.reopen(segment);
            }
            JournalStep::Resize(blocks) => model = model.reopen(blocks * 4096),
        }
        model.check();
    }
    model.check_all();
}

proptest! {
    #![proptest_config(ProptestConfig {
        // PROPTEST_CASES sets more for the long run.
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn agrees_with_a_list(steps in prop::collection::vec(step(), 1..40)) {
        run(&steps);
    }
}
