//! The task of one connection, plain or over TLS: the handshake, the first head, requests and answers, the time-outs,
//! the end.

use std::cell::Cell;
use std::future::{Future as _, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Sleep;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::server::TlsStream;

use crate::event::WakeList;
use crate::ingress::connection::{Connection, ObservedStream, RequestPhase, Socket};
use crate::ingress::connections::Admission;
use crate::ingress::current::ThreadView;
use crate::ingress::handle::Sender;
use crate::ingress::head::{FirstHead, HEAD_BYTES, detach};
use crate::ingress::not_http::{self, Unreadable};
use crate::ingress::tls::ServerTls;

/// The time for which the stop waits for the first byte of a connection that has sent none: a few round trips.
const FIRST_BYTE: Duration = Duration::from_secs(2);

/// The time for which the peer's bytes are read after this side is closed: a request that was in flight meets no reset,
/// and a sender that is still writing sees its answer.
const LINGER: Duration = Duration::from_secs(1);

/// The number of connections of a thread that may linger after their permit was given to another connection.
pub(crate) const REPLACED: usize = 64;

/// The state that the connections of one thread share.
pub(super) struct Thread {
    pub(super) local: ThreadView,
    pub(super) wakes: Arc<WakeList>,
    pub(super) unreadable: Arc<Unreadable>,
    /// A stop has begun: every answer is the last one of its connection.
    pub(super) is_leaving: Cell<bool>,
    /// The time at which idle connections began to be closed.
    pub(super) closing: Cell<Option<Instant>>,
    /// Whether the stop's deadline has passed.
    pub(super) is_over: watch::Receiver<bool>,
    /// Connections that linger without a permit.
    pub(super) replaced: Cell<usize>,
}

impl Thread {
    fn header_timeout(&self) -> Duration {
        self.local.now().settings.header_timeout
    }
}

/// One connection, before it is served.
pub(super) struct ConnectionTask {
    pub(super) peer: SocketAddr,
    pub(super) thread: Rc<Thread>,
    pub(super) place: Admission,
    /// Changes when idle connections begin to be closed; held until the connection has ended.
    pub(super) drain: watch::Receiver<()>,
}

/// The time at which a connection ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// A request is being handled.
    Never,
    At(Instant),
    Now,
}

/// The one timer of a connection, moved only where an earlier end is due: requests that follow each other move none.
struct Timer<'t> {
    sleep: Pin<&'t mut Sleep>,
    /// The time that it is set to; none once that has passed.
    armed: Option<Instant>,
}

impl Timer<'_> {
    fn poll_until(&mut self, at: Instant, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.armed.is_none_or(|armed| at < armed) {
                self.sleep.as_mut().reset(at.into());
                self.armed = Some(at);
            }
            ready!(self.sleep.as_mut().poll(context));
            self.armed = None;
            if Instant::now() >= at {
                return Poll::Ready(());
            }
        }
    }
}

impl ConnectionTask {
    /// Serves the connection to its end in a task of its own. A plain connection's task needs no room for TLS.
    pub(super) fn spawn(self, stream: TcpStream) {
        let socket = Socket::new(stream);
        let tls = self.thread.local.now().settings.tls.clone();
        match tls {
            None => tokio::task::spawn_local(self.serve(socket)),
            Some(tls) => tokio::task::spawn_local(self.serve_over_tls(socket, tls)),
        };
    }

    async fn serve(self, socket: Socket) {
        let connection = Rc::new(Connection::new(socket.clone(), self.place.slot.clone()));
        self.serve_until_drained(socket, &connection, None).await;
        self.linger(&connection.socket).await;
    }

    async fn serve_over_tls(self, socket: Socket, tls: ServerTls) {
        let Some(stream) = self.handshake(&socket, &tls).await else { return };
        let connection = Rc::new(Connection::new(socket, self.place.slot.clone()));
        self.serve_until_drained(stream, &connection, Some(&tls)).await;
        self.linger(&connection.socket).await;
    }

    /// Performs the TLS handshake; one in progress when a stop begins gets as much time as a first byte.
    async fn handshake(&self, socket: &Socket, tls: &ServerTls) -> Option<TlsStream<Socket>> {
        let mut drain = self.drain.clone();
        let too_late = async {
            let _ = drain.changed().await;
            tokio::time::sleep(FIRST_BYTE).await;
        };
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(self.thread.header_timeout(), tls.acceptor().accept(socket.clone())) => shaken,
            () = self.claimed() => return None,
            () = too_late => return None,
        };
        let why: &dyn std::fmt::Display = match &shaken {
            Ok(Ok(_)) => return shaken.ok()?.ok(),
            Ok(Err(error)) => &not_http::why(error),
            Err(_) => &"timed out",
        };
        self.thread.unreadable.handshake(self.peer, socket.begin(), why);
        None
    }

    /// Waits until another connection needs the permit of this one.
    async fn claimed(&self) {
        poll_fn(|context| {
            self.place.slot.register(context.waker());
            if self.place.slot.is_claimed() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Serves requests until either side closes, a time-out passes, or a stop closes the connection.
    async fn serve_until_drained<S>(&self, stream: S, connection: &Rc<Connection>, tls: Option<&ServerTls>)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let peer = self.peer;
        let mut stream = ObservedStream::new(stream, connection.clone());
        let armed = connection.since.get() + self.thread.header_timeout();
        let mut timer = Timer { sleep: pin!(tokio::time::sleep_until(armed.into())), armed: Some(armed) };
        let mut first = FirstHead::new(&mut stream);
        let wait = |context: &mut Context<'_>, is_closing| {
            if is_closing { Poll::Ready(Ok(None)) } else { first.poll_head(context) }
        };
        match self.run(wait, connection, &mut timer).await {
            Some(Ok(Some(head))) => stream.read_again(head),
            Some(Ok(None)) => return,
            Some(Err(error)) => return tracing::debug!(%peer, "a connection ended: {error}"),
            None => return too_slow(peer),
        }
        // Boxed: a connection takes the memory for hyper only now.
        match Box::pin(self.serve_requests(stream, connection, tls, &mut timer)).await {
            Some(Ok(())) => {}
            Some(Err(error)) if error.is_parse() => {
                self.thread.unreadable.head(peer, &connection.first.get(), &error);
            }
            Some(Err(error)) => tracing::debug!(%peer, "a connection ended: {error}"),
            None => too_slow(peer),
        }
    }

    async fn serve_requests<S>(
        &self,
        stream: ObservedStream<S>,
        connection: &Rc<Connection>,
        tls: Option<&ServerTls>,
        timer: &mut Timer<'_>,
    ) -> Option<Result<(), hyper::Error>>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let stream = AnsweredStream { stream: Box::pin(TimeoutStream::new(stream)), thread: self.thread.clone() };
        let (peer, thread, of_request, tls) = (self.peer, &self.thread, connection, tls);
        let service = service_fn(|mut request| {
            let begun = of_request.begin_request();
            detach(&mut request);
            let ingress = thread.local.now();
            // Boxed: hyper keeps room for it from the start of a connection, whether a request arrives or not.
            Box::pin(async move {
                let sender =
                    Sender { peer, begun, connection: of_request, wakes: &thread.wakes, is_over: &thread.is_over };
                let mut reply = ingress.handle(request, &sender).await;
                of_request.answered();
                // The certificates or authorities have changed: the next request needs a new connection.
                let is_outdated = !ServerTls::is_same(tls, ingress.settings.tls.as_ref());
                if is_outdated || thread.is_leaving.get() {
                    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, std::convert::Infallible>(reply)
            })
        });
        let mut builder = http1::Builder::new();
        builder
            // A sender may half-close after the request and still receive the answer.
            .half_close(true)
            // Answers are small: copied behind their head they are sent in one piece.
            .writev(false)
            // This task keeps the time-outs itself.
            .header_read_timeout(None)
            .max_header_size(HEAD_BYTES)
            .max_buf_size(HEAD_BYTES);
        let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut is_told = false;
        let serve = |context: &mut Context<'_>, is_closing| {
            // At once where no request is under way, else behind the answer.
            if is_closing && !std::mem::replace(&mut is_told, true) {
                served.as_mut().graceful_shutdown();
            }
            served.as_mut().poll(context)
        };
        self.run(serve, connection, timer).await
    }

    /// Runs a stage of the connection (the wait for its first head, or the exchange of requests and answers) to its end, or
    /// until the connection is to be closed, which the stage is told, and that has ended it; none if a head took too long.
    async fn run<O>(
        &self,
        mut stage: impl FnMut(&mut Context<'_>, bool) -> Poll<O>,
        connection: &Connection,
        timer: &mut Timer<'_>,
    ) -> Option<O> {
        let mut is_closing = false;
        poll_fn(|context| {
            self.place.slot.register(context.waker());
            loop {
                if let Poll::Ready(ended) = stage(context, is_closing) {
                    return Poll::Ready(Some(ended));
                }
                if is_closing {
                    return Poll::Pending;
                }
                match self.due(connection) {
                    Due::Never => return Poll::Pending,
                    Due::Now => {}
                    Due::At(at) => ready!(timer.poll_until(at, context)),
                }
                if connection.phase.get() == RequestPhase::Head {
                    return Poll::Ready(None);
                }
                // The last check: a request that has arrived is answered.
                if connection.socket.has_unread() {
                    connection.begin_head();
                } else {
                    is_closing = true;
                }
            }
        })
        .await
    }

    /// The end of the present wait, by the settings of this moment.
    fn due(&self, connection: &Connection) -> Due {
        let since = connection.since.get();
        let head = || since + self.thread.header_timeout();
        match connection.phase.get() {
            RequestPhase::Request | RequestPhase::Answer => Due::Never,
            RequestPhase::Head => Due::At(head()),
            RequestPhase::Idle if self.place.slot.is_claimed() => Due::Now,
            RequestPhase::Idle => match self.thread.closing.get() {
                // A connection that has just been accepted may still send its first request.
                Some(closing) if connection.is_silent.get() => Due::At((closing + FIRST_BYTE).min(head())),
                Some(_) => Due::Now,
                None if connection.is_silent.get() => Due::At(head()),
                None => Due::At(since + self.thread.local.now().settings.idle_timeout),
            },
        }
    }

    /// Closes this side, then reads the peer's bytes for a moment. A connection that is replaced gives up its permit
    /// first.
    async fn linger(self, socket: &Socket) {
        socket.close_write();
        let is_claimed = self.place.slot.is_claimed();
        let Self { thread, place, drain, .. } = self;
        let place = if is_claimed {
            drop(place);
            if thread.replaced.get() >= REPLACED {
                return;
            }
            thread.replaced.set(thread.replaced.get() + 1);
            None
        } else {
            place.slot.lingering();
            Some(place)
        };
        let peers_end = poll_fn(|context| {
            if let Some(place) = &place {
                place.slot.register(context.waker());
                if place.slot.is_claimed() {
                    return Poll::Ready(());
                }
            }
            socket.poll_discard(context)
        });
        let _ = tokio::time::timeout(LINGER, peers_end).await;
        if place.is_none() {
            thread.replaced.set(thread.replaced.get() - 1);
        }
        drop(drain);
    }
}

fn too_slow(peer: SocketAddr) {
    tracing::debug!(%peer, "a connection ended: the head of a request was too slow");
}

/// The stream of a connection whose answers are to be read: a sender that does not read them must not keep it for ever.
struct AnsweredStream<S> {
    stream: Pin<Box<TimeoutStream<S>>>,
    thread: Rc<Thread>,
}

impl<S: AsyncRead + AsyncWrite> AsyncRead for AnsweredStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite> AsyncWrite for AnsweredStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let longest = Some(self.thread.header_timeout());
        if self.stream.write_timeout() != longest {
            self.stream.as_mut().set_write_timeout_pinned(longest);
        }
        self.stream.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(context)
    }
}
