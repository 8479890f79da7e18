//! The memory of heads. The first one of a connection is collected here, in memory that grows with it, until hyper can
//! decide: hyper's own buffers take 16 KiB of every connection that it serves. The head of a large request is copied out
//! of hyper's read buffer.

use std::io;
use std::mem::{self, MaybeUninit};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use hyper::Request;
use hyper::body::Body;
use hyper::header::HeaderValue;
use tokio::io::{AsyncRead, ReadBuf};

use crate::ingress::connection::{ObservedStream, READ};

/// The largest head, in bytes. A webhook's is below 2 KiB; hyper's own limit is 400 KiB for each connection.
pub(super) const HEAD_BYTES: usize = 16 * 1024;

/// The maximum number of headers that hyper accepts.
const HEADERS: usize = 100;

/// The step by which the memory of a head grows: the second read of a head is rare already.
const STEP: usize = 1024;

/// The bytes of a head, as far as they have arrived.
#[derive(Debug, Default)]
struct Head {
    bytes: Vec<u8>,
    /// The length of the empty lines before the request line.
    blank: usize,
    /// The length at the last search for mistakes.
    checked: usize,
}

impl Head {
    /// Adds what has arrived. Returns whether hyper can decide: the head is complete, too large, or malformed.
    fn extend(&mut self, arrived: &[u8]) -> bool {
        let before = self.bytes.len();
        let length = before + arrived.len();
        if length > self.bytes.capacity() {
            let capacity = if before == 0 { length } else { length.next_multiple_of(STEP) };
            self.bytes.reserve_exact(capacity - before);
        }
        self.bytes.extend_from_slice(arrived);
        if self.blank == before {
            self.blank += arrived.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        }
        // The empty line may have begun in the bytes before.
        let start = before.saturating_sub(2).max(self.blank);
        has_empty_line(&self.bytes[start..]) || length >= HEAD_BYTES || self.is_malformed()
    }

    /// Whether hyper would refuse the head already. Checks again only once the length has doubled: all checks together
    /// cost no more than two of the whole.
    fn is_malformed(&mut self) -> bool {
        if self.bytes.len() < 2 * self.checked {
            return false;
        }
        self.checked = self.bytes.len();
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        httparse::Request::new(&mut headers).parse(&self.bytes).is_err()
    }
}

/// Whether a line ends and an empty one follows. A line may end without a carriage return.
fn has_empty_line(bytes: &[u8]) -> bool {
    bytes.iter().enumerate().any(|(at, byte)| {
        let behind = &bytes[at + 1..];
        *byte == b'\n' && (behind.starts_with(b"\n") || behind.starts_with(b"\r\n"))
    })
}

/// The wait for the first head of a connection.
#[derive(Debug)]
pub(super) struct FirstHead<'s, S> {
    stream: &'s mut ObservedStream<S>,
    head: Head,
}

impl<'s, S: AsyncRead + Unpin> FirstHead<'s, S> {
    pub(super) fn new(stream: &'s mut ObservedStream<S>) -> Self {
        Self { stream, head: Head::default() }
    }

    /// Reads until hyper can decide on the answer, and returns the bytes; none if the connection has ended before its
    /// first byte.
    pub(super) fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Vec<u8>>>> {
        let mut space = [const { MaybeUninit::uninit() }; READ];
        loop {
            let most = READ.min(HEAD_BYTES - self.head.bytes.len());
            let mut read = ReadBuf::uninit(&mut space[..most]);
            ready!(Pin::new(&mut *self.stream).poll_read(context, &mut read))?;
            let arrived = read.filled();
            if arrived.is_empty() && self.head.bytes.is_empty() {
                return Poll::Ready(Ok(None));
            }
            if arrived.is_empty() {
                let text = "it was closed within the head of its first request";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, text)));
            }
            if self.head.extend(arrived) {
                return Poll::Ready(Ok(Some(mem::take(&mut self.head.bytes))));
            }
        }
    }
}

/// Gives the head of a request whose body does not arrive with it memory of its own. It would otherwise keep hyper's
/// read buffer for as long as the body takes, and the body would need another.
pub(super) fn detach<B: Body>(request: &mut Request<B>) {
    if request.body().size_hint().exact().is_some_and(|length| length < READ as u64) {
        return;
    }
    let mut values = BytesMut::with_capacity(request.headers().values().map(HeaderValue::len).sum());
    for value in request.headers_mut().values_mut() {
        values.extend_from_slice(value.as_bytes());
        if let Ok(copy) = HeaderValue::from_maybe_shared(values.split().freeze()) {
            *value = copy;
        }
    }
    if let Ok(uri) = request.uri().to_string().parse() {
        *request.uri_mut() = uri;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::Full;
    use hyper::Uri;

    use super::*;

    const HEAD: &[u8] = b"POST /webhooks/plextrac HTTP/1.1\r\nHost: b\r\nX-A: 1\r\n\r\n";

    /// The number of bytes, sent one by one, after which hyper decides.
    fn decided(bytes: &[u8]) -> Option<usize> {
        let mut head = Head::default();
        bytes.iter().position(|byte| head.extend(&[*byte])).map(|at| at + 1)
    }

    #[test]
    fn is_complete_at_the_empty_line_wherever_it_is_split() {
        for first in 0..HEAD.len() {
            for second in first..HEAD.len() {
                let mut head = Head::default();
                for part in [&HEAD[..first], &HEAD[first..second]] {
                    assert!(part.is_empty() || !head.extend(part), "split at {first} and {second}");
                }
                assert!(head.extend(&HEAD[second..]), "split at {first} and {second}");
                assert_eq!(head.bytes, HEAD);
            }
        }
        assert!(Head::default().extend(&[HEAD, b"POST / HT"].concat()), "the next request has begun");
    }

    #[test]
    fn takes_the_line_ends_that_hyper_takes() {
        for lines in ["GET / HTTP/1.1\nA: b\n\n", "GET / HTTP/1.1\nA: b\n\r\n", "GET / HTTP/1.0\r\n\n"] {
            assert_eq!(decided(lines.as_bytes()), Some(lines.len()), "{lines:?}");
            let mut headers = [httparse::EMPTY_HEADER; 2];
            let parsed = httparse::Request::new(&mut headers).parse(lines.as_bytes());
            assert_eq!(parsed, Ok(httparse::Status::Complete(lines.len())), "{lines:?}");
        }
    }

    #[test]
    fn takes_no_empty_line_before_the_request_for_its_end() {
        for blank in ["\r\n", "\n\n\n", "\r\n\r\n\r\n"] {
            let lines = [blank.as_bytes(), HEAD].concat();
            assert_eq!(decided(&lines), Some(lines.len()), "{blank:?}");
            assert!(!Head::default().extend(blank.as_bytes()), "{blank:?} at once");
            assert!(Head::default().extend(&lines), "{blank:?} and all at once");
        }
    }

    #[test]
    fn leaves_a_malformed_begin_to_hyper_at_once() {
        for begin in [
            &b"\x16\x03\x01"[..],
            b"PRI * HTTP/2.0\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 5 80\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11",
            b"HELO b\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n",
            b"\rGET",
        ] {
            assert!(Head::default().extend(begin), "{begin:?}");
        }
        assert_eq!(decided(b"\x16\x03\x01"), Some(1));
        assert!(decided(&[b"GET / HTTP/1.1\r\n\0", &[b'x'; 100][..]].concat()) < Some(40), "soon");
        assert!(!Head::default().extend(b"GET / HT"));
    }

    #[test]
    fn leaves_a_head_beyond_the_limits_to_hyper() {
        let long = [b"GET / HTTP/1.1\r\nX: ", &[b'x'; HEAD_BYTES][..]].concat();
        assert_eq!(decided(&long), Some(HEAD_BYTES));
        let many = ["GET / HTTP/1.1\r\n", &"X: y\r\n".repeat(HEADERS + 50)].concat();
        assert!(Head::default().extend(many.as_bytes()));
    }

    #[test]
    fn takes_little_more_memory_than_has_arrived() {
        let mut head = Head::default();
        assert!(head.extend(HEAD));
        assert_eq!(head.bytes.capacity(), HEAD.len(), "exact where it arrives at once");
        let mut head = Head::default();
        for byte in [b"GET / HTTP/1.1\r\nX: ", &[b'x'; 9_000][..]].concat() {
            assert!(!head.extend(&[byte]));
            assert!(head.bytes.capacity() < head.bytes.len() + STEP);
        }
    }

    #[test]
    fn frees_the_read_buffer_of_the_head_of_a_large_request() {
        let request = |length: usize| {
            let buffer = Bytes::from(b"/path?query\xe9 value ".repeat(40));
            let mut request = Request::new(Full::new(Bytes::from(vec![0; length])));
            *request.uri_mut() = Uri::from_maybe_shared(buffer.slice(..11)).unwrap();
            for (name, range) in [("a", 12..19), ("a", 11..12), ("b", 13..13)] {
                let value = HeaderValue::from_maybe_shared(buffer.slice(range)).unwrap();
                request.headers_mut().append(name, value);
            }
            (request, buffer)
        };
        for (length, is_free) in [(READ - 1, false), (READ, true)] {
            let ((mut detached, buffer), (original, _)) = (request(length), request(length));
            detach(&mut detached);
            assert_eq!(buffer.is_unique(), is_free, "{length}");
            assert_eq!((detached.uri(), detached.headers()), (original.uri(), original.headers()));
        }
    }
}
