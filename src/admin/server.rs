//! The admin server: `[admin]`, its own listener, thread and connection limit, so that load cannot fail a probe; and the
//! page at `/`, three embedded files without an external asset.

use std::cell::RefCell;
use std::collections::VecDeque;
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
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, Id};
use tokio_io_timeout::TimeoutStream;

use crate::metrics::Metrics;
use crate::process::listen;
use crate::process::shutdown::Drain;
use crate::queue::Buffer;
use crate::settings::Section;
use crate::status::Status;

/// Enough for probes, a scraper and some browsers.
const CONNECTIONS: usize = 64;

/// The number of connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 128;

/// The longest time for a request: a probe is small, so a slower client hangs.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The path, content type and text of each file of the page.
const PAGE: [(&str, &str, &str); 3] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/page.css", "text/css; charset=utf-8", include_str!("page/page.css")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("page/page.js")),
];

/// The content security policy: only these files and `/status` may be loaded.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `[admin]`.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The address to listen on; none turns the admin port off.
    pub(crate) listen: Option<SocketAddr>,
    /// Whether there is a page at `/`.
    pub(crate) page: bool,
    /// The names, beside addresses and `localhost`, that requests may call the bridge by.
    pub(crate) hosts: Arc<[String]>,
}

impl Settings {
    /// Reads `[admin]`.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        let listen = section.optional_address("listen");
        let hosts = section.texts("hosts");
        if let Some(wrong) = hosts.iter().find(|name| name.is_empty() || name.contains(['/', ':', ' '])) {
            section.problem(
                "hosts",
                format_args!(
                    "{wrong:?} is not a host name; write it without scheme and port, as \"bridge.example.com\""
                ),
            );
        }
        Self { listen, page: section.flag("page"), hosts: hosts.into() }
    }
}

/// The state that the admin port shows.
#[derive(Debug)]
pub(crate) struct Admin {
    /// The state that is reported.
    pub(crate) status: Arc<Status>,
    /// All series.
    pub(crate) metrics: Arc<Metrics>,
    /// The queue.
    pub(crate) queue: Arc<Buffer>,
    /// The stop.
    pub(crate) stop: Drain,
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
    listen(address, BACKLOG, false)
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
        let (admin, entered) = (admin.clone(), open.clone());
        let task = tokio::task::spawn_local(async move {
            let id = tokio::task::id();
            let service = service_fn(|request| {
                entered.borrow_mut().asked(id);
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
            entered.borrow_mut().leave(id);
        });
        open.borrow_mut().enter(task.abort_handle());
    }
}

/// The tasks of the open connections, first the one that has been without a request longest: a further connection closes
/// it, so that clients that keep connections cannot fail a probe.
#[derive(Default)]
struct OpenConnections(VecDeque<AbortHandle>);

impl OpenConnections {
    fn enter(&mut self, task: AbortHandle) {
        while self.0.len() >= CONNECTIONS {
            self.0.pop_front().iter().for_each(AbortHandle::abort);
        }
        self.0.push_back(task);
    }

    fn leave(&mut self, id: Id) -> Option<AbortHandle> {
        self.0.iter().position(|task| task.id() == id).and_then(|at| self.0.remove(at))
    }

    fn asked(&mut self, id: Id) {
        let task = self.leave(id);
        self.0.extend(task);
    }
}

impl Admin {
    fn answer<B>(&self, request: &Request<B>, is_loopback: bool, started: Instant) -> Answer {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let mut answer = match request.uri().path() {
            _ if !self.is_meant(request, is_loopback) => misdirected(),
            _ if !is_read => only_reads(),
            "/livez" => verdict("live", &self.status.heartbeats.stalled()),
            "/readyz" => verdict("ready", &self.unready(&self.queue.snapshot())),
            "/metrics" => self.metrics_text(),
            "/status" => self.status_json(started),
            path => self.page_file(path),
        };
        let headers = answer.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
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
        let snapshot = self.queue.snapshot();
        let is_ready = self.unready(&snapshot).is_empty();
        let body = self.metrics.render(&snapshot, &self.status, is_ready);
        typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body)
    }

    fn status_json(&self, started: Instant) -> Answer {
        let body = format!("{:#}\n", self.status(&self.queue.snapshot(), started));
        typed(StatusCode::OK, "application/json", body)
    }

    fn page_file(&self, path: &str) -> Answer {
        let file = PAGE.iter().find(|(name, _, _)| self.page && *name == path);
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
