//! One life of one candidate: start, idle memory, load, latency, and the same with the broker away; the reference
//! beside it, each time just before or after, since the machine changes from minute to minute.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::brokers::{Brokers, Kind};
use crate::candidate::{Candidate, Depth, Running};
use crate::ceiling::INTERVAL;
use crate::events::{Request, requests};
use crate::load::{Answers, Sender};
use crate::process::{Paused, get};

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
    /// For so long, in two halves: before and after the broker was away; where it stays, the first alone.
    pub seconds: u32,
}

/// Events before anything is measured.
const WARM_UP: usize = 3_000;

/// Lone events.
const LONE: usize = 60;

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
    /// A lone event at a time.
    pub lone: Latency,
    /// From acceptance until a lone event is stored, on average, as the bridge's metrics say.
    pub lone_stored: Option<f64>,
    /// Connections that it closed, idle for too long: the machine stood still.
    pub reopened: u64,
    /// What only a program with a broker and a buffer has.
    pub away: Option<Away>,
    /// The reference in the same minute: processor time, rates and latency alone.
    pub beside: Option<Box<Self>>,
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

impl Away {
    fn of_burst(answers: &Answers) -> Self {
        Self { accepted_rate: answers.accepted_rate(), share_503: answers.share_of_503(), ..Self::default() }
    }
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

/// Measures one life; beside it the reference, which runs all the time and is idle in between.
pub fn life(
    candidate: &Candidate,
    batch: &str,
    size: Size,
    brokers: &Brokers,
    reference: Option<&Running>,
) -> Result<Life> {
    if let Some(kind) = candidate.broker() {
        // Not there before the first start.
        let _ = brokers.empty(kind);
    }
    let running = candidate.start(brokers)?;
    let measured = of_running(&running, candidate, batch, size, brokers, reference);
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
    reference: Option<&Running>,
) -> Result<Life> {
    let broker = candidate.broker();
    let expected = broker.map_or(Ok(0), |kind| brokers.count(kind)).unwrap_or(0);
    let mut arrivals = Arrivals { brokers, broker, expected };
    let mut life = Life { start_ms: running.started_in.as_secs_f64() * 1e3, ..Life::default() };
    let mut beside = Life::default();
    let made = |what: &str, count| requests(&format!("{batch}{what}"), count, size.body, candidate.path());

    let is_whole = candidate.depth == Depth::Whole;
    let half = usize::try_from(size.rate * size.seconds)?.div_ceil(2);
    let (events, first, second) = (made("l", size.events), made("f", half), made("s", half));
    let beside_at_rate = |reference: &Running, requests| {
        at_rate(reference, requests, size, &mut Arrivals { brokers, broker: None, expected: 0 })
    };

    let answers = send(running, &made("w", WARM_UP), size.connections)?;
    let idle_since = arrivals.wait(answers.accepted)?;
    let mut others = None;
    if let Some(reference) = reference {
        load(reference, &events, size, &mut Arrivals { brokers, broker: None, expected: 0 }, &mut beside)?;
        others = is_whole.then(|| beside_at_rate(reference, &first)).transpose()?;
    }
    be_quiet(idle_since);
    life.idle_mib = mib(running.process.memory()?.0);

    load(running, &events, size, &mut arrivals, &mut life)?;
    life.peak_mib = mib(running.process.memory()?.1);

    let mut fixed = at_rate(running, &first, size, &mut arrivals)?;
    if is_whole {
        let burst = made("b", size.burst);
        // What a burst is compared with: no broker takes part in it either.
        let mut alone = reference.map(|reference| send(reference, &burst, size.connections)).transpose()?;
        let idle_since = if let Some(kind) = broker {
            away(running, kind, size, (&burst, &made("a", 2 * half)), &mut arrivals, &mut life)?
        } else {
            life.away = Some(Away::of_burst(&send(running, &burst, size.connections)?));
            Instant::now()
        };
        if let (Some(reference), Some(others), Some(alone)) = (reference, &mut others, &mut alone) {
            others.add(&beside_at_rate(reference, &second)?)?;
            alone.add(&send(reference, &burst, size.connections)?)?;
            (beside.fixed, beside.away) = (Latency::of(others), Some(Away::of_burst(alone)));
        }
        be_quiet(idle_since);
        if let Some(away) = &mut life.away {
            away.drained_mib = mib(running.process.memory()?.0);
        }
        fixed.add(&at_rate(running, &second, size, &mut arrivals)?)?;
    }
    life.fixed = Latency::of(&fixed);
    (life.lone, life.lone_stored) = lone(running, &made("o", LONE), &mut arrivals)?;
    life.reopened += fixed.reopened;
    life.beside = reference.map(|_| Box::new(beside));
    Ok(life)
}

/// Lone events, one at a time.
fn lone(running: &Running, requests: &[Request], arrivals: &mut Arrivals<'_>) -> Result<(Latency, Option<f64>)> {
    let before = stored(running)?;
    let rate = u32::try_from(Duration::from_secs(1).as_millis() / INTERVAL.as_millis())?;
    let answers = connect(running, 1)?.at_rate(requests, rate)?;
    arrivals.wait(answers.accepted)?;
    let mean =
        before.zip(stored(running)?).map(|(before, after)| (after.0 - before.0) * 1e6 / (after.1 - before.1));
    Ok((Latency::of(&answers), mean))
}

/// The seconds that the bridge's events took until they were stored, and their number.
fn stored(running: &Running) -> Result<Option<(f64, f64)>> {
    let Some(admin) = running.admin else { return Ok(None) };
    let metrics = get(admin, "/metrics")?;
    let value = |name: &str| -> Result<f64> {
        let name = format!("plextrac_bridge_delivery_duration_seconds_{name} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
        Ok(line.with_context(|| format!("no {name}"))?.trim().parse()?)
    };
    Ok(Some((value("sum")?, value("count")?)))
}

/// Waits until a program that has been idle since then has tidied up.
fn be_quiet(since: Instant) {
    thread::sleep((since + QUIET).saturating_duration_since(Instant::now()));
}

fn at_rate(running: &Running, requests: &[Request], size: Size, arrivals: &mut Arrivals<'_>) -> Result<Answers> {
    let answers = connect(running, size.connections)?.at_rate(requests, size.rate)?;
    arrivals.wait(answers.accepted)?;
    Ok(answers)
}

/// Open connections, all of which the program has accepted before a clock starts.
fn connect(running: &Running, connections: usize) -> Result<Sender> {
    let sender = Sender::connect(running.address, connections)?;
    thread::sleep(Duration::from_millis(50));
    Ok(sender)
}

fn send(running: &Running, requests: &[Request], connections: usize) -> Result<Answers> {
    let answers = connect(running, connections)?.closed_loop(requests)?;
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
    let mut sender = connect(running, size.connections)?;
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
) -> Result<Instant> {
    let paused = Paused::new(arrivals.brokers.pid(kind)?)?;
    let mut sender = connect(running, size.connections)?;
    let cpu = running.process.cpu()?;
    let answers = sender.closed_loop(burst)?;
    let cpu = running.process.cpu()?.saturating_sub(cpu);
    let mut away = Away { cpu: per(cpu, answers.accepted), ..Away::of_burst(&answers) };
    let later = sender.at_rate(fixed, size.rate)?;
    away.fixed = Latency::of(&later);
    away.full_mib = mib(running.process.memory()?.0);
    drop(sender);
    drop(paused);
    let back = Instant::now();
    let accepted = answers.accepted + later.accepted;
    let arrived = arrivals.wait(accepted).context("after the broker's return")?;
    away.drained_rate = rate(accepted, arrived.duration_since(back));
    life.away = Some(away);
    life.reopened += answers.reopened + later.reopened;
    Ok(arrived)
}

/// Processor time of this process.
pub fn own_cpu() -> Result<Duration> {
    Ok(Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)?))
}
