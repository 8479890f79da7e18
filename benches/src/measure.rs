//! One life of one candidate: start, idle memory, load, latency, and the same with the broker away.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::brokers::{Brokers, Kind};
use crate::candidate::{Candidate, Depth, Running};
use crate::events::{Request, requests};
use crate::load::{Answers, Sender};
use crate::process::Paused;

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Events of the closed loop.
    pub events: usize,
    /// Open connections.
    pub connections: usize,
    /// Bytes of a body.
    pub body: usize,
    /// Events of the burst while the broker stands still: half of the buffer.
    pub burst: usize,
    /// Events a second at the fixed rate.
    pub rate: u32,
    /// For so long.
    pub seconds: u32,
}

/// Events before anything is measured.
const WARM_UP: usize = 3_000;

/// After work a program may need a moment until it has tidied up.
const QUIET: Duration = Duration::from_millis(2_500);

/// Everything of one life. Times in microseconds unless they say otherwise, memory in MiB.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Life {
    /// Until ready, milliseconds.
    pub start_ms: f64,
    /// After the warm-up, its connections closed.
    pub idle_mib: f64,
    /// The highest until the end of the load.
    pub peak_mib: f64,
    /// Processor time per event, from the first request until the broker held every event.
    pub cpu: f64,
    /// The same of the sender.
    pub sender_cpu: f64,
    /// 200s a second.
    pub accepted_rate: f64,
    /// Messages in the broker a second, from the first request until the last message.
    pub delivered_rate: f64,
    /// The part answered 503.
    pub share_503: f64,
    /// Of the closed loop.
    pub closed: Latency,
    /// At the fixed rate.
    pub fixed: Latency,
    /// Connections that it closed, idle for too long: the machine stood still.
    pub reopened: u64,
    /// What only a program with a broker and a buffer has.
    pub away: Option<Away>,
}

/// While the broker stands still, and afterwards.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Away {
    /// 200s a second in the burst.
    pub accepted_rate: f64,
    /// The part answered 503.
    pub share_503: f64,
    /// Processor time per event in the burst.
    pub cpu: f64,
    /// At the fixed rate.
    pub fixed: Latency,
    /// Memory with everything buffered.
    pub full_mib: f64,
    /// Messages a second in the broker after its return.
    pub drained_rate: f64,
    /// Memory some seconds after the last one.
    pub drained_mib: f64,
}

/// Microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    /// Half of the requests were faster.
    pub p50: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1000.
    pub p999: f64,
}

impl Latency {
    fn of(answers: &Answers) -> Self {
        let at = |quantile| micros(Duration::from_nanos(answers.latency.value_at_quantile(quantile)));
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999) }
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[expect(clippy::cast_precision_loss, reason = "bytes of memory and counts are far below 2^52")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn per(time: Duration, events: u64) -> f64 {
    micros(time) / events.max(1) as f64
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn rate(events: u64, time: Duration) -> f64 {
    events as f64 / time.as_secs_f64().max(1e-9)
}

/// Counts what arrives in the candidate's broker; nothing where it has none.
struct Arrivals<'b> {
    brokers: &'b Brokers,
    broker: Option<Kind>,
    expected: u64,
}

impl Arrivals<'_> {
    /// Waits until all that was accepted so far has arrived.
    fn wait(&mut self, accepted: u64) -> Result<Instant> {
        self.expected += accepted;
        match self.broker {
            Some(kind) => self.brokers.wait_for(kind, self.expected, Duration::from_mins(2)),
            None => Ok(Instant::now()),
        }
    }
}

/// Measures one life.
pub fn life(candidate: &Candidate, batch: &str, size: Size, bridge: &Path, brokers: &Brokers) -> Result<Life> {
    if let Some(kind) = candidate.broker() {
        // Not there before the first start.
        let _ = brokers.empty(kind);
    }
    let running = candidate.start(bridge, brokers)?;
    let measured = of_running(&running, candidate, batch, size, brokers);
    let measured = measured.with_context(|| format!("{}, which printed: {}", candidate.name, running.log()))?;
    running.process.stop()?;
    Ok(measured)
}

fn of_running(
    running: &Running,
    candidate: &Candidate,
    batch: &str,
    size: Size,
    brokers: &Brokers,
) -> Result<Life> {
    let broker = candidate.broker();
    let expected = broker.map_or(Ok(0), |kind| brokers.count(kind)).unwrap_or(0);
    let mut arrivals = Arrivals { brokers, broker, expected };
    let mut life = Life { start_ms: running.started_in.as_secs_f64() * 1e3, ..Life::default() };
    let made = |what: &str, count| requests(&format!("{batch}{what}"), count, size.body, candidate.path());

    let answers = send(running, &made("w", WARM_UP), size.connections)?;
    arrivals.wait(answers.accepted)?;
    thread::sleep(QUIET);
    life.idle_mib = mib(running.process.memory()?.0);

    let events = made("l", size.events);
    load(running, &events, size, &mut arrivals, &mut life)?;
    life.peak_mib = mib(running.process.memory()?.1);

    let count = usize::try_from(size.rate * size.seconds)?;
    let answers = Sender::connect(running.address, size.connections)?.at_rate(&made("f", count), size.rate)?;
    arrivals.wait(answers.accepted)?;
    life.fixed = Latency::of(&answers);
    life.reopened += answers.reopened;

    if let (Some(kind), Depth::Whole) = (broker, candidate.depth) {
        let (burst, fixed) = (made("b", size.burst), made("a", count));
        away(running, kind, size, (&burst, &fixed), &mut arrivals, &mut life)?;
    } else if broker.is_none() {
        // What a burst is compared with: no broker takes part in it either.
        let answers = send(running, &made("b", size.burst), size.connections)?;
        life.away = Some(Away { accepted_rate: answers.accepted_rate(), ..Away::default() });
    }
    Ok(life)
}

fn send(running: &Running, requests: &[Request], connections: usize) -> Result<Answers> {
    let answers = Sender::connect(running.address, connections)?.closed_loop(requests)?;
    anyhow::ensure!(answers.other == 0, "{} requests were answered neither 200 nor 503", answers.other);
    Ok(answers)
}

fn load(
    running: &Running,
    events: &[Request],
    size: Size,
    arrivals: &mut Arrivals<'_>,
    life: &mut Life,
) -> Result<()> {
    let mut sender = Sender::connect(running.address, size.connections)?;
    // Accepted by the program before the clock starts.
    thread::sleep(Duration::from_millis(50));
    let (cpu, own) = (running.process.cpu()?, own_cpu()?);
    let answers = sender.closed_loop(events)?;
    let own = own_cpu()?.saturating_sub(own);
    let arrived = arrivals.wait(answers.accepted)?;
    let cpu = running.process.cpu()?.saturating_sub(cpu);
    anyhow::ensure!(answers.other == 0, "{} requests were answered neither 200 nor 503", answers.other);
    life.cpu = per(cpu, answers.accepted);
    life.sender_cpu = per(own, answers.accepted);
    life.accepted_rate = answers.accepted_rate();
    life.delivered_rate = rate(answers.accepted, arrived.duration_since(answers.began));
    life.share_503 = answers.share_of_503();
    life.closed = Latency::of(&answers);
    life.reopened += answers.reopened;
    Ok(())
}

fn away(
    running: &Running,
    kind: Kind,
    size: Size,
    (burst, fixed): (&[Request], &[Request]),
    arrivals: &mut Arrivals<'_>,
    life: &mut Life,
) -> Result<()> {
    let paused = Paused::new(arrivals.brokers.pid(kind)?)?;
    let mut sender = Sender::connect(running.address, size.connections)?;
    thread::sleep(Duration::from_millis(50));
    let cpu = running.process.cpu()?;
    let answers = sender.closed_loop(burst)?;
    let cpu = running.process.cpu()?.saturating_sub(cpu);
    let mut away = Away {
        accepted_rate: answers.accepted_rate(),
        share_503: answers.share_of_503(),
        cpu: per(cpu, answers.accepted),
        ..Away::default()
    };
    let later = sender.at_rate(fixed, size.rate)?;
    away.fixed = Latency::of(&later);
    away.full_mib = mib(running.process.memory()?.0);
    drop(sender);
    drop(paused);
    let back = Instant::now();
    let accepted = answers.accepted + later.accepted;
    let arrived = arrivals.wait(accepted).context("after the broker's return")?;
    away.drained_rate = rate(accepted, arrived.duration_since(back));
    thread::sleep(QUIET);
    away.drained_mib = mib(running.process.memory()?.0);
    life.away = Some(away);
    life.reopened += answers.reopened + later.reopened;
    Ok(())
}

/// Processor time of this process.
fn own_cpu() -> Result<Duration> {
    Ok(Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)?))
}
