//! One request, from its head to its answer: path, method, length, encoding, body, signature, duplicate, JSON, fields,
//! buffer.
//!
//! Length: the order of these checks is part of the contract, so they stay together.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_ENCODING, EXPECT, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, StatusCode};
use tokio::sync::watch;

use crate::event::{Event, Labels, Origin, Outcome, Waiter, WakeList};
use crate::ingress::body::{self, Budget, Keep};
use crate::ingress::client::client;
use crate::ingress::connection::Connection;
use crate::ingress::deduplicate::{Deduplication, Key, Known};
use crate::ingress::departures::Departures;
use crate::ingress::invalid::Invalids;
use crate::ingress::reply::{self, Rejection, Reply};
use crate::ingress::settings::{Settings, Source};
use crate::ingress::tls::ServerTls;
use crate::ingress::validate::{Valid, Validation, read_any, validate};
use crate::ingress::verify::{Verified, Verifier};
use crate::metrics::{Metrics, SourceMetrics};
use crate::process::failpoint;
use crate::process::logs::Throttle;
use crate::queue::{Ack, Buffer, NotTaken};
use crate::status::{
    Decision, IngressStatus, KeptReason, Observed, Reason, RecentRefusal, RequestKind, SourceStatus, Status, meant,
};

/// A duplicate that arrives later than this is logged: the sender's own repeats have ended by then.
const LATE: Duration = Duration::from_mins(5);

/// The least time that a sender waits for the disk or the broker, however slow its request was.
const LEAST: Duration = Duration::from_millis(500);

/// PlexTrac waits for five seconds from the first byte on: an answer by then arrives.
const SENDER_PATIENCE: Duration = Duration::from_millis(4_800);

/// The parts that ingress shares with others, independent of the settings.
#[derive(Clone)]
pub(crate) struct Shared {
    /// The queue that receives events.
    pub(crate) queue: Arc<Buffer>,
    /// The state that is reported.
    pub(crate) status: Arc<Status>,
    /// All series.
    pub(crate) metrics: Arc<Metrics>,
    /// The requests that were accepted already.
    pub(crate) known: Arc<Deduplication>,
    /// The store of signed bodies that are not published.
    pub(crate) invalids: Option<Arc<Invalids>>,
}

/// One source, ready to serve.
struct Endpoint {
    source: Source,
    /// The number of its book in the ledger.
    number: usize,
    observed: Arc<Observed>,
    /// The numbers of its secrets in the book.
    secrets: Vec<usize>,
    verifier: Verifier,
    metrics: SourceMetrics,
}

impl Endpoint {
    /// The report about it.
    fn status(&self) -> SourceStatus {
        let Source { name, path, secrets, validation, .. } = &self.source;
        SourceStatus {
            number: self.number,
            name: name.clone(),
            path: path.clone(),
            validation: validation.name(),
            is_signed: self.source.is_signed(),
            secrets: secrets.iter().map(|secret| secret.id.clone()).collect(),
            observed: self.observed.clone(),
        }
    }
}

/// The sender of a request.
#[derive(Debug)]
pub(super) struct Sender<'s> {
    pub(super) peer: SocketAddr,
    /// The arrival of the request's first byte.
    pub(super) begun: Instant,
    pub(super) connection: &'s Rc<Connection>,
    /// The waiters of this thread that are to be woken.
    pub(super) wakes: &'s Arc<WakeList>,
    /// Whether the stop's deadline has passed.
    pub(super) is_over: &'s watch::Receiver<bool>,
}

/// The state that answers requests, built from one set of settings.
pub(crate) struct Ingress {
    pub(super) settings: Settings,
    endpoints: Vec<Endpoint>,
    pub(super) shared: Shared,
    pub(super) budget: Arc<Budget>,
    late: Throttle,
}

impl Ingress {
    pub(super) fn new(settings: Settings, sources: &[Source], shared: Shared, budget: Arc<Budget>) -> Self {
        let status = &shared.status;
        let endpoints = sources.iter().map(|source| {
            let ids = || source.secrets.iter().map(|secret| secret.id.clone());
            let (number, secrets) = shared.queue.enter(&source.name, ids());
            Endpoint {
                number,
                verifier: source.verifier(),
                metrics: shared.metrics.source(&source.name),
                observed: status.observed(&source.name),
                source: source.clone(),
                secrets,
            }
        });
        let endpoints: Vec<Endpoint> = endpoints.collect();
        *status.ingress.lock() = IngressStatus {
            sources: endpoints.iter().map(Endpoint::status).collect(),
            certificate_not_after: settings.tls.as_ref().map(ServerTls::not_after),
        };
        let late = Throttle::new("late duplicates", 1, Duration::from_secs(1));
        Self { settings, endpoints, shared, budget, late }
    }

    /// The validation of the source with this name, if there is one.
    pub(crate) fn validation_of(&self, source: &str) -> Option<Validation> {
        let endpoint = self.endpoints.iter().find(|endpoint| *endpoint.source.name == *source);
        endpoint.map(|endpoint| endpoint.source.validation)
    }

    /// Answers one request.
    pub(super) async fn handle(&self, request: Request<Incoming>, sender: &Sender<'_>) -> Reply {
        let begun = Instant::now();
        let (head, mut body) = request.into_parts();
        let Some(endpoint) = self.endpoints.iter().find(|endpoint| endpoint.source.path == head.uri.path()) else {
            let client = client(sender.peer, &self.settings.trusted_proxies, &head.headers);
            let mut reply = self.unknown_path(head.uri.path(), &client);
            close_unless_read(&head.headers, BodyRead::Untouched, body, sender.connection, &mut reply);
            return reply;
        };
        let received = SystemTime::now();
        let mut guard = Guard {
            ingress: self,
            endpoint,
            sender,
            head: &head,
            received,
            read: BodyRead::Untouched,
            secret: None,
            decided: false,
        };
        let reply = match guard.decide(&mut body).await {
            Ok(reply) => reply,
            Err(rejection) => {
                let (reason, read) = (rejection.reason, guard.read);
                let mut reply = guard.refused(rejection);
                close_unless_read(&head.headers, read, body, sender.connection, &mut reply);
                if reason == Reason::Disconnected {
                    // The sender is not there to receive the answer.
                    return reply;
                }
                reply
            }
        };
        endpoint.metrics.answered(reply.status().as_u16(), begun.elapsed());
        reply
    }

    fn unknown_path(&self, path: &str, client: &str) -> Reply {
        self.shared.metrics.unknown_path();
        let id = reply::request_id();
        let paths = self.endpoints.iter().map(|endpoint| endpoint.source.path.as_str());
        self.shared.status.unknown_paths.note(path, meant(path, paths), client, &id);
        reply::problem(StatusCode::NOT_FOUND, "Not Found", "no webhook source has this path", &id)
    }
}

/// Counts the request exactly once: with the decision, or as disconnected when hyper drops it half-way.
struct Guard<'i> {
    ingress: &'i Ingress,
    endpoint: &'i Endpoint,
    sender: &'i Sender<'i>,
    head: &'i Parts,
    /// The time of arrival.
    received: SystemTime,
    read: BodyRead,
    secret: Option<usize>,
    decided: bool,
}

/// The progress of reading a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyRead {
    Untouched,
    /// It has begun, or has failed.
    Begun,
    Done,
}

impl Guard<'_> {
    async fn decide(&mut self, body: &mut Incoming) -> Result<Reply, Rejection> {
        let (settings, head) = (&self.ingress.settings, self.head);
        if head.method != Method::POST {
            return Err(Rejection::new(Reason::Method, "webhooks are sent with POST"));
        }
        if body::is_too_large(body, settings.max_body) {
            return Err(body::too_large(settings.max_body));
        }
        if !is_identity(&head.headers) {
            let text = "the body must arrive as it was signed, without a Content-Encoding";
            return Err(Rejection::new(Reason::Encoding, text));
        }
        // A request that cannot be genuine is read to its end for the sake of the answer, but not kept in memory.
        let keep = if self.endpoint.verifier.may_verify(&head.headers) { Keep::All } else { Keep::Nothing };
        let read = body::read(body, keep, settings.max_body, settings.body_timeout, &self.ingress.budget);
        // Bodies that wait for the disk are still charged, so the budget limits them too.
        self.read = BodyRead::Begun;
        let (bytes, _share) = self.in_time(read).await??;
        self.read = BodyRead::Done;
        let now = Instant::now();
        let Some(verified) = self.endpoint.verifier.verify(&head.headers, &bytes) else {
            return Err(not_genuine());
        };
        self.sender.connection.verified();
        self.secret = verified.secret.map(|at| self.endpoint.secrets[at]);
        let key = Key::new(self.endpoint.number, &verified.digest);
        if let Some(known) = self.ingress.shared.known.look_up(&key, now) {
            self.note_late(&known, &bytes, &verified.digest);
            return self.duplicate(known).await;
        }
        let source = &self.endpoint.source;
        let labels = match validate(&bytes, source.validation, source.trust) {
            Ok(Valid::Event(payload)) => Labels::new(&payload, &verified.digest),
            Ok(Valid::Probe(what)) => return Ok(self.probe(what, &verified, &bytes)),
            Err(problem) => {
                let (reason, text) = problem.kept();
                self.keep(reason, text, &verified, &bytes);
                return Err(problem.into());
            }
        };
        self.enqueue(&key, Box::new(Event::labelled(self.origin(&verified), bytes, labels, now))).await
    }

    fn origin(&self, verified: &Verified) -> Origin {
        self.endpoint.source.origin(verified, traceparent(&self.head.headers), self.received)
    }

    /// Answers a connection test.
    fn probe(&mut self, what: &str, verified: &Verified, body: &[u8]) -> Reply {
        self.count(Decision::Probe);
        self.keep(KeptReason::Probe, what, verified, body);
        if let Some(left_out) = self.endpoint.observed.tests.left_out() {
            let source = &*self.endpoint.source.name;
            tracing::info!(source, peer = self.client(), left_out, "a connection test arrived: {what}");
        }
        reply::ok(reply::PROBE)
    }

    /// Keeps a signed body that is not published.
    fn keep(&self, reason: KeptReason, text: &str, verified: &Verified, body: &[u8]) {
        let Endpoint { source, observed, .. } = self.endpoint;
        if !source.is_signed() {
            return;
        }
        if let Some(invalids) = &self.ingress.shared.invalids {
            invalids.keep(self.origin(verified), &verified.digest, reason, text, body);
        } else if let Some(left_out) = observed.unkept.left_out() {
            let (source, reason) = (&*source.name, reason.name());
            tracing::warn!(
                source,
                reason,
                left_out,
                "a signed body that is not published cannot be kept: there is no `state_directory`"
            );
        }
    }

    /// The buffer or the journal's writer decides and counts, whatever happens to this request.
    async fn enqueue(&mut self, key: &Key, event: Box<Event>) -> Result<Reply, Rejection> {
        let (ingress, secret) = (self.ingress, self.secret);
        let (is_known_by_body, now) = (!event.cuid().is_empty(), event.accepted);
        let (place, deviations) = (self.endpoint.observed.deviating.place(event.event()), *event.deviations());
        let id = tracing::enabled!(tracing::Level::DEBUG).then(|| event.id().to_owned());
        let _ = failpoint::pass("ingress.enqueue");
        let enqueue = || ingress.shared.queue.enqueue(self.endpoint.number, secret, event, self.sender.wakes);
        let enqueued = if is_known_by_body { ingress.shared.known.enter(key, now, enqueue) } else { Ok(enqueue()) };
        let enqueued = match enqueued {
            Ok(enqueued) => enqueued,
            // An equal request was faster.
            Err(known) => return self.duplicate(known).await,
        };
        self.decided = true;
        let waiter = enqueued.map_err(|refused| not_enqueued(&refused))?;
        let departures = Departures {
            observed: self.endpoint.observed.clone(),
            source: self.endpoint.source.name.clone(),
            place,
            deviations,
        };
        // In that mode the journal is still to take it.
        let _counted = match &waiter {
            Some(waiter) if ingress.shared.queue.mode().ack == Ack::Journaled => {
                Some(departures.once_kept(waiter.clone()))
            }
            _ => {
                departures.count();
                None
            }
        };
        let reply = match waiter {
            None => Ok(reply::ok(reply::ACCEPTED)),
            Some(waiter) => self.wait(&waiter, reply::ACCEPTED).await,
        };
        if let (Some(id), Ok(_)) = (id, &reply) {
            tracing::debug!(id, source = &*self.endpoint.source.name, "accepted an event");
        }
        reply
    }

    /// Logs a duplicate that is no repeat after a time-out: PlexTrac repeats for minutes, not longer.
    fn note_late(&self, known: &Known, body: &[u8], digest: &[u8; 32]) {
        let Known::Recorded(age) = known else { return };
        if *age > LATE && self.ingress.late.admits() {
            tracing::info!(
                source = &*self.endpoint.source.name,
                id = Labels::new(&read_any(body), digest).id(),
                age_seconds = age.as_secs(),
                "a duplicate arrived late: answered 200, not published again"
            );
        }
    }

    /// An equal request was accepted, or is in progress: this one gets the same answer.
    async fn duplicate(&mut self, known: Known) -> Result<Reply, Rejection> {
        self.count(Decision::Duplicate);
        match known {
            Known::Recorded(_) => Ok(reply::ok(reply::DUPLICATE)),
            Known::Pending(waiter) => self.wait(&waiter, reply::DUPLICATE).await,
        }
    }

    /// Waits for what the mode promises, no longer than a sender waits.
    async fn wait(&self, waiter: &Waiter, answer: &'static [u8]) -> Result<Reply, Rejection> {
        let mode = self.ingress.shared.queue.mode();
        let took = self.sender.begun.elapsed();
        let patience = patience(took, mode.timeout);
        let ended = self.in_time(tokio::time::timeout(patience, waiter.wait())).await;
        // If the event was not sent yet, it never will be, and a repeat is a new event. If it was sent, its confirmation
        // may arrive late. If the sender has closed the connection, do not withdraw the event: the answer would have no
        // receiver.
        let withdraws = || {
            mode.ack == Ack::Published
                && answer == reply::ACCEPTED
                && !self.sender.connection.socket.is_closed_by_peer()
                && waiter.withdraw()
        };
        let text = match ended {
            Ok(Ok(Outcome::Kept | Outcome::DeadLettered)) => return Ok(reply::ok(answer)),
            Ok(Ok(Outcome::Failed)) if mode.ack == Ack::Journaled => {
                "the event could not be written to the journal"
            }
            Ok(Ok(Outcome::Failed)) => "the broker refused the event, and there is nowhere to keep it",
            Ok(Ok(Outcome::Withdrawn)) => "the broker did not take the event in time; try again later",
            Ok(Err(_)) if took + patience > mode.timeout => {
                withdraws();
                "the request took most of the time that a sender waits; try again, and send it faster"
            }
            Ok(Err(_)) if mode.ack == Ack::Journaled => "the disk did not take the event in time; try again later",
            Ok(Err(_)) if withdraws() => "the broker did not take the event in time; try again later",
            Ok(Err(_)) => "the broker did not confirm the event in time; try again later",
            Err(stopping) => {
                withdraws();
                return Err(stopping);
            }
        };
        Err(Rejection::new(Reason::Unavailable, text))
    }

    /// Waits for this, but not beyond the stop's deadline.
    async fn in_time<T>(&self, awaited: impl Future<Output = T>) -> Result<T, Rejection> {
        let over = async { self.sender.is_over.clone().wait_for(|is_over| *is_over).await.is_ok() };
        tokio::select! {
            biased;
            ended = awaited => Ok(ended),
            _ = over => Err(not_enqueued(&NotTaken::Draining)),
        }
    }

    fn count(&mut self, decision: Decision) {
        if !self.decided {
            self.decided = true;
            self.ingress.shared.queue.decide(self.endpoint.number, self.secret, decision, self.received);
        }
    }

    fn refused(&mut self, rejection: Rejection) -> Reply {
        self.count(Decision::Rejected(rejection.reason));
        let request_id = reply::request_id();
        let reply = rejection.reply(&request_id);
        self.note(rejection, reply.status().as_u16(), request_id);
        reply
    }

    fn note(&self, Rejection { reason, detail }: Rejection, status: u16, request_id: String) {
        let (peer, at) = (self.client(), SystemTime::now());
        let refusal = RecentRefusal { reason, status, detail, request_id, peer, count: 1, at };
        let Endpoint { source, observed, .. } = self.endpoint;
        observed.recent.note(&source.name, refusal, RequestKind::of(&self.head.method));
    }

    /// The client, as far as it is known.
    fn client(&self) -> String {
        client(self.sender.peer, &self.ingress.settings.trusted_proxies, &self.head.headers)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.decided {
            self.count(Decision::Rejected(Reason::Disconnected));
            self.note(body::disconnected(), 0, reply::request_id());
        }
    }
}

/// The time that a sender waits for the disk or the broker once its request is complete: to the end of the time-out, but at
/// least [`LEAST`], so that a slow request does not use up the time of a healthy disk. With that, the answer comes
/// before PlexTrac gives up wherever it can.
fn patience(took: Duration, timeout: Duration) -> Duration {
    let least = LEAST.min(timeout / 2);
    let most = SENDER_PATIENCE.saturating_sub(took).max(least / 5);
    timeout.saturating_sub(took).max(least.min(most))
}

fn not_enqueued(refused: &NotTaken) -> Rejection {
    let text = match refused {
        NotTaken::Full => "the buffer is full because the broker is away or slow; try again later",
        NotTaken::JournalFull => "the journal is full because the broker is away or slow; try again later",
        NotTaken::Disk(_) => "the journal cannot be written; try again later",
        NotTaken::DiskBehind => "the disk is slower than the events arrive; try again later",
        NotTaken::Away => "the broker is away; try again later",
        NotTaken::Draining => "the bridge is stopping; try again later",
    };
    Rejection::new(refused.reason(), text)
}

pub(super) fn not_genuine() -> Rejection {
    Rejection::new(Reason::Signature, "the request is not signed with a secret of this source")
}

/// Whether the body arrives as it was signed, without a content encoding.
fn is_identity(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_ENCODING).iter().all(|value| {
        value.as_bytes().split(|b| *b == b',').all(|coding| {
            let coding = coding.trim_ascii();
            coding.is_empty() || coding.eq_ignore_ascii_case(b"identity")
        })
    })
}

/// The one well-formed `traceparent` (W3C Trace Context, 3.2): version 00, or a later version in that form.
fn traceparent(headers: &HeaderMap) -> Option<Box<str>> {
    let mut all = headers.get_all("traceparent").iter();
    let (Some(value), None) = (all.next(), all.next()) else { return None };
    let text = value.to_str().ok()?.trim();
    let bytes = text.as_bytes();
    let hex = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
    let zeros = |part: &[u8]| part.iter().all(|b| *b == b'0');
    let formed = bytes.len() == 55
        && bytes.iter().enumerate().all(|(at, b)| if [2, 35, 52].contains(&at) { *b == b'-' } else { hex(b) })
        && &bytes[..2] != b"ff"
        && !zeros(&bytes[3..35])
        && !zeros(&bytes[36..52]);
    formed.then(|| text.into())
}

/// Closes the connection after an answer that is sent before all of the body has arrived. The rest is read in the
/// background, so that the sender sees the answer; a sender that waits for 100 Continue has not begun to send, and will not.
fn close_unless_read(
    headers: &HeaderMap,
    read: BodyRead,
    mut body: Incoming,
    connection: &Rc<Connection>,
    reply: &mut Reply,
) {
    use hyper::body::Body as _;
    // Asking for the body would say 100 Continue.
    let waits = read == BodyRead::Untouched && headers.contains_key(EXPECT);
    let has_ended = match read {
        BodyRead::Untouched => body.is_end_stream() || (!waits && body::has_ended(&mut body)),
        BodyRead::Begun => false,
        BodyRead::Done => true,
    };
    if has_ended {
        return;
    }
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    if !waits {
        let discarding = connection.discarding();
        tokio::task::spawn_local(async move {
            body::discard(body).await;
            drop(discarding);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn passes_on_only_a_well_formed_traceparent() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(traceparent(&headers("traceparent", &[good])).as_deref(), Some(good));
        for bad in [
            "",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            assert_eq!(traceparent(&headers("traceparent", &[bad])), None, "{bad}");
        }
        assert_eq!(traceparent(&headers("traceparent", &[good, good])), None);
    }

    #[test]
    fn leaves_a_slow_request_some_time_before_its_sender_gives_up() {
        let at = |took, timeout| patience(Duration::from_millis(took), Duration::from_millis(timeout)).as_millis();
        assert_eq!([at(1, 4_000), at(3_500, 4_000)], [3_999, 500], "all of the time-out");
        assert_eq!([at(3_800, 4_000), at(4_300, 4_000)], [500, 500]);
        assert_eq!([at(4_500, 4_000), at(4_790, 4_000), at(8_000, 4_000)], [300, 100, 100], "PlexTrac gives up");
        assert_eq!([at(1, 100), at(80, 100), at(8_000, 60_000)], [99, 50, 52_000], "other time-outs");
    }

    #[test]
    fn takes_identity_for_no_encoding() {
        for good in [&[][..], &["identity"], &["Identity", ""]] {
            assert!(is_identity(&headers("content-encoding", good)), "{good:?}");
        }
        for bad in [&["gzip"][..], &["identity, gzip"], &["identity", "br"]] {
            assert!(!is_identity(&headers("content-encoding", bad)), "{bad:?}");
        }
    }
}
