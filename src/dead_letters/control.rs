//! The control socket: requests about letters go over `control.sock` in the state directory, as HTTP. The answer is
//! NDJSON, a line for each change of the progress.
//!
//! A connection carries one request, which ends with it.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, Limited, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::dead_letters::{Progress, Request, Requests};
use crate::process::failpoint;
use crate::process::shutdown::Drain;

/// The socket's name in the state directory.
const NAME: &str = "control.sock";

/// Commands of one operator.
const CONNECTIONS: usize = 64;

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 16;

/// A request is sent at once.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The most bytes of a request: a command line is shorter.
const MAX_REQUEST: usize = 4 << 20;

/// The longest time that the end waits for commands to read how their requests ended.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Opens the state directory, to reach the socket in it: the path of a socket has at most 107 bytes, and that of
/// the directory may have more.
fn open(state: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, state, flags, Mode::empty())?)
}

fn path_within(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{NAME}", directory.as_raw_fd()))
}

/// Connects to the daemon that uses a state directory.
///
/// # Errors
/// There is none, or it may not be asked.
pub(crate) async fn connect(state: &Path) -> io::Result<UnixStream> {
    let directory = open(state)?;
    UnixStream::connect(path_within(&directory)).await
}

/// The bound socket, of a state directory whose lock is held. Removed when dropped.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    listener: StdListener,
    directory: OwnedFd,
}

impl ControlSocket {
    /// Binds the socket; one that a crash left is removed.
    ///
    /// # Errors
    /// The file system has no sockets, or there is no `/proc`.
    pub(crate) fn bind(state: &Path) -> io::Result<Self> {
        failpoint::pass("control.bind")?;
        let directory = open(state)?;
        remove(&directory)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Before it is bound: it never exists with other rights.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        socket.bind(&SockAddr::unix(path_within(&directory))?)?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(Self { listener: OwnedFd::from(socket).into(), directory })
    }

    /// Serves requests until the drain begins; returns when all of them have ended.
    pub(crate) async fn serve(self, requests: Arc<Requests>, drain: Drain) {
        let running = Arc::new(Mutex::new(JoinSet::new()));
        let mut connections = JoinSet::new();
        let listener = self.listener.try_clone().and_then(UnixListener::from_std);
        match listener {
            Ok(listener) => loop {
                tokio::select! {
                    accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                        Ok((stream, _)) => {
                            connections.spawn(serve_one(stream, requests.clone(), running.clone()));
                        }
                        Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                    },
                    Some(_) = connections.join_next() => {}
                    () = drain.begun() => break,
                }
            },
            Err(error) => tracing::warn!("cannot serve requests about dead letters: {error}"),
        }
        // From now on a command waits for the lock.
        drop(self);
        let mut ending = std::mem::take(&mut *running.lock());
        while ending.join_next().await.is_some() {}
        // A command that does not read must not hold up the end.
        let _ = timeout(LAST_LINES, async { while connections.join_next().await.is_some() {} }).await;
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // What is left is removed by the next start.
        let _ = remove(&self.directory);
    }
}

fn remove(directory: &OwnedFd) -> io::Result<()> {
    match rustix::fs::unlinkat(directory, NAME, AtFlags::empty()) {
        Err(error) if error != rustix::io::Errno::NOENT => Err(error.into()),
        _ => Ok(()),
    }
}

type Running = Arc<Mutex<JoinSet<()>>>;

/// Serves one connection, which carries one request.
async fn serve_one(stream: UnixStream, requests: Arc<Requests>, running: Running) {
    let service = service_fn(move |request| {
        let (requests, running) = (requests.clone(), running.clone());
        async move { Ok::<_, Infallible>(answer(request, requests, &running).await) }
    });
    // A command that ends drops its connection, and with it the answer: that is how its request learns of it.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    request: hyper::Request<Incoming>,
    requests: Arc<Requests>,
    running: &Running,
) -> Response<impl Body<Data = Bytes, Error = Infallible> + use<>> {
    let (asker, progress) = watch::channel(Progress::default());
    let status = match read(request).await {
        Ok(request) => {
            let mut running = running.lock();
            while running.try_join_next().is_some() {}
            running.spawn(async move { requests.run(&request, asker).await });
            StatusCode::OK
        }
        Err(text) => {
            asker.send_replace(Progress::refused(text));
            StatusCode::BAD_REQUEST
        }
    };
    let mut answer = Response::new(StreamBody::new(lines(progress)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    answer
}

async fn read(request: hyper::Request<Incoming>) -> Result<Request, String> {
    let read = timeout(REQUEST_TIMEOUT, Limited::new(request.into_body(), MAX_REQUEST).collect()).await;
    let body = read.map_err(|_| "the request did not arrive".to_owned())?.map_err(|error| error.to_string())?;
    Request::parse(&body.to_bytes()).map_err(|error| format!("the daemon cannot understand the request: {error}"))
}

/// A line for each change. A reader that is slow gets the newest state, not every one.
fn lines(
    progress: watch::Receiver<Progress>,
) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> + use<> {
    stream::unfold(progress, |mut progress| async move {
        // The last state is seen before the end.
        progress.changed().await.ok()?;
        let line = format!("{}\n", progress.borrow_and_update().json());
        Some((Ok(Frame::data(Bytes::from(line))), progress))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};

    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn binds_where_the_path_is_longer_than_that_of_a_socket_may_be() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("s".repeat(200));
        fs::create_dir(&state).unwrap();
        assert_eq!(connect(&state).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        let socket = ControlSocket::bind(&state).unwrap();
        let file = fs::metadata(state.join(NAME)).unwrap();
        assert!(file.file_type().is_socket());
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
        connect(&state).await.unwrap();
        drop(socket);
        assert!(!state.join(NAME).exists());
    }

    #[tokio::test]
    async fn replaces_a_socket_that_a_crash_has_left() {
        let directory = tempfile::tempdir().unwrap();
        drop(StdListener::bind(directory.path().join(NAME)).unwrap());
        assert_eq!(connect(directory.path()).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let _socket = ControlSocket::bind(directory.path()).unwrap();
        connect(directory.path()).await.unwrap();
    }

    #[test]
    fn says_why_there_is_no_socket() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(NAME)).unwrap();
        assert!(ControlSocket::bind(directory.path()).is_err(), "a directory is in its place");
        assert!(ControlSocket::bind(&directory.path().join("missing")).is_err());
    }

    #[tokio::test]
    async fn a_reader_that_is_slow_gets_the_newest_state_and_holds_none_of_the_others() {
        let (asker, progress) = watch::channel(Progress::default());
        let lines = lines(progress);
        tokio::pin!(lines);
        for done in 1..=1000 {
            asker.send_replace(Progress { done, ..Progress::default() });
        }
        let mut next = async || {
            let frame = lines.next().await?.unwrap();
            Progress::parse(&frame.into_data().unwrap()).map(|progress| progress.done)
        };
        assert_eq!(next().await, Some(1000));
        asker.send_replace(Progress { done: 1001, ..Progress::default() });
        drop(asker);
        assert_eq!(next().await, Some(1001), "the last one is seen after the end");
        assert_eq!(next().await, None);
    }
}
