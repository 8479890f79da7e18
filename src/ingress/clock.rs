//! When the first byte of a request came: the time that a sender has waited counts from there, not from the end of
//! its header.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Set by the first byte that comes after it was cleared.
#[derive(Clone, Debug, Default)]
pub(super) struct FirstByte(Rc<Cell<Option<Instant>>>);

impl FirstByte {
    /// When the request that is being read began.
    pub(super) fn came(&self) -> Instant {
        self.0.get().unwrap_or_else(Instant::now)
    }

    /// The request is answered: what comes next is another one.
    pub(super) fn clear(&self) {
        self.0.set(None);
    }
}

/// A stream that notes when bytes come.
pub(super) struct Clocked<S> {
    pub(super) stream: S,
    pub(super) first_byte: FirstByte,
}

impl<S: AsyncRead + Unpin> AsyncRead for Clocked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before && self.first_byte.0.get().is_none() {
            self.first_byte.0.set(Some(Instant::now()));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Clocked<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
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
        let first_byte = FirstByte::default();
        let mut clocked = Clocked { stream, first_byte: first_byte.clone() };
        let mut buffer = [0; 8];
        sender.write_all(b"a").await.unwrap();
        clocked.read_exact(&mut buffer[..1]).await.unwrap();
        let first = first_byte.came();
        tokio::time::sleep(Duration::from_millis(5)).await;
        sender.write_all(b"b").await.unwrap();
        clocked.read_exact(&mut buffer[..1]).await.unwrap();
        assert_eq!(first_byte.came(), first, "the same request");
        first_byte.clear();
        sender.write_all(b"c").await.unwrap();
        clocked.read_exact(&mut buffer[..1]).await.unwrap();
        assert!(first_byte.came() > first + Duration::from_millis(4), "another one");
    }
}
