//! The pace of delivery's rounds: while many events pass, one wake of its thread takes many of them and many verdicts.
//!
//! A lone event, and its confirmation, wait for nothing.

use tokio::time::{Duration, Instant};

/// The time between the beginnings of two rounds while many events pass; tokio's timer makes about 2 ms of it. Saves a
/// tenth of the processor time with RabbitMQ and NATS, and half of the rate is lost with RabbitMQ without it.
const INTERVAL: Duration = Duration::from_millis(1);

/// Many events: so many in an interval. A round for each would take the processor from the threads that answer: at 2,000
/// events a second their median is a fifth longer.
const MANY: usize = 1;

/// Many events where senders wait for the broker.
const MANY_AWAITED: usize = 8;

/// The messages in flight from which even senders that wait for the broker gain by it: what each round takes is then
/// more than what it is late.
const MANY_IN_FLIGHT: usize = 256;

/// The rate at which events pass, and the beginning of the last round.
pub(crate) struct Pace {
    awaited: bool,
    round: Instant,
    since: Instant,
    sent: usize,
    is_busy: bool,
}

impl Pace {
    /// A pace at rest; `awaited`: senders wait until the broker has their event.
    pub(crate) fn new(awaited: bool) -> Self {
        let now = Instant::now();
        Self { awaited, round: now, since: now, sent: 0, is_busy: false }
    }

    /// Notes so many messages handed over.
    pub(crate) fn note(&mut self, sent: usize) {
        self.sent += sent;
    }

    /// The moment at which the next round may begin, if it is to wait, with so many messages in flight.
    pub(crate) fn wait(&mut self, in_flight: usize, now: Instant) -> Option<Instant> {
        let elapsed = now.duration_since(self.since);
        if elapsed >= INTERVAL {
            let many = if self.awaited { MANY_AWAITED } else { MANY };
            let expected = elapsed.as_micros() * many as u128 / INTERVAL.as_micros();
            self.is_busy = self.sent as u128 >= expected;
            (self.since, self.sent) = (now, 0);
        }
        let next = self.round + INTERVAL;
        let gains = self.is_busy && (!self.awaited || in_flight >= MANY_IN_FLIGHT);
        (gains && now < next).then_some(next)
    }

    /// A round begins.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.round = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs rounds for 10 ms while so many events arrive in a millisecond; whether they shared rounds.
    fn shares(pace: &mut Pace, events: usize, in_flight: usize) -> bool {
        let (mut now, mut rounds, mut sent) = (Instant::now(), 0, 0);
        let began = now;
        while now - began < Duration::from_millis(10) {
            now += Duration::from_micros(50);
            let wait = pace.wait(in_flight, now);
            now = wait.unwrap_or(now);
            pace.begin(now);
            let arrived = events * usize::try_from((now - began).as_micros()).expect("10 ms") / 1000;
            pace.note(arrived - sent);
            (sent, rounds) = (arrived, rounds + 1);
        }
        rounds < 60
    }

    #[test]
    fn a_lone_event_and_its_confirmation_wait_for_nothing() {
        let (mut pace, now) = (Pace::new(false), Instant::now());
        for round in 0..4 {
            let now = now + Duration::from_micros(300) * round;
            assert_eq!(pace.wait(1, now), None);
            pace.begin(now);
            pace.note(usize::from(round == 0));
        }
    }

    #[test]
    fn many_events_share_rounds() {
        assert!(shares(&mut Pace::new(false), 20, 10));
        assert!(shares(&mut Pace::new(false), 2, 1), "2 in a millisecond");
        assert!(!shares(&mut Pace::new(true), 2, MANY_IN_FLIGHT));
        assert!(!shares(&mut Pace::new(true), 20, 10), "a sender waits for each");
        assert!(shares(&mut Pace::new(true), 20, MANY_IN_FLIGHT));
    }
}
