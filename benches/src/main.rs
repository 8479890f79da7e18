//! Measures the bridge beside bare hyper, on real brokers, in alternating rounds on one machine.

mod baseline;
mod brokers;
mod candidate;
mod ceiling;
mod events;
mod load;
mod measure;
mod priority;
mod process;
mod report;
mod scale;

use std::iter;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::baseline::Work;
use crate::brokers::{Brokers, Kind};
use crate::candidate::{Candidate, Depth, Program, Tweak};
use crate::measure::Size;
use crate::report::{OTHER_BUILD, Results};

/// Measures plextrac-bridge.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Subcommand)]
enum Commands {
    /// Every candidate, in alternating rounds; prints a table and writes it, the figures and a plot.
    Run(Run),
    /// How cost and memory grow with connections, bodies, sources, routes, cores and events buffered; prints the tables.
    Scale(Scale),
    /// A baseline, until it is ended.
    Serve { address: SocketAddr, work: Work },
}

#[derive(clap::Args)]
struct Run {
    /// The bridge.
    #[arg(long, default_value = "target/release/plextrac-bridge")]
    bridge: PathBuf,
    /// Another build of the bridge, measured beside this one: what a change costs or gains.
    #[arg(long)]
    against: Option<PathBuf>,
    /// Other programs.
    #[arg(long, default_value = "benches/peers.toml")]
    peers: PathBuf,
    /// Where the results go.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// How often each is measured.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Only candidates whose name has one of these words; the checked baseline always.
    #[arg(long)]
    only: Vec<String>,
    /// Events of the closed loop.
    #[arg(long, default_value_t = 40_000)]
    events: usize,
    /// Open connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Bytes of a body.
    #[arg(long, default_value_t = 350)]
    body: usize,
    /// Events while the broker stands still.
    #[arg(long, default_value_t = 50_000)]
    burst: usize,
    /// Events a second at the fixed rate.
    #[arg(long, default_value_t = 2_000)]
    rate: u32,
    /// Seconds at the fixed rate.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
}

#[derive(clap::Args)]
struct Scale {
    /// The bridge.
    #[arg(long, default_value = "target/release/plextrac-bridge")]
    bridge: PathBuf,
    /// Where the tables go.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Commands::Serve { address, work } => baseline::serve(address, work),
        Commands::Run(asked) => run(&asked),
        Commands::Scale(asked) => scale(&asked),
    }
}

/// Everything that can be measured.
fn candidates(asked: &Run) -> Result<Vec<Candidate>> {
    let mut all = vec![Candidate::baseline("hyper", Work::Bare), Candidate::reference()];
    for (ack, headers, depth) in [
        ("buffered", "none", Depth::Whole),
        ("buffered", "cloudevents", Depth::Whole),
        ("journaled", "cloudevents", Depth::Load),
        ("published", "cloudevents", Depth::Load),
    ] {
        for broker in Kind::ALL {
            let name = format!("{} {ack}{}", broker.name(), if headers == "none" { ", no headers" } else { "" });
            let other = asked.against.as_ref().map(|build| (format!("{name}{OTHER_BUILD}"), build));
            for (name, build) in iter::once((name, &asked.bridge)).chain(other) {
                let tweak = Tweak::default();
                let program = Program::Bridge { build: build.clone(), broker, ack, headers, tweak };
                all.push(Candidate { name, program, depth });
            }
        }
    }
    all.extend(candidate::peers(&asked.peers)?.into_iter().map(|peer| Candidate {
        name: peer.name.clone(),
        program: Program::Peer(peer),
        depth: Depth::Load,
    }));
    all.retain(|candidate| {
        candidate.name == candidate::REFERENCE
            || asked.only.is_empty()
            || asked.only.iter().any(|word| candidate.name.contains(word.as_str()))
    });
    Ok(all)
}

fn scale(asked: &Scale) -> Result<()> {
    let tables = scale::run(&asked.bridge)?;
    print!("{tables}");
    std::fs::create_dir_all(&asked.out)?;
    std::fs::write(asked.out.join("scale.md"), tables)?;
    eprintln!("wrote {}/scale.md", asked.out.display());
    Ok(())
}

fn run(asked: &Run) -> Result<()> {
    let candidates = candidates(asked)?;
    let mut kinds: Vec<Kind> = candidates.iter().filter_map(Candidate::broker).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let home = tempfile::tempdir()?;
    eprintln!("starting {}", kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", "));
    let brokers = Brokers::start(&kinds, home.path())?;
    let size = Size {
        events: asked.events,
        connections: asked.connections,
        body: asked.body,
        burst: asked.burst,
        rate: asked.rate,
        seconds: asked.seconds,
    };
    let reference = Candidate::reference().start(&brokers)?;
    let (mut results, began) = (Results::new(size), Instant::now());
    for round in 0..asked.rounds {
        // Each round begins elsewhere: nobody always comes after the same one.
        let start = usize::try_from(round)? * 5 % candidates.len();
        for (number, candidate) in candidates[start..].iter().chain(&candidates[..start]).enumerate() {
            let batch = format!("{:02}{round:02}{number:02}", std::process::id() % 100);
            let beside = (candidate.name != candidate::REFERENCE).then_some(&reference);
            let life = measure::life(candidate, &batch, size, &brokers, beside)?;
            eprintln!(
                "{:>4} s  round {}  {:<34}{:>7.1} us/event{:>9.0}/s accepted{:>9.0}/s delivered",
                began.elapsed().as_secs(),
                round + 1,
                candidate.name,
                life.cpu,
                life.accepted_rate,
                life.delivered_rate
            );
            if life.reopened > 0 {
                eprintln!("        {} idle connections were closed and opened again", life.reopened);
            }
            results.add(&candidate.name, candidate.broker(), life);
        }
        for kind in &kinds {
            results.add_ceiling(*kind, ceiling::measure(*kind, &brokers, asked.burst, asked.body)?);
        }
    }
    reference.process.stop()?;
    let table = results.table();
    print!("{table}");
    std::fs::create_dir_all(&asked.out)?;
    std::fs::write(asked.out.join("results.md"), table)?;
    std::fs::write(asked.out.join("results.json"), results.json()?)?;
    std::fs::write(asked.out.join("results.svg"), results.plot())?;
    eprintln!("wrote {0}/results.md, {0}/results.json, {0}/results.svg", asked.out.display());
    Ok(())
}
