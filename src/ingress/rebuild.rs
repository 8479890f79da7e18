//! Bodies without a request: events made again of what the journal or a letter kept, and the decision about a body,
//! explained; by the functions that decide about requests.

use std::time::{Instant, SystemTime};

use hyper::header::{HeaderMap, HeaderValue};

use crate::event::{Event, Labels, Origin};
use crate::ingress::body::too_large;
use crate::ingress::deduplicate::Key;
use crate::ingress::handle::not_genuine;
use crate::ingress::reply::{Rejection, status_of};
use crate::ingress::settings::Source;
use crate::ingress::validate::{Trust, Valid, Validation, read_any, validate};
use crate::ingress::verify::{self, HEADER};
use crate::status::KeptReason;

/// Rebuilds an event from what the journal or a letter kept: a [`crate::event::Rebuild`]. Whatever the body is, its
/// fields are read as they were at acceptance, so that the event id is the same.
pub(crate) fn rebuild(origin: Origin, body: Box<[u8]>) -> Box<Event> {
    let digest = verify::digest(&origin, &body);
    let labels = Labels::new(&read_any(&body), &digest);
    Box::new(Event::labelled(origin, body, labels, Instant::now()))
}

/// The key by which a repeat of an accepted request is known; none if its body has no `cuid`: equal events without one are
/// separate events.
pub(crate) fn known_by(source: usize, origin: &Origin, body: &[u8]) -> Option<Key> {
    (!read_any(body).cuid.is_empty()).then(|| Key::new(source, &verify::digest(origin, body)))
}

/// Builds an event from a kept body, if it is valid today under this validation: a connection test is not.
pub(crate) fn revalidate(origin: Origin, body: Box<[u8]>, validation: Validation) -> Option<Box<Event>> {
    let trust = if origin.verified { Trust::Signed } else { Trust::Unsigned };
    let is_event = matches!(validate(&body, validation, trust), Ok(Valid::Event(_)));
    is_event.then(|| rebuild(origin, body))
}

/// The decision about a body, and the number of the secret that its signature matches.
#[derive(Debug)]
pub(crate) enum Explanation {
    /// It is published.
    Event(Box<Event>, Option<usize>),
    /// It is a connection test.
    Probe(&'static str, Option<usize>),
    /// It is rejected.
    Rejected {
        /// The status of the answer.
        status: u16,
        /// The label of the metrics.
        reason: &'static str,
        /// The detail of the answer.
        detail: String,
        /// The reason under which it is kept; none if it is not genuine.
        kept: Option<KeptReason>,
    },
}

/// Decides about a body that arrives at a source with this signature; duplicates are not known here.
pub(crate) fn explain(source: &Source, max_body: usize, signature: Option<&str>, body: &[u8]) -> Explanation {
    if body.len() > max_body {
        return rejected(too_large(max_body), None);
    }
    let mut headers = HeaderMap::new();
    if let Some(Ok(value)) = signature.map(HeaderValue::from_str) {
        headers.insert(HEADER, value);
    }
    let Some(verified) = source.verifier().verify(&headers, body) else {
        return rejected(not_genuine(), None);
    };
    match validate(body, source.validation, source.trust) {
        Ok(Valid::Event(payload)) => {
            let origin = source.origin(&verified, None, SystemTime::now());
            let labels = Labels::new(&payload, &verified.digest);
            Explanation::Event(
                Box::new(Event::labelled(origin, body.into(), labels, Instant::now())),
                verified.secret,
            )
        }
        Ok(Valid::Probe(what)) => Explanation::Probe(what, verified.secret),
        Err(problem) => {
            let (kept, _) = problem.kept();
            rejected(problem.into(), Some(kept).filter(|_| source.is_signed()))
        }
    }
}

fn rejected(Rejection { reason, detail }: Rejection, kept: Option<KeptReason>) -> Explanation {
    Explanation::Rejected { status: status_of(reason).0.as_u16(), reason: reason.name(), detail, kept }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(verified: bool) -> Origin {
        Origin {
            source: "main".into(),
            signature: Some([b'A'; 64]),
            verified,
            traceparent: None,
            received: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn rebuilds_every_event_with_the_id_that_it_had_when_it_was_accepted() {
        let documented =
            br#"{"cuid":"c","actorCuid":"a","event":"E","targetCuid":"t","targetType":"report","text":"x"}"#;
        let bodies: [&[u8]; 4] = [documented, br#"{"cuid":"\u00e9","event":"E"}"#, br#"{"flawId":7}"#, b"\xff"];
        let ids = ["c-aaaaaaaaaaaa", "\u{e9}-aaaaaaaaaaaa", &"a".repeat(32), &"a".repeat(32)];
        for (body, id) in bodies.into_iter().zip(ids) {
            assert_eq!(rebuild(origin(true), body.into()).id(), id);
        }
        // A signature that was not verified proves nothing: SHA-256 of the body.
        assert_eq!(rebuild(origin(false), Box::default()).id(), "e3b0c44298fc1c149afbf4c8996fb924");
        assert_eq!(rebuild(origin(true), documented[..].into()).target_cuid(), "t");
    }

    #[test]
    fn takes_only_what_is_valid_in_the_way_that_is_asked_for() {
        let valid = |body: &[u8], validation| revalidate(origin(true), body.into(), validation);
        let body = b"{\"event\":\"E\"}";
        assert!(valid(body, Validation::Strict).is_none());
        assert_eq!(valid(body, Validation::Lenient).unwrap().id(), "a".repeat(32));
        assert!(valid(b"[]", Validation::Lenient).is_none(), "a connection test");
        assert!(valid(b"{", Validation::Lenient).is_none());
        assert!(revalidate(origin(false), Box::from(*b"{\"x\":1}"), Validation::Lenient).is_none());
    }
}
