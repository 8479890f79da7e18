//! Bytes of the journal changed while the bridge is stopped: it starts, delivers what is sound, and counts what is not.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;

use crate::support::{LIMIT, Load, Payload, Setup, request_once};

/// The offset of the first record in a segment; before that are its headers at 0 and 512, and the watermarks at 1024
/// and 1536.
const RECORDS: usize = 4096;

fn journaled(setup: Setup) -> Setup {
    setup.text("ack", "journaled").text("journal.max_bytes", "2MiB").text("publish.timeout", "60s")
}

/// The change of the file.
#[derive(Clone, Debug)]
enum Change {
    Flip(usize),
    Zero(Range<usize>),
    Garbage(Range<usize>),
    Cut(usize),
}

impl Change {
    fn make(&self, path: &Path) {
        let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut write = |at: usize, bytes: &[u8]| {
            file.seek(SeekFrom::Start(at as u64)).unwrap();
            file.write_all(bytes).unwrap();
        };
        match self {
            Self::Flip(at) => {
                let byte = byte(path, *at);
                write(*at, &[byte ^ 1]);
            }
            Self::Zero(range) => write(range.start, &vec![0; range.len()]),
            Self::Garbage(range) => {
                let bytes: Vec<u8> = range.clone().map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
                write(range.start, &bytes);
            }
            Self::Cut(length) => file.set_len(*length as u64).unwrap(),
        }
    }
}

fn byte(path: &Path, at: usize) -> u8 {
    let mut file = File::open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.read_exact(&mut byte).unwrap();
    byte[0]
}

/// Whether missing events must have been counted as damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    Yes,
    /// The end of a log that was cut off or zeroed looks like one that was never written.
    Unknowable,
}

/// A change, and which of the three events may be missing then.
#[derive(Clone, Debug)]
struct Case {
    change: Change,
    may_miss: &'static [usize],
    counted: Counted,
}

/// Three events in the journal, their bodies, and their positions in their file.
struct Three {
    setup: Setup,
    bodies: Vec<Vec<u8>>,
    segment: PathBuf,
    places: Vec<Range<usize>>,
}

impl Three {
    fn new() -> Self {
        let setup = journaled(Setup::on_missing_files());
        let daemon = setup.start();
        let bodies: Vec<Vec<u8>> =
            (0..3).map(|number| Payload::new(format!("cuid-{number}")).body_of(250 + number)).collect();
        for body in &bodies {
            assert_eq!(request_once(&daemon, body, &[]).status, 200);
        }
        daemon.kill();
        let find = |bytes: &[u8], body: &[u8]| bytes.windows(body.len()).position(|window| window == body);
        for (path, _) in setup.segments() {
            let bytes = fs::read(&path).unwrap();
            let head = &bytes[..bytes.len().min(64 << 10)];
            if let Some(first) = find(head, &bodies[0]) {
                let place = |body: &Vec<u8>| find(head, body).map(|at| at..at + body.len());
                let places: Vec<Range<usize>> = bodies.iter().filter_map(place).collect();
                assert!(places.len() == 3 && first >= RECORDS, "the bodies stand at {places:?}");
                let segment = path.strip_prefix(setup.directory()).unwrap().to_owned();
                return Self { setup, bodies, segment, places };
            }
        }
        panic!("no body in any segment: {:?}", setup.segments());
    }

    fn cases(&self) -> Vec<Case> {
        let [first, second, third] = [0, 1, 2].map(|at| self.places[at].clone());
        let flips = |range: Range<usize>, count: usize, may_miss: &'static [usize]| {
            let step = (range.len() / count).max(1);
            range.step_by(step).take(count).map(move |at| case(Change::Flip(at), may_miss)).collect::<Vec<_>>()
        };
        let case_of_body = |body: &Range<usize>, may_miss| {
            [body.start, body.start + body.len() / 2, body.end - 1]
                .map(|at| case(Change::Flip(at), may_miss))
                .to_vec()
        };
        let tail = |change| Case { counted: Counted::Unknowable, ..case(change, &[2]) };
        let mut cases = [
            // Headers of the segment and watermarks stand twice.
            [0, 9, 31, 512, 521, 1024, 1031, 1536, 1543].map(|at| case(Change::Flip(at), &[])).to_vec(),
            vec![case(Change::Zero(0..512), &[]), case(Change::Garbage(512..1024), &[])],
            vec![case(Change::Zero(1024..2048), &[]), case(Change::Garbage(1024..2048), &[])],
            flips(RECORDS..first.start, 5, &[0]),
            case_of_body(&first, &[0]),
            flips(first.end..second.start, 7, &[0, 1]),
            case_of_body(&second, &[1]),
            flips(second.end..third.start, 7, &[1, 2]),
            case_of_body(&third, &[2]),
            flips(third.end..third.end + 4, 2, &[2]),
        ]
        .concat();
        cases.extend([
            case(Change::Zero(second.clone()), &[1]),
            case(Change::Garbage(first.clone()), &[0]),
            case(Change::Garbage(first.end..second.end), &[0, 1]),
            // Behind the last record: nothing of it.
            case(Change::Garbage(third.end + 64..third.end + 5_000), &[]),
            tail(Change::Zero(third.start..third.end + 100)),
            tail(Change::Zero(second.end + 40..third.end + 100)),
            tail(Change::Cut(third.end - 1)),
            tail(Change::Cut(third.start)),
        ]);
        let all = &[0, 1, 2][..];
        cases.extend(
            [RECORDS, 100, 0].map(|at| Case { counted: Counted::Unknowable, ..case(Change::Cut(at), all) }),
        );
        cases
    }

    /// Starts a copy with the change and a reachable broker; starts each fourth again after that.
    fn run(&self, number: usize, case: &Case) {
        let setup = journaled(Setup::on_files());
        copy(&self.setup.state(), &setup.state());
        case.change.make(&setup.directory().join(&self.segment));
        let daemon = setup.start();
        let status = daemon.wait_until_empty();
        let arrived: Vec<Vec<u8>> = setup.delivered().into_iter().map(|message| message.body).collect();
        for body in &arrived {
            assert!(self.bodies.contains(body), "{case:?}: a body that nobody sent: {}", body.escape_ascii());
        }
        let missing: Vec<usize> = (0..3).filter(|at| !arrived.contains(&self.bodies[*at])).collect();
        assert!(missing.iter().all(|at| case.may_miss.contains(at)), "{case:?}: {missing:?} are missing");
        let damaged = daemon.metric("journal_damaged_records_total", &[]);
        assert_eq!(status.number("/journal/damaged"), damaged, "{case:?}: on /status and in the metrics");
        if !missing.is_empty() && case.counted == Counted::Yes {
            assert!(damaged >= missing.len() as u64, "{case:?}: {missing:?} are missing, {damaged} are counted");
        }
        assert_eq!(status.count("published"), 3 - missing.len() as u64, "{case:?}");
        assert_eq!(status.count("mismatch"), 0, "{case:?}: {}", status.0["accounting"]);
        // It takes new events, whatever it found.
        let fresh = Payload::new("cuid-fresh").body();
        assert_eq!(request_once(&daemon, &fresh, &[]).status, 200, "{case:?}");
        let status = daemon.wait_until_empty();
        let stopped = daemon.stop();
        let lost = status.count("lost");
        assert_eq!(stopped.code, Some(i32::from(lost > 0)), "{case:?}: {lost} lost; {}", stopped.last);
        assert!(setup.delivered().iter().any(|message| message.body == fresh), "{case:?}: the fresh one");
        if !number.is_multiple_of(4) {
            return;
        }
        // The damage is repaired: another start finds none, and delivers nothing again.
        let before = setup.delivered().len();
        let daemon = setup.start();
        daemon.wait_until_empty();
        assert_eq!(daemon.stop().code, Some(0), "{case:?}: the start after");
        assert_eq!(setup.delivered().len(), before, "{case:?}: the start after");
    }
}

fn case(change: Change, may_miss: &'static [usize]) -> Case {
    Case { change, may_miss, counted: Counted::Yes }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else if entry.path().is_file() {
            // Not the control socket that a killed daemon leaves.
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn delivers_what_is_sound_and_counts_what_is_not() {
    let three = Three::new();
    let cases = three.cases();
    assert!(cases.len() >= 40, "{} cases", cases.len());
    thread::scope(|scope| {
        let share = |of: usize| cases.iter().enumerate().filter(move |(number, _)| number % 3 == of);
        let three = &three;
        let run = |of: usize| scope.spawn(move || share(of).for_each(|(number, case)| three.run(number, case)));
        let running: Vec<_> = (0..3).map(run).collect();
        for share in running {
            share.join().expect("a case failed: see above");
        }
    });
}

#[test]
fn starts_or_says_why_not_with_both_headers_of_a_segment_damaged() {
    let three = Three::new();
    let setup = journaled(Setup::on_files());
    copy(&three.setup.state(), &setup.state());
    for at in [0, 512] {
        Change::Garbage(at..at + 64).make(&setup.directory().join(&three.segment));
    }
    match setup.try_start() {
        Ok(daemon) => {
            daemon.wait_until_empty();
            let missing = 3 - setup.delivered().len() as u64;
            assert!(daemon.metric("journal_damaged_records_total", &[]) > 0 || missing == 0, "uncounted");
        }
        Err(stopped) => assert!(stopped.code == Some(1) && stopped.log.contains("segment"), "{}", stopped.log),
    }
}

#[test]
fn reports_a_block_that_cannot_be_read_and_delivers_everything_else() {
    let setup = journaled(Setup::on_missing_files()).text("journal.segment_bytes", "300KiB");
    let setup = setup.text("ingress.max_body", "16KiB").text("buffer.max_bytes", "1MiB");
    let daemon = setup.start();
    let load = Load { events: 600, text: "x".repeat(1000), ..Load::default() };
    let sent = load.send(&daemon.ingress).all_accepted();
    daemon.kill();
    assert!(setup.segments().len() >= 3, "{:?}", setup.segments());
    setup.bring_the_broker_back();
    // One block of each segment.
    let setup = setup.failpoints("journal.unreadable=20480");
    let daemon = setup.start();
    daemon.wait_until("it is reported", LIMIT, |status| !status.text("/journal/unreadable").is_empty());
    assert_eq!(daemon.get("/readyz").status, 200, "events can be accepted");
    let status = daemon.wait_until_empty();
    let (published, lost) = (status.count("published"), status.count("lost"));
    assert_eq!(published + lost, 600, "{}", status.0["accounting"]);
    assert!(lost > 0 && lost < 60, "{lost} of 600 are in a few blocks of 4 KiB");
    assert!(daemon.metric("journal_damaged_records_total", &[]) >= lost);
    assert_eq!(status.text("/journal/unreadable"), "", "nothing more is to be read");
    assert_eq!(request_once(&daemon, &Payload::new("fresh").body(), &[]).status, 200);
    daemon.wait_until_empty();
    let arrived: BTreeSet<String> = setup.delivered().into_iter().map(|message| message.id).collect();
    let missing = sent.0.iter().filter(|note| !arrived.contains(&note.id)).count() as u64;
    assert_eq!(missing, lost, "what is missing is what was counted");
    let stopped = daemon.stop();
    assert!(stopped.log.contains("cannot be read"), "{}", stopped.log);
}
