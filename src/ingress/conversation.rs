//! One connection, plain or over TLS, from the first byte to the last: the handshake, then requests and answers.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_io_timeout::TimeoutStream;

use crate::ingress::connection::{Connection, Line};
use crate::ingress::handle::Sender;
use crate::ingress::live::Local;
use crate::ingress::tls::Tls;
use crate::logs::Throttle;
use crate::ticket::Mailbox;

/// A webhook's head is below 2 KiB; hyper's own limit is 400 KiB for each connection.
const HEAD_BYTES: usize = 16 * 1024;

/// hyper's read buffer; it must hold a whole head.
const READ_BUFFER: usize = 64 * 1024;

/// How long the stop waits for the first byte of a connection that has sent none: a few round trips.
const FIRST_BYTE: Duration = Duration::from_secs(2);

/// What it takes to serve a connection.
pub(super) struct Conversation {
    pub(super) peer: SocketAddr,
    pub(super) local: Rc<Local>,
    /// What the connection was accepted with.
    pub(super) tls: Option<Tls>,
    /// Of this thread.
    pub(super) mailbox: Arc<Mailbox>,
    /// Changes when the stop says goodbye; held until the connection has ended.
    pub(super) staying: watch::Receiver<()>,
}

impl Conversation {
    /// Serves the connection to its end.
    pub(super) async fn hold<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
        Connection<S>: Line,
    {
        let Self { peer, local, tls, mailbox, staying } = self;
        let header_timeout = local.now().settings.header_timeout;
        let stream = Connection::new(stream);
        let (connection, heard) = (stream.clone(), stream.clone());
        let mut stream = TimeoutStream::new(stream);
        // A sender that does not read its answers must not keep a connection for ever.
        stream.set_write_timeout(Some(header_timeout));
        let service = service_fn(move |request| {
            let (ingress, mailbox, connection) = (local.now(), mailbox.clone(), connection.clone());
            let is_outdated = !Tls::is_same(tls.as_ref(), ingress.settings.tls.as_ref());
            async move {
                let sender = Sender { peer, begun: connection.began(), connection: &connection, home: &mailbox };
                let mut reply = ingress.handle(request, &sender).await;
                connection.answered();
                if is_outdated {
                    // Other certificates, other authorities: the next request comes over a new connection.
                    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, std::convert::Infallible>(reply)
            }
        });
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            // One who ends his side after the request still gets his answer.
            .half_close(true)
            // Answers are small: copied behind their head they go out in one piece.
            .writev(false)
            .max_header_size(HEAD_BYTES)
            .max_buf_size(READ_BUFFER);
        let served = builder.serve_connection(TokioIo::new(Box::pin(stream)), service);
        if let Err(error) = to_its_end(served, heard, staying).await {
            tracing::debug!(%peer, "a connection ended: {error}");
        }
    }

    /// The same over TLS; a handshake that a stop meets has as long as a first byte.
    pub(super) async fn hold_over_tls(self, stream: TcpStream, tls: &Tls, handshakes: &Handshakes) {
        let patience = self.local.now().settings.header_timeout;
        let mut goodbye = self.staying.clone();
        let too_late = async {
            let _ = goodbye.changed().await;
            tokio::time::sleep(FIRST_BYTE).await;
        };
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(patience, tls.acceptor().accept(stream)) => shaken,
            () = too_late => return,
        };
        match shaken {
            Ok(Ok(stream)) => self.hold(stream).await,
            Ok(Err(error)) => handshakes.failed(self.peer, &why(&error)),
            Err(_) => handshakes.failed(self.peer, &"it came too slowly"),
        }
    }
}

/// Serves a connection; after the goodbye it ends with the request that is under way. One that has just been accepted
/// may still send its first: hyper would close it at once, in the face of what is on its way.
async fn to_its_end<C: GracefulConnection, S>(
    connection: C,
    heard: Connection<S>,
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

/// Why a handshake failed, for the one who has to mend it.
fn why(error: &io::Error) -> String {
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
            "what came is not TLS; does the sender's URL begin with http:// instead of https://?".to_owned()
        }
        _ => error.to_string(),
    }
}

/// What is said of handshakes that fail: strangers make many.
#[derive(Debug)]
pub(super) struct Handshakes(Throttle);

impl Handshakes {
    pub(super) fn new() -> Self {
        Self(Throttle::new(1, Duration::from_secs(1)))
    }

    fn failed(&self, peer: SocketAddr, why: &dyn std::fmt::Display) {
        if self.0.admits() {
            tracing::info!(%peer, "a TLS handshake failed: {why}");
        }
    }
}
