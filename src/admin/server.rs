//! The admin server: its own listener, thread and connection limit, so that load cannot fail a probe.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::uri::Authority;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
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
    /// The names that requests may call the bridge by.
    pub(crate) hosts: Arc<[String]>,
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
pub(crate) async fn serve(listener: StdListener, admin: Arc<Admin>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let is_loopback = listener.local_addr()?.ip().to_canonical().is_loopback();
    let started = Instant::now();
    let open = Rc::new(RefCell::new(OpenConnections::default()));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(TIMEOUT));
        let (admin, open) = (admin.clone(), open.clone());
        let number = open.borrow_mut().enter();
        let entered = open.clone();
        let task = tokio::task::spawn_local(async move {
            let asked = open.clone();
            let service = service_fn(move |request| {
                asked.borrow_mut().asked(number);
                let answer = admin.answer(&request, is_loopback, started);
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(Box::pin(stream)), service);
            // A failed connection does not concern others.
            let _ = connection.await;
            open.borrow_mut().leave(number);
        });
        entered.borrow_mut().closes_by(number, task.abort_handle());
    }
}

/// The open connections: a further one closes the one that has been without a request longest, so that clients that keep
/// connections cannot fail a probe.
#[derive(Default)]
struct OpenConnections {
    next: u64,
    /// By the order of their last request, or of their begin.
    order: BTreeMap<u64, OpenConnection>,
}

struct OpenConnection {
    number: u64,
    task: Option<AbortHandle>,
}

impl OpenConnections {
    /// Makes room for a connection and returns its number.
    fn enter(&mut self) -> u64 {
        while self.order.len() >= CONNECTIONS {
            let longest = self.order.pop_first();
            if let Some(task) = longest.and_then(|(_, open)| open.task) {
                task.abort();
            }
        }
        let number = self.next();
        self.order.insert(number, OpenConnection { number, task: None });
        number
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn place(&self, number: u64) -> Option<u64> {
        self.order.iter().find(|(_, open)| open.number == number).map(|(place, _)| *place)
    }

    fn closes_by(&mut self, number: u64, task: AbortHandle) {
        if let Some(open) = self.place(number).and_then(|place| self.order.get_mut(&place)) {
            open.task = Some(task);
        }
    }

    fn asked(&mut self, number: u64) {
        if let Some(open) = self.place(number).and_then(|place| self.order.remove(&place)) {
            let place = self.next();
            self.order.insert(place, open);
        }
    }

    fn leave(&mut self, number: u64) {
        if let Some(place) = self.place(number) {
            self.order.remove(&place);
        }
    }
}

impl Admin {
    fn answer<B>(&self, request: &Request<B>, is_loopback: bool, started: Instant) -> Answer {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let mut answer = match request.uri().path() {
            _ if !self.is_meant(request, is_loopback) => misdirected(),
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

    /// Whether the host that a request names may be this bridge's. A page of another site can make its own name resolve to
    /// an address of this machine, and would then read what is answered (DNS rebinding); it cannot send another name.
    fn is_meant<B>(&self, request: &Request<B>, is_loopback: bool) -> bool {
        if !is_loopback && self.hosts.is_empty() {
            return true;
        }
        let named = request.headers().get(HOST).map(|value| value.to_str().unwrap_or("?"));
        // Programs may leave it out, browsers never do.
        let Some(named) = request.uri().authority().map(Authority::as_str).or(named) else { return true };
        let host = named.parse::<Authority>().map_or_else(|_| named.to_owned(), |parsed| parsed.host().to_owned());
        let host = host.trim_end_matches('.');
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        bare.parse::<IpAddr>().is_ok()
            || host.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
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

fn misdirected() -> Answer {
    let advice = "the Host of this request is neither an address nor localhost; if the name is this bridge's, add it to `admin.hosts`\n";
    text(StatusCode::MISDIRECTED_REQUEST, advice.to_owned())
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
