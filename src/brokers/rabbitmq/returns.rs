//! Finds the message of a return: the client library attaches returns to the wrong confirms when several are in
//! flight; and since when the oldest has been in flight. It knows numbers and labels, nothing of AMQP.
//!
//! RabbitMQ sends a return before its confirm; the library gives the first of its queue of returns to whichever confirm
//! completes next. So the *set* of returns is exact. A confirm that carries none saw the queue empty: its own return, and that
//! of every message confirmed before, has come. After one that carries another's, the queue is no longer than the messages
//! then in flight: when those are confirmed, its own return has come too.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

/// The content of a confirm, before returns are considered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConfirmOutcome {
    Ack,
    Nack,
}

/// The outcome of a message, with returns considered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    Stored,
    Returned,
    Nacked,
}

impl ConfirmOutcome {
    /// The outcome of the message, which was returned or not.
    pub(super) fn judge(self, is_returned: bool) -> Judgement {
        match self {
            Self::Nack => Judgement::Nacked,
            Self::Ack if is_returned => Judgement::Returned,
            Self::Ack => Judgement::Stored,
        }
    }
}

/// A message in flight: its place in the order of sending, what a return shows of it, and what its owner wants back.
#[derive(Debug)]
pub(super) struct SentMessage<T> {
    number: u64,
    label: Box<str>,
    pub(super) owner: T,
}

#[derive(Debug)]
struct ConfirmedMessage<T> {
    sent: SentMessage<T>,
    outcome: ConfirmOutcome,
    /// Its confirm carried a return, perhaps of another message.
    carries: bool,
}

/// The messages in flight, and those whose return may still be attached to a later confirm.
#[derive(Debug)]
pub(super) struct Returns<T> {
    /// The time at which each was sent, from the oldest in flight on; none for one that is confirmed.
    in_flight: VecDeque<Option<Instant>>,
    /// The number of the first of them.
    oldest: u64,
    /// Confirmed since judgements were last asked for.
    confirmed: Vec<ConfirmedMessage<T>>,
    /// Certain when no message below the number is in flight, or when a later confirm carries no return.
    held: VecDeque<(u64, ConfirmedMessage<T>)>,
    /// Returns by label that no message has claimed yet. The same one can be in flight twice.
    unclaimed: HashMap<Box<str>, usize>,
}

impl<T> Default for Returns<T> {
    fn default() -> Self {
        Self {
            in_flight: VecDeque::new(),
            oldest: 0,
            confirmed: Vec::new(),
            held: VecDeque::new(),
            unclaimed: HashMap::new(),
        }
    }
}

impl<T> Returns<T> {
    /// The number of the next message.
    fn next(&self) -> u64 {
        self.oldest + self.in_flight.len() as u64
    }

    /// A message goes out.
    pub(super) fn send(&mut self, label: impl Into<Box<str>>, owner: T) -> SentMessage<T> {
        let number = self.next();
        self.in_flight.push_back(Some(Instant::now()));
        SentMessage { number, label: label.into(), owner }
    }

    /// Its confirm arrived, with the label of the returned message that is attached to it.
    pub(super) fn confirm(&mut self, sent: SentMessage<T>, outcome: ConfirmOutcome, attached: Option<Box<str>>) {
        let place = usize::try_from(sent.number - self.oldest).unwrap_or(usize::MAX);
        if let Some(sent) = self.in_flight.get_mut(place) {
            *sent = None;
        }
        while self.in_flight.pop_front_if(|sent| sent.is_none()).is_some() {
            self.oldest += 1;
        }
        let carries = attached.is_some();
        if let Some(label) = attached {
            *self.unclaimed.entry(label).or_default() += 1;
        }
        self.confirmed.push(ConfirmedMessage { sent, outcome, carries });
    }

    /// The judgements that are certain now. To be called when every confirm that the library has is noted: they become known
    /// here in another order.
    pub(super) fn judgements(&mut self) -> Vec<(T, Judgement)> {
        let mut judged = Vec::new();
        let next = self.next();
        let confirmed = std::mem::take(&mut self.confirmed);
        if confirmed.iter().any(|confirmed| !confirmed.carries) {
            for (_, held) in std::mem::take(&mut self.held) {
                judged.push(self.judge(held));
            }
        }
        for confirmed in confirmed {
            if confirmed.carries && !self.unclaimed.contains_key(&confirmed.sent.label) {
                self.held.push_back((next, confirmed));
            } else {
                judged.push(self.judge(confirmed));
            }
        }
        while let Some((_, held)) = self.held.pop_front_if(|(below, _)| *below <= self.oldest) {
            judged.push(self.judge(held));
        }
        if self.in_flight.is_empty() {
            self.unclaimed.clear();
        }
        judged
    }

    /// The time at which the oldest message in flight was sent.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.in_flight.front().copied().flatten()
    }

    fn judge(&mut self, ConfirmedMessage { sent, outcome, .. }: ConfirmedMessage<T>) -> (T, Judgement) {
        let claimed = self.unclaimed.get_mut(&sent.label).map(|count| {
            *count -= 1;
            *count
        });
        if claimed == Some(0) {
            self.unclaimed.remove(&sent.label);
        }
        (sent.owner, outcome.judge(claimed.is_some()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// The broker and the client library as they were read and measured: returns before confirms, each confirm takes
    /// the first waiting return.
    #[derive(Default)]
    struct Library {
        waiting: VecDeque<String>,
        /// Confirmed, and not yet noticed by the session.
        confirmed: Vec<(SentMessage<usize>, Option<String>)>,
        judged: Vec<(usize, Judgement)>,
    }

    impl Library {
        fn confirm(&mut self, sent: SentMessage<usize>) {
            self.confirmed.push((sent, self.waiting.pop_front()));
        }

        /// Notices all confirms, in the order of `at`.
        fn look(&mut self, returns: &mut Returns<usize>, at: impl Fn(usize) -> usize) {
            while !self.confirmed.is_empty() {
                let (sent, attached) = self.confirmed.swap_remove(at(self.confirmed.len()));
                returns.confirm(sent, ConfirmOutcome::Ack, attached.map(Into::into));
            }
            self.judged.append(&mut returns.judgements());
        }
    }

    #[test]
    fn judges_at_once_when_nothing_is_returned() {
        let (mut returns, mut library) = (Returns::default(), Library::default());
        let first = returns.send("a", 0);
        let _second = returns.send("b", 1);
        library.confirm(first);
        library.look(&mut returns, |_| 0);
        assert_eq!(library.judged, [(0, Judgement::Stored)]);
    }

    #[test]
    fn finds_the_return_that_is_attached_to_another_confirm() {
        let (mut returns, mut library) = (Returns::default(), Library::default());
        let [good, bad] = [returns.send("good", 0), returns.send("bad", 1)];
        library.waiting.push_back("bad".to_owned());
        library.confirm(good);
        library.look(&mut returns, |_| 0);
        assert_eq!(library.judged, []);
        library.confirm(bad);
        library.look(&mut returns, |_| 0);
        library.judged.sort_unstable_by_key(|(owner, _)| *owner);
        assert_eq!(library.judged, [(0, Judgement::Stored), (1, Judgement::Returned)]);
    }

    #[test]
    fn finds_the_return_of_a_message_whose_confirm_is_noticed_first() {
        let (mut returns, mut library) = (Returns::default(), Library::default());
        let [bad, good] = [returns.send("bad", 0), returns.send("good", 1)];
        library.waiting.push_back("bad".to_owned());
        library.confirm(good);
        library.confirm(bad);
        library.look(&mut returns, |count| count - 1);
        library.judged.sort_unstable_by_key(|(owner, _)| *owner);
        assert_eq!(library.judged, [(0, Judgement::Returned), (1, Judgement::Stored)]);
    }

    #[test]
    fn counts_returns_of_an_id_that_is_on_its_way_twice() {
        let (mut returns, mut library) = (Returns::default(), Library::default());
        let [first, second] = [returns.send("twin", 0), returns.send("twin", 1)];
        library.waiting.extend(["twin".to_owned(), "twin".to_owned()]);
        library.confirm(first);
        library.confirm(second);
        library.look(&mut returns, |_| 0);
        assert_eq!(library.judged, [(0, Judgement::Returned), (1, Judgement::Returned)]);
        assert!(returns.unclaimed.is_empty());
    }

    #[test]
    fn a_nack_stays_one_and_takes_its_return_with_it() {
        let mut returns = Returns::default();
        let sent = returns.send("a", ());
        returns.confirm(sent, ConfirmOutcome::Nack, Some("a".into()));
        assert_eq!(returns.judgements(), [((), Judgement::Nacked)]);
        assert!(returns.unclaimed.is_empty());
    }

    #[test]
    fn a_message_that_is_never_confirmed_withholds_no_judgement_of_others() {
        let (mut returns, mut library) = (Returns::default(), Library::default());
        let _silent = returns.send("silent", 0);
        let [bad, good, other] = [returns.send("bad", 1), returns.send("good", 2), returns.send("other", 3)];
        // Its own return comes with the confirm.
        library.waiting.push_back("bad".to_owned());
        library.confirm(bad);
        library.look(&mut returns, |_| 0);
        assert_eq!(library.judged, [(1, Judgement::Returned)]);
        // The return of another comes with it, and then a confirm without one.
        library.waiting.push_back("other".to_owned());
        library.confirm(good);
        library.look(&mut returns, |_| 0);
        assert_eq!(library.judged[1..], []);
        library.confirm(other);
        library.look(&mut returns, |_| 0);
        assert_eq!(library.judged[1..], [(2, Judgement::Stored), (3, Judgement::Returned)]);
    }

    #[test]
    fn knows_since_when_the_oldest_has_waited_whatever_comes_and_goes_after_it() {
        let (mut returns, mut library) = (Returns::default(), Library::default());
        assert_eq!(returns.waiting_since(), None);
        let oldest = returns.send("oldest", 0);
        let since = returns.waiting_since();
        assert!(since.is_some());
        for owner in 1..10 {
            let sent = returns.send("later", owner);
            library.confirm(sent);
        }
        library.look(&mut returns, |_| 0);
        assert_eq!(returns.waiting_since(), since);
        library.confirm(oldest);
        library.look(&mut returns, |_| 0);
        assert_eq!(returns.waiting_since(), None);
    }

    proptest! {
        /// Messages go out and are confirmed in any order, alone or several at once; a return comes some time before
        /// its confirm, and the session notices some confirms together, in any order.
        #[test]
        fn every_message_gets_its_own_judgement(
            bad in prop::collection::vec(any::<bool>(), 1..80),
            choices in prop::collection::vec((0..5_u8, any::<prop::sample::Index>()), 0..400),
        ) {
            let (mut returns, mut library) = (Returns::default(), Library::default());
            let mut fresh: VecDeque<usize> = (0..bad.len()).collect();
            // In flight, with whether the return has been sent.
            let mut out: Vec<(SentMessage<usize>, bool)> = Vec::new();
            let mut step = |choice: u8, at: Option<prop::sample::Index>, out: &mut Vec<(SentMessage<usize>, bool)>| {
                match choice {
                    0 | 1 if !fresh.is_empty() => {
                        let owner = fresh.pop_front().unwrap();
                        out.push((returns.send(format!("m{owner}"), owner), false));
                    }
                    2 if !out.is_empty() => {
                        let at = at.map_or(0, |at| at.index(out.len()));
                        let (sent, told) = &mut out[at];
                        if bad[sent.owner] && !*told {
                            *told = true;
                            library.waiting.push_back(format!("m{}", sent.owner));
                        }
                    }
                    4 => library.look(&mut returns, |count| at.map_or(0, |at| at.index(count))),
                    _ if !out.is_empty() => {
                        let at = at.map_or(0, |at| at.index(out.len()));
                        let (sent, told) = out.swap_remove(at);
                        if bad[sent.owner] && !told {
                            library.waiting.push_back(format!("m{}", sent.owner));
                        }
                        library.confirm(sent);
                    }
                    _ => {}
                }
                fresh.len() + out.len()
            };
            for (choice, at) in choices {
                step(choice, Some(at), &mut out);
            }
            while step(0, None, &mut out) > 0 {
                step(3, None, &mut out);
            }
            step(4, None, &mut out);
            let mut judged = library.judged;
            judged.sort_unstable_by_key(|(owner, _)| *owner);
            let expected: Vec<_> = bad.iter().enumerate().map(|(owner, bad)| {
                (owner, if *bad { Judgement::Returned } else { Judgement::Stored })
            }).collect();
            prop_assert_eq!(judged, expected);
            prop_assert!(returns.unclaimed.is_empty() && returns.held.is_empty());
        }
    }
}
