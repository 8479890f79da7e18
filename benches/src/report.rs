//! What is said of the rounds: medians with their ranges, as a table, as JSON, as a plot; and which goals are met.
//!
//! Length: three forms of one report.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::json;

use crate::brokers::Kind;
use crate::candidate::REFERENCE;
use crate::ceiling::Ceiling;
use crate::measure::{Life, Size};

/// The end of the name of a candidate that is run by the other build.
pub const OTHER_BUILD: &str = ", other build";

/// All rounds of all candidates, in the order of the first round.
pub struct Results {
    size: Size,
    rows: Vec<Row>,
    ceilings: Vec<(Kind, Ceiling)>,
}

struct Row {
    name: String,
    broker: Option<Kind>,
    rounds: Vec<Life>,
}

impl Row {
    /// A figure as a multiple of the reference's beside it, life by life.
    fn ratio(&self, figure: Figure) -> Option<Spread> {
        let of = |life: &Life| Some(figure(life)? / figure(life.beside.as_deref()?)?);
        Spread::of(self.rounds.iter().filter_map(of))
    }

    fn of(&self, figure: fn(&Life) -> f64) -> Option<Spread> {
        Spread::of(self.rounds.iter().map(figure))
    }

    /// Only what has a broker has it away.
    fn away(&self, figure: Figure) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(figure)).filter(|_| self.broker.is_some())
    }
}

/// A median and its range.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    low: f64,
    high: f64,
}

impl Spread {
    fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { median, low, high })
    }

    /// Whether the medians are farther apart than the values of either.
    fn differs_from(self, other: Self) -> bool {
        (self.median - other.median).abs() > (self.high - self.low).max(other.high - other.low)
    }

    fn times(self, factor: f64) -> Self {
        Self { median: self.median * factor, low: self.low * factor, high: self.high * factor }
    }

    fn text(self, digits: usize) -> String {
        if (self.high - self.low) * 10f64.powi(i32::try_from(digits).unwrap_or(0)) < 1.0 {
            return format!("{:.digits$}", self.median);
        }
        format!("{:.digits$} ({:.digits$}-{:.digits$})", self.median, self.low, self.high)
    }
}

fn cell(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or_else(|| "-".to_owned(), |spread| spread.text(digits))
}

/// Rates are told in thousands.
fn thousands(spread: Option<Spread>) -> String {
    cell(spread.map(|spread| spread.times(1e-3)), 1)
}

/// The goals that differ from broker to broker: multiples of the reference, and milliseconds.
struct Goals {
    broker: Kind,
    plain: f64,
    headers: f64,
    journaled: f64,
    accepted: f64,
    lone: f64,
    published: f64,
    stored: f64,
}

#[rustfmt::skip]
const GOALS: [Goals; 3] = [
    Goals { broker: Kind::Kafka, plain: 1.5, headers: 1.35, journaled: 1.9, accepted: 0.6, lone: 1.6, published: 1.0, stored: 1.5 },
    Goals { broker: Kind::Rabbitmq, plain: 3.0, headers: 2.2, journaled: 2.8, accepted: 0.3, lone: 2.0, published: 1.6, stored: 2.0 },
    Goals { broker: Kind::Nats, plain: 1.8, headers: 1.6, journaled: 2.0, accepted: 0.5, lone: 0.8, published: 0.6, stored: 0.8 },
];

type Figure = fn(&Life) -> Option<f64>;

impl Results {
    /// None yet.
    pub fn new(size: Size) -> Self {
        Self { size, rows: Vec::new(), ceilings: Vec::new() }
    }

    /// One more life.
    pub fn add(&mut self, name: &str, broker: Option<Kind>, life: Life) {
        match self.rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row.rounds.push(life),
            None => self.rows.push(Row { name: name.to_owned(), broker, rounds: vec![life] }),
        }
    }

    /// Adds the figures of a broker's client library from one more round.
    pub fn add_ceiling(&mut self, kind: Kind, ceiling: Ceiling) {
        self.ceilings.push((kind, ceiling));
    }

    fn ceiling(&self, kind: Kind, figure: fn(&Ceiling) -> f64) -> Option<Spread> {
        Spread::of(self.ceilings.iter().filter(|(of, _)| *of == kind).map(|(_, ceiling)| figure(ceiling)))
    }

    fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// The rows as a reader looks for them: baselines, then by broker and name.
    fn sorted(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by_key(|row| (row.broker, row.name.clone()));
        rows
    }

    /// Everything, as Markdown.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let Size { events, connections, body, burst, rate, seconds } = self.size;
        let rounds = self.rows.iter().map(|row| row.rounds.len()).max().unwrap_or(0);
        let _ = writeln!(
            text,
            "Median of {rounds} rounds (and range). {events} events of {body} bytes over {connections} connections; \
             a burst of {burst} and {seconds} s of {rate}/s. x: times {REFERENCE}, measured beside each one in the \
             same minute.\n"
        );
        self.load(&mut text);
        self.fixed(&mut text);
        self.lone(&mut text);
        self.memory(&mut text);
        self.builds(&mut text);
        self.goals(&mut text);
        text
    }

    fn load(&self, text: &mut String) {
        text.push_str(
            "### Load: as fast as it is answered\n\n| | CPU us/event | x | 200s, k/s | x | delivered, k/s | 503 | \
             p50 / p99 / p99.9 us |\n|---|---|---|---|---|---|---|---|\n",
        );
        for row in self.sorted() {
            let delivered = row.broker.and_then(|_| row.of(|life| life.delivered_rate));
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} % | {} / {} / {} |",
                row.name,
                cell(row.of(|life| life.cpu), 1),
                cell(row.ratio(|life| Some(life.cpu)), 2),
                thousands(row.of(|life| life.accepted_rate)),
                cell(row.ratio(|life| Some(life.accepted_rate)), 2),
                thousands(delivered),
                cell(row.of(|life| life.share_503 * 100.0), 1),
                cell(row.of(|life| life.closed.p50).map(median_alone), 0),
                cell(row.of(|life| life.closed.p99).map(median_alone), 0),
                cell(row.of(|life| life.closed.p999).map(median_alone), 0),
            );
        }
        let sender = Spread::of(self.rows.iter().flat_map(|row| &row.rounds).map(|life| life.sender_cpu));
        let _ = writeln!(text, "\nThe sender itself: {} us/event.\n", cell(sender, 1));
    }

    fn fixed(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "### {}/s, and the broker away\n\n| | p50 us | p99 us | p99.9 us | away: p50 | p99 | burst, k/s | x | 503 | \
             CPU us/event | back: delivered, k/s |\n|---|---|---|---|---|---|---|---|---|---|---|",
            self.size.rate
        );
        for row in self.sorted() {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                row.name,
                cell(row.of(|life| life.fixed.p50), 0),
                cell(row.of(|life| life.fixed.p99), 0),
                cell(row.of(|life| life.fixed.p999), 0),
                cell(row.away(|life| Some(life.away.as_ref()?.fixed.p50)), 0),
                cell(row.away(|life| Some(life.away.as_ref()?.fixed.p99)), 0),
                thousands(Spread::of(row.rounds.iter().filter_map(burst))),
                cell(row.ratio(burst), 2),
                cell(row.away(|life| Some(life.away.as_ref()?.share_503 * 100.0)), 1),
                cell(row.away(|life| Some(life.away.as_ref()?.cpu)), 1),
                thousands(row.away(|life| Some(life.away.as_ref()?.drained_rate))),
            );
        }
        text.push('\n');
    }

    fn lone(&self, text: &mut String) {
        text.push_str(
            "### A lone event every 20 ms, and the client libraries alone\n\n| | answered, p50 us | p99 us | stored after, \
             mean us |\n|---|---|---|---|\n",
        );
        for row in self.sorted() {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} |",
                row.name,
                cell(row.of(|life| life.lone.p50), 0),
                cell(row.of(|life| life.lone.p99), 0),
                cell(Spread::of(row.rounds.iter().filter_map(|life| life.lone_stored)), 0),
            );
        }
        text.push_str(
            "\n| client library | lone message confirmed, p50 us | loop, k/s confirmed | CPU us/message |\n\
             |---|---|---|---|\n",
        );
        for kind in Kind::ALL.into_iter().filter(|kind| self.ceiling(*kind, |_| 0.0).is_some()) {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} |",
                kind.name(),
                cell(self.ceiling(kind, |ceiling| ceiling.lone), 0),
                thousands(self.ceiling(kind, |ceiling| ceiling.rate)),
                cell(self.ceiling(kind, |ceiling| ceiling.cpu), 1),
            );
        }
        text.push('\n');
    }

    fn memory(&self, text: &mut String) {
        text.push_str(
            "### Memory (resident, MiB) and start\n\n| | idle | peak under load | everything buffered | drained | \
             ready after, ms |\n|---|---|---|---|---|---|\n",
        );
        for row in self.sorted() {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} |",
                row.name,
                cell(row.of(|life| life.idle_mib), 1),
                cell(row.of(|life| life.peak_mib), 1),
                cell(row.away(|life| Some(life.away.as_ref()?.full_mib)), 1),
                cell(row.away(|life| Some(life.away.as_ref()?.drained_mib)), 1),
                cell(row.of(|life| life.start_ms), 0),
            );
        }
        text.push('\n');
    }

    /// Both builds of the bridge, where there are two.
    fn builds(&self, text: &mut String) {
        let pairs: Vec<_> = self
            .sorted()
            .into_iter()
            .filter_map(|this| Some((this, self.row(&format!("{}{OTHER_BUILD}", this.name))?)))
            .collect();
        if pairs.is_empty() {
            return;
        }
        text.push_str(
            "### This build and the other\n\n| | figure | this | other | the medians differ by |\n|---|---|---|---|---|\n",
        );
        let figures: [(&str, Figure); 5] = [
            ("CPU, x", |life| Some(life.cpu / life.beside.as_ref()?.cpu)),
            ("200s, x", |life| Some(life.accepted_rate / life.beside.as_ref()?.accepted_rate)),
            ("p50 at the fixed rate, us", |life| Some(life.fixed.p50)),
            ("lone event answered, p50 us", |life| Some(life.lone.p50)),
            ("peak memory, MiB", |life| Some(life.peak_mib)),
        ];
        for (this, other) in pairs {
            for (what, figure) in figures {
                let of = |row: &Row| Spread::of(row.rounds.iter().filter_map(figure));
                let Some((here, there)) = of(this).zip(of(other)) else { continue };
                let _ = writeln!(
                    text,
                    "| {} | {what} | {} | {} | {:+.0} %, {} |",
                    this.name,
                    here.text(2),
                    there.text(2),
                    (here.median / there.median - 1.0) * 100.0,
                    if here.differs_from(there) { "more than the range" } else { "within the range" },
                );
            }
        }
        text.push('\n');
    }

    fn goals(&self, text: &mut String) {
        text.push_str("### Goals\n\n| goal | limit | measured | |\n|---|---|---|---|\n");
        let cpu: Figure = |life| Some(life.cpu);
        for goals in &GOALS {
            let broker = goals.broker.name();
            let row = |what: &str| self.row(&format!("{broker} {what}"));
            let ratio = |what: &str, figure: Figure| row(what)?.ratio(figure);
            let of = |what: &str, figure: Figure| Spread::of(row(what)?.rounds.iter().filter_map(figure));
            let milliseconds = |what: &str, figure: Figure| Some(of(what, figure)?.times(1e-3));
            let loop_rate = self.ceiling(goals.broker, |ceiling| ceiling.rate);
            let drained = of("buffered", |life| Some(life.away.as_ref()?.drained_rate));
            let drained = drained.zip(loop_rate).map(|(rate, of)| rate.times(1.0 / of.median));
            let burst = ratio("buffered", burst);
            let rate = ratio("buffered", |life| Some(life.accepted_rate));
            let p50 = of("buffered", |life| Some(life.away.as_ref()?.fixed.p50 / life.fixed.p50));
            let p99 = of("buffered", |life| Some(life.away.as_ref()?.fixed.p99 / life.fixed.p99));
            let idle = of("buffered", |life| Some(life.idle_mib * 1.048_576));
            for (what, measured, is_most, limit, unit) in [
                ("CPU, no headers", ratio("buffered, no headers", cpu), true, goals.plain, " x"),
                ("CPU, CloudEvents headers", ratio("buffered", cpu), true, goals.headers, " x"),
                ("CPU, `journaled`", ratio("journaled", cpu), true, goals.journaled, " x"),
                ("200s in a burst, broker away", burst, false, 0.85, " x"),
                ("200s with the broker on the same cores", rate, false, goals.accepted, " x"),
                ("p50 at the fixed rate", ratio("buffered", |life| Some(life.fixed.p50)), true, 1.3, " x"),
                ("p99 at the fixed rate", ratio("buffered", |life| Some(life.fixed.p99)), true, 1.2, " x"),
                ("p50 while the broker is away, to p50 while it is there", p50, true, 1.1, " x"),
                ("p99 while the broker is away, to p99 while it is there", p99, true, 1.1, " x"),
                (
                    "a lone event, `published`, p50",
                    milliseconds("published", |life| Some(life.lone.p50)),
                    true,
                    goals.lone,
                    " ms",
                ),
                (
                    "`published`, p50 at the fixed rate",
                    milliseconds("published", |life| Some(life.fixed.p50)),
                    true,
                    goals.published,
                    " ms",
                ),
                (
                    "a lone event stored, `buffered`, mean",
                    milliseconds("buffered", |life| life.lone_stored),
                    true,
                    goals.stored,
                    " ms",
                ),
                ("drained after an outage, to the client library's loop", drained, false, 0.7, " x"),
                ("idle memory", idle, true, 15.0, " MB"),
            ] {
                let Some(measured) = measured else { continue };
                let is_met = if is_most { measured.median <= limit } else { measured.median >= limit };
                let _ = writeln!(
                    text,
                    "| {broker}: {what} | {} {limit}{unit} | {} | {} |",
                    if is_most { "at most" } else { "at least" },
                    measured.text(2),
                    if is_met { "met" } else { "**missed**" }
                );
            }
        }
        text.push('\n');
    }

    /// Every round, for programs.
    pub fn json(&self) -> Result<String> {
        let Size { events, connections, body, burst, rate, seconds } = self.size;
        let rows: Vec<_> = self
            .sorted()
            .iter()
            .map(|row| json!({"name": row.name, "broker": row.broker, "rounds": row.rounds}))
            .collect();
        Ok(serde_json::to_string_pretty(&json!({
            "events": events, "connections": connections, "body_bytes": body, "burst": burst, "rate": rate,
            "seconds": seconds, "reference": REFERENCE, "candidates": rows, "client_libraries": self.ceilings,
        }))?)
    }

    /// Processor time per event, as bars with their ranges.
    pub fn plot(&self) -> String {
        let rows: Vec<(&Row, Spread)> = self
            .sorted()
            .into_iter()
            .filter(|row| !row.name.ends_with(OTHER_BUILD))
            .filter_map(|row| Some((row, Spread::of(row.rounds.iter().map(|life| life.cpu))?)))
            .collect();
        let most = rows.iter().map(|(_, spread)| spread.high).fold(1.0, f64::max);
        let (left, width, step) = (230.0, 470.0, 24.0);
        #[expect(clippy::cast_precision_loss, reason = "a handful of rows")]
        let height = step * rows.len() as f64 + 46.0;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 780 {height}\" font-family=\"sans-serif\" \
             font-size=\"13\">\n<rect width=\"780\" height=\"{height}\" fill=\"#ffffff\"/>\n\
             <text x=\"10\" y=\"22\" font-weight=\"bold\">Processor time per event, microseconds</text>\n"
        );
        for (at, (row, spread)) in (0u16..).zip(&rows) {
            let y = 36.0 + step * f64::from(at);
            let x = |value: f64| left + width * value / most;
            let colour = match row.broker {
                None => "#9aa0a6",
                Some(_) if row.name.contains("buffered") => "#2b6cb0",
                Some(_) => "#90b4d9",
            };
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text><rect x=\"{left}\" y=\"{y}\" width=\"{:.1}\" \
                 height=\"16\" fill=\"{colour}\"/><path d=\"M{:.1} {}H{:.1}\" stroke=\"#1a202c\"/><text x=\"{:.1}\" \
                 y=\"{}\">{:.1}</text>",
                left - 8.0,
                y + 13.0,
                row.name,
                x(spread.median) - left,
                x(spread.low),
                y + 8.0,
                x(spread.high),
                x(spread.high) + 6.0,
                y + 13.0,
                spread.median
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

fn burst(life: &Life) -> Option<f64> {
    life.away.as_ref().map(|away| away.accepted_rate)
}

/// Where three figures share a cell their ranges would hide them.
fn median_alone(spread: Spread) -> Spread {
    Spread { low: spread.median, high: spread.median, ..spread }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_middle_and_the_ends() {
        let spread = Spread::of([3.0, 1.0, 2.0, 10.0]).expect("there are values");
        assert_eq!(spread, Spread { median: 2.5, low: 1.0, high: 10.0 });
        assert_eq!(spread.text(1), "2.5 (1.0-10.0)");
        assert_eq!(Spread::of([]), None);
        assert!(!spread.differs_from(Spread { median: 11.0, low: 11.0, high: 11.0 }));
        assert!(spread.differs_from(Spread { median: 12.0, low: 12.0, high: 12.0 }));
    }
}
