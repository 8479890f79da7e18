//! The contract of a broker: connect, send, verdicts, close. Defines the interface; each broker implements it.
//!
//! A *session* is one live connection. Order, retry, back-off, dead letters and settling belong to the delivery
//! task alone; a session only hands over and reports what the broker said.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::brokers::Headers;
use crate::event::Message;
use crate::settings::Section;
pub(crate) use crate::status::{ErrorKind, RefusalReason};

/// Names one message of the delivery ring; rises by one per message, never used twice in a process.
pub(crate) type Sequence = u64;

/// The terms that every broker gets beside its own settings.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// The most unconfirmed messages; client queues are sized above it.
    pub(crate) max_in_flight: usize,
    /// `ingress.max_body` in bytes: the largest body that can come.
    pub(crate) max_body: usize,
    /// The headers that are sent.
    pub(crate) headers: Headers,
    /// `publish.retry_max`: no client library waits longer between its own attempts.
    pub(crate) retry_max: Duration,
    /// Senders wait until the broker has their event: no batch is to wait for more.
    pub(crate) awaited: bool,
    /// The state directory, which is made before the first connect.
    pub(crate) state_directory: Option<PathBuf>,
    /// The source, if there is only one: its event ids are then all there are.
    pub(crate) only_source: Option<Arc<str>>,
}

#[cfg(test)]
impl Terms {
    /// Terms for a test, with the headers of a broker.
    pub(crate) fn of_tests(headers: fn(crate::brokers::HeaderStyle) -> Headers) -> Self {
        Self {
            max_in_flight: 5000,
            max_body: 256 * 1024,
            headers: headers(crate::brokers::HeaderStyle::CloudEvents),
            retry_max: Duration::from_secs(2),
            awaited: false,
            state_directory: None,
            only_source: None,
        }
    }
}

/// The treatment of exchanges, queues, streams and topics at connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topology {
    /// Create what is missing, touch nothing that exists.
    Declare,
    /// Look, and say what is missing.
    Check,
    /// Neither.
    Ignore,
}

impl Topology {
    /// Reads the key `topology` of a broker's table.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        section.choice("topology", &[("declare", Self::Declare), ("check", Self::Check), ("ignore", Self::Ignore)])
    }
}

/// The subject of a refusal. Only delivery decides what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The event: this destination can never take it. It becomes a dead letter at once.
    Event(RefusalReason),
    /// Its address: missing, unroutable, forbidden, taken over. Its events wait, and become dead letters after a while.
    AddressWrong(RefusalReason),
    /// Its address, which takes nothing for now: full, sealed, without a leader. Its events wait, however long.
    AddressUnable,
    /// The broker: throttled, full, without a quorum, or an answer that is not known. All events wait.
    Broker,
}

/// A refusal of one message: what it is about, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The subject of the refusal.
    pub(crate) kind: Refused,
    /// The broker's words, or ours, for the operator.
    pub(crate) text: String,
}

impl Refusal {
    /// A refusal with its text.
    pub(crate) fn new(kind: Refused, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// The destination can never take this event.
    pub(crate) fn event(reason: RefusalReason, text: impl Into<String>) -> Self {
        Self::new(Refused::Event(reason), text)
    }

    /// The address is wrong.
    pub(crate) fn wrong(reason: RefusalReason, text: impl Into<String>) -> Self {
        Self::new(Refused::AddressWrong(reason), text)
    }

    /// The address takes nothing for now.
    pub(crate) fn unable(text: impl Into<String>) -> Self {
        Self::new(Refused::AddressUnable, text)
    }

    /// The reason under which a dead letter is kept.
    pub(crate) fn reason(&self) -> RefusalReason {
        match self.kind {
            Refused::Event(reason) | Refused::AddressWrong(reason) => reason,
            Refused::AddressUnable | Refused::Broker => RefusalReason::Other,
        }
    }
}

/// The outcome of [`Session::send`].
#[derive(Debug)]
pub(crate) enum Sent {
    /// The session has it; one verdict follows, or the session is lost.
    Taken,
    /// Refused before it was sent; no verdict follows.
    Refused(Refusal),
    /// The connection takes nothing at the moment; not handed over, no verdict follows.
    RetryLater(String),
    /// The session is lost; not handed over.
    Lost(SessionError),
}

/// The place of a message among all that a destination has stored: an earlier one has a smaller number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// Its place.
    pub(crate) number: u64,
    /// It was stored by an earlier attempt; this one added nothing.
    pub(crate) repeat: bool,
}

/// The broker's answer to one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The broker's own confirmation.
    Stored,
    /// The same, from a broker that says where: which message overtook which is then known, not inferred.
    StoredAt(Position),
    /// Refused.
    Refused(Refusal),
    /// Its answer is missing, because its address takes nothing for now: it may be stored.
    Unanswered(Refusal),
    /// Not refused, and not stored as far as is known: its answer is missing. To be sent again.
    RetryLater(String),
    /// Refused for now by one queue, while queues beside it may have stored the message: each further attempt can add a
    /// copy there.
    Nacked(String),
}

/// Whether a message can have caused the loss of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// No: network, restart, a missing topology.
    Network,
    /// Yes: this is the refusal of the message that brings it about again while it is *alone* in flight.
    Message(Refusal),
}

/// The session is lost; everything without a verdict is unsettled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SessionError {
    /// The event, for log and `/status`; never a secret.
    pub(crate) text: String,
    /// The label of `broker_errors_total`.
    pub(crate) kind: ErrorKind,
    /// Whether a message can be the cause.
    pub(crate) suspect: Cause,
}

impl SessionError {
    /// A loss that no message caused.
    pub(crate) fn lost(text: impl Into<String>) -> Self {
        Self { text: text.into(), kind: ErrorKind::Lost, suspect: Cause::Network }
    }

    /// A loss that a message can have caused; alone in flight next time it is refused with `refusal`.
    #[must_use]
    pub(crate) fn suspect(refusal: Refusal) -> Self {
        Self { text: refusal.text.clone(), kind: ErrorKind::Refused, suspect: Cause::Message(refusal) }
    }
}

/// No session: wait and try again, for ever. The text says what, where and what to do; never a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct ConnectError {
    /// The label of `broker_errors_total`.
    pub(crate) kind: ErrorKind,
    /// For log, `/status` and `check --connect`.
    pub(crate) text: String,
}

impl ConnectError {
    /// An error of this kind.
    pub(crate) fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

/// A result of an inspection or a connect that the operator should know, beyond "it works".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Something is there as it should be (`check --connect` prints it).
    Good(String),
    /// It works, but some events may be refused (a size limit, an unroutable key).
    Warning(String),
    /// An exchange, queue, stream or topic that the settings name is not there.
    Missing(String),
}

/// One broker, as the settings describe it; makes sessions. It lives until a reload has changed its table.
#[async_trait]
pub(crate) trait Broker: Send {
    /// The name of its settings table: `kafka`, `rabbitmq`, `nats`, `file`.
    fn name(&self) -> &'static str;

    /// The broker's location, without secrets, for log and `/status`.
    fn location(&self) -> String;

    /// Makes one session: connects, and declares or checks the topology. Gives up by itself within some seconds;
    /// may be dropped at any time. Findings other than `Good` are logged by the caller when they change.
    ///
    /// # Errors
    /// What stands in the way; the caller backs off and tries again.
    async fn connect(&mut self) -> Result<(Box<dyn Session>, Vec<Finding>), ConnectError>;

    /// Looks at broker, topology and size limits without changing anything (`check --connect`).
    ///
    /// # Errors
    /// The broker cannot be reached or refuses the credentials.
    async fn inspect(&mut self) -> Result<Vec<Finding>, ConnectError>;
}

/// One live connection to a broker.
#[async_trait]
pub(crate) trait Session: Send {
    /// Hands one message to the client library. Never waits.
    fn send(&mut self, sequence: Sequence, message: &Message) -> Sent;

    /// Whether it would take more before a verdict comes: false where that would only wait in the client library.
    fn takes_more(&self) -> bool {
        true
    }

    /// Whether it would take this one, where it takes more at all; false where that would only wait in the client library
    /// for others of its address.
    fn takes(&self, _message: &Message) -> bool {
        true
    }

    /// There is no more to hand over at the moment.
    fn flush(&mut self) {}

    /// Waits for verdicts and appends all there are; returns with at least one, with the loss of the session, or where
    /// [`Session::takes_more`] or [`Session::has_changed`] became true without one.
    /// Cancel-safe: dropping the future loses no verdict. Once it returned an error it is not called again.
    ///
    /// # Errors
    /// The session is lost.
    async fn verdicts(&mut self, into: &mut Vec<(Sequence, Verdict)>) -> Result<(), SessionError>;

    /// The reason why the session reaches no broker at the moment, although it is not lost: where the client library
    /// reconnects by itself.
    fn away(&self) -> Option<ConnectError> {
        None
    }

    /// Whether something has changed since this was last asked, so that addresses that refused may take messages again: a
    /// new channel, a new leader, a topic that was found.
    fn has_changed(&mut self) -> bool {
        false
    }

    /// The reason why messages handed over for this address have no answer, where it is known.
    fn reason(&self, _address: &str) -> Option<String> {
        None
    }

    /// Ends the session, also one that is lost: collects outstanding verdicts for at most `patience`, or until no more
    /// can arrive, then releases thread, socket and memory in the background.
    async fn close(self: Box<Self>, patience: Duration, into: &mut Vec<(Sequence, Verdict)>);
}
