//! What is said of the rounds: medians with their ranges, as a table, as JSON, as a plot; and which goals are met.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::json;

use crate::brokers::Kind;
use crate::candidate::REFERENCE;
use crate::measure::{Life, Size};

/// All rounds of all candidates, in the order of the first round.
pub struct Results {
    size: Size,
    rows: Vec<Row>,
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
    let part = |value: f64| value / 1000.0;
    cell(
        spread.map(|spread| Spread { median: part(spread.median), low: part(spread.low), high: part(spread.high) }),
        1,
    )
}

type Figure = fn(&Life) -> Option<f64>;

impl Results {
    /// None yet.
    pub fn new(size: Size) -> Self {
        Self { size, rows: Vec::new() }
    }

    /// One more life.
    pub fn add(&mut self, name: &str, broker: Option<Kind>, life: Life) {
        match self.rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row.rounds.push(life),
            None => self.rows.push(Row { name: name.to_owned(), broker, rounds: vec![life] }),
        }
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
        self.memory(&mut text);
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

    fn goals(&self, text: &mut String) {
        text.push_str("### Goals\n\n| goal | limit | measured | |\n|---|---|---|---|\n");
        for (kind, plain, headers, accepted) in
            [(Kind::Kafka, 1.5, 2.0, 0.6), (Kind::Rabbitmq, 3.0, 3.2, 0.3), (Kind::Nats, 1.8, 2.4, 0.5)]
        {
            let broker = kind.name();
            let with = self.row(&format!("{broker} buffered"));
            let without = self.row(&format!("{broker} buffered, no headers"));
            let cpu: Figure = |life| Some(life.cpu);
            let mut goal = |what: &str, limit: f64, unit: &str, measured: Option<Spread>, at_most: bool| {
                let Some(measured) = measured else { return };
                let is_met = if at_most { measured.median <= limit } else { measured.median >= limit };
                let _ = writeln!(
                    text,
                    "| {broker}: {what} | {} {limit}{unit} | {} | {} |",
                    if at_most { "at most" } else { "at least" },
                    measured.text(2),
                    if is_met { "met" } else { "**missed**" }
                );
            };
            goal("CPU, no headers", plain, " x", without.and_then(|row| row.ratio(cpu)), true);
            let Some(with) = with else { continue };
            goal("CPU, CloudEvents headers", headers, " x", with.ratio(cpu), true);
            goal("200s in a burst, broker away", 0.85, " x", with.ratio(burst), false);
            let rate: Figure = |life| Some(life.accepted_rate);
            goal("200s with the broker on the same cores", accepted, " x", with.ratio(rate), false);
            let (p50, p99): (Figure, Figure) = (|life| Some(life.fixed.p50), |life| Some(life.fixed.p99));
            goal("p50 at the fixed rate", 1.3, " x", with.ratio(p50), true);
            goal("p99 at the fixed rate", 1.3, " x", with.ratio(p99), true);
            let there = |figure: Figure| Spread::of(with.rounds.iter().filter_map(figure));
            goal(
                "p50 while the broker is away, to p50 while it is there",
                1.1,
                " x",
                there(|life| Some(life.away.as_ref()?.fixed.p50 / life.fixed.p50)),
                true,
            );
            goal(
                "p99 while the broker is away, to p99 while it is there",
                1.1,
                " x",
                there(|life| Some(life.away.as_ref()?.fixed.p99 / life.fixed.p99)),
                true,
            );
            goal("idle memory", 12.0, " MB", there(|life| Some(life.idle_mib * 1.048_576)), true);
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
            "seconds": seconds, "reference": REFERENCE, "candidates": rows,
        }))?)
    }

    /// Processor time per event, as bars with their ranges.
    pub fn plot(&self) -> String {
        let rows: Vec<(&Row, Spread)> = self
            .sorted()
            .into_iter()
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
    }
}
