//! The letter that a refused event becomes.

use std::time::SystemTime;

use serde_json::Value;

use crate::brokers::{Headers, Refusal};
use crate::dead_letters::Letter;
use crate::event::Message;

/// The letter of a message that was refused, by the broker or because of its address.
pub(super) fn letter(message: &Message, headers: &Headers, refusal: &Refusal, attempts: u32) -> Letter {
    let event = &message.event;
    let list = headers.list(event).into_iter().map(|(name, value)| (name, Value::String(value)));
    Letter {
        time: SystemTime::now(),
        reason: refusal.reason().name().to_owned(),
        text: refusal.text.clone(),
        attempts,
        id: event.id().to_owned(),
        source: event.origin.source.to_string(),
        event: event.event().to_owned(),
        received: event.origin.received,
        signature: event.signature().map(str::to_owned),
        traceparent: event.origin.traceparent.as_deref().map(str::to_owned),
        address: message.address.to_string(),
        key: message.key.to_string(),
        headers: list.collect(),
        body: event.body.clone(),
    }
}
