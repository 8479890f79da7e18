//! The sender: one thread, one system call to write a request and one to read its answer.
//!
//! Closed loop: each connection sends its next request when it has its answer. Fixed rate: each request is due at a
//! moment of its own, and its latency counts from there, sent late or not: what waits because the program is slow is
//! the program's (coordinated omission).

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::events::Request;

/// No answer at all for so long: the program hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Answers {
    /// Requests answered 200.
    pub accepted: u64,
    /// Answered 503.
    pub unavailable: u64,
    /// Answered otherwise.
    pub other: u64,
    /// From the first byte sent to the last answer.
    pub took: Duration,
    /// When the first byte was sent.
    pub began: Instant,
    /// Nanoseconds.
    pub latency: Histogram<u64>,
}

impl Answers {
    fn new() -> Self {
        let latency = Histogram::new_with_bounds(1_000, 60_000_000_000, 3).expect("the bounds are in order");
        Self { accepted: 0, unavailable: 0, other: 0, took: Duration::ZERO, began: Instant::now(), latency }
    }

    fn count(&mut self, status: u16, latency: Duration) {
        match status {
            200 => self.accepted += 1,
            503 => self.unavailable += 1,
            _ => self.other += 1,
        }
        self.latency.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    fn total(&self) -> usize {
        usize::try_from(self.accepted + self.unavailable + self.other).unwrap_or(usize::MAX)
    }

    /// 200s a second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn accepted_rate(&self) -> f64 {
        self.accepted as f64 / self.took.as_secs_f64()
    }

    /// The part that was answered 503.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn share_of_503(&self) -> f64 {
        self.unavailable as f64 / (self.total().max(1)) as f64
    }
}

struct Line {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
    /// From when the latency of the request on its way counts.
    since: Instant,
}

/// Open connections.
pub struct Sender {
    poll: Poll,
    events: Events,
    lines: Vec<Line>,
}

impl Sender {
    /// Opens so many connections.
    pub fn connect(address: SocketAddr, connections: usize) -> Result<Self> {
        let (poll, mut lines) = (Poll::new()?, Vec::with_capacity(connections));
        for at in 0..connections {
            let stream = std::net::TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(at), Interest::READABLE)?;
            lines.push(Line { stream, buffer: vec![0; 4096], filled: 0, since: Instant::now() });
        }
        Ok(Self { poll, events: Events::with_capacity(1024), lines })
    }

    /// Sends all of them as fast as they are answered.
    pub fn closed_loop(&mut self, requests: &[Request]) -> Result<Answers> {
        let mut answers = Answers::new();
        let mut left = requests.iter();
        for line in &mut self.lines {
            let Some(request) = left.next() else { break };
            line.send(request, Instant::now())?;
        }
        while answers.total() < requests.len() {
            self.wait()?;
            for event in &self.events {
                let line = &mut self.lines[event.token().0];
                while let Some(status) = line.answer()? {
                    answers.count(status, line.since.elapsed());
                    match left.next() {
                        Some(request) => line.send(request, Instant::now())?,
                        None => break,
                    }
                }
            }
        }
        answers.took = answers.began.elapsed();
        Ok(answers)
    }

    /// Sends them one after the other, so many a second.
    pub fn at_rate(&mut self, requests: &[Request], rate: u32) -> Result<Answers> {
        let interval = Duration::from_secs(1) / rate;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        let clock = Token(self.lines.len());
        self.poll.registry().register(&mut SourceFd(&timer.as_fd().as_raw_fd()), clock, Interest::READABLE)?;
        let mut answers = Answers::new();
        timer.set(Expiration::Interval(TimeSpec::from_duration(interval)), TimerSetTimeFlags::empty())?;
        let mut free: VecDeque<usize> = (0..self.lines.len()).collect();
        let (mut left, mut sent) = (requests.iter(), 0);
        while answers.total() < requests.len() {
            self.wait()?;
            for event in &self.events {
                if event.token() == clock {
                    // Never waits: it has ticked. How often is known from the clock.
                    timer.wait()?;
                    continue;
                }
                let at = event.token().0;
                let line = &mut self.lines[at];
                if let Some(status) = line.answer()? {
                    answers.count(status, line.since.elapsed());
                    free.push_back(at);
                }
            }
            loop {
                let due = answers.began + interval * (sent + 1);
                if due > Instant::now() {
                    break;
                }
                let (Some(at), Some(request)) = (free.front(), left.next()) else { break };
                self.lines[*at].send(request, due)?;
                free.pop_front();
                sent += 1;
            }
        }
        self.poll.registry().deregister(&mut SourceFd(&timer.as_fd().as_raw_fd()))?;
        answers.took = answers.began.elapsed();
        Ok(answers)
    }

    fn wait(&mut self) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(PATIENCE)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error.into()),
            Ok(()) if self.events.is_empty() => bail!("no answer within {} s", PATIENCE.as_secs()),
            Ok(()) => Ok(()),
        }
    }
}

impl Line {
    fn send(&mut self, request: &Request, since: Instant) -> Result<()> {
        self.since = since;
        let mut left = &request[..];
        while !left.is_empty() {
            match self.stream.write(left) {
                Ok(written) => left = &left[written..],
                // Only a large body fills the socket: the program is reading it.
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => return Err(error).context("write a request"),
            }
        }
        Ok(())
    }

    /// The status of a whole answer, if it is there.
    fn answer(&mut self) -> Result<Option<u16>> {
        loop {
            match self.stream.read(&mut self.buffer[self.filled..]) {
                Ok(0) => bail!("the program closed a connection"),
                Ok(read) => self.filled += read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error).context("read an answer"),
            }
            if let Some((status, length)) = whole(&self.buffer[..self.filled])? {
                anyhow::ensure!(length == self.filled, "more than one answer to a request");
                self.filled = 0;
                return Ok(Some(status));
            }
        }
    }
}

/// Status and length of a whole answer.
fn whole(bytes: &[u8]) -> Result<Option<(u16, usize)>> {
    let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&bytes[..head])?;
    let mut lines = text.split("\r\n");
    let status =
        lines.next().and_then(|line| line.split(' ').nth(1)).context("an answer without a status")?.parse()?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(Ok(0), |(_, value)| value.trim().parse::<usize>())?;
    let all = head + 4 + length;
    Ok((bytes.len() >= all).then_some((status, all)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_a_whole_answer() {
        let answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: x\r\nContent-Length: 2\r\n\r\nok";
        assert_eq!(whole(answer).expect("it is well formed"), Some((503, answer.len())));
        for end in 0..answer.len() {
            assert_eq!(whole(&answer[..end]).expect("a part is no error"), None);
        }
    }
}
