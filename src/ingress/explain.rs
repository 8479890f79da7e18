//! The decision about a body without a request, by the functions that decide about requests.

use std::time::{Instant, SystemTime};

use hyper::header::{HeaderMap, HeaderValue};

use crate::event::{Event, Labels};
use crate::ingress::body::too_large;
use crate::ingress::handle::not_genuine;
use crate::ingress::reply::Rejection;
use crate::ingress::settings::Source;
use crate::ingress::validate::{Valid, validate};
use crate::ingress::verify::{HEADER, Verifier};
use crate::status::KeptReason;

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
    let Some(verified) = Verifier::new(&source.secrets).verify(&headers, body) else {
        return rejected(not_genuine(), None);
    };
    match validate(body, source.validation, source.trust()) {
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
    Explanation::Rejected { status: reason.answer().0.as_u16(), reason: reason.name(), detail, kept }
}
