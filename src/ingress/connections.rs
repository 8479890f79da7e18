//! The connections of all threads: permits for as many as may be open, and the replacement of idle ones once all
//! permits are taken.
//!
//! Each connection has a [`ConnectionSlot`], which its own thread updates without a lock. A thread that needs room
//! scans the slots, claims the connection that has been idle longest, and wakes its task; only that task closes it,
//! after a last check of the socket. The freed permit wakes the waiting thread. A claim without effect is repeated
//! after [`SEARCH_INTERVAL`].

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::Waker;
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::status::Status;

/// The pause between two searches for an idle connection while a new one waits.
const SEARCH_INTERVAL: Duration = Duration::from_millis(50);

/// The time for which a connection that carried a verified request must have been idle before it is replaced.
const VERIFIED_IDLE: Duration = Duration::from_secs(5);

/// The zero of [`ConnectionSlot`]'s times.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The permits for connections and their slots, all threads together.
#[derive(Debug)]
pub(crate) struct Connections {
    permits: Arc<Semaphore>,
    status: Arc<Status>,
    slots: Mutex<Vec<Arc<ConnectionSlot>>>,
}

/// The state of one connection as other threads see it.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    /// [`BUSY`], [`CLAIMED`], or the time (milliseconds since [`START`]) with a [`Rank`] in the low bits.
    state: AtomicU64,
    /// Its index in the list; changed under the list's lock.
    at: AtomicUsize,
    waker: AtomicWaker,
}

/// A request is in progress: the connection must not be closed.
const BUSY: u64 = u64::MAX - 1;

/// Another thread needs the connection's permit.
const CLAIMED: u64 = u64::MAX;

/// The order in which connections are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Closed by this side, waiting for the peer's end.
    Lingering,
    /// Idle, and never carried a verified request.
    Unverified,
    /// Idle, and has carried a verified request.
    Verified,
}

impl ConnectionSlot {
    fn new() -> Self {
        let slot = Self { state: AtomicU64::new(BUSY), at: AtomicUsize::new(0), waker: AtomicWaker::new() };
        slot.set(Rank::Unverified, Instant::now());
        slot
    }

    fn set(&self, rank: Rank, since: Instant) {
        let since = since.saturating_duration_since(*START).as_millis();
        self.state.store(u64::try_from(since).unwrap_or(u64::MAX >> 3) << 2 | rank as u64, Ordering::Release);
    }

    /// Notes that no request is in progress.
    pub(super) fn idle(&self, is_verified: bool, since: Instant) {
        self.set(if is_verified { Rank::Verified } else { Rank::Unverified }, since);
    }

    /// Notes that a request has begun; cancels a claim.
    pub(super) fn busy(&self) {
        self.state.store(BUSY, Ordering::Release);
    }

    /// Notes that this side has closed the connection.
    pub(super) fn lingering(&self) {
        self.set(Rank::Lingering, Instant::now());
    }

    /// Whether another thread has claimed the connection's permit.
    pub(super) fn is_claimed(&self) -> bool {
        self.state.load(Ordering::Acquire) == CLAIMED
    }

    /// Wakes the connection's task with this waker when the connection is claimed or the stop begins to close.
    pub(super) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// The position in the order of replacement, with the state it was read from; none while the connection must not be
    /// closed.
    fn rank(&self, now: u64) -> Option<(Rank, u64)> {
        let state = self.state.load(Ordering::Acquire);
        if state >= BUSY {
            return None;
        }
        let rank = match state & 3 {
            0 => Rank::Lingering,
            1 => Rank::Unverified,
            _ => Rank::Verified,
        };
        let idle = Duration::from_millis(now.saturating_sub(state >> 2));
        (rank < Rank::Verified || idle >= VERIFIED_IDLE).then_some((rank, state))
    }
}

/// A connection's permit and slot, given back when dropped.
#[derive(Debug)]
pub(super) struct Admission {
    connections: Arc<Connections>,
    pub(super) slot: Arc<ConnectionSlot>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut slots = self.connections.slots.lock();
        let at = self.slot.at.load(Ordering::Relaxed);
        slots.swap_remove(at);
        if let Some(moved) = slots.get(at) {
            moved.at.store(at, Ordering::Relaxed);
        }
        drop(slots);
        self.connections.status.connections.lock().open -= 1;
    }
}

impl Connections {
    /// Creates this number of permits.
    pub(crate) fn new(capacity: usize, status: Arc<Status>) -> Self {
        status.connections.lock().capacity = capacity;
        Self { permits: Arc::new(Semaphore::new(capacity)), status, slots: Mutex::default() }
    }

    /// Changes the number of permits. Existing connections are kept; new ones wait until enough have ended or were
    /// replaced. Runs in a runtime.
    ///
    /// # Panics
    /// Never: the semaphore is not closed.
    pub(crate) fn limit(&self, capacity: usize) {
        let before = std::mem::replace(&mut self.status.connections.lock().capacity, capacity);
        self.permits.add_permits(capacity.saturating_sub(before));
        let (fewer, permits) = (before.saturating_sub(capacity), self.permits.clone());
        tokio::spawn(async move {
            // One by one, so that new connections have their turns between.
            for _ in 0..fewer {
                permits.acquire().await.expect("the semaphore is never closed").forget();
            }
        });
    }

    /// Waits for a permit; meanwhile replaces the connection that has been idle longest.
    pub(super) async fn admit(self: &Arc<Self>) -> Admission {
        let making_room = async {
            loop {
                self.claim_idlest();
                tokio::time::sleep(SEARCH_INTERVAL).await;
            }
        };
        let permit = tokio::select! {
            // First: room is made only when no permit is free.
            biased;
            permit = self.permits.clone().acquire_owned() => permit,
            () = making_room => unreachable!("it has no end"),
        };
        self.place(Some(permit.expect("the semaphore is never closed")))
    }

    /// Admits a connection beyond the limit: it was accepted already.
    pub(super) fn admit_beyond(self: &Arc<Self>) -> Admission {
        self.place(None)
    }

    fn place(self: &Arc<Self>, permit: Option<OwnedSemaphorePermit>) -> Admission {
        let slot = Arc::new(ConnectionSlot::new());
        let mut slots = self.slots.lock();
        slot.at.store(slots.len(), Ordering::Relaxed);
        slots.push(slot.clone());
        drop(slots);
        self.status.connections.lock().open += 1;
        Admission { connections: self.clone(), slot, _permit: permit }
    }

    /// Claims the connection that is first in the order of replacement; does nothing if there is none.
    fn claim_idlest(&self) {
        let now = u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX);
        let slots = self.slots.lock();
        let ranked = slots.iter().filter_map(|slot| Some((slot.rank(now)?, slot)));
        let Some(((_, state), slot)) = ranked.min_by_key(|(rank, _)| *rank) else { return };
        // If a request has begun meanwhile, the next search finds another.
        if slot.state.compare_exchange(state, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            slot.waker.wake();
        }
    }

    /// Wakes the tasks of all connections: the stop has reached a phase that concerns them.
    pub(super) fn wake_all(&self) {
        self.slots.lock().iter().for_each(|slot| slot.waker.wake());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn takes_other_limits_while_connections_are_open() {
        let connections = Arc::new(Connections::new(1, Arc::default()));
        let busy = |place: Admission| {
            place.slot.busy();
            place
        };
        let first = busy(connections.admit().await);
        assert!(connections.admit().now_or_never().is_none());
        connections.limit(3);
        let others = [busy(connections.admit().await), busy(connections.admit().await)];
        connections.limit(1);
        tokio::task::yield_now().await;
        let counts = *connections.status.connections.lock();
        assert_eq!((counts.open, counts.capacity), (3, 1), "they stay");
        drop(others);
        tokio::task::yield_now().await;
        assert!(connections.admit().now_or_never().is_none(), "still one");
        drop(first);
        assert!(connections.admit().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_new_connection_does_not_wait_until_the_number_has_fallen() {
        let connections = Arc::new(Connections::new(4, Arc::default()));
        let mut places = Vec::new();
        for _ in 0..4 {
            let place = connections.admit().await;
            place.slot.busy();
            places.push(place);
        }
        connections.limit(1);
        tokio::task::yield_now().await;
        let mut next = Box::pin(connections.admit());
        assert!(futures_util::poll!(&mut next).is_pending());
        for is_served in [false, true] {
            places.pop();
            tokio::task::yield_now().await;
            assert_eq!(futures_util::poll!(&mut next).is_ready(), is_served, "in turns");
        }
    }

    #[tokio::test]
    async fn claims_unverified_connections_first_and_never_one_under_a_request() {
        let connections = Arc::new(Connections::new(8, Arc::default()));
        let mut places = Vec::new();
        for _ in 0..6 {
            places.push(connections.admit().await);
        }
        let now = Instant::now() + Duration::from_mins(1);
        // The clock starts with the first slot: times count from there.
        let ago = |seconds| now.checked_sub(Duration::from_secs(seconds)).unwrap_or(now);
        places[0].slot.busy();
        places[1].slot.idle(true, *START);
        places[2].slot.idle(false, ago(1));
        places[3].slot.idle(false, ago(2));
        places[4].slot.lingering();
        places[5].slot.idle(true, now);
        let claimed = || (0..6).filter(|at| places[*at].slot.is_claimed()).collect::<Vec<_>>();
        for expected in [&[4][..], &[3, 4], &[2, 3, 4], &[2, 3, 4]] {
            connections.claim_idlest();
            assert_eq!(claimed(), expected, "the verified ones have not been idle for long");
        }
    }

    #[tokio::test]
    async fn keeps_its_list_in_order() {
        let connections = Arc::new(Connections::new(8, Arc::default()));
        let mut places = Vec::new();
        for _ in 0..5 {
            places.push(connections.admit().await);
        }
        while !places.is_empty() {
            places.swap_remove(places.len() / 2);
            for (at, slot) in connections.slots.lock().iter().enumerate() {
                assert_eq!(slot.at.load(Ordering::Relaxed), at);
            }
            assert_eq!(connections.status.connections.lock().open, places.len());
        }
    }
}
