//! The last refused requests, for the log and for `/status`: never bodies, never secrets.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use hyper::Method;
use parking_lot::Mutex;
use serde::Serialize;

use crate::process::logs::Throttle;
use crate::status::Reason;
use crate::status::time::timestamp;

/// The number of refusals that the page shows of each source.
const KEPT: usize = 10;

/// The number of log lines per second for each source; further refusals are only counted in the metrics.
const LINES: u32 = 10;

/// One refused request.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RecentRefusal {
    /// The reason.
    pub(crate) reason: Reason,
    /// The status of the answer; 0 if the sender disconnected before it.
    pub(crate) status: u16,
    /// The detail of the answer.
    pub(crate) detail: String,
    /// The id in the answer.
    pub(crate) request_id: String,
    /// The sender's address, with its port if there is no proxy in between.
    pub(crate) peer: String,
    /// The number of requests that this entry stands for: the requests with GET, HEAD and OPTIONS share one.
    pub(crate) count: u64,
    /// The time of the last one.
    #[serde(rename = "timestamp_seconds", serialize_with = "timestamp")]
    pub(crate) at: SystemTime,
}

/// The kind of a refused request, by its method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestKind {
    /// A browser or a health check reads the path.
    Read,
    /// Anything else.
    Sent,
}

impl RequestKind {
    pub(crate) fn of(method: &Method) -> Self {
        if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) { Self::Read } else { Self::Sent }
    }
}

/// The difference between a path and the one that was meant.
const DIFFERENCE: &str = "slashes, upper and lower case or percent-encoding differ, or a proxy in front adds or removes a \
                          part at the beginning";

/// The path of a source that `asked` is another form of: slashes, upper and lower case, percent-encoding, or a part at
/// the beginning that a proxy added or removed.
pub(crate) fn meant<'p>(asked: &str, mut paths: impl Iterator<Item = &'p str> + Clone) -> Option<&'p str> {
    let plain = |path: &str| {
        let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy().to_lowercase();
        decoded.split('/').filter(|part| !part.is_empty()).fold(String::new(), |plain, part| plain + "/" + part)
    };
    let asked = plain(asked);
    let is_end = |long: &str, short: &str| !short.is_empty() && long.ends_with(short);
    let near = paths.clone().find(|path| plain(path) == asked);
    near.or_else(|| {
        paths.find(|path| {
            let path = plain(path);
            is_end(&path, &asked) || is_end(&asked, &path)
        })
    })
}

/// The last refusals of one source.
#[derive(Debug)]
pub(crate) struct Recent {
    list: Mutex<LastRefusals>,
    throttle: Throttle,
    reads: Throttle,
}

#[derive(Debug, Default)]
struct LastRefusals {
    sent: VecDeque<RecentRefusal>,
    /// The last of those with GET, HEAD or OPTIONS, with their number.
    read: Option<RecentRefusal>,
}

impl Default for Recent {
    fn default() -> Self {
        Self {
            list: Mutex::default(),
            throttle: Throttle::new("refused requests", LINES, Duration::from_secs(1)),
            reads: Throttle::new("refused GET, HEAD and OPTIONS requests", 1, Duration::from_mins(1)),
        }
    }
}

impl Recent {
    /// Logs and keeps a refusal; those of health checks displace no others, neither here nor in the log.
    pub(crate) fn note(&self, source: &str, mut refusal: RecentRefusal, kind: RequestKind) {
        let throttle = if kind == RequestKind::Read { &self.reads } else { &self.throttle };
        if throttle.admits() {
            tracing::warn!(
                source,
                peer = refusal.peer,
                status = refusal.status,
                reason = refusal.reason.name(),
                request_id = refusal.request_id,
                "refused a request: {}",
                refusal.detail
            );
        }
        let mut list = self.list.lock();
        match kind {
            RequestKind::Read => {
                refusal.count += list.read.as_ref().map_or(0, |read| read.count);
                list.read = Some(refusal);
            }
            RequestKind::Sent => {
                list.sent.truncate(KEPT - 1);
                list.sent.push_front(refusal);
            }
        }
    }

    /// The last refusals, newest first.
    pub(crate) fn list(&self) -> Vec<RecentRefusal> {
        let list = self.list.lock();
        let mut all: Vec<RecentRefusal> = list.sent.iter().chain(&list.read).cloned().collect();
        // Stable: refusals of the same moment keep their order.
        all.sort_by_key(|refusal| std::cmp::Reverse(refusal.at));
        all
    }
}

/// A requested path that belongs to no source.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct UnknownPath {
    /// The path, escaped and truncated.
    pub(crate) path: String,
    /// The source's path that was probably meant.
    pub(crate) meant: Option<String>,
    /// The number of requests since it was last new here.
    pub(crate) count: u64,
    /// The address of the last sender.
    pub(crate) peer: String,
    /// The time of the last request.
    #[serde(rename = "timestamp_seconds", serialize_with = "timestamp")]
    pub(crate) at: SystemTime,
}

/// The most recent unknown paths: a mistyped URL is the likeliest first mistake.
#[derive(Debug)]
pub(crate) struct UnknownPaths {
    list: Mutex<VecDeque<UnknownPath>>,
    throttle: Throttle,
}

impl Default for UnknownPaths {
    fn default() -> Self {
        Self { list: Mutex::default(), throttle: Throttle::new("unknown paths", 1, Duration::from_secs(1)) }
    }
}

impl UnknownPaths {
    /// Logs and keeps a path; `meant` is the source's path that it is another form of.
    pub(crate) fn note(&self, path: &str, meant: Option<&str>, peer: &str, request_id: &str) {
        // Untrusted input: escape and truncate.
        let path: String = path.chars().take(200).flat_map(char::escape_debug).collect();
        if self.throttle.admits() {
            if let Some(meant) = meant {
                tracing::warn!(peer, path, request_id, "no such path; did the sender mean {meant}? {}", DIFFERENCE);
            } else {
                tracing::info!(peer, path, request_id, "no such path");
            }
        }
        let mut list = self.list.lock();
        let known = list.iter().position(|known| known.path == path).and_then(|at| list.remove(at));
        let count = known.map_or(0, |known| known.count) + 1;
        list.truncate(KEPT - 1);
        list.push_front(UnknownPath {
            path,
            meant: meant.map(str::to_owned),
            count,
            peer: peer.to_owned(),
            at: SystemTime::now(),
        });
    }

    /// The last paths, newest first.
    pub(crate) fn list(&self) -> Vec<UnknownPath> {
        self.list.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognises_other_forms_of_a_path() {
        let paths = ["/webhooks/plextrac", "/w%C3%A9b/h", "/"];
        for (asked, expected) in [
            ("/webhooks/plextrac/", Some("/webhooks/plextrac")),
            ("/Webhooks/PlexTrac", Some("/webhooks/plextrac")),
            ("//webhooks//plextrac", Some("/webhooks/plextrac")),
            ("/webhooks%2Fplextrac", Some("/webhooks/plextrac")),
            ("/%77ebhooks/plextrac", Some("/webhooks/plextrac")),
            ("/plextrac", Some("/webhooks/plextrac")),
            ("/api/webhooks/plextrac", Some("/webhooks/plextrac")),
            ("/w%c3%a9b/h", Some("/w%C3%A9b/h")),
            ("/ac", None),
            ("/favicon.ico", None),
            ("/webhooks", None),
            ("/webhooks/plextrac/x", None),
        ] {
            assert_eq!(meant(asked, paths.into_iter()), expected, "{asked}");
        }
    }

    #[test]
    fn counts_health_checks_in_one_entry_that_displaces_no_other() {
        let recent = Recent::default();
        let refusal = |reason, seconds| RecentRefusal {
            reason,
            status: 0,
            detail: String::new(),
            request_id: String::new(),
            peer: String::new(),
            count: 1,
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        };
        for second in 0..12 {
            recent.note("a", refusal(Reason::Signature, second), RequestKind::Sent);
        }
        for second in 5..30 {
            recent.note("a", refusal(Reason::Method, second), RequestKind::Read);
        }
        recent.note("a", refusal(Reason::Signature, 40), RequestKind::Sent);
        let list = recent.list();
        let counted: Vec<_> = list.iter().map(|refusal| (refusal.reason, refusal.count)).collect();
        assert_eq!(counted[..3], [(Reason::Signature, 1), (Reason::Method, 25), (Reason::Signature, 1)]);
        assert_eq!(counted.len(), KEPT + 1);
    }
}
