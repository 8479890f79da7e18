//! The report: a short table, the same as JSON, and whether the memory stayed flat.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;

use super::fault::Fault;

/// The growth in ten minutes that still counts as none.
const FLAT_MIB: f64 = 1.0;

/// The minimum time for a meaningful line.
const LEAST: Duration = Duration::from_mins(5);

/// The memory at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// The number of the bridge's start.
    pub(super) life: u32,
    /// Since the run began.
    pub(super) at: Duration,
    /// Bytes of its own. The program's code is not among them: a fault runs some of it for the first time.
    pub(super) own: u64,
}

/// The findings; forbidden ones have caused a panic before.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    pub(super) seed: u64,
    pub(super) took: Duration,
    pub(super) accepted: u64,
    pub(super) unanswered: usize,
    pub(super) delivered: usize,
    pub(super) dead: usize,
    pub(super) repeats: usize,
    pub(super) out_of_order: u64,
    pub(super) faults: Vec<Fault>,
    pub(super) samples: Vec<Sample>,
}

impl Verdict {
    /// One line each.
    pub(super) fn table(&self, broker: &str) -> String {
        let mut table = format!(
            "soak on {broker}: {} s, {} faults, SUITE_SEED={}\n",
            self.took.as_secs(),
            self.faults.len(),
            self.seed
        );
        for (name, count) in self.counted() {
            writeln!(table, "  {name:<28}{count:>10}").expect("a String takes everything");
        }
        for (name, value) in [
            ("accepted", self.accepted.to_string()),
            ("unanswered", self.unanswered.to_string()),
            ("delivered", self.delivered.to_string()),
            ("dead letters", self.dead.to_string()),
            ("lost", "0".to_owned()),
            ("repeats", self.repeats.to_string()),
            ("out of order", self.out_of_order.to_string()),
            ("memory, MiB", self.last_mib().map_or_else(|| "-".to_owned(), |mib| format!("{mib:.1}"))),
            (
                "memory, MiB per 10 minutes",
                self.growth_mib().map_or_else(|| "-".to_owned(), |mib| format!("{mib:+.2}")),
            ),
        ] {
            writeln!(table, "  {name:<28}{value:>10}").expect("a String takes everything");
        }
        table
    }

    /// For a program, on one line.
    pub(super) fn json(&self, broker: &str) -> String {
        json!({
            "broker": broker,
            "seed": self.seed,
            "seconds": self.took.as_secs_f64(),
            "faults": self.counted(),
            "accepted": self.accepted,
            "unanswered": self.unanswered,
            "delivered": self.delivered,
            "dead_letters": self.dead,
            "lost": 0,
            "repeats": self.repeats,
            "out_of_order": self.out_of_order,
            "memory_mib": self.last_mib(),
            "memory_mib_per_10_minutes": self.growth_mib(),
        })
        .to_string()
    }

    /// Panics if the memory grew, if that can be determined.
    pub(super) fn assert_flat(&self) {
        if let Some(growth) = self.growth_mib() {
            assert!(growth < FLAT_MIB, "{growth:.2} MiB more in 10 minutes");
        }
    }

    fn counted(&self) -> BTreeMap<&'static str, u32> {
        let mut counted = BTreeMap::new();
        for fault in &self.faults {
            *counted.entry(fault.name()).or_default() += 1;
        }
        counted
    }

    fn last_mib(&self) -> Option<f64> {
        self.samples.last().map(|sample| mib(sample.own))
    }

    fn growth_mib(&self) -> Option<f64> {
        growth(&self.samples).filter(|(_, over)| *over >= LEAST).map(|(growth, _)| growth)
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes of memory are far below 2^52")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

/// The time that the bridge needs until every buffer and table has been used.
const WARM: Duration = Duration::from_mins(2);

/// MiB per ten minutes: the slope of the least squares through the lowest sample of each minute of the last run of the
/// bridge, without the first quarter of the whole run and its own first minutes; and the time it covers. The lowest,
/// because memory that a backlog uses is not a leak, but memory that is not returned afterwards is.
fn growth(samples: &[Sample]) -> Option<(f64, Duration)> {
    let last = samples.last()?;
    let born = samples.iter().find(|sample| sample.life == last.life)?.at;
    let mut minutes: BTreeMap<u64, Sample> = BTreeMap::new();
    for sample in samples {
        if sample.life == last.life && sample.at >= last.at / 4 && sample.at >= born + WARM {
            let lowest = minutes.entry(sample.at.as_secs() / 60).or_insert(*sample);
            if sample.own < lowest.own {
                *lowest = *sample;
            }
        }
    }
    let point = |sample: &Sample| (sample.at.as_secs_f64() / 600.0, mib(sample.own));
    let used: Vec<(f64, f64)> = minutes.values().map(point).collect();
    let count = f64::from(u32::try_from(used.len()).ok()?);
    let mean = |of: fn(&(f64, f64)) -> f64| used.iter().map(of).sum::<f64>() / count;
    let (middle, level) = (mean(|point| point.0), mean(|point| point.1));
    let (mut above, mut below) = (0.0, 0.0);
    for (at, bytes) in &used {
        above += (at - middle) * (bytes - level);
        below += (at - middle).powi(2);
    }
    let over = Duration::from_secs_f64((used.last()?.0 - used.first()?.0) * 600.0);
    (below > 0.0).then_some((above / below, over))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(life: u32, from: u64, count: u64, own: impl Fn(u64) -> u64) -> Vec<Sample> {
        let at = |second: u64| Duration::from_secs(from + second);
        (0..count).map(|second| Sample { life, at: at(second), own: own(second) }).collect()
    }

    #[test]
    fn sees_growth_in_the_last_life_alone() {
        let leak = samples(0, 0, 600, |second| 1_000_000 * second);
        let flat = samples(1, 600, 600, |second| 50_000_000 + second % 3);
        let (growth_of_flat, over) = growth(&[leak.clone(), flat].concat()).unwrap();
        assert!(growth_of_flat.abs() < 0.01 && over == Duration::from_mins(7), "{growth_of_flat} over {over:?}");
        let slow = samples(1, 600, 600, |second| 50_000_000 + second * 2_000);
        let (growth_of_slow, _) = growth(&[leak, slow].concat()).unwrap();
        assert!((growth_of_slow - 1.144).abs() < 0.01 && growth_of_slow > FLAT_MIB, "{growth_of_slow}");
        assert_eq!(growth(&[]), None);
        assert_eq!(growth(&samples(0, 0, 1, |_| 1)), None);
    }
}
