//! Connections that carry no HTTP/1.1 request: how they are logged and counted.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::ingress::connection::Begin;
use crate::metrics::Metrics;
use crate::process::logs::Throttle;

const PROXY: &str = "it begins with a PROXY protocol header: turn that off in the proxy in front \
                     (`ingress.trusted_proxies` reads X-Forwarded-For instead)";

/// The first bytes of a TLS handshake.
const TLS: &[u8] = b"\x16\x03";

/// The first bytes of other protocols, with advice to the operator.
const OTHERS: [(&[u8], &str); 4] = [
    (b"PROXY ", PROXY),
    (b"\r\n\r\n\0\r\nQUIT\n", PROXY),
    (
        TLS,
        "it begins with a TLS handshake, and this port speaks plain HTTP: use a URL with http://, or set [ingress.tls]",
    ),
    (b"PRI * HTTP/2.0", "it is HTTP/2, and this port speaks HTTP/1.1: let the proxy in front use that"),
];

/// Logs and counts requests that cannot be read and handshakes that fail, rate-limited for all threads together: port
/// scanners cause many.
#[derive(Debug)]
pub(crate) struct Unreadable {
    metrics: Arc<Metrics>,
    heads: Throttle,
    handshakes: Throttle,
}

impl Unreadable {
    /// Counts in these metrics.
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        let throttle = |kind| Throttle::new(kind, 1, Duration::from_secs(1));
        Self {
            metrics,
            heads: throttle("requests that cannot be read"),
            handshakes: throttle("failed TLS handshakes"),
        }
    }

    /// Notes a head that is not HTTP/1.1, malformed, or too large. hyper has answered it, except an HTTP/2 preface, for which it
    /// only closes the connection.
    pub(super) fn head(&self, peer: SocketAddr, first: &[u8], error: &hyper::Error) {
        let is_too_large = error.is_parse_too_large();
        self.metrics.unreadable(if is_too_large { "431" } else { "400" });
        if !self.heads.admits() {
            return;
        }
        let other = other(first);
        let hint: &dyn Display = match &other {
            Some(hint) => hint,
            None if is_too_large => &"its head is larger than 16 KiB, or has more than 100 headers",
            // One of hyper's fixed texts: nothing of the request is in it.
            None => &format_args!("it is malformed, or not HTTP/1.1: {error}"),
        };
        tracing::warn!(%peer, "cannot read a request: {hint}");
    }

    /// Notes a failed TLS handshake. A connection without a byte is a balancer's port check; one that does not begin with TLS
    /// counts as a request that cannot be read.
    pub(super) fn handshake(&self, peer: SocketAddr, begin: Option<Begin>, why: &dyn Display) {
        let Some(begin) = begin else {
            return tracing::debug!(%peer, "a TLS handshake failed before its first byte: {why}");
        };
        let other = if begin.starts_with(TLS) { None } else { other(&begin) };
        if !begin.starts_with(TLS) {
            self.metrics.unreadable("400");
        }
        if self.handshakes.admits() {
            let why: &dyn Display = if let Some(hint) = &other { hint } else { why };
            tracing::info!(%peer, "a TLS handshake failed: {why}");
        }
    }
}

/// The advice about another protocol, if these are its first bytes.
fn other(first: &[u8]) -> Option<&'static str> {
    OTHERS.iter().find(|(start, _)| first.starts_with(start)).map(|(_, hint)| *hint)
}

/// The reason why a handshake failed, with advice to the operator.
pub(super) fn why(error: &io::Error) -> String {
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
            "the first bytes are not TLS; does the sender's URL begin with http:// instead of https://?".to_owned()
        }
        _ => error.to_string(),
    }
}
