//! The consequences of a refusal of each kind: a dead letter, an address that is parked, or a window that shuts.

use crate::brokers::{ErrorKind, Refusal, RefusalReason, Refused, Sequence};
use crate::delivery::address_queue::AddressRefusal;
use crate::delivery::backoff::Backoff;
use crate::delivery::publish::Delivery;
use crate::event::{Event, Kept};

impl Delivery {
    /// Decides what follows from a refusal of each kind.
    pub(super) fn refused(&mut self, sequence: Sequence, refusal: Refusal, is_nacked: bool) {
        match refusal.kind {
            Refused::Event(_) if self.settler.is_blocked() => {
                let text = format!("dead letters have no room for an event that is refused: {}", refusal.text);
                self.park(sequence, AddressRefusal { needs_room: true, ..self.refusal(Refusal::unable(text)) });
            }
            Refused::Event(_) => self.refuse(sequence, refusal),
            Refused::AddressWrong(_) | Refused::AddressUnable => {
                self.park(sequence, AddressRefusal { is_nacked, ..self.refusal(refusal) });
            }
            Refused::Broker => self.rejected(sequence, &refusal),
        }
    }

    /// A refusal as it concerns the address of its message, now.
    fn refusal(&self, refusal: Refusal) -> AddressRefusal {
        let backoff = Backoff::new(self.settings.retry_min, self.settings.retry_max);
        AddressRefusal { refusal, is_nacked: false, needs_room: false, backoff, now: tokio::time::Instant::now() }
    }

    /// Parks the address of a message; the others do not wait for it.
    fn park(&mut self, sequence: Sequence, refused: AddressRefusal) {
        self.note_error(ErrorKind::NotNow, &refused.refusal.text);
        self.ring.unsend(sequence);
        self.ring.park(sequence, refused);
    }

    /// Waits, because the broker takes nothing; an address that it rejects while others are stored is wrong.
    pub(super) fn rejected(&mut self, sequence: Sequence, refusal: &Refusal) {
        let Some(address) = self.ring.address_of(sequence) else { return };
        // Of many in flight a broker that is throttled takes some and others not: that says nothing of their addresses.
        if self.window.is_one() && self.suspects.rejected(&address) {
            let text = format!("{}; others are stored meanwhile", refusal.text);
            return self.park(sequence, self.refusal(Refusal::wrong(RefusalReason::Other, text)));
        }
        self.ring.unsend(sequence);
        self.ring.retry(sequence);
        self.ring.avoid(address);
        self.shut(&refusal.text);
    }

    /// Makes dead letters of what has waited too long at a wrong address. `all`: of each event whose own time is over, too:
    /// a replayed one, and one whose sender needs an answer soon. Returns whether there were any.
    pub(super) fn refuse_overdue(&mut self, all: bool) -> bool {
        if self.settler.is_blocked() {
            return false;
        }
        let half = self.settings.timeout / 2;
        let is_late = |event: &Event| {
            let is_awaited = event.waiter.as_ref().is_some_and(|waiter| waiter.outcome().is_none());
            event.kept == Kept::DeadLetter || (is_awaited && event.accepted.elapsed() >= half)
        };
        let is_late: &dyn Fn(&Event) -> bool = &is_late;
        let (after, late, most) = (self.settings.refuse_after, all.then_some(is_late), self.settler.room());
        let overdue = self.ring.destinations.overdue(after, late, most);
        let has_overdue = !overdue.is_empty();
        for (sequence, refusal) in overdue {
            self.refuse(sequence, refusal);
        }
        has_overdue
    }

    fn refuse(&mut self, sequence: Sequence, refusal: Refusal) {
        let Some(taken) = self.ring.take(sequence, false) else { return };
        // From here on it is a dead letter, or lost: a request that gave up while its letter is written would send it again.
        if taken.message.event.waiter.as_ref().is_some_and(|waiter| !waiter.send()) {
            return self.settler.withdrawn(&taken.message.event);
        }
        self.note_error(ErrorKind::Refused, &refusal.text);
        self.settler.refused(taken, refusal, &self.metrics);
    }
}
