//! Numbers for the pairs of event and target type by which `events_published_total` counts.

use std::collections::HashMap;

use crate::brokers::{Refusal, RefusalReason, Routed, Router};
use crate::event::{Event, push_safe};
use crate::process::failpoint;
use crate::queue::Buffer;
use crate::status::MOST_PAIRS;

/// The name of all pairs beyond the first hundred; a pair that really has this name counts with them.
const OTHER: &str = "other";

#[derive(Debug, Default)]
pub(super) struct Pairs {
    numbers: HashMap<Box<str>, u16>,
    other: Option<u16>,
    scratch: String,
}

impl Pairs {
    /// The destination of an event, and the number of its pair.
    pub(super) fn route(&mut self, event: &Event, router: &mut Router, queue: &Buffer) -> Result<Routed, Refusal> {
        failpoint::pass("publish.address")
            .map_err(|error| Refusal::event(RefusalReason::Unroutable, format!("no address: {error}")))?;
        router.route(event, || self.number(event, queue))
    }

    /// The number of an event's pair; new ones are added to the ledger, beyond the first hundred all are `other`.
    pub(super) fn number(&mut self, event: &Event, queue: &Buffer) -> u16 {
        self.scratch.clear();
        push_safe(&mut self.scratch, event.event());
        let split = self.scratch.len();
        push_safe(&mut self.scratch, event.target_type());
        // The split is part of the name: "a" + "bc" is not "ab" + "c".
        self.scratch.push(char::from(u8::try_from(split).expect("a safe value has at most 64 bytes")));
        if let Some(number) = self.numbers.get(self.scratch.as_str()) {
            return *number;
        }
        let is_other = &self.scratch[..split] == OTHER && &self.scratch[split..self.scratch.len() - 1] == OTHER;
        if is_other || self.numbers.len() >= MOST_PAIRS {
            return *self.other.get_or_insert_with(|| queue.add_pair(OTHER, OTHER));
        }
        let end = self.scratch.len() - 1;
        let number = queue.add_pair(&self.scratch[..split], &self.scratch[split..end]);
        self.numbers.insert(self.scratch.as_str().into(), number);
        number
    }
}
