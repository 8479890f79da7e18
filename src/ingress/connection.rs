//! One connection: its socket, its phase, the arrival of a request's first byte, and whether the peer has disconnected.
//!
//! Length: the socket and the phases need each other; a fifth is their tests.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::FutureExt as _;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, Interest, ReadBuf, Ready, Take};
use tokio::net::TcpStream;

use crate::ingress::connections::ConnectionSlot;

/// The largest single read. hyper's read buffer starts at 8 KiB and doubles only when a read fills it, so it keeps that
/// size for everything but a large head.
pub(super) const READ: usize = 8 * 1024 - 1;

/// The number of first bytes of a request that are remembered: the HTTP/2 preface is 24 bytes long.
const FIRST: usize = 24;

/// The socket of a connection, shared by the code that reads and writes it and the code that inspects it. All on one
/// thread.
#[derive(Clone, Debug)]
pub(super) struct Socket(Rc<SharedSocket>);

#[derive(Debug)]
struct SharedSocket {
    stream: RefCell<TcpStream>,
    /// The first bytes that arrived, with zeros behind them.
    begin: Cell<Option<Begin>>,
}

/// Enough to tell protocols apart.
pub(super) type Begin = [u8; FIRST];

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(Rc::new(SharedSocket { stream: RefCell::new(stream), begin: Cell::new(None) }))
    }

    /// The first bytes that arrived; none if there are none.
    pub(super) fn begin(&self) -> Option<Begin> {
        self.0.begin.get()
    }

    /// Whether the peer has closed the connection, or at least its side of it.
    pub(super) fn is_closed_by_peer(&self) -> bool {
        let stream = self.0.stream.borrow();
        let ready = stream.ready(Interest::READABLE).now_or_never();
        ready.is_some_and(|ready| ready.is_ok_and(Ready::is_read_closed))
    }

    /// Whether bytes wait to be read. Asks the socket itself, because the runtime may not know of them yet.
    pub(super) fn has_unread(&self) -> bool {
        let stream = self.0.stream.borrow();
        let mut byte = [std::mem::MaybeUninit::uninit()];
        SockRef::from(&*stream).peek(&mut byte).is_ok_and(|read| read > 0)
    }

    /// Closes this side; the peer's bytes are still read.
    pub(super) fn close_write(&self) {
        // This fails if the connection has ended.
        let _ = SockRef::from(&*self.0.stream.borrow()).shutdown(std::net::Shutdown::Write);
    }

    /// Reads and discards until the peer has closed its side, or an error occurs.
    pub(super) fn poll_discard(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut buffer = [0; 4096];
        // Other tasks of this thread run after this many reads.
        for _ in 0..16 {
            let mut read = ReadBuf::new(&mut buffer);
            match Pin::new(&mut *self.0.stream.borrow_mut()).poll_read(context, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut *self.0.stream.borrow_mut()).poll_read(context, buffer);
        let arrived = &buffer.filled()[before..];
        if !arrived.is_empty() && self.0.begin.get().is_none() {
            let mut begin = Begin::default();
            begin.iter_mut().zip(arrived).for_each(|(to, byte)| *to = *byte);
            self.0.begin.set(Some(begin));
        }
        polled
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_shutdown(context)
    }
}

/// The phase of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestPhase {
    /// No request is in progress.
    Idle,
    /// The first byte of a request has arrived, its head is not complete.
    Head,
    /// A request is being handled.
    Request,
    /// The answer is being written; the connection is idle afterwards.
    Answer,
}

/// The state of one connection. All on one thread, except its slot.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: Socket,
    slot: Arc<ConnectionSlot>,
    pub(super) phase: Cell<RequestPhase>,
    /// The start of the idle time, or of the request.
    pub(super) since: Cell<Instant>,
    /// The first bytes of the last request, padded with zeros.
    pub(super) first: Cell<[u8; FIRST]>,
    /// No byte of a request has arrived yet.
    pub(super) is_silent: Cell<bool>,
    is_verified: Cell<bool>,
    /// The rest of a refused body is being discarded: its bytes do not start a request.
    is_discarding: Cell<bool>,
}

impl Connection {
    pub(super) fn new(socket: Socket, slot: Arc<ConnectionSlot>) -> Self {
        Self {
            socket,
            slot,
            phase: Cell::new(RequestPhase::Idle),
            since: Cell::new(Instant::now()),
            first: Cell::default(),
            is_silent: Cell::new(true),
            is_verified: Cell::new(false),
            is_discarding: Cell::new(false),
        }
    }

    /// Notes that a request was genuine: the connection becomes one of the last to be replaced.
    pub(super) fn verified(&self) {
        self.is_verified.set(true);
    }

    /// Notes that bytes of a request wait in the socket.
    pub(super) fn begin_head(&self) {
        self.slot.busy();
        self.phase.set(RequestPhase::Head);
        self.since.set(Instant::now());
    }

    /// Notes that a request is being handled; returns the arrival of its first byte.
    pub(super) fn begin_request(&self) -> Instant {
        if self.phase.replace(RequestPhase::Request) != RequestPhase::Head {
            // The first byte was read together with the previous request.
            self.slot.busy();
            self.since.set(Instant::now());
        }
        self.since.get()
    }

    /// Notes that the request is answered; what arrives next is another request.
    pub(super) fn answered(&self) {
        self.phase.set(RequestPhase::Answer);
    }

    /// Marks the rest of a refused body as discarded until the result is dropped.
    pub(super) fn discarding(self: &Rc<Self>) -> Discarding {
        self.is_discarding.set(true);
        Discarding(self.clone())
    }

    fn read(&self, bytes: &[u8]) {
        if self.is_discarding.get() || !matches!(self.phase.get(), RequestPhase::Idle | RequestPhase::Answer) {
            return;
        }
        self.is_silent.set(false);
        let mut first = [0; FIRST];
        let length = bytes.len().min(FIRST);
        first[..length].copy_from_slice(&bytes[..length]);
        self.first.set(first);
        self.begin_head();
    }

    /// Notes that hyper waits for bytes; after an answer this counts only once all of it is written.
    fn waits(&self) {
        if self.phase.get() == RequestPhase::Answer && !self.is_discarding.get() {
            let now = Instant::now();
            self.phase.set(RequestPhase::Idle);
            self.since.set(now);
            self.slot.idle(self.is_verified.get(), now);
        }
    }
}

/// Discards the rest of a refused body until dropped.
#[derive(Debug)]
pub(super) struct Discarding(Rc<Connection>);

impl Drop for Discarding {
    fn drop(&mut self) {
        self.0.is_discarding.set(false);
        // hyper may be waiting already, and would not report it again.
        self.0.waits();
    }
}

/// The bytes of requests and answers, as hyper reads and writes them.
#[derive(Debug)]
pub(super) struct ObservedStream<S> {
    bytes: Take<S>,
    connection: Rc<Connection>,
    /// The bytes to be read again, before those of the stream.
    again: Vec<u8>,
    /// The number of these that have been.
    again_read: usize,
}

impl<S: AsyncRead> ObservedStream<S> {
    pub(super) fn new(stream: S, connection: Rc<Connection>) -> Self {
        Self { bytes: stream.take(READ as u64), connection, again: Vec::new(), again_read: 0 }
    }

    /// Puts back bytes that were read from it: they are read again, before all others.
    pub(super) fn read_again(&mut self, bytes: Vec<u8>) {
        (self.again, self.again_read) = (bytes, 0);
    }

    fn fill_again(&mut self, buffer: &mut ReadBuf<'_>) {
        let left = &self.again[self.again_read..];
        let length = left.len().min(READ).min(buffer.remaining());
        buffer.put_slice(&left[..length]);
        self.again_read += length;
        if self.again_read == self.again.len() {
            self.again = Vec::new();
            self.again_read = 0;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ObservedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = if self.again.is_empty() {
            self.bytes.set_limit(READ as u64);
            Pin::new(&mut self.bytes).poll_read(context, buffer)
        } else {
            self.fill_again(buffer);
            Poll::Ready(Ok(()))
        };
        let read = &buffer.filled()[before..];
        if !read.is_empty() {
            self.connection.read(read);
        } else if polled.is_pending() {
            self.connection.waits();
        }
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ObservedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.bytes.get_mut()).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.bytes.get_mut()).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.bytes.get_mut()).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::ingress::connections::Connections;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (sender, listener.accept().await.unwrap().0)
    }

    fn connection(stream: TcpStream, slot: &Arc<ConnectionSlot>) -> Rc<Connection> {
        Rc::new(Connection::new(Socket::new(stream), slot.clone()))
    }

    #[tokio::test]
    async fn follows_a_request_from_its_first_byte_to_its_answer() {
        let place = Arc::new(Connections::new(1, Arc::default())).admit().await;
        let (mut sender, stream) = pair().await;
        let connection = connection(stream, &place.slot);
        let mut stream = ObservedStream::new(connection.socket.clone(), connection.clone());
        let mut buffer = [0; 8];
        assert_eq!((connection.phase.get(), connection.is_silent.get()), (RequestPhase::Idle, true));
        sender.write_all(b"a").await.unwrap();
        stream.read_exact(&mut buffer[..1]).await.unwrap();
        assert_eq!((connection.phase.get(), connection.is_silent.get()), (RequestPhase::Head, false));
        let first = connection.since.get();
        sender.write_all(b"b").await.unwrap();
        stream.read_exact(&mut buffer[..1]).await.unwrap();
        assert_eq!(connection.since.get(), first, "the same request");
        assert_eq!(connection.begin_request(), first);
        connection.answered();
        assert_eq!(connection.phase.get(), RequestPhase::Answer, "it is not written yet");
        assert!(stream.read_exact(&mut buffer[..1]).now_or_never().is_none());
        assert_eq!(connection.phase.get(), RequestPhase::Idle);
        sender.write_all(b"c").await.unwrap();
        stream.read_exact(&mut buffer[..1]).await.unwrap();
        assert_eq!(connection.phase.get(), RequestPhase::Head);
        assert!(connection.since.get() > first, "another request");
        assert_eq!(connection.first.get()[..2], [b'c', 0]);
    }

    #[tokio::test]
    async fn takes_no_discarded_byte_for_the_begin_of_a_request() {
        let place = Arc::new(Connections::new(1, Arc::default())).admit().await;
        let (mut sender, stream) = pair().await;
        let connection = connection(stream, &place.slot);
        let mut stream = ObservedStream::new(connection.socket.clone(), connection.clone());
        connection.begin_request();
        let discarding = connection.discarding();
        connection.answered();
        sender.write_all(b"rest").await.unwrap();
        stream.read_exact(&mut [0; 4]).await.unwrap();
        assert_eq!(connection.phase.get(), RequestPhase::Answer);
        drop(discarding);
        assert_eq!(connection.phase.get(), RequestPhase::Idle);
    }

    #[tokio::test]
    async fn sees_that_the_peer_has_closed() {
        let place = Arc::new(Connections::new(1, Arc::default())).admit().await;
        let (mut sender, stream) = pair().await;
        let connection = connection(stream, &place.slot);
        sender.write_all(b"a").await.unwrap();
        connection.socket.clone().read_exact(&mut [0]).await.unwrap();
        assert!(!connection.socket.is_closed_by_peer());
        drop(sender);
        for _ in 0..100 {
            if connection.socket.is_closed_by_peer() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not seen in time");
    }
}
