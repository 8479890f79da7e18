//! The faults, drawn like cards: each is drawn once before any is drawn again.

use fastrand::Rng;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// SIGKILL of the bridge, and another start.
    Crash,
    /// SIGTERM of the bridge, and another start.
    Restart,
    /// The broker is killed and restarted.
    BrokerCrash,
    /// SIGSTOP of the broker for a while.
    BrokerHang,
    /// The connection is cut in the middle of confirms.
    Cut,
    /// The network swallows everything for a while.
    Stall,
    /// The broker refuses connections for a while.
    Refuse,
    /// A whole window of messages that the broker never takes.
    Refused,
}

impl Fault {
    const ALL: [Self; 8] = [
        Self::Crash,
        Self::Restart,
        Self::BrokerCrash,
        Self::BrokerHang,
        Self::Cut,
        Self::Stall,
        Self::Refuse,
        Self::Refused,
    ];

    /// Its name in the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Restart => "restart",
            Self::BrokerCrash => "broker_crash",
            Self::BrokerHang => "broker_hang",
            Self::Cut => "cut",
            Self::Stall => "stall",
            Self::Refuse => "refuse",
            Self::Refused => "refused_window",
        }
    }
}

/// Whether the bridge itself may be ended: its memory is measured over its last life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bridge {
    MayEnd,
    LivesOn,
}

/// The cards that are left.
#[derive(Debug, Default)]
pub(super) struct Deck(Vec<Fault>);

impl Deck {
    /// The next fault.
    pub(super) fn draw(&mut self, random: &mut Rng, bridge: Bridge) -> Fault {
        loop {
            let fault = self.0.pop().unwrap_or_else(|| {
                self.0 = Fault::ALL.to_vec();
                random.shuffle(&mut self.0);
                self.0.pop().expect("it was filled just now")
            });
            if bridge == Bridge::MayEnd || !matches!(fault, Fault::Crash | Fault::Restart) {
                return fault;
            }
        }
    }

    /// The number of cards of each kind.
    pub(super) fn size() -> usize {
        Fault::ALL.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_every_fault_before_one_comes_again_and_the_same_from_the_same_seed() {
        let draw = |bridge| {
            let (mut random, mut deck) = (Rng::with_seed(7), Deck::default());
            (0..2 * Deck::size()).map(|_| deck.draw(&mut random, bridge)).collect::<Vec<_>>()
        };
        let drawn = draw(Bridge::MayEnd);
        let mut first = drawn[..Deck::size()].to_vec();
        first.sort();
        assert_eq!(first, Fault::ALL);
        assert_eq!(draw(Bridge::MayEnd), drawn);
        assert!(!draw(Bridge::LivesOn).iter().any(|fault| matches!(fault, Fault::Crash | Fault::Restart)));
    }
}
