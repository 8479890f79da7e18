//! What a request's handler knows of its connection: when the first byte of the request came, from which the time that
//! a sender has waited counts, and whether the sender has left meanwhile.

use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// One connection, as hyper reads it and as handlers look at it. All on one thread.
#[derive(Debug)]
pub(super) struct Connection<S> {
    stream: Rc<RefCell<S>>,
    /// Set by the first byte that comes after it was cleared.
    first_byte: Rc<Cell<Option<Instant>>>,
    /// Nothing has come yet.
    is_silent: Rc<Cell<bool>>,
}

impl<S> Clone for Connection<S> {
    fn clone(&self) -> Self {
        Self { stream: self.stream.clone(), first_byte: self.first_byte.clone(), is_silent: self.is_silent.clone() }
    }
}

impl<S> Connection<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream: Rc::new(RefCell::new(stream)),
            first_byte: Rc::default(),
            is_silent: Rc::new(Cell::new(true)),
        }
    }

    /// When the request that is being read began.
    pub(super) fn began(&self) -> Instant {
        self.first_byte.get().unwrap_or_else(Instant::now)
    }

    /// Whether nothing has come yet.
    pub(super) fn is_silent(&self) -> bool {
        self.is_silent.get()
    }

    /// The request is answered: what comes next is another one.
    pub(super) fn answered(&self) {
        self.first_byte.set(None);
    }
}

/// A connection as handlers look at it, whatever it runs over.
pub(super) trait Line: Debug {
    /// Whether the sender has closed the connection, or at least its side of it.
    fn is_left(&self) -> bool;
}

impl Line for Connection<TcpStream> {
    fn is_left(&self) -> bool {
        matches!(self.stream.borrow().peek(&mut [0]).now_or_never(), Some(Ok(0) | Err(_)))
    }
}

impl Line for Connection<TlsStream<TcpStream>> {
    /// What TLS says at the end lies unread before the end itself: the socket is asked, not its bytes.
    fn is_left(&self) -> bool {
        let stream = self.stream.borrow();
        let ready = stream.get_ref().0.ready(Interest::READABLE).now_or_never();
        ready.is_some_and(|ready| ready.is_ok_and(Ready::is_read_closed))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut *self.stream.borrow_mut()).poll_read(context, buffer);
        if buffer.filled().len() > before && self.first_byte.get().is_none() {
            self.first_byte.set(Some(Instant::now()));
            self.is_silent.set(false);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn notes_the_first_byte_after_each_answer() {
        let (mut sender, stream) = tokio::io::duplex(64);
        let mut connection = Connection::new(stream);
        let mut buffer = [0; 8];
        sender.write_all(b"a").await.unwrap();
        connection.read_exact(&mut buffer[..1]).await.unwrap();
        let first = connection.began();
        tokio::time::sleep(Duration::from_millis(5)).await;
        sender.write_all(b"b").await.unwrap();
        connection.read_exact(&mut buffer[..1]).await.unwrap();
        assert_eq!(connection.began(), first, "the same request");
        connection.answered();
        sender.write_all(b"c").await.unwrap();
        connection.read_exact(&mut buffer[..1]).await.unwrap();
        assert!(connection.began() > first + Duration::from_millis(4), "another one");
    }

    #[tokio::test]
    async fn sees_that_the_sender_has_left() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut connection = Connection::new(listener.accept().await.unwrap().0);
        sender.write_all(b"ab").await.unwrap();
        connection.read_exact(&mut [0]).await.unwrap();
        assert!(!connection.is_left(), "there is more to read");
        connection.read_exact(&mut [0]).await.unwrap();
        assert!(!connection.is_left());
        drop(sender);
        for _ in 0..100 {
            if connection.is_left() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it was not seen");
    }
}
