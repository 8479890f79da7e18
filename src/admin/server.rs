//! The admin server: its own listener, thread and connection limit, so that load cannot fail a probe.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

use crate::admin::health::Health;
use crate::admin::page;
use crate::dead_letters::StoreCounts;
use crate::ingress::{Connections, CurrentIngress, take_both_families};
use crate::metrics::Metrics;
use crate::status::{Reloads, UnknownPaths};

/// Enough for probes, a scraper and some browsers.
const CONNECTIONS: usize = 64;

/// The number of connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 128;

/// The longest time for a request: a probe is small, so a slower client hangs.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The state that the admin port shows.
#[derive(Debug)]
pub(crate) struct Admin {
    /// The parts that health is derived from.
    pub(crate) health: Health,
    /// All series.
    pub(crate) metrics: Arc<Metrics>,
    /// The senders' connections.
    pub(crate) connections: Arc<Connections>,
    /// The current ingress.
    pub(crate) live: Arc<CurrentIngress>,
    /// The results of reloads of the settings.
    pub(crate) reloads: Arc<Reloads>,
    /// The most recent unknown paths.
    pub(crate) unknown_paths: Arc<UnknownPaths>,
    /// The size of the dead letters, if there is a state directory.
    pub(crate) dead_letters: Option<Arc<StoreCounts>>,
    /// The size of the invalid bodies, if there is a state directory.
    pub(crate) invalid: Option<Arc<StoreCounts>>,
    /// `dead_letters.max_bytes`.
    pub(crate) dead_letters_capacity: u64,
    /// The broker's name.
    pub(crate) broker_name: &'static str,
    /// Whether there is a page.
    pub(crate) page: bool,
}

type Answer = Response<Full<Bytes>>;

/// Binds the admin port.
///
/// # Errors
/// The address is in use, or does not belong to this machine.
pub(crate) fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    take_both_families(&socket, address)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Serves the admin port for ever. Runs in a `LocalSet`.
///
/// # Errors
/// The socket cannot be used.
///
/// # Panics
/// Never: the semaphore is not closed.
pub(crate) async fn serve(listener: StdListener, admin: Arc<Admin>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let started = Instant::now();
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(TIMEOUT));
        let admin = admin.clone();
        tokio::task::spawn_local(async move {
            let service = service_fn(move |request| {
                let answer = admin.answer(&request, started);
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(TIMEOUT)
                .serve_connection(TokioIo::new(Box::pin(stream)), service);
            // A failed connection does not concern others.
            let _ = connection.await;
            drop(permit);
        });
    }
}

impl Admin {
    fn answer<B>(&self, request: &Request<B>, started: Instant) -> Answer {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let mut answer = match request.uri().path() {
            _ if !is_read => only_reads(),
            "/livez" => verdict("live", &self.health.stalled()),
            "/readyz" => verdict("ready", &self.health.unready(&self.health.queue.snapshot())),
            "/metrics" => self.metrics_text(),
            "/status" => self.status_json(started),
            path => self.page_file(path),
        };
        let headers = answer.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(page::POLICY));
        answer
    }

    fn metrics_text(&self) -> Answer {
        let snapshot = self.health.queue.snapshot();
        let totals = snapshot.totals();
        let moment = self.moment(self.health.unready(&snapshot).is_empty());
        let body = self.metrics.render(&snapshot, &totals, &moment);
        typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body)
    }

    fn status_json(&self, started: Instant) -> Answer {
        let snapshot = self.health.queue.snapshot();
        let totals = snapshot.totals();
        let body = format!("{:#}\n", self.status(&snapshot, &totals, started));
        typed(StatusCode::OK, "application/json", body)
    }

    fn page_file(&self, path: &str) -> Answer {
        let file = page::FILES.iter().find(|(name, _, _)| self.page && *name == path);
        match file {
            Some((_, kind, body)) => typed(StatusCode::OK, kind, (*body).to_owned()),
            None => text(
                StatusCode::NOT_FOUND,
                "no such page; there are /, /status, /metrics, /livez and /readyz\n".to_owned(),
            ),
        }
    }
}

fn only_reads() -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    answer
}

fn verdict(word: &str, problems: &[String]) -> Answer {
    if problems.is_empty() {
        return text(StatusCode::OK, format!("{word}\n"));
    }
    text(StatusCode::SERVICE_UNAVAILABLE, format!("not {word}\n{}\n", problems.join("\n")))
}

fn text(status: StatusCode, body: String) -> Answer {
    typed(status, "text/plain; charset=utf-8", body)
}

fn typed(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
