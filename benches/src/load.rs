//! The sender: one thread, one system call to write a request and one to read its answer.
//!
//! Closed loop: each connection sends its next request when it has its answer. Fixed rate: each request is due at a
//! moment of its own, and its latency counts from there, sent late or not: what waits because the program is slow is
//! the program's (coordinated omission). What waits because the sender has no core is not: it goes before everybody
//! else there, as if it had a machine of its own.
//!
//! A program may close a connection that was idle for too long, which happens where the machine stood still for some
//! seconds. It is opened again, as any client would, and the request that met the end is sent again. That is counted.

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
use crate::priority::First;

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
    /// Connections that the program closed and that were opened again.
    pub reopened: u64,
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
        Self {
            accepted: 0,
            unavailable: 0,
            other: 0,
            reopened: 0,
            took: Duration::ZERO,
            began: Instant::now(),
            latency,
        }
    }

    fn count(&mut self, status: u16, latency: Duration) {
        match status {
            200 => self.accepted += 1,
            503 => self.unavailable += 1,
            _ => self.other += 1,
        }
        self.latency.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        self.accepted += other.accepted;
        self.unavailable += other.unavailable;
        self.other += other.other;
        self.reopened += other.reopened;
        self.took += other.took;
        Ok(self.latency.add(&other.latency)?)
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
    /// The request on its way.
    sending: Option<usize>,
    buffer: Vec<u8>,
    filled: usize,
    /// From when the latency of the request on its way counts.
    since: Instant,
}

/// What came over a connection.
enum Came {
    /// A whole answer with this status.
    Answer(u16),
    /// No whole answer yet.
    Nothing,
    /// Its end.
    End,
}

/// Open connections.
pub struct Sender {
    address: SocketAddr,
    poll: Poll,
    lines: Vec<Line>,
}

impl Sender {
    /// Opens so many connections.
    pub fn connect(address: SocketAddr, connections: usize) -> Result<Self> {
        let poll = Poll::new()?;
        let lines = (0..connections)
            .map(|at| {
                let stream = open(address, &poll, at)?;
                Ok(Line { stream, sending: None, buffer: vec![0; 4096], filled: 0, since: Instant::now() })
            })
            .collect::<Result<_>>()?;
        Ok(Self { address, poll, lines })
    }

    /// Sends all of them as fast as they are answered.
    pub fn closed_loop(&mut self, requests: &[Request]) -> Result<Answers> {
        let (mut answers, mut events) = (Answers::new(), Events::with_capacity(1024));
        let mut left = 0..requests.len();
        for line in &mut self.lines {
            let Some(request) = left.next() else { break };
            line.send(requests, request, Instant::now())?;
        }
        while answers.total() < requests.len() {
            self.wait(&mut events)?;
            for event in &events {
                let at = event.token().0;
                while let Some(status) = self.answer(at, requests, &mut answers)? {
                    let line = &mut self.lines[at];
                    answers.count(status, line.since.elapsed());
                    let Some(request) = left.next() else { break };
                    line.send(requests, request, Instant::now())?;
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
        let (mut answers, mut events) = (Answers::new(), Events::with_capacity(1024));
        timer.set(Expiration::Interval(TimeSpec::from_duration(interval)), TimerSetTimeFlags::empty())?;
        let _first = First::new();
        let mut free: VecDeque<usize> = (0..self.lines.len()).collect();
        let (mut sent, mut answered) = (0, Instant::now());
        while answers.total() < requests.len() {
            self.wait(&mut events)?;
            for event in &events {
                if event.token() == clock {
                    // Never waits: it has ticked. How often is known from the clock.
                    timer.wait()?;
                    continue;
                }
                let at = event.token().0;
                if let Some(status) = self.answer(at, requests, &mut answers)? {
                    answers.count(status, self.lines[at].since.elapsed());
                    answered = Instant::now();
                    free.push_back(at);
                }
            }
            // What is due while all are busy waits, and its latency counts.
            while let Some(at) = free.front().copied() {
                let due = answers.began + interval * (u32::try_from(sent)? + 1);
                if sent == requests.len() || due > Instant::now() {
                    break;
                }
                free.pop_front();
                self.lines[at].send(requests, sent, due)?;
                sent += 1;
            }
            // The clock ticks whatever happens.
            if free.len() < self.lines.len() {
                anyhow::ensure!(answered.elapsed() < PATIENCE, "no answer within {} s", PATIENCE.as_secs());
            }
        }
        self.poll.registry().deregister(&mut SourceFd(&timer.as_fd().as_raw_fd()))?;
        answers.took = answers.began.elapsed();
        Ok(answers)
    }

    fn wait(&mut self, events: &mut Events) -> Result<()> {
        match self.poll.poll(events, Some(PATIENCE)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error.into()),
            Ok(()) if events.is_empty() => bail!("no answer within {} s", PATIENCE.as_secs()),
            Ok(()) => Ok(()),
        }
    }

    /// The status of a whole answer on a connection, if it is there. One that ended is open again afterwards.
    fn answer(&mut self, at: usize, requests: &[Request], answers: &mut Answers) -> Result<Option<u16>> {
        let line = &mut self.lines[at];
        match line.read()? {
            Came::Answer(status) => Ok(Some(status)),
            Came::Nothing => Ok(None),
            Came::End => {
                answers.reopened += 1;
                let most = 2 * self.lines.len() + answers.total();
                let is_fair = usize::try_from(answers.reopened)? <= most;
                anyhow::ensure!(is_fair, "the program closed {} connections, and answered less", answers.reopened);
                let line = &mut self.lines[at];
                line.stream = open(self.address, &self.poll, at)?;
                line.filled = 0;
                if let Some(request) = line.sending {
                    line.send(requests, request, line.since)?;
                }
                Ok(None)
            }
        }
    }
}

/// A connection, known to `poll` by its number.
fn open(address: SocketAddr, poll: &Poll, at: usize) -> Result<TcpStream> {
    let stream = std::net::TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let mut stream = TcpStream::from_std(stream);
    poll.registry().register(&mut stream, Token(at), Interest::READABLE)?;
    Ok(stream)
}

/// The other side has closed the connection.
fn is_end(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

impl Line {
    /// Sends one of the requests. Where the connection has ended, reading says so.
    fn send(&mut self, requests: &[Request], request: usize, since: Instant) -> Result<()> {
        self.since = since;
        self.sending = Some(request);
        let mut left = &requests[request][..];
        while !left.is_empty() {
            match self.stream.write(left) {
                Ok(written) => left = &left[written..],
                // Only a large body fills the socket: the program is reading it.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_micros(50));
                }
                Err(error) if is_end(&error) => break,
                Err(error) => return Err(error).context("write a request"),
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<Came> {
        loop {
            match self.stream.read(&mut self.buffer[self.filled..]) {
                Ok(0) => return Ok(Came::End),
                Ok(read) => self.filled += read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Came::Nothing),
                Err(error) if is_end(&error) => return Ok(Came::End),
                Err(error) => return Err(error).context("read an answer"),
            }
            if let Some((status, length)) = whole(&self.buffer[..self.filled])? {
                anyhow::ensure!(length == self.filled, "more than one answer to a request");
                (self.filled, self.sending) = (0, None);
                return Ok(Came::Answer(status));
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

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

    /// Answers one request on each of `connections`, and closes it.
    fn one_each(connections: usize) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("it is bound");
        std::thread::spawn(move || {
            for mut stream in listener.incoming().take(connections).flatten() {
                let _ = stream.read(&mut [0; 64]);
                let _ = stream.write_all(ANSWER);
            }
        });
        address
    }

    fn three() -> Vec<Request> {
        (0..3).map(|_| Request::from(*b"POST / HTTP/1.1\r\n\r\n")).collect()
    }

    #[test]
    fn opens_a_closed_connection_again() {
        let mut sender = Sender::connect(one_each(3), 1).expect("it listens");
        let answers = sender.closed_loop(&three()).expect("each request is answered");
        assert_eq!((answers.accepted, answers.reopened), (3, 2));
        let mut sender = Sender::connect(one_each(4), 1).expect("it listens");
        let answers = sender.at_rate(&three(), 1_000).expect("each request is answered");
        assert_eq!(answers.accepted, 3);
    }

    #[test]
    fn waits_for_a_connection_where_all_are_busy() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("it is bound");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the sender connects");
            while stream.read(&mut [0; 64]).is_ok_and(|read| read > 0) {
                // Three more are due meanwhile.
                std::thread::sleep(Duration::from_millis(3));
                let _ = stream.write_all(ANSWER);
            }
        });
        let requests: Vec<_> = three().into_iter().cycle().take(20).collect();
        let answers = Sender::connect(address, 1).expect("it listens").at_rate(&requests, 1_000);
        assert_eq!(answers.expect("each is answered").accepted, 20);
    }

    #[test]
    fn gives_up_on_a_program_that_always_closes() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("it is bound");
        std::thread::spawn(move || listener.incoming().for_each(drop));
        let error = Sender::connect(address, 1).expect("it listens").closed_loop(&three()).expect_err("no answer");
        assert_eq!(error.to_string(), "the program closed 3 connections, and answered less");
    }

    #[test]
    fn knows_a_whole_answer() {
        let answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: x\r\nContent-Length: 2\r\n\r\nok";
        assert_eq!(whole(answer).expect("it is well formed"), Some((503, answer.len())));
        for end in 0..answer.len() {
            assert_eq!(whole(&answer[..end]).expect("a part is no error"), None);
        }
    }
}
