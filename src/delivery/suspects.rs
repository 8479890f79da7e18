//! Addresses at which the broker takes nothing, by its own words because of its own state.
//!
//! If others are stored in between, again and again, the address is at fault.

use crate::delivery::address_queue::Address;

/// So often an address is rejected, with others stored after each time, before it is taken for wrong.
const MOST: u32 = 3;

/// The addresses that are watched; one forgotten waits longer.
const WATCHED: usize = 64;

/// The addresses rejected lately.
#[derive(Debug, Default)]
pub(super) struct Suspects(Vec<RejectedAddress>);

#[derive(Debug)]
struct RejectedAddress {
    address: Address,
    /// The rejections after which others were stored.
    count: u32,
    are_others_stored: bool,
}

impl Suspects {
    /// Notes a rejection; returns whether the address is to be taken for wrong.
    pub(super) fn rejected(&mut self, address: &Address) -> bool {
        let Some(at) = self.0.iter().position(|known| known.address == *address) else {
            if self.0.len() == WATCHED {
                self.0.remove(0);
            }
            self.0.push(RejectedAddress { address: address.clone(), count: 0, are_others_stored: false });
            return false;
        };
        let known = &mut self.0[at];
        known.count += u32::from(std::mem::take(&mut known.are_others_stored));
        let is_wrong = known.count >= MOST;
        if is_wrong {
            self.0.remove(at);
        }
        is_wrong
    }

    /// Notes that a message of this address was stored.
    pub(super) fn stored(&mut self, is_it: impl Fn(&Address) -> bool) {
        self.0.retain_mut(|known| {
            known.are_others_stored = true;
            !is_it(&known.address)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::ring::tests::address;

    #[test]
    fn blames_an_address_only_where_others_are_stored_again_and_again() {
        let (a, b) = (address("a"), address("b"));
        let mut suspects = Suspects::default();
        for _ in 0..20 {
            assert!(!suspects.rejected(&a) && !suspects.rejected(&b), "nothing is stored");
        }
        suspects.stored(|address| *address == b);
        assert!(!suspects.rejected(&a) && !suspects.rejected(&a));
        suspects.stored(|address| *address == b);
        assert!(!suspects.rejected(&a));
        suspects.stored(|address| *address == b);
        assert!(suspects.rejected(&a));
        suspects.stored(|address| *address == a);
        assert!(!suspects.rejected(&a), "it begins anew");
    }
}
