//! Reading a body once, within the limits: its size, its time, and the budget for all bodies being read.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::ingress::reply::Rejection;
use crate::status::Reason;

/// The time spent on reading and discarding the body after an answer that was given before the body was read. Otherwise
/// a sender that is still writing would see a reset instead of the answer.
const DISCARD: Duration = Duration::from_secs(1);

/// From this size on a body has memory pages of its own, which are taken only as they are filled. The allocator's
/// threshold is set at start (`app::resources`).
pub(crate) const LARGE: usize = 64 << 10;

/// The size of a memory page on most processors.
const PAGE: usize = 4 << 10;

/// The bytes that the C library keeps before an allocation in a mapping of its own.
const MAPPING: usize = 16;

/// The number of bytes that all bodies being read may take together.
#[derive(Debug)]
pub(super) struct Budget {
    size: usize,
    free: Arc<Semaphore>,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { size: bytes, free })
    }

    /// This budget, or a new one if it has another size.
    pub(super) fn resized(self: &Arc<Self>, bytes: usize) -> Arc<Self> {
        if self.size == bytes { self.clone() } else { Self::new(bytes) }
    }

    /// The bytes that bodies of this size leave free. Whether a body is genuine shows only at its end, and a few large ones
    /// that never end could otherwise keep out all events of the usual size.
    fn reserve(&self, is_large: bool, most: usize) -> usize {
        if is_large { (self.size / 4).min(self.size.saturating_sub(most)) } else { 0 }
    }

    /// Makes a share of the budget as large as `bytes`, where `reserve` stays free; it is given back when dropped.
    fn grow(
        &self,
        share: &mut Option<OwnedSemaphorePermit>,
        bytes: usize,
        reserve: usize,
    ) -> Result<(), Rejection> {
        let more = bytes.saturating_sub(share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
        let has_room = more == 0 || self.free.available_permits() >= more.saturating_add(reserve);
        let more = u32::try_from(more).ok().filter(|_| has_room);
        let more = more.and_then(|more| self.free.clone().try_acquire_many_owned(more).ok());
        let text = "too many bodies are being read at the moment; try again later";
        let more = more.ok_or_else(|| Rejection::new(Reason::BufferFull, text))?;
        match share {
            Some(share) => share.merge(more),
            None => *share = Some(more),
        }
        Ok(())
    }
}

/// The part of a body that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    All,
    /// The body is read to its end, because how it ends decides the answer, but not kept in memory.
    Nothing,
}

/// Whether the announced length alone exceeds the limit.
pub(super) fn is_too_large(body: &Incoming, most: usize) -> bool {
    body.size_hint().lower() > most as u64
}

/// The rejection of a body above the limit.
pub(super) fn too_large(most: usize) -> Rejection {
    Rejection::new(Reason::TooLarge, format!("the body is larger than {most} bytes"))
}

/// The rejection of a request whose sender disconnected.
pub(super) fn disconnected() -> Rejection {
    Rejection::new(Reason::Disconnected, "the sender disconnected before its request was complete")
}

/// Reads the whole body into a buffer of its exact size.
///
/// hyper's own `Bytes` would keep its whole read buffer alive, eight times the memory of small bodies.
pub(super) async fn read(
    body: &mut Incoming,
    keep: Keep,
    most: usize,
    longest: Duration,
    budget: &Budget,
) -> Result<(Box<[u8]>, Option<OwnedSemaphorePermit>), Rejection> {
    let mut deadline = None;
    let announced = usize::try_from(body.size_hint().exact().unwrap_or(0)).map_err(|_| too_large(most))?;
    // Only memory that is used is charged, and that grows with what arrives: an announced length alone takes nothing
    // from other requests.
    let mut share = None;
    let mut bytes = Vec::new();
    let mut length = 0;
    loop {
        // Bytes that arrived with the head need neither clock nor timer.
        let polled = if let Some(polled) = body.frame().now_or_never() {
            polled
        } else {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + longest);
            let too_slow = |_| Rejection::new(Reason::Timeout, "the body arrived too slowly");
            timeout_at(deadline, body.frame()).await.map_err(too_slow)?
        };
        let frame = match polled {
            None => return Ok((bytes.into_boxed_slice(), share)),
            Some(Err(error)) => return Err(broken(&error)),
            Some(Ok(frame)) => frame,
        };
        // Trailers are read and dropped.
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length > most {
            return Err(too_large(most));
        }
        if keep == Keep::Nothing {
            continue;
        }
        let reserve = budget.reserve(announced.max(length) > LARGE, most);
        if announced >= LARGE {
            // A mapping of its own: bytes that have not arrived take no memory.
            budget.grow(&mut share, filled(length).min(announced), reserve)?;
            if bytes.capacity() == 0 {
                bytes.reserve_exact(announced);
            }
        } else if length > bytes.capacity() {
            let capacity = grown(bytes.capacity(), length, announced, most);
            let capacity = if budget.grow(&mut share, capacity, reserve).is_ok() { capacity } else { length };
            budget.grow(&mut share, capacity, reserve)?;
            bytes.reserve_exact(capacity - bytes.len());
        }
        bytes.extend_from_slice(&data);
    }
}

/// The next capacity for `length` bytes: exact for a body that arrives at once, at most doubled for others, and never
/// more than the body can reach.
fn grown(capacity: usize, length: usize, announced: usize, most: usize) -> usize {
    let end = if announced == 0 { most } else { announced };
    (2 * capacity).min(end).max(length)
}

/// The memory that `length` bytes take in a mapping of their own, behind what the C library keeps there: whole pages.
fn filled(length: usize) -> usize {
    (length + MAPPING).next_multiple_of(PAGE)
}

/// hyper reports broken framing as invalid input or data, a closed connection as anything else.
fn broken(error: &hyper::Error) -> Rejection {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause.map(io::Error::kind) {
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => {
            Rejection::new(Reason::Malformed, "the chunks of the body are malformed")
        }
        _ => disconnected(),
    }
}

/// Whether all of a body has arrived.
pub(super) fn has_ended(body: &mut Incoming) -> bool {
    loop {
        match body.frame().now_or_never() {
            Some(Some(Ok(_))) if !body.is_end_stream() => {}
            Some(Some(Err(_))) | None => return false,
            Some(_) => return true,
        }
    }
}

/// Reads and discards the rest of a body for a short time, while the answer is being sent.
pub(super) async fn discard(mut body: Incoming) {
    let deadline = Instant::now() + DISCARD;
    while let Ok(Some(Ok(_))) = timeout_at(deadline, body.frame()).await {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocates_what_arrives_and_at_most_as_much_again() {
        assert_eq!(grown(0, 500, 500, 1000), 500, "a body that arrives at once");
        assert_eq!(grown(0, 500, 100_000, 1 << 20), 500, "an announced length alone");
        assert_eq!(grown(500, 600, 100_000, 1 << 20), 1000);
        assert_eq!(grown(500, 600, 700, 1 << 20), 700, "exact at the end");
        assert_eq!(grown(800, 900, 0, 1000), 1000, "chunks, without a length");
    }

    #[test]
    fn counts_the_pages_of_a_large_body() {
        assert_eq!([filled(1), filled(4_080), filled(4_081)], [4_096, 4_096, 8_192]);
    }

    #[test]
    fn gives_its_share_back() {
        let budget = Budget::new(10);
        let mut share = None;
        assert!(budget.grow(&mut share, 8, 0).is_ok() && budget.grow(&mut share, 4, 0).is_ok());
        assert_eq!(budget.grow(&mut share, 11, 0).unwrap_err().reason, Reason::BufferFull);
        let mut second = None;
        assert!(budget.grow(&mut second, 3, 0).is_err());
        drop(share);
        assert!(budget.grow(&mut second, 10, 0).is_ok());
    }

    #[test]
    fn keeps_a_quarter_free_of_large_bodies_unless_the_largest_needs_it() {
        let budget = Budget::new(100);
        assert_eq!([budget.reserve(false, 50), budget.reserve(true, 50), budget.reserve(true, 90)], [0, 25, 10]);
        let (mut large, mut usual) = (None, None);
        assert!(budget.grow(&mut large, 75, 25).is_ok());
        assert!(budget.grow(&mut large, 76, 25).is_err());
        assert!(budget.grow(&mut usual, 25, 0).is_ok());
        assert!(budget.grow(&mut large, 75, 25).is_ok(), "what it has, it keeps");
    }
}
