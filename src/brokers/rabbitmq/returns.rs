//! Finds the message of a return: the client library attaches returns to the wrong confirms when several are in
//! flight; and since when the oldest have been in flight. It knows sequences and ids, nothing of AMQP.
//!
//! RabbitMQ sends a message's return before its confirm. The library keeps returns in a queue and gives the first of
//! it to whichever confirm completes next. So the *set* of returns is exact, and:
//! - a confirm that carries none saw the queue empty: its own return, if there was one, came with an earlier confirm;
//! - after a confirm that carries one, the queue is no longer than the messages unresolved at that time: when those
//!   are resolved, its own return has come too.

use std::collections::HashMap;
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

/// A message in flight: its place in the order of sending, its id, and what its owner wants back.
#[derive(Debug)]
pub(super) struct SentMessage<T> {
    sequence: u64,
    id: Box<str>,
    pub(super) owner: T,
}

#[derive(Debug)]
struct Unreturned<T> {
    sent: SentMessage<T>,
    outcome: ConfirmOutcome,
}

/// Messages whose return may still be attached to a later confirm, in two rolling generations.
#[derive(Debug)]
pub(super) struct Returns<T> {
    next: u64,
    unresolved: usize,
    /// Messages below this sequence were sent before the last turn of generations.
    boundary: u64,
    /// The number of unresolved ones.
    before_boundary: usize,
    /// Resolved before the last turn.
    older: Vec<Unreturned<T>>,
    /// Resolved since.
    newer: Vec<Unreturned<T>>,
    /// The same two for the oldest in flight, and since when those have been.
    watched: u64,
    before_watched: usize,
    watched_since: Instant,
    /// Returns by message id that no message has claimed yet. The same id can be in flight twice.
    unclaimed: HashMap<Box<str>, usize>,
}

impl<T> Default for Returns<T> {
    fn default() -> Self {
        Self {
            next: 0,
            unresolved: 0,
            boundary: 0,
            before_boundary: 0,
            watched: 0,
            before_watched: 0,
            watched_since: Instant::now(),
            older: Vec::new(),
            newer: Vec::new(),
            unclaimed: HashMap::new(),
        }
    }
}

impl<T> Returns<T> {
    /// A message goes out.
    pub(super) fn send(&mut self, id: &str, owner: T) -> SentMessage<T> {
        let sequence = self.next;
        self.next += 1;
        self.unresolved += 1;
        if self.before_watched == 0 {
            self.watch();
        }
        SentMessage { sequence, id: id.into(), owner }
    }

    /// Its confirm came, with the id of the returned message that is attached to it. Calls `judge` for each message
    /// whose judgement is now certain.
    pub(super) fn resolve(
        &mut self,
        sent: SentMessage<T>,
        outcome: ConfirmOutcome,
        attached: Option<&str>,
        judge: &mut impl FnMut(T, Judgement),
    ) {
        self.unresolved -= 1;
        if sent.sequence < self.boundary {
            self.before_boundary -= 1;
        }
        if sent.sequence < self.watched {
            self.before_watched -= 1;
            if self.before_watched == 0 {
                self.watch();
            }
        }
        let held = Unreturned { sent, outcome };
        match attached {
            Some(id) => {
                *self.unclaimed.entry(id.into()).or_default() += 1;
                self.newer.push(held);
            }
            None => self.judge(held, judge),
        }
        while self.before_boundary == 0 && !(self.older.is_empty() && self.newer.is_empty()) {
            for held in std::mem::take(&mut self.older) {
                self.judge(held, judge);
            }
            self.older = std::mem::take(&mut self.newer);
            self.boundary = self.next;
            self.before_boundary = self.unresolved;
        }
        if self.unresolved == 0 {
            self.unclaimed.clear();
        }
    }

    /// Watches what is in flight now, from now on.
    pub(super) fn watch(&mut self) {
        self.watched = self.next;
        self.before_watched = self.unresolved;
        self.watched_since = Instant::now();
    }

    /// A time since when at least one message has been in flight; later messages do not move it.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        (self.before_watched > 0).then_some(self.watched_since)
    }

    fn judge(&mut self, held: Unreturned<T>, judge: &mut impl FnMut(T, Judgement)) {
        let returned = match self.unclaimed.get_mut(&held.sent.id) {
            Some(1) => self.unclaimed.remove(&held.sent.id).is_some(),
            Some(count) => {
                *count -= 1;
                true
            }
            None => false,
        };
        judge(held.sent.owner, held.outcome.judge(returned));
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
        judged: Vec<(usize, Judgement)>,
    }

    impl Library {
        fn confirm(&mut self, returns: &mut Returns<usize>, sent: SentMessage<usize>) {
            let attached = self.waiting.pop_front();
            let judged = &mut self.judged;
            returns.resolve(sent, ConfirmOutcome::Ack, attached.as_deref(), &mut |owner, judgement| {
                judged.push((owner, judgement));
            });
        }
    }

    #[test]
    fn judges_at_once_when_nothing_is_returned() {
        let (mut returns, mut library) = (Returns::default(), Library::default());
        let first = returns.send("a", 0);
        let _second = returns.send("b", 1);
        library.confirm(&mut returns, first);
        assert_eq!(library.judged, [(0, Judgement::Stored)]);
    }

    #[test]
    fn finds_the_return_that_is_attached_to_another_confirm() {
        let (mut returns, mut library) = (Returns::default(), Library::default());
        let [good, bad] = [returns.send("good", 0), returns.send("bad", 1)];
        library.waiting.push_back("bad".to_owned());
        library.confirm(&mut returns, good);
        assert_eq!(library.judged, []);
        library.confirm(&mut returns, bad);
        library.judged.sort_unstable_by_key(|(owner, _)| *owner);
        assert_eq!(library.judged, [(0, Judgement::Stored), (1, Judgement::Returned)]);
    }

    #[test]
    fn counts_returns_of_an_id_that_is_on_its_way_twice() {
        let (mut returns, mut library) = (Returns::default(), Library::default());
        let [first, second] = [returns.send("twin", 0), returns.send("twin", 1)];
        library.waiting.extend(["twin".to_owned(), "twin".to_owned()]);
        library.confirm(&mut returns, first);
        library.confirm(&mut returns, second);
        assert_eq!(library.judged, [(0, Judgement::Returned), (1, Judgement::Returned)]);
        assert!(returns.unclaimed.is_empty());
    }

    #[test]
    fn a_nack_stays_one_and_takes_its_return_with_it() {
        let mut returns = Returns::default();
        let mut judged = Vec::new();
        let sent = returns.send("a", ());
        returns.resolve(sent, ConfirmOutcome::Nack, Some("a"), &mut |(), judgement| judged.push(judgement));
        assert_eq!(judged, [Judgement::Nacked]);
        assert!(returns.unclaimed.is_empty());
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
            library.confirm(&mut returns, sent);
        }
        assert_eq!(returns.waiting_since(), since);
        library.confirm(&mut returns, oldest);
        assert_eq!(returns.waiting_since(), None);
    }

    proptest! {
        /// Messages go out and are confirmed in any order, alone or several at once; a return comes some time before
        /// its confirm.
        #[test]
        fn every_message_gets_its_own_judgement(
            bad in prop::collection::vec(any::<bool>(), 1..80),
            choices in prop::collection::vec((0..4_u8, any::<prop::sample::Index>()), 0..400),
        ) {
            let (mut returns, mut library) = (Returns::default(), Library::default());
            let mut fresh: VecDeque<usize> = (0..bad.len()).collect();
            // In flight, with whether the return has been sent.
            let mut out: Vec<(SentMessage<usize>, bool)> = Vec::new();
            let mut step = |choice: u8, at: Option<prop::sample::Index>, out: &mut Vec<(SentMessage<usize>, bool)>| {
                match choice {
                    0 | 1 if !fresh.is_empty() => {
                        let owner = fresh.pop_front().unwrap();
                        out.push((returns.send(&format!("m{owner}"), owner), false));
                    }
                    2 if !out.is_empty() => {
                        let at = at.map_or(0, |at| at.index(out.len()));
                        let (sent, told) = &mut out[at];
                        if bad[sent.owner] && !*told {
                            *told = true;
                            library.waiting.push_back(format!("m{}", sent.owner));
                        }
                    }
                    _ if !out.is_empty() => {
                        let at = at.map_or(0, |at| at.index(out.len()));
                        let (sent, told) = out.swap_remove(at);
                        if bad[sent.owner] && !told {
                            library.waiting.push_back(format!("m{}", sent.owner));
                        }
                        library.confirm(&mut returns, sent);
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
            let mut judged = library.judged;
            judged.sort_unstable_by_key(|(owner, _)| *owner);
            let expected: Vec<_> = bad.iter().enumerate().map(|(owner, bad)| {
                (owner, if *bad { Judgement::Returned } else { Judgement::Stored })
            }).collect();
            prop_assert_eq!(judged, expected);
            prop_assert!(returns.unclaimed.is_empty() && returns.older.is_empty() && returns.newer.is_empty());
        }
    }
}
