//! The watch over messages without an answer: the stalled addresses, those to show to the operator, and why they wait.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use crate::delivery::address_queue::{Address, WaitingMessages};
use crate::delivery::entry::UnansweredMessages;
use crate::delivery::ring::Ring;
use crate::event::Message;
use crate::status::WaitingAddress;

/// An address whose oldest message is unanswered for this long, while others are answered, is stalled.
pub(super) const STALLED: Duration = Duration::from_secs(2);

/// An address that is unanswered for this long is shown.
const SHOWN: Duration = Duration::from_secs(5);

/// It is logged once its reason is known, after this time without one.
const LOGGED: Duration = Duration::from_secs(8);

/// The time between two checks.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// The number of addresses that are shown and logged.
const LISTED: usize = 20;

/// The last confirmations, and the addresses that wait.
#[derive(Debug, Default)]
pub(super) struct Watch {
    looked: Option<Instant>,
    /// The last look found that nothing is confirmed.
    is_silent: bool,
    /// The address that was confirmed last.
    last: Option<(Address, Instant)>,
    /// The time at which any other was last confirmed.
    others: Option<Instant>,
    /// The addresses that the log names.
    logged: HashMap<Address, LoggedWait>,
    /// Those of them that were confirmed, and when; for a while they are not named again.
    over: HashMap<Address, Instant>,
}

/// The result of one check.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Addresses to be shown, the oldest first.
    pub(super) waiting: Vec<WaitingAddress>,
    /// The number of all of them.
    pub(super) count: usize,
    /// Nothing was confirmed for a while, although something is out.
    pub(super) is_silent: bool,
    /// The lines to log: waiting that begins.
    pub(super) begun: Vec<String>,
    /// Waiting that has ended.
    pub(super) ended: Vec<EndedWait>,
}

/// An address that the log names.
#[derive(Clone, Copy, Debug)]
struct LoggedWait {
    since: Instant,
    /// Nothing waits for it since this time, although none was confirmed: it was refused, or withdrawn.
    gone: Option<Instant>,
}

/// The end of waiting at one address.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EndedWait {
    pub(super) address: Address,
    pub(super) lasted: Duration,
    pub(super) is_confirmed: bool,
}

impl Watch {
    /// Whether it is time for another look.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= BETWEEN_LOOKS);
        if is_due {
            self.looked = Some(now);
        }
        is_due
    }

    /// Notes a confirmation; `address` makes the address of the message.
    pub(super) fn confirmed(&mut self, message: &Message, now: Instant, address: impl Fn() -> Address) {
        if self.is_silent {
            (self.is_silent, self.looked) = (false, None);
        }
        if !self.logged.is_empty() {
            let address = address();
            if self.logged.contains_key(&address) {
                self.over.insert(address, now);
            }
        }
        match &mut self.last {
            Some((last, at)) if last.is(&message.address, &message.key) => *at = now,
            last => {
                if let Some((_, at)) = last.replace((address(), now)) {
                    self.others = Some(at);
                }
            }
        }
    }

    /// Whether this address is stalled: its oldest message waits for a while, and the others' are answered or, where there is
    /// no room for them, kept from being sent.
    pub(super) fn stalls(
        &self,
        address: &Address,
        oldest: &UnansweredMessages,
        has_room: bool,
        now: Instant,
    ) -> bool {
        if now.saturating_duration_since(oldest.since) < STALLED {
            return false;
        }
        let others = match &self.last {
            Some((last, _)) if last == address => self.others,
            Some((_, at)) => Some(*at),
            None => None,
        };
        !has_room || others.is_some_and(|at| at > oldest.since)
    }

    /// Checks the messages without an answer, and those that were refused for now.
    pub(super) fn look(&mut self, now: Instant, ring: &Ring, reason: impl Fn(&str) -> Option<String>) -> Look {
        self.over.retain(|_, at| now.saturating_duration_since(*at) < SHOWN);
        let is_late = |waiting: &WaitingMessages| {
            now.saturating_duration_since(waiting.since) >= SHOWN && !self.over.contains_key(&waiting.address)
        };
        let unanswered =
            ring.unanswered().into_iter().map(|(address, UnansweredMessages { since, messages, .. })| {
                // Of an address that gets no more until it answers, what was not sent waits as well.
                let messages = messages.max(ring.destinations.waiting_at(&address));
                WaitingMessages { address, messages, since, reason: None }
            });
        let late = unanswered.chain(ring.destinations.parked()).filter(is_late);
        // Of an address that refused and is tried, the refusal counts.
        let late: HashMap<Address, WaitingMessages> =
            late.map(|waiting| (waiting.address.clone(), waiting)).collect();
        let mut late: Vec<WaitingMessages> = late.into_values().collect();
        late.sort_by_key(|waiting| waiting.since);
        let confirmed = self.last.as_ref().map(|(_, at)| *at);
        let mut look = Look {
            count: late.len(),
            is_silent: !late.is_empty() && confirmed.is_none_or(|at| now.saturating_duration_since(at) >= SHOWN),
            ..Look::default()
        };
        self.is_silent = look.is_silent;
        let over = &self.over;
        self.logged.retain(|address, logged| {
            let is_confirmed = over.contains_key(address);
            logged.gone = if ring.has(address) { None } else { logged.gone.or(Some(now)) };
            // Where each new one is refused at once, it does not begin again each time.
            let is_gone = logged.gone.is_some_and(|at| now.saturating_duration_since(at) >= SHOWN);
            if is_confirmed || is_gone {
                let lasted = logged.gone.unwrap_or(now).saturating_duration_since(logged.since);
                look.ended.push(EndedWait { address: address.clone(), lasted, is_confirmed });
            }
            !is_confirmed && !is_gone
        });
        for waiting in late.into_iter().take(LISTED) {
            let WaitingMessages { address, messages, since, reason: known } = waiting;
            let age = now.saturating_duration_since(since);
            let found = known.or_else(|| reason(address.name()));
            let is_due = found.is_some() || age >= LOGGED;
            if is_due && self.logged.len() < LISTED && !self.logged.contains_key(&address) {
                self.logged.insert(address.clone(), LoggedWait { since, gone: None });
                let why = found.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
                look.begun
                    .push(format!("nothing is stored for {} s of what goes to {address}{why}", age.as_secs()));
            }
            look.waiting.push(WaitingAddress {
                address: address.to_string(),
                events: messages,
                since: SystemTime::now().checked_sub(age),
                reason: found,
            });
        }
        look
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::ring::tests::{address, message_to};

    fn seen(oldest: u64, since: Instant) -> UnansweredMessages {
        UnansweredMessages { oldest, since, messages: 3 }
    }

    fn confirm(watch: &mut Watch, name: &str, at: Instant) {
        watch.confirmed(&message_to(name), at, || address(name));
    }

    /// A ring with messages of this address that were handed over at this time.
    fn out(name: &str, messages: usize, since: Instant) -> Ring {
        let mut ring = Ring::default();
        for sequence in 0..messages {
            ring.push(message_to(name), 0);
            ring.hand(sequence as u64, since);
        }
        ring
    }

    #[test]
    fn an_address_is_stalled_while_others_are_answered_or_have_no_room() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let (a, b) = (address("a"), address("b"));
        let mut watch = Watch::default();
        assert!(!watch.stalls(&a, &seen(0, at(0)), true, at(60)), "nothing else is answered");
        assert!(
            watch.stalls(&a, &seen(0, at(0)), false, at(2)) && !watch.stalls(&a, &seen(0, at(0)), false, at(1))
        );
        confirm(&mut watch, "b", at(1));
        assert!(watch.stalls(&a, &seen(0, at(0)), true, at(2)) && !watch.stalls(&b, &seen(0, at(0)), true, at(2)));
        assert!(!watch.stalls(&a, &seen(0, at(2)), true, at(9)), "the others were answered before");
        confirm(&mut watch, "a", at(5));
        assert!(watch.stalls(&b, &seen(0, at(0)), true, at(6)) && watch.stalls(&a, &seen(0, at(0)), true, at(6)));
        assert!(!watch.stalls(&a, &seen(0, at(3)), true, at(6)), "its own answers do not count");
    }

    #[test]
    fn shows_what_waits_with_its_reason_and_logs_begin_and_end_once() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let ring = out("a", 3, at(0));
        let mut watch = Watch::default();
        let look = watch.look(at(4), &ring, |_| None);
        assert!(look.count == 0 && !look.is_silent && look.waiting.is_empty());
        let look = watch.look(at(5), &ring, |_| None);
        assert!(look.count == 1 && look.is_silent && look.waiting[0].events == 3 && look.begun.is_empty());
        let look = watch.look(at(6), &ring, |_| Some("why".to_owned()));
        assert_eq!(look.begun, ["nothing is stored for 6 s of what goes to a: why"]);
        confirm(&mut watch, "b", at(6));
        let look = watch.look(at(9), &ring, |_| None);
        assert!(look.begun.is_empty() && look.ended.is_empty() && !look.is_silent);
        let mut lost = ring;
        lost.rewind();
        let look = watch.look(at(16), &lost, |_| None);
        assert!(look.ended.is_empty(), "its session was lost");
        confirm(&mut watch, "a", at(20));
        let look = watch.look(at(20), &out("a", 2, at(1)), |_| Some("why".to_owned()));
        assert!(look.count == 0 && look.begun.is_empty());
        let lasted = Duration::from_secs(20);
        assert_eq!(look.ended, [EndedWait { address: address("a"), lasted, is_confirmed: true }]);
    }

    #[test]
    fn logs_the_end_too_where_nothing_waits_any_more_because_it_was_refused() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let ring = out("a", 3, at(0));
        let mut watch = Watch::default();
        assert_eq!(watch.look(at(5), &ring, |_| Some("why".to_owned())).begun.len(), 1);
        let none = Ring::default();
        assert!(watch.look(at(60), &none, |_| None).ended.is_empty());
        assert!(watch.look(at(62), &ring, |_| None).begun.is_empty(), "another one, refused at once");
        assert!(watch.look(at(63), &none, |_| None).ended.is_empty());
        let look = watch.look(at(68), &none, |_| None);
        let lasted = Duration::from_secs(63);
        assert_eq!(look.ended, [EndedWait { address: address("a"), lasted, is_confirmed: false }]);
        assert!(watch.look(at(90), &none, |_| None).ended.is_empty(), "once");
    }
}
