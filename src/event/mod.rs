//! The event, from the sender's bytes to the message that a broker receives, and the request that may wait for it.

mod deviation;
mod event;
mod waiter;

pub(crate) use deviation::{Deviation, Deviations, Field};
pub(crate) use event::{
    ContentType, EVENT_OVERHEAD, Event, Fields, Kept, LONGEST_FIELD, LONGEST_TOKEN, Labels, Message, Origin,
    Rebuild, cut, push_safe, safe,
};
pub(crate) use waiter::{Outcome, Waiter, WakeList, complete_all};
