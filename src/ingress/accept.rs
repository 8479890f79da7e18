//! Accept: connections within the limit, one runtime per thread, each with a listening socket of its own.

use std::cell::Cell;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, iter};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::event::WakeList;
use crate::ingress::connection_task::{ConnectionTask, Thread};
use crate::ingress::connections::Connections;
use crate::ingress::current::{CurrentIngress, ThreadView};
use crate::ingress::not_http::Unreadable;
use crate::process::listen;
use crate::process::logs::Throttle;
use crate::process::shutdown::{Drain, Phase};

/// The number of connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 1024;

/// The pause after an error of resources: the next attempt would fail as well.
const RESOURCE_PAUSE: Duration = Duration::from_millis(100);

/// The time beyond the stop's deadline for the answers to requests that still wait then.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The listening sockets, one per thread, all on one address. Either the kernel spreads connections over them, or they
/// share one queue.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// One per thread.
    pub(crate) sockets: Vec<StdListener>,
    /// The address they listen on.
    pub(crate) address: SocketAddr,
}

impl Listeners {
    /// Binds `count` sockets; port 0 picks a free port.
    ///
    /// # Errors
    /// The address is in use, or does not belong to this machine.
    pub(crate) fn bind(address: SocketAddr, count: usize) -> io::Result<Self> {
        let mut sockets = vec![bind(address, true)?];
        let address = sockets[0].local_addr()?;
        for _ in 1..count {
            sockets.push(bind(address, false)?);
        }
        Ok(Self { sockets, address })
    }

    /// Shares a socket among `count` threads, which accept from its one queue. Connections that are still queued when
    /// these sockets are closed remain for other holders of the socket.
    ///
    /// # Errors
    /// No file descriptor is available.
    pub(crate) fn share(socket: StdListener, count: usize) -> io::Result<Self> {
        let address = socket.local_addr()?;
        let mut sockets = vec![socket];
        for _ in 1..count {
            sockets.push(sockets[0].try_clone()?);
        }
        Ok(Self { sockets, address })
    }
}

fn bind(address: SocketAddr, is_first: bool) -> io::Result<StdListener> {
    // With SO_REUSEPORT on the first socket, a second program of this user could silently share the port.
    let socket = listen(address, BACKLOG, !is_first)?;
    SockRef::from(&socket).set_reuse_port(true)?;
    Ok(socket)
}

/// Serves one listening socket until the stop reaches [`Phase::Closing`]; then finishes the requests that have begun. Those
/// that wait at the stop's deadline are refused. Runs in a `LocalSet`.
///
/// # Errors
/// The socket cannot be used.
pub(crate) async fn serve(
    socket: StdListener,
    live: Arc<CurrentIngress>,
    connections: Arc<Connections>,
    unreadable: Arc<Unreadable>,
    stop: Drain,
) -> io::Result<()> {
    let listener = TcpListener::from_std(socket)?;
    let is_own = SockRef::from(&listener).reuse_port()?;
    let wakes = Arc::new(WakeList::default());
    tokio::task::spawn_local(wakes.clone().run());
    let (closing, drain) = watch::channel(());
    let (ending, is_over) = watch::channel(false);
    let throttle = Throttle::new("connections that cannot be accepted", 1, Duration::from_secs(5));
    let thread = Rc::new(Thread {
        local: ThreadView::new(live),
        wakes,
        unreadable,
        is_leaving: Cell::new(false),
        closing: Cell::new(None),
        is_over,
        replaced: Cell::new(0),
    });
    tokio::task::spawn_local({
        let (thread, stop) = (thread.clone(), stop.clone());
        async move {
            stop.reached(Phase::Leaving).await;
            thread.is_leaving.set(true);
        }
    });
    let until_closing = stop.reached(Phase::Closing);
    tokio::pin!(until_closing);
    loop {
        let (stream, peer) = tokio::select! {
            accepted = accept(&listener, &throttle) => accepted,
            () = &mut until_closing => break,
        };
        // Above the limit, connections wait in the kernel's queue, plus one per thread. Taking the permit before
        // `accept` could starve the thread that gets the next connection.
        let (place, is_last) = tokio::select! {
            place = connections.admit() => (place, false),
            // Already accepted: serve it even above the limit.
            () = &mut until_closing => (connections.admit_beyond(), true),
        };
        let task = ConnectionTask { peer, thread: thread.clone(), place, drain: drain.clone() };
        task.spawn(stream);
        if is_last {
            break;
        }
    }
    // The queue of a socket of this thread alone ends with it: connections that wait there get an answer, not a reset. That of a
    // shared socket remains for its other holders.
    if is_own {
        for (stream, peer) in queued(listener) {
            let place = connections.admit_beyond();
            ConnectionTask { peer, thread: thread.clone(), place, drain: drain.clone() }.spawn(stream);
        }
    } else {
        drop(listener);
    }
    drop(drain);
    thread.is_leaving.set(true);
    thread.closing.set(Some(Instant::now()));
    closing.send_replace(());
    connections.wake_all();
    tokio::select! {
        () = closing.closed() => return Ok(()),
        () = stop.deadline() => {}
    }
    thread.local.now().shared.queue.drain();
    ending.send_replace(true);
    let _ = tokio::time::timeout(LAST_ANSWERS, closing.closed()).await;
    Ok(())
}

fn prepared(stream: TcpStream, peer: SocketAddr) -> (TcpStream, SocketAddr) {
    // Answers are small and written whole: delaying them to collect more data would gain nothing.
    let _ = stream.set_nodelay(true);
    (stream, canonical(peer))
}

/// On a dual-stack socket an IPv4 peer has a mapped address.
fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// Waits for a connection.
async fn accept(listener: &TcpListener, throttle: &Throttle) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return prepared(stream, peer),
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

/// Accepts what the kernel has queued, and closes the socket. Asks the kernel itself: tokio would answer for it that nothing is
/// queued once a task has done much in one turn.
fn queued(listener: TcpListener) -> impl Iterator<Item = (TcpStream, SocketAddr)> {
    let listener = listener.into_std().ok();
    let accepted = iter::from_fn(move || {
        loop {
            match listener.as_ref()?.accept() {
                Err(error) if is_of_one_connection(&error) => {}
                accepted => return accepted.ok(),
            }
        }
    });
    accepted.filter_map(|(stream, peer)| {
        stream.set_nonblocking(true).ok()?;
        Some(prepared(TcpStream::from_std(stream).ok()?, peer))
    })
}

/// Whether the error concerns one connection only (accept(2) reports its network errors), not the resources of this
/// program.
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
            let free = Listeners::bind(SocketAddr::from(([127, 0, 0, 1], 0)), 2).unwrap().address;
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
    async fn accepts_all_connections_that_are_queued_at_the_end() {
        let listeners = Listeners::bind(SocketAddr::from(([127, 0, 0, 1], 0)), 1).unwrap();
        let clients: Vec<_> = (0..300).map(|_| std::net::TcpStream::connect(listeners.address).unwrap()).collect();
        let listener = TcpListener::from_std(listeners.sockets.into_iter().next().unwrap()).unwrap();
        let (_first, _) = listener.accept().await.unwrap();
        assert_eq!(queued(listener).count() + 1, clients.len());
    }

    #[test]
    fn spreads_connections_over_its_sockets() {
        let listeners = Listeners::bind(SocketAddr::from(([127, 0, 0, 1], 0)), 2).unwrap();
        let address = listeners.address;
        let clients: Vec<_> = (0..64).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let taken: Vec<usize> = listeners
            .sockets
            .iter()
            .map(|socket| iter::repeat_with(|| socket.accept()).take_while(Result::is_ok).count())
            .collect();
        assert_eq!(taken.iter().sum::<usize>(), clients.len());
        assert!(taken.iter().all(|taken| *taken > 10), "{taken:?}");
    }
}
