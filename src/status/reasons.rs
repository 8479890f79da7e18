//! The reasons and decisions of the accounting: refused requests, lost events, refused messages.

use crate::settings::named;

named! {
    /// The reason why a request was refused: the `reason` of `events_rejected_total`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub(crate) enum Reason {
        /// Missing, doubled or wrong signature.
        Signature = "signature",
        /// Not one JSON value in UTF-8.
        Malformed = "malformed",
        /// JSON, but not the documented payload.
        Invalid = "invalid",
        /// Body above `ingress.max_body`.
        TooLarge = "too_large",
        /// The body arrived too slowly.
        Timeout = "timeout",
        /// A Content-Encoding other than identity.
        Encoding = "encoding",
        /// Not POST.
        Method = "method",
        /// The sender disconnected before it had an answer.
        Disconnected = "disconnected",
        /// Buffer, journal or read budget full, or the disk slower than the events arrive.
        BufferFull = "buffer_full",
        /// The bridge is stopping.
        Draining = "draining",
        /// Disk failure, or the broker unreachable in a mode that needs it, or either slower than a sender waits.
        Unavailable = "unavailable",
    }
}

impl Reason {
    /// The advice to the operator, for `/status` and the page.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::Signature => {
                "the secret here and the secret in PlexTrac's webhook form differ, or something in between rewrites \
                 the body; copy the secret again, and let no proxy touch the body"
            }
            Self::Malformed => {
                "the body is not one JSON value in UTF-8, or its chunks are malformed: the sender is not PlexTrac, or a \
                 proxy cut or changed it; with a `state_directory`, a signed one whose chunks are sound is kept, see \
                 `dead-letters list --invalid`"
            }
            Self::Invalid => {
                "not the documented payload, and the detail names the field: validation = \"lenient\" takes every \
                 signed object; with a `state_directory`, a signed one is kept, see `dead-letters list --invalid`"
            }
            Self::TooLarge => "raise ingress.max_body, and the broker's own limit",
            Self::Timeout => "the body arrived too slowly: check the proxy in front, or raise ingress.body_timeout",
            Self::Encoding => "something compresses the body: turn that off between PlexTrac and here",
            Self::Method => "webhooks are POST; a browser or a health check requests this path with another method",
            Self::Disconnected => "the sender, or the proxy in front, disconnected before the answer",
            Self::BufferFull => {
                "the detail names what is full. The buffer or the journal: the broker is away, or slower than the events \
                 arrive; check the broker, and for longer outages raise buffer.max_events and buffer.max_bytes, or \
                 journal.max_bytes where `ack` is \"journaled\". The disk: it is slower than the events arrive. Bodies \
                 being read: many large ones are sent at once"
            }
            Self::Draining => {
                "the bridge was stopping: let the load balancer check /readyz, and raise shutdown.delay"
            }
            Self::Unavailable => {
                "the disk failed, or the broker is away, or one of them was slower than a sender waits: see the log; if \
                 the detail says that the request took most of the time, check the proxy in front as well"
            }
        }
    }
}

named! {
    /// The reason why a signed body is kept instead of published: the `reason` of `invalid_kept_total`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub(crate) enum KeptReason {
        /// JSON, but not what its source accepts.
        Invalid = "invalid",
        /// Not one JSON value in UTF-8.
        Malformed = "malformed",
        /// A connection test.
        Probe = "probe",
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
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Probe => "probe",
            Self::Rejected(reason) => reason.name(),
        }
    }
}

named! {
    /// The reason why a broker will never take this message as it is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub(crate) enum RefusalReason {
        /// Larger than the broker accepts.
        TooLarge = "too_large",
        /// The address exists but leads to no queue or stream, or cannot be a legal address.
        Unroutable = "unroutable",
        /// The topic or exchange does not exist.
        NoDestination = "no_destination",
        /// These credentials may not publish there.
        NotAuthorised = "not_authorised",
        /// Any other cause that a repeat would not fix.
        Other = "other",
    }
}

named! {
    /// The reason why an accepted event was lost: the `reason` of `events_lost_total`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Loss {
        /// Not delivered before the exit.
        Exit = "exit",
        /// Refused by the broker, without a state directory for a dead letter.
        Refused = "refused",
        /// Damaged in the journal.
        Damaged = "damaged",
    }
}

named! {
    /// The kinds of `broker_errors_total`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub(crate) enum ErrorKind {
        /// No connection: refused, no such host, missing topology.
        Connect = "connect",
        /// The credentials are wrong.
        Authentication = "authentication",
        /// The TLS handshake failed.
        Tls = "tls",
        /// A live session ended.
        Lost = "lost",
        /// A message was refused for good.
        Refused = "refused",
        /// A message was refused for now.
        NotNow = "not_now",
    }
}
