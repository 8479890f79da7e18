//! Accept: connections within the limit, one runtime per thread, each with a listening socket of its own.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::ingress::conversation::{Conversation, Handshakes};
use crate::ingress::live::{Live, Local};
use crate::logs::Throttle;
use crate::shutdown::{Drain, Phase};
use crate::ticket::Mailbox;

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 1024;

/// The pause after an error of resources: the next attempt would fail as well.
const RESOURCE_PAUSE: Duration = Duration::from_millis(100);

/// One listening socket per thread, all on one address: the kernel spreads connections over them, or one queue is
/// shared by all.
#[derive(Debug)]
pub struct Listeners {
    sockets: Vec<StdListener>,
    address: SocketAddr,
}

impl Listeners {
    /// Binds `count` sockets; port 0 takes a free one.
    ///
    /// # Errors
    /// The address is taken, or not of this machine.
    pub fn bind(address: SocketAddr, count: usize) -> io::Result<Self> {
        // With SO_REUSEPORT from the beginning a second program of this user would share the port in silence.
        let first = bind(address, Sharing::Alone)?;
        let address = first.local_addr()?;
        let mut sockets = vec![first];
        for _ in 1..count {
            sockets.push(bind(address, Sharing::Among)?);
        }
        Ok(Self { sockets, address })
    }

    /// Shares a socket among `count` threads: each accepts from its one queue. What nobody has accepted when they close
    /// it stays there for whoever has it besides.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn share(socket: StdListener, count: usize) -> io::Result<Self> {
        let address = socket.local_addr()?;
        let mut sockets = vec![socket];
        for _ in 1..count {
            sockets.push(sockets[0].try_clone()?);
        }
        Ok(Self { sockets, address })
    }

    /// Where they listen.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The sockets, one per thread.
    #[must_use]
    pub fn into_sockets(self) -> Vec<StdListener> {
        self.sockets
    }
}

/// Who may listen on the address of a socket when it is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    /// Nobody; those that are bound later may.
    Alone,
    /// Other sockets of this program.
    Among,
}

fn bind(address: SocketAddr, sharing: Sharing) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(sharing == Sharing::Among)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_reuse_port(true)?;
    Ok(socket.into())
}

/// The permits for connections, all threads together.
#[derive(Debug)]
pub struct Connections {
    permits: Arc<Semaphore>,
    capacity: AtomicUsize,
    open: Arc<AtomicUsize>,
}

/// A permit in use.
struct Permit {
    _permit: OwnedSemaphorePermit,
    open: Arc<AtomicUsize>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connections {
    /// So many permits.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(capacity)),
            capacity: AtomicUsize::new(capacity),
            open: Arc::default(),
        }
    }

    /// How many are in use.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// How many there are.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Another number from now on. Where there are more connections than that, they stay, and none is accepted until
    /// enough have ended. Runs in a runtime.
    ///
    /// # Panics
    /// Never: the semaphore is not closed.
    pub fn limit(&self, capacity: usize) {
        let before = self.capacity.swap(capacity, Ordering::Relaxed);
        self.permits.add_permits(capacity.saturating_sub(before));
        let fewer = u32::try_from(before.saturating_sub(capacity)).unwrap_or(u32::MAX);
        let permits = self.permits.clone();
        tokio::spawn(async move {
            permits.acquire_many_owned(fewer).await.expect("the semaphore is never closed").forget();
        });
    }

    async fn permit(&self) -> Permit {
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        self.open.fetch_add(1, Ordering::Relaxed);
        Permit { _permit: permit, open: self.open.clone() }
    }
}

/// Serves one listening socket until the stop reaches [`Phase::Closing`]; then finishes what has begun, until the
/// stop's deadline. Runs in a `LocalSet`.
///
/// # Errors
/// The socket cannot be used.
pub async fn serve(
    socket: StdListener,
    live: Arc<Live>,
    connections: Arc<Connections>,
    stop: Drain,
) -> io::Result<()> {
    let listener = TcpListener::from_std(socket)?;
    let mailbox = Arc::new(Mailbox::default());
    tokio::task::spawn_local(mailbox.clone().deliver());
    let (goodbye, staying) = watch::channel(());
    let throttle = Throttle::new(1, Duration::from_secs(5));
    let local = Rc::new(Local::new(live));
    let handshakes = Rc::new(Handshakes::new());
    let closing = stop.reached(Phase::Closing);
    tokio::pin!(closing);
    loop {
        let (stream, peer) = tokio::select! {
            accepted = accept(&listener, &throttle) => accepted,
            () = &mut closing => break,
        };
        // What is over the limit waits, in the kernel but for one per thread. A permit taken before the connection would
        // be kept from the thread that the kernel gives the next one to.
        let permit = tokio::select! {
            permit = connections.permit() => Some(permit),
            // It is accepted, so it is served, be it beyond the limit.
            () = &mut closing => None,
        };
        let is_last = permit.is_none();
        let conversation = Conversation {
            peer,
            local: local.clone(),
            tls: local.now().settings.tls.clone(),
            mailbox: mailbox.clone(),
            staying: staying.clone(),
        };
        match conversation.tls.clone() {
            None => tokio::task::spawn_local(async move {
                conversation.hold(stream).await;
                drop(permit);
            }),
            Some(tls) => {
                let handshakes = handshakes.clone();
                tokio::task::spawn_local(async move {
                    conversation.hold_over_tls(stream, &tls, &handshakes).await;
                    drop(permit);
                })
            }
        };
        if is_last {
            break;
        }
    }
    drop((listener, staying));
    goodbye.send_replace(());
    tokio::select! {
        () = goodbye.closed() => {}
        () = stop.deadline() => {}
    }
    Ok(())
}

/// Waits for a connection.
async fn accept(listener: &TcpListener, throttle: &Throttle) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Answers are small and whole: waiting for more to send would only delay them.
                let _ = stream.set_nodelay(true);
                return (stream, peer);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if throttle.admits() {
                    tracing::error!(
                        "cannot accept connections, trying again: {error}; raise the limit of open files if it says so"
                    );
                }
                tokio::time::sleep(RESOURCE_PAUSE).await;
            }
        }
    }
}

/// Whether only the one connection is concerned (accept(2) reports its network errors), not this program's resources.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn gives_an_address_to_one_program_only_however_many_ask_at_once() {
        for _ in 0..20 {
            let free = Listeners::bind(SocketAddr::from(([127, 0, 0, 1], 0)), 2).unwrap().address();
            let start = Barrier::new(4);
            let bound: Vec<_> = thread::scope(|scope| {
                let ask = || {
                    start.wait();
                    Listeners::bind(free, 2)
                };
                let asking: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
                asking.into_iter().map(|asked| asked.join().unwrap()).collect()
            });
            let (good, bad): (Vec<_>, Vec<_>) = bound.into_iter().partition(Result::is_ok);
            assert_eq!(good.len(), 1, "so many listen on {free}");
            assert!(bad.iter().all(|one| matches!(one, Err(error) if error.kind() == io::ErrorKind::AddrInUse)));
        }
    }

    #[tokio::test]
    async fn takes_other_limits_while_connections_are_open() {
        let connections = Connections::new(1);
        let first = connections.permit().await;
        assert!(connections.permit().now_or_never().is_none());
        connections.limit(3);
        let others = [connections.permit().await, connections.permit().await];
        connections.limit(1);
        tokio::task::yield_now().await;
        assert_eq!((connections.open(), connections.capacity()), (3, 1), "they stay");
        drop(others);
        tokio::task::yield_now().await;
        assert!(connections.permit().now_or_never().is_none(), "still one");
        drop(first);
        assert!(connections.permit().now_or_never().is_some());
    }

    #[test]
    fn spreads_connections_over_its_sockets() {
        let listeners = Listeners::bind(SocketAddr::from(([127, 0, 0, 1], 0)), 2).unwrap();
        let address = listeners.address();
        let clients: Vec<_> = (0..64).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let taken: Vec<usize> = listeners
            .into_sockets()
            .iter()
            .map(|socket| std::iter::repeat_with(|| socket.accept()).take_while(Result::is_ok).count())
            .collect();
        assert_eq!(taken.iter().sum::<usize>(), clients.len());
        assert!(taken.iter().all(|taken| *taken > 10), "{taken:?}");
    }
}
