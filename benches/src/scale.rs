//! How cost and memory grow: one thing at a time is made larger, everything else stays as it comes. On NATS JetStream,
//! which holds the bridge back least.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::brokers::{Brokers, Kind};
use crate::candidate::{Candidate, Depth, Program, Tweak};
use crate::measure::{self, Life, Size};

/// One line of a table.
struct Case {
    value: String,
    size: Size,
    tweak: Tweak,
}

/// Lines that differ in one thing.
struct Axis {
    what: &'static str,
    cases: Vec<Case>,
}

/// What is measured where nothing else is said.
const PLAIN: Size = Size { events: 40_000, connections: 64, body: 350, burst: 0, rate: 2_000, seconds: 0 };

fn axes() -> Vec<Axis> {
    let case = |value: String, size: Size, tweak: Tweak| Case { value, size, tweak };
    let connections = [1, 8, 64, 512, 4_096, 10_000].map(|connections| {
        let ingress = "max_connections = 12000".to_owned();
        case(connections.to_string(), Size { connections, ..PLAIN }, Tweak { ingress, ..Tweak::default() })
    });
    let bodies = [350, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10].map(|body| {
        // 1.5 GB are enough of the largest.
        let events = PLAIN.events.min((3 << 29) / body);
        let tables = "\n[buffer]\nmax_bytes = \"1GiB\"\n".to_owned();
        let value = if body < 1 << 10 { format!("{body} B") } else { format!("{} KiB", body >> 10) };
        case(value, Size { events, body, ..PLAIN }, Tweak { tables, ..Tweak::default() })
    });
    let sources = [1, 10, 100].map(|count| {
        let tables = (1..count).fold(String::new(), |mut text, number| {
            // Before the one that is used, in every order.
            let _ = write!(
                text,
                "\n[sources.a{number}]\npath = \"/a{number}\"\nsecret = \"a secret of no other source, {number:03}\"\n"
            );
            text
        });
        case(count.to_string(), PLAIN, Tweak { tables, ..Tweak::default() })
    });
    let routes = [0, 1, 10, 100].map(|count| {
        let tables = (0..count).fold(String::new(), |mut text, number| {
            let _ = write!(
                text,
                "\n[[broker.nats.routes]]\nevent = \"NoSuchEvent{number}\"\nsubject = \"plextrac.other.{number}\"\n"
            );
            text
        });
        case(count.to_string(), PLAIN, Tweak { tables, ..Tweak::default() })
    });
    let cores = [(1, true), (2, false)]
        .map(|(count, one_core)| case(count.to_string(), PLAIN, Tweak { one_core, ..Tweak::default() }));
    vec![
        Axis { what: "connections", cases: connections.into() },
        Axis { what: "body", cases: bodies.into() },
        Axis { what: "sources", cases: sources.into() },
        Axis { what: "routes, none of which fits", cases: routes.into() },
        Axis { what: "cores", cases: cores.into() },
    ]
}

/// Events buffered while the broker stands still.
fn depths() -> Vec<Case> {
    [1_000, 10_000, 100_000, 1_000_000]
        .map(|burst| Case {
            value: burst.to_string(),
            size: Size { events: 10_000, burst, seconds: 3, ..PLAIN },
            tweak: Tweak {
                tables: "\n[buffer]\nmax_events = 1100000\nmax_bytes = \"4GiB\"\n".to_owned(),
                ..Tweak::default()
            },
        })
        .into()
}

/// Measures all of it; the tables, as Markdown.
pub fn run(bridge: &Path) -> Result<String> {
    let home = tempfile::tempdir()?;
    eprintln!("starting nats");
    let (brokers, began) = (Brokers::start(&[Kind::Nats], home.path())?, Instant::now());
    let reference = Candidate::reference().start(&brokers)?;
    let mut text = String::new();
    let mut number = 0;
    let mut measure = |what: &str, case: &Case, depth: Depth| -> Result<Life> {
        number += 1;
        let program = Program::Bridge {
            build: bridge.to_owned(),
            broker: Kind::Nats,
            ack: "buffered",
            headers: "cloudevents",
            tweak: case.tweak.clone(),
        };
        let candidate = Candidate { name: format!("{what}: {}", case.value), program, depth };
        let batch = format!("{:02}{number:04}", std::process::id() % 100);
        // What is buffered is compared with nothing.
        let beside = (depth == Depth::Load).then_some(&reference);
        let life = measure::life(&candidate, &batch, case.size, &brokers, beside)?;
        eprintln!(
            "{:>4} s  {:<40}{:>7.1} us/event{:>9.0}/s accepted",
            began.elapsed().as_secs(),
            candidate.name,
            life.cpu,
            life.accepted_rate
        );
        Ok(life)
    };
    for axis in axes() {
        let _ = writeln!(
            text,
            "| {} | CPU us/event | reference | x | 200s, k/s | reference | p50 / p99 us | idle MiB | peak MiB |\n\
             |---|---|---|---|---|---|---|---|---|",
            axis.what
        );
        for case in &axis.cases {
            let life = measure(axis.what, case, Depth::Load)?;
            let beside = life.beside.as_deref().context("the reference was not measured")?;
            let _ = writeln!(
                text,
                "| {} | {:.1} | {:.1} | {:.2} | {:.1} | {:.1} | {:.0} / {:.0} | {:.1} | {:.1} |",
                case.value,
                life.cpu,
                beside.cpu,
                life.cpu / beside.cpu,
                life.accepted_rate / 1e3,
                beside.accepted_rate / 1e3,
                life.closed.p50,
                life.closed.p99,
                life.idle_mib,
                life.peak_mib
            );
        }
        text.push('\n');
    }
    text.push_str(
        "| events buffered, the broker away | CPU us/event | 200s, k/s | MiB | B/event | p50 / p99 us at 2000/s, \
         before | with them buffered | drained, k/s | MiB afterwards |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for case in depths() {
        let life = measure("buffered", &case, Depth::Whole)?;
        let Some(away) = &life.away else { continue };
        let held = case.size.burst + case.size.rate as usize * case.size.seconds as usize;
        #[expect(clippy::cast_precision_loss, reason = "a million events")]
        let each = (away.full_mib - life.idle_mib) * f64::from(1 << 20) / held as f64;
        let _ = writeln!(
            text,
            "| {} | {:.1} | {:.1} | {:.0} | {each:.0} | {:.0} / {:.0} | {:.0} / {:.0} | {:.1} | {:.1} |",
            case.value,
            away.cpu,
            away.accepted_rate / 1e3,
            away.full_mib,
            life.fixed.p50,
            life.fixed.p99,
            away.fixed.p50,
            away.fixed.p99,
            away.drained_rate / 1e3,
            away.drained_mib
        );
    }
    Ok(text)
}
