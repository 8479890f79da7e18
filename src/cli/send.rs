//! `send`: signed webhooks to a URL; a simple load generator.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write as FmtWrite;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::ingress::sign;
use crate::settings::{Flags, Secret};
use bytes::Bytes;
use clap::builder::PossibleValuesParser;
use clap::{Args, CommandFactory as _};
use futures_util::future::ready;
use futures_util::stream::{self, StreamExt as _};
use hyper::Uri;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use serde_json::json;

use crate::cli::client::{Http, Response};
use crate::cli::sample::{self, Sample};
use crate::cli::sign::{Signer, read};
use crate::cli::{self, CommandResult, exit, say};

/// The wait before a repeat if a 503 does not set one.
const RETRY: Duration = Duration::from_secs(1);

/// The interval at which the progress bar is drawn, at least.
const DRAW_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct SendOptions {
    #[command(flatten)]
    signer: Signer,
    /// Number of events to send [default: 1, or each file or chosen sample once]
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Maximum number of events per second [default: as fast as they are answered]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Number of connections
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Samples to send, in turn, separated by commas [default: the documented payloads]
    #[arg(long, value_name = "NAME", value_delimiter = ',', conflicts_with = "files",
          value_parser = PossibleValuesParser::new(sample::names()))]
    sample: Vec<String>,
    /// Number of targets in a bulk change [default: 3]; without --sample, send bulk changes
    #[arg(long, value_name = "N", conflicts_with = "files")]
    targets: Option<usize>,
    /// Count a 503 as refused instead of repeating it after its Retry-After
    #[arg(long)]
    no_retry: bool,
    /// Give up after this time without an accepted event
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Target URL [default: the bridge of the settings on this machine]
    url: Option<String>,
    /// Files with the payloads to send, byte for byte; `-` is standard input [default: samples]
    files: Vec<PathBuf>,
}

pub(super) fn run(flags: &Flags, options: SendOptions) -> CommandResult {
    let samples = samples(&options);
    let (secret, own_url) = options.signer.identity(flags)?;
    let Some(url) = options.url.clone().or(own_url) else {
        return Err(cli::failed("give the URL to send to, such as http://127.0.0.1:8080/webhooks/plextrac"));
    };
    let url = encoded(&url).map_err(cli::failed)?;
    let bodies = options.files.iter().map(|path| read(path).map(Bytes::from)).collect::<Result<Vec<_>, _>>()?;
    let each_once = if options.sample.is_empty() { bodies.len().max(1) } else { samples.len() };
    let count = options.count.unwrap_or(each_once as u64);
    let bar = ProgressBar::new(count);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} events, {rate}/s, {eta} left{msg}") {
        let rate = |state: &ProgressState, to: &mut dyn FmtWrite| {
            // A String accepts everything.
            let _ = write!(to, "{:.0}", state.per_sec());
        };
        bar.set_style(style.with_key("rate", rate));
    }
    if !bar.is_hidden() {
        // Changes are shown even while no answer arrives.
        bar.enable_steady_tick(DRAW_INTERVAL);
    }
    let plan = SendPlan {
        http: Http::new(&url)?,
        url,
        secret,
        bodies,
        samples,
        count,
        options,
        last_accepted: Cell::new(Instant::now()),
        last_answer: RefCell::default(),
        waiting: Cell::new(0),
        tally: RefCell::default(),
        bar,
    };
    plan.run()
}

/// The samples that are sent if no file is given.
fn samples(options: &SendOptions) -> Vec<&'static Sample> {
    match (options.sample.as_slice(), options.targets) {
        ([], None) => sample::usual(),
        ([], Some(_)) => sample::bulk(),
        (names, targets) => {
            let samples = sample::named(names);
            if targets.is_some() && !samples.iter().any(|sample| sample.is_bulk()) {
                let text = "--targets needs a sample that is a bulk change";
                cli::Arguments::command().error(clap::error::ErrorKind::ArgumentConflict, text).exit();
            }
            samples
        }
    }
}

/// A URL in encoded form, as every client sends it.
fn encoded(url: &str) -> Result<Uri, String> {
    let parsed = url::Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    // A single word, or a host and a port without a scheme, is not one.
    let parsed = parsed.ok_or_else(|| format!("{url} is not a URL; it starts with http:// or https://"))?;
    parsed.as_str().parse().map_err(|error| format!("{url} is not a URL: {error}"))
}

/// The events to send, and the progress.
struct SendPlan {
    http: Http,
    url: Uri,
    secret: Option<Secret>,
    bodies: Vec<Bytes>,
    samples: Vec<&'static Sample>,
    count: u64,
    options: SendOptions,
    /// The time of the last accepted event, or of the begin.
    last_accepted: Cell<Instant>,
    /// The last answer that was not 200, as it was printed.
    last_answer: RefCell<Option<String>>,
    /// The number of events that wait to be repeated after a 503.
    waiting: Cell<u64>,
    tally: RefCell<Tally>,
    bar: ProgressBar,
}

#[derive(Default)]
struct Tally {
    /// Answers by status.
    codes: BTreeMap<u16, u64>,
    repeated: u64,
    failed: u64,
    error: Option<String>,
    refusal: Option<String>,
    /// The microseconds from sending to the final answer.
    latencies: Vec<u32>,
}

impl Tally {
    fn refused(&self) -> u64 {
        self.codes.iter().filter(|(code, _)| **code != 200).map(|(_, count)| count).sum()
    }

    /// Notes a final answer.
    fn note(&mut self, answer: Result<Response, String>, latency: Duration) {
        match answer {
            Ok(answer) => {
                *self.codes.entry(answer.status).or_default() += 1;
                if answer.status != 200 {
                    self.refusal = Some(String::from_utf8_lossy(&answer.body).into_owned());
                }
                self.latencies.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
            }
            Err(error) => {
                self.failed += 1;
                self.error = Some(error);
            }
        }
    }
}

impl SendPlan {
    fn run(&self) -> CommandResult {
        let runtime = cli::runtime()?;
        let begun = Instant::now();
        let numbers = stream::iter(0..self.count).take_while(|_| ready(!self.gives_up()));
        let sent = numbers.for_each_concurrent(usize::from(self.options.connections), async |number| {
            if let Some(rate) = self.options.rate {
                let due = begun + Duration::from_secs_f64(to_f64(number) / f64::from(rate));
                tokio::time::sleep_until(due.into()).await;
            }
            self.deliver(number).await;
            self.bar.inc(1);
        });
        runtime.block_on(sent);
        self.bar.finish_and_clear();
        Ok(self.report(begun.elapsed()))
    }

    async fn deliver(&self, number: u64) {
        let body = match self.bodies.len() as u64 {
            0 => {
                let samples = self.samples.len() as u64;
                let sample = self.samples[usize::try_from(number % samples).unwrap_or(0)];
                Bytes::from(sample.body(number, self.options.targets.unwrap_or(sample::TARGETS)))
            }
            length => self.bodies[usize::try_from(number % length).unwrap_or(0)].clone(),
        };
        let signature = self.secret.as_ref().map(|secret| sign(secret, &body));
        loop {
            let sent = Instant::now();
            let answer = self.http.post(&self.url, body.clone(), signature.as_deref()).await;
            self.print_change(&answer);
            let wait = match &answer {
                Ok(answer) if answer.status == 503 && !self.options.no_retry && !self.gives_up() => {
                    answer.retry_after.or(Some(RETRY))
                }
                _ => None,
            };
            let Some(wait) = wait else {
                self.tally.borrow_mut().note(answer, sent.elapsed());
                return self.show();
            };
            self.tally.borrow_mut().repeated += 1;
            self.waiting.set(self.waiting.get() + 1);
            self.show();
            tokio::time::sleep(wait).await;
            self.waiting.set(self.waiting.get() - 1);
            self.show();
        }
    }

    /// Whether nothing has been accepted for too long: the remaining bodies are not sent.
    fn gives_up(&self) -> bool {
        self.last_accepted.get().elapsed() >= self.options.timeout
    }

    /// Prints an answer that differs from the one before; the first one only if it is not 200.
    fn print_change(&self, answer: &Result<Response, String>) {
        let text = match answer {
            Ok(answer) if answer.status == 200 => {
                self.last_accepted.set(Instant::now());
                None
            }
            Ok(answer) => Some(format!("{} {}", answer.status, detail(&answer.body))),
            // The result has it.
            Err(_) if self.count == 1 => return,
            Err(error) => Some(format!("no answer: {error}")),
        };
        // Numbers in the text are no change.
        let kind =
            |text: &Option<String>| text.as_deref().map(|text| text.replace(|c: char| c.is_ascii_digit(), ""));
        let mut last = self.last_answer.borrow_mut();
        if kind(&last) == kind(&text)
            && last.as_ref().map(|text| text.get(..3)) == text.as_ref().map(|text| text.get(..3))
        {
            return;
        }
        let line = format!("answer: {}", text.as_deref().unwrap_or("200"));
        if self.bar.is_hidden() {
            // Standard output has the result. An error cannot be reported anywhere else.
            let _ = writeln!(std::io::stderr(), "{line}");
        } else {
            self.bar.println(line);
        }
        *last = text;
    }

    /// Shows the counts of interest behind the bar.
    fn show(&self) {
        let tally = self.tally.borrow();
        let counts =
            [(tally.refused(), "refused"), (tally.failed, "failed"), (self.waiting.get(), "waiting after a 503")];
        let shown = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!(", {count} {what}"));
        self.bar.set_message(shown.collect::<String>());
    }

    fn report(&self, elapsed: Duration) -> ExitCode {
        let mut tally = self.tally.borrow_mut();
        tally.latencies.sort_unstable();
        let accepted = tally.codes.get(&200).copied().unwrap_or(0);
        let refused = tally.refused();
        let rate = to_f64(accepted) / elapsed.as_secs_f64().max(1e-9);
        let quantile = |share: usize| {
            let at = (tally.latencies.len() * share / 100).min(tally.latencies.len().saturating_sub(1));
            f64::from(tally.latencies.get(at).copied().unwrap_or(0)) / 1000.0
        };
        if self.options.json {
            say(json!({
                "accepted": accepted, "refused": refused, "failed": tally.failed, "repeated": tally.repeated,
                "codes": tally.codes, "seconds": elapsed.as_secs_f64(), "accepted_per_second": rate,
                "p50_milliseconds": quantile(50), "p99_milliseconds": quantile(99), "last_error": tally.error,
            }));
        } else {
            say(format_args!(
                "{accepted} accepted, {refused} refused, {} failed, {} repeated after a 503, in {:.2} s: {rate:.0} events/s, \
                 p50 {:.2} ms, p99 {:.2} ms",
                tally.failed,
                tally.repeated,
                elapsed.as_secs_f64(),
                quantile(50),
                quantile(99)
            ));
            for (code, count) in tally.codes.iter().filter(|(code, _)| **code != 200) {
                say(format_args!("  {count} x {code}"));
            }
            if let Some(refusal) = &tally.refusal {
                say(format_args!("  last refusal: {refusal}"));
            }
            if let Some(error) = &tally.error {
                cli::complain(format_args!("{}: {error}", self.url));
            }
        }
        if self.gives_up() && accepted < self.count {
            let unsent = self.count - accepted - refused - tally.failed;
            cli::complain(format_args!(
                "gave up: nothing was accepted for {:?}; {unsent} not sent",
                self.options.timeout
            ));
        }
        exit(accepted == self.count)
    }
}

/// The detail of an answer: RFC 9457 in JSON.
fn detail(body: &[u8]) -> String {
    let problem: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let detail = problem.as_ref().and_then(|problem| problem["detail"].as_str());
    detail.map_or_else(|| String::from_utf8_lossy(body).trim().chars().take(200).collect(), str::to_owned)
}

/// Exact up to 2^53 events.
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 events")]
fn to_f64(count: u64) -> f64 {
    count as f64
}
