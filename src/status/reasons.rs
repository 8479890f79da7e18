//! The reasons and decisions of the accounting: refused requests, lost events, refused messages.

/// The reason why a request was refused: the `reason` of `events_rejected_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// Missing, doubled or wrong signature.
    Signature,
    /// Not one JSON value in UTF-8.
    Malformed,
    /// JSON, but not the documented payload.
    Invalid,
    /// Body above `ingress.max_body`.
    TooLarge,
    /// The body arrived too slowly.
    Timeout,
    /// A Content-Encoding other than identity.
    Encoding,
    /// Not POST.
    Method,
    /// The sender disconnected before it had an answer.
    Disconnected,
    /// Buffer or read budget full.
    BufferFull,
    /// The bridge is stopping.
    Draining,
    /// Disk failure, or the broker unreachable in a mode that needs it.
    Unavailable,
}

impl Reason {
    /// All reasons, in the order of the counters.
    pub(crate) const ALL: [Self; 11] = [
        Self::Signature,
        Self::Malformed,
        Self::Invalid,
        Self::TooLarge,
        Self::Timeout,
        Self::Encoding,
        Self::Method,
        Self::Disconnected,
        Self::BufferFull,
        Self::Draining,
        Self::Unavailable,
    ];

    /// The name in metrics and `/status`.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Signature => "signature",
            Self::Malformed => "malformed",
            Self::Invalid => "invalid",
            Self::TooLarge => "too_large",
            Self::Timeout => "timeout",
            Self::Encoding => "encoding",
            Self::Method => "method",
            Self::Disconnected => "disconnected",
            Self::BufferFull => "buffer_full",
            Self::Draining => "draining",
            Self::Unavailable => "unavailable",
        }
    }

    /// The advice to the operator, for `/status` and the page.
    #[must_use]
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::Signature => {
                "the secret here and the secret in PlexTrac's webhook form differ, or something in between rewrites \
                 the body; copy the secret again, and let no proxy touch the body"
            }
            Self::Malformed => {
                "the body is not one JSON value in UTF-8: the sender is not PlexTrac, or a proxy cut it; a signed one \
                 is kept, see `dead-letters list --invalid`"
            }
            Self::Invalid => {
                "not the documented payload, and the detail names the field: validation = \"lenient\" takes every \
                 signed object; a signed one is kept, see `dead-letters list --invalid`"
            }
            Self::TooLarge => "raise ingress.max_body, and the broker's own limit",
            Self::Timeout => "the body arrived too slowly: check the proxy in front, or raise ingress.body_timeout",
            Self::Encoding => "something compresses the body: turn that off between PlexTrac and here",
            Self::Method => "webhooks are POST; a browser or a health check requests this path with another method",
            Self::Disconnected => "the sender, or the proxy in front, disconnected before the answer",
            Self::BufferFull => {
                "the broker is away, or slower than the events arrive: check the broker; raise buffer.max_events and \
                 buffer.max_bytes for longer outages; if the detail says that too many bodies are being read, \
                 many large ones are sent at once"
            }
            Self::Draining => "the bridge was stopping: let the balancer see /readyz, and raise shutdown.delay",
            Self::Unavailable => "the bridge could not keep the event: see the log",
        }
    }
}

/// The reason why a signed body is kept instead of published: the `reason` of `invalid_kept_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum KeptReason {
    /// JSON, but not what its source accepts.
    Invalid,
    /// Not one JSON value in UTF-8.
    Malformed,
    /// A connection test.
    Probe,
}

impl KeptReason {
    /// All reasons, for metrics.
    pub(crate) const ALL: [Self; 3] = [Self::Invalid, Self::Malformed, Self::Probe];

    /// The name in letters and metrics.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Malformed => "malformed",
            Self::Probe => "probe",
        }
    }
}

/// The decision about a request for a source's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The event is in the buffer.
    Accepted,
    /// The event is known already.
    Duplicate,
    /// A connection test: not published.
    Probe,
    /// Refused.
    Rejected(Reason),
}

impl Decision {
    /// The name in `/status`.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Probe => "probe",
            Self::Rejected(reason) => reason.name(),
        }
    }
}

/// The reason why a broker will never take this message as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum RefusalReason {
    /// Larger than the broker accepts.
    TooLarge,
    /// The address exists but leads to no queue or stream, or cannot be a legal address.
    Unroutable,
    /// The topic or exchange does not exist.
    NoDestination,
    /// These credentials may not publish there.
    NotAuthorised,
    /// Any other cause that a repeat would not fix.
    Other,
}

impl RefusalReason {
    /// All reasons, for metrics.
    pub(crate) const ALL: [Self; 5] =
        [Self::TooLarge, Self::Unroutable, Self::NoDestination, Self::NotAuthorised, Self::Other];

    /// The name in dead letters and metrics.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Unroutable => "unroutable",
            Self::NoDestination => "no_destination",
            Self::NotAuthorised => "not_authorised",
            Self::Other => "other",
        }
    }
}

/// The reason why an accepted event was lost: the `reason` of `events_lost_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Not delivered before the exit.
    Exit,
    /// Refused by the broker, without a state directory for a dead letter.
    Refused,
    /// Damaged in the journal.
    Damaged,
}

impl Loss {
    /// All reasons, in the order of the counters.
    pub(crate) const ALL: [Self; 3] = [Self::Exit, Self::Refused, Self::Damaged];

    /// The name in metrics.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Refused => "refused",
            Self::Damaged => "damaged",
        }
    }
}

/// The kinds of `broker_errors_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum ErrorKind {
    /// No connection: refused, no such host, missing topology.
    Connect,
    /// The credentials are wrong.
    Authentication,
    /// The TLS handshake failed.
    Tls,
    /// A live session ended.
    Lost,
    /// A message was refused for good.
    Refused,
    /// A message was refused for now.
    NotNow,
}

impl ErrorKind {
    /// All kinds, for metrics.
    pub(crate) const ALL: [Self; 6] =
        [Self::Connect, Self::Authentication, Self::Tls, Self::Lost, Self::Refused, Self::NotNow];

    /// The name in metrics and `/status`.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Authentication => "authentication",
            Self::Tls => "tls",
            Self::Lost => "lost",
            Self::Refused => "refused",
            Self::NotNow => "not_now",
        }
    }
}
