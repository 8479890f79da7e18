//! A TCP proxy between the daemon and its broker that refuses, stalls, delays and cuts.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// The interval at which the accepting thread checks for a new connection or a new mode.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Forward,
    Refuse,
    Stall,
    End,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    listening: bool,
    delay: Duration,
    cut_after: Option<usize>,
    cuts: usize,
    connections: HashMap<u64, [TcpStream; 2]>,
}

#[derive(Debug)]
struct Shared {
    port: u16,
    target: u16,
    state: Mutex<State>,
    changed: Condvar,
}

/// The proxy; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    shared: Arc<Shared>,
}

impl Proxy {
    /// Listens on a port of its own, below the ephemeral range, and forwards to this port of loopback.
    pub(crate) fn to(target: u16) -> Self {
        let listener = (0..500)
            .find_map(|_| TcpListener::bind(("127.0.0.1", fastrand::u16(10_000..20_000))).ok())
            .expect("there is a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let state = State {
            mode: Mode::Forward,
            listening: true,
            delay: Duration::ZERO,
            cut_after: None,
            cuts: 0,
            connections: HashMap::new(),
        };
        let shared = Arc::new(Shared { port, target, state: Mutex::new(state), changed: Condvar::new() });
        thread::spawn({
            let shared = shared.clone();
            move || shared.accept(listener)
        });
        Self { shared }
    }

    /// The address it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.shared.port
    }

    /// Cuts all connections and refuses new ones; returns once the port is closed.
    pub(crate) fn refuse(&self) {
        self.set(Mode::Refuse);
        self.cut();
        let mut state = self.shared.lock();
        while state.listening {
            self.shared.changed.wait(&mut state);
        }
    }

    /// Keeps all connections open and forwards nothing.
    pub(crate) fn stall(&self) {
        self.set(Mode::Stall);
    }

    /// Delays each piece of the broker's data by this long.
    pub(crate) fn delay(&self, delay: Duration) {
        self.shared.lock().delay = delay;
    }

    /// Forwards again; returns once the port is open.
    pub(crate) fn heal(&self) {
        let mut state = self.shared.lock();
        (state.delay, state.cut_after) = (Duration::ZERO, None);
        drop(state);
        self.set(Mode::Forward);
        let mut state = self.shared.lock();
        while !state.listening {
            self.shared.changed.wait(&mut state);
        }
    }

    /// Cuts all connections once.
    pub(crate) fn cut(&self) {
        self.shared.lock().cut();
    }

    /// Cuts all connections once, after this many more bytes from the broker: in the middle of confirms.
    pub(crate) fn cut_after(&self, bytes: usize) {
        self.shared.lock().cut_after = Some(bytes);
    }

    /// The number of times that connections were cut after some bytes.
    pub(crate) fn cuts(&self) -> usize {
        self.shared.lock().cuts
    }

    fn set(&self, mode: Mode) {
        self.shared.lock().mode = mode;
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Mode::End);
        self.cut();
    }
}

impl State {
    fn cut(&mut self) {
        for (_, ends) in self.connections.drain() {
            for end in ends {
                // Closed by its owner meanwhile.
                let _ = end.shutdown(Shutdown::Both);
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn accept(self: &Arc<Self>, listener: TcpListener) {
        let mut listener = Some(listener);
        let mut next = 0;
        loop {
            let mode = self.lock().mode;
            match mode {
                Mode::End => return,
                Mode::Refuse => listener = None,
                Mode::Forward | Mode::Stall => {
                    listener = listener.or_else(|| TcpListener::bind(("127.0.0.1", self.port)).ok());
                }
            }
            let mut state = self.lock();
            if state.listening != listener.is_some() {
                state.listening = listener.is_some();
                self.changed.notify_all();
            }
            drop(state);
            let accepted = listener.as_ref().and_then(|listener| {
                listener.set_nonblocking(true).ok()?;
                listener.accept().ok()
            });
            if let Some((client, _)) = accepted {
                next += 1;
                // The broker is down: the client sees its connection end.
                let _ = self.connect(next, client);
            } else {
                let mut state = self.lock();
                self.changed.wait_for(&mut state, LOOK);
            }
        }
    }

    fn connect(self: &Arc<Self>, id: u64, client: TcpStream) -> io::Result<()> {
        client.set_nonblocking(false)?;
        client.set_nodelay(true)?;
        let server = TcpStream::connect(("127.0.0.1", self.target))?;
        server.set_nodelay(true)?;
        let mut state = self.lock();
        if !matches!(state.mode, Mode::Forward | Mode::Stall) {
            return Ok(());
        }
        state.connections.insert(id, [client.try_clone()?, server.try_clone()?]);
        drop(state);
        let (back_from, back_to) = (server.try_clone()?, client.try_clone()?);
        let (there, back) = (self.clone(), self.clone());
        thread::spawn(move || there.pump(id, client, server, From::Client));
        thread::spawn(move || back.pump(id, back_from, back_to, From::Server));
        Ok(())
    }

    fn pump(&self, id: u64, mut from: TcpStream, mut to: TcpStream, side: From) {
        let mut piece = vec![0; 16 * 1024];
        while let Ok(read @ 1..) = from.read(&mut piece) {
            let forwarded = self.allowed(read, side);
            if to.write_all(&piece[..forwarded]).is_err() {
                break;
            }
            if forwarded < read {
                self.lock().cut();
                break;
            }
        }
        for end in [&from, &to] {
            let _ = end.shutdown(Shutdown::Both);
        }
        self.lock().connections.remove(&id);
    }

    /// Waits as the mode says; returns how much of a piece may pass.
    fn allowed(&self, read: usize, side: From) -> usize {
        let delay = self.lock().delay;
        if side == From::Server && !delay.is_zero() {
            thread::sleep(delay);
        }
        let mut state = self.lock();
        while state.mode == Mode::Stall {
            self.changed.wait(&mut state);
        }
        match (side, state.cut_after) {
            (From::Client, _) | (From::Server, None) => read,
            (From::Server, Some(left)) if left > read => {
                state.cut_after = Some(left - read);
                read
            }
            (From::Server, Some(left)) => {
                state.cut_after = None;
                state.cuts += 1;
                // At least one byte is held back, so that the caller cuts.
                left.min(read - 1)
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Client,
    Server,
}
