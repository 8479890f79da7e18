//! Accept: connections within the limit, one runtime per thread, each with a listening socket of its own.

use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_io_timeout::TimeoutStream;

use crate::ingress::connection::Connection;
use crate::ingress::handle::{Ingress, Sender};
use crate::logs::Throttle;
use crate::shutdown::{Drain, Phase};
use crate::ticket::Mailbox;

/// A webhook's head is below 2 KiB; hyper's own limit is 400 KiB for each connection.
const HEAD_BYTES: usize = 16 * 1024;

/// hyper's read buffer; it must hold a whole head.
const READ_BUFFER: usize = 64 * 1024;

/// How long the stop waits for the first byte of a connection that has sent none: a few round trips.
const FIRST_BYTE: Duration = Duration::from_secs(2);

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
    capacity: usize,
}

impl Connections {
    /// So many permits.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(capacity)), capacity }
    }

    /// How many are in use.
    #[must_use]
    pub fn open(&self) -> usize {
        self.capacity - self.permits.available_permits()
    }

    /// How many there are.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        self.permits.clone().acquire_owned().await.expect("the semaphore is never closed")
    }
}

/// Serves one listening socket until the stop reaches [`Phase::Closing`]; then finishes what has begun, until the
/// stop's deadline. Runs in a `LocalSet`.
///
/// # Errors
/// The socket cannot be used.
pub async fn serve(
    socket: StdListener,
    ingress: Arc<Ingress>,
    connections: Arc<Connections>,
    stop: Drain,
) -> io::Result<()> {
    let listener = TcpListener::from_std(socket)?;
    let mailbox = Arc::new(Mailbox::default());
    tokio::task::spawn_local(mailbox.clone().deliver());
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(ingress.settings.header_timeout)
        // One who ends his side after the request still gets his answer.
        .half_close(true)
        .max_header_size(HEAD_BYTES)
        .max_buf_size(READ_BUFFER);
    let (goodbye, staying) = watch::channel(());
    let throttle = Throttle::new(1, Duration::from_secs(5));
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
        let (ingress, mailbox) = (ingress.clone(), mailbox.clone());
        let stream = Connection::new(stream);
        let (connection, heard) = (stream.clone(), stream.clone());
        let mut stream = TimeoutStream::new(stream);
        // A sender that does not read its answers must not keep a connection for ever.
        stream.set_write_timeout(Some(ingress.settings.header_timeout));
        let service = service_fn(move |request| {
            let (ingress, mailbox, connection) = (ingress.clone(), mailbox.clone(), connection.clone());
            async move {
                let sender = Sender { peer, begun: connection.began(), connection: &connection, home: &mailbox };
                let reply = ingress.handle(request, &sender).await;
                connection.answered();
                Ok::<_, std::convert::Infallible>(reply)
            }
        });
        let served = builder.serve_connection(TokioIo::new(Box::pin(stream)), service);
        let served = to_its_end(served, heard, staying.clone());
        tokio::task::spawn_local(async move {
            if let Err(error) = served.await {
                tracing::debug!(%peer, "a connection ended: {error}");
            }
            drop(permit);
        });
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

/// Serves a connection; after the goodbye it ends with the request that is under way. One that has just been accepted
/// may still send its first: hyper would close it at once, in the face of what is on its way.
async fn to_its_end<C: GracefulConnection>(
    connection: C,
    heard: Connection<TcpStream>,
    mut goodbye: watch::Receiver<()>,
) -> Result<(), C::Error> {
    tokio::pin!(connection);
    tokio::select! {
        ended = &mut connection => return ended,
        _ = goodbye.changed() => {}
    }
    let first_byte = poll_fn(|_| if heard.is_silent() { Poll::Pending } else { Poll::Ready(()) });
    tokio::select! {
        // First, for it is what hears.
        biased;
        ended = &mut connection => return ended,
        _ = tokio::time::timeout(FIRST_BYTE, first_byte) => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await
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
