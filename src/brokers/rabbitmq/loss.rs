//! What the end of a channel means: whose fault it was, what is remembered of it, whether the connection lives on.

use std::time::Instant;

use crate::brokers::rabbitmq::connection::describe;
use crate::brokers::rabbitmq::destinations::{self, Destinations};
use crate::brokers::rabbitmq::reply_codes::{ReplyKind, kind};
use crate::brokers::rabbitmq::topology::Exchanges;
use crate::brokers::{Refusal, RefusalReason, SessionError, Topology};

/// Whether a message was the only one on its way when the channel ended: only then is it surely the cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InFlight {
    Only,
    Several,
}

/// Judges the error that ended a channel, and remembers what it says of an exchange or of the largest size.
pub(super) fn judge(
    error: &lapin::Error,
    company: InFlight,
    plan: &Exchanges,
    known: &mut Destinations,
) -> SessionError {
    let text = describe(error);
    let code = match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => error.get_id(),
        _ => 0,
    };
    let now = Instant::now();
    match kind(code) {
        ReplyKind::Event => {
            if let Some(largest) = largest(&text) {
                known.limit(largest, now);
            }
            let too_large = code == 311 || text.contains("message size");
            let reason = if too_large { RefusalReason::TooLarge } else { RefusalReason::Other };
            SessionError::suspect(Refusal::new(reason, text))
        }
        ReplyKind::AddressWrong if code == 403 => {
            let name = exchange(&text).filter(|name| company == InFlight::Only && *name != plan.main);
            if let Some(name) = name {
                known.forbid(name, &text, now);
            }
            SessionError::suspect(Refusal::new(RefusalReason::NotAuthorised, text))
        }
        ReplyKind::AddressWrong => match exchange(&text) {
            Some(name) => not_found(name, &text, company, plan, known),
            None => SessionError::lost(text),
        },
        ReplyKind::AddressUnable | ReplyKind::Broker => SessionError::lost(text),
    }
}

/// An exchange does not exist: what was there before is waited for, what never was is a matter of the message.
fn not_found(
    name: &str,
    text: &str,
    company: InFlight,
    plan: &Exchanges,
    known: &mut Destinations,
) -> SessionError {
    let now = Instant::now();
    let is_looked_for = name == plan.main || plan.mode != Topology::Ignore;
    if is_looked_for || known.is_seen(name) {
        // Missing, until the next connect has made or found it; with `ignore` only the main one is looked for.
        if is_looked_for {
            known.missed(name, now);
        } else {
            known.forget(name);
        }
        return SessionError::lost(format!("the exchange `{name}` is gone: {text}"));
    }
    if company == InFlight::Only {
        known.missed(name, now);
    }
    SessionError::suspect(destinations::missing(name))
}

/// The exchange that an error is about. `access to topic 'key' in exchange 'x'` is about one key only.
fn exchange(text: &str) -> Option<&str> {
    let from = ["no exchange '", "access to exchange '"].iter().find_map(|start| text.split_once(start))?.1;
    // A name may contain a quote; what follows it does not.
    from.rsplit_once("' in vhost").map(|(name, _)| name)
}

/// The limit in `message size 600 is larger than configured max size 512`.
fn largest(text: &str) -> Option<usize> {
    let number = text.split_once("larger than configured max size ")?.1;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPError;

    use super::*;
    use crate::brokers::Cause;
    use crate::brokers::rabbitmq::Settings;
    use crate::brokers::rabbitmq::destinations::ExchangeDecision;
    use crate::settings::testing;

    const NOT_FOUND: &str = "NOT_FOUND - no exchange 'other' in vhost '/'";
    const REFUSED: &str = "ACCESS_REFUSED - access to exchange 'other' in vhost '/' refused for user 'u'";

    fn plan(toml: &str) -> Exchanges {
        Exchanges::new(&testing::read(&["broker", "rabbitmq"], toml, Settings::read).0)
    }

    fn error(code: u16, text: &str) -> lapin::Error {
        lapin::ErrorKind::ProtocolError(AMQPError::from_id(code, text.into()).unwrap()).into()
    }

    #[test]
    fn takes_a_missing_exchange_for_the_end_of_the_topology_where_it_was_there() {
        let mut known = Destinations::default();
        let loss = judge(&error(404, NOT_FOUND), InFlight::Several, &plan(""), &mut known);
        assert_eq!(loss, SessionError::lost(format!("the exchange `other` is gone: {NOT_FOUND}")));
        assert!(known.is_missing("other"));
        let mut known = Destinations::default();
        known.saw("other");
        let loss = judge(&error(404, NOT_FOUND), InFlight::Several, &plan("topology = \"ignore\""), &mut known);
        assert_eq!(loss.suspect, Cause::Network);
        assert!(!known.is_seen("other"));
    }

    #[test]
    fn suspects_a_message_where_the_exchange_was_never_seen() {
        let (mut known, plan) = (Destinations::default(), plan("topology = \"ignore\""));
        let loss = judge(&error(404, NOT_FOUND), InFlight::Several, &plan, &mut known);
        assert_eq!(loss.suspect, Cause::Message(destinations::missing("other")));
        assert!(!known.is_missing("other"));
        judge(&error(404, NOT_FOUND), InFlight::Only, &plan, &mut known);
        assert!(known.is_missing("other"));
    }

    #[test]
    fn remembers_a_forbidden_exchange_only_when_one_message_alone_has_shown_it() {
        let (mut known, plan) = (Destinations::default(), plan(""));
        let refusal = Refusal::new(RefusalReason::NotAuthorised, REFUSED);
        let loss = judge(&error(403, REFUSED), InFlight::Several, &plan, &mut known);
        assert_eq!(loss.suspect, Cause::Message(refusal.clone()));
        assert_eq!(known.gate("other", 1, Instant::now()), ExchangeDecision::Open);
        judge(&error(403, REFUSED), InFlight::Only, &plan, &mut known);
        assert_eq!(known.gate("other", 1, Instant::now()), ExchangeDecision::Refuse(refusal));
    }

    #[test]
    fn does_not_take_a_forbidden_key_for_a_forbidden_exchange() {
        let text = "ACCESS_REFUSED - access to topic 'k' in exchange 'other' in vhost '/' refused for user 'u'";
        let mut known = Destinations::default();
        judge(&error(403, text), InFlight::Only, &plan(""), &mut known);
        assert_eq!(known.gate("other", 1, Instant::now()), ExchangeDecision::Open);
    }

    #[test]
    fn learns_the_largest_size() {
        let text = "PRECONDITION_FAILED - message size 600 is larger than configured max size 512";
        let mut known = Destinations::default();
        let loss = judge(&error(406, text), InFlight::Several, &plan(""), &mut known);
        assert_eq!(loss.suspect, Cause::Message(Refusal::new(RefusalReason::TooLarge, text)));
        assert_eq!(known.gate("x", 512, Instant::now()), ExchangeDecision::Open);
        assert_ne!(known.gate("x", 513, Instant::now()), ExchangeDecision::Open);
    }

    #[test]
    fn suspects_no_message_for_a_code_that_says_nothing_of_one() {
        for code in [320, 405, 501, 502, 503, 504, 505, 506, 530, 540, 541] {
            let mut known = Destinations::default();
            let loss = judge(&error(code, "no more of this"), InFlight::Only, &plan(""), &mut known);
            assert_eq!(loss, SessionError::lost("no more of this"), "{code}");
        }
    }
}
