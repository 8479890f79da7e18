//! The daemon under systemd, whose part these tests play: states and watchdog, passed sockets, restarts that refuse and
//! lose nothing.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::{
    Client, Daemon, LIMIT, Load, PATH, Payload, SECRET, Setup, heavy, request_once, sign, unique, wait_until,
};

/// The socket on which the daemon notifies systemd.
struct Notified {
    socket: UnixDatagram,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Notified {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a temporary directory takes a socket");
        Self { socket, path, _directory: directory }
    }

    /// Sets this socket for notifications, and a watchdog of this many microseconds.
    fn by(&self, setup: Setup, watchdog: &str) -> Setup {
        setup.variable("NOTIFY_SOCKET", &self.path.display().to_string()).variable("WATCHDOG_USEC", watchdog)
    }

    /// The next notification; none within this time.
    fn next(&self, patience: Duration) -> Option<String> {
        let mut bytes = [0; 512];
        self.socket.set_read_timeout(Some(patience)).expect("a socket takes options");
        let length = self.socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..length]).trim_end().to_owned())
    }

    /// Reads until this notification; returns the earlier ones.
    fn until(&self, wanted: &str) -> Vec<String> {
        let (mut before, began) = (Vec::new(), Instant::now());
        while let Some(told) = self.next(LIMIT.saturating_sub(began.elapsed()).max(Duration::from_millis(1))) {
            if told == wanted {
                return before;
            }
            assert!(began.elapsed() < LIMIT, "systemd was not notified of {wanted}, only {before:?}");
            before.push(told);
        }
        panic!("systemd was not notified of {wanted}, only {before:?}");
    }
}

/// A listening socket that outlives daemons.
fn held() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port can be listened on")
}

fn passing(setup: Setup, name: &str, socket: &TcpListener) -> Setup {
    setup.passing(name, socket.try_clone().expect("a descriptor can be doubled"))
}

/// The number of connections in the kernel's queue of a listening socket: `rx_queue` of its line, see proc(5).
fn waiting(socket: &TcpListener) -> u64 {
    let port = socket.local_addr().expect("it is bound").port();
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux tells its sockets");
    let lines = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    // `sl local remote state tx:rx`; 0A listens.
    let mut ours = lines.filter(|line| line[1].ends_with(&format!(":{port:04X}")) && line[3] == "0A");
    let line = ours.next().expect("it listens");
    let (_, queue) = line[4].split_once(':').expect("two queues with a colon between");
    u64::from_str_radix(queue, 16).expect("a queue's length is in hex")
}

/// A connection with a whole request in flight.
fn asking(address: &str, body: &[u8]) -> Client {
    let mut client = Client::connect(address).expect("the socket is held");
    let (signature, length) = (sign(SECRET, body), body.len());
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: bridge\r\nX-Authorization-HMAC-256: {signature}\r\nContent-Length: {length}\r\n\r\n"
    );
    client.write(head.as_bytes()).and_then(|()| client.write(body)).expect("the kernel takes it");
    client
}

/// An idle connection that was answered once: a daemon that stops closes it.
fn idle(daemon: &Daemon) -> Client {
    let body = Payload::new(unique("idle")).body();
    let mut client = asking(&daemon.ingress, &body);
    assert_eq!(client.answer().expect("it is answered").status, 200);
    client
}

#[test]
fn tells_when_it_is_ready_alive_and_stopping() {
    let notified = Notified::new();
    let daemon = notified.by(Setup::on_files(), "200000").start();
    assert_eq!(notified.until("READY=1"), [""; 0], "before it is ready");
    assert_eq!(daemon.get("/readyz").status, 200);
    assert_eq!(request_once(&daemon, &Payload::new("at once").body(), &[]).status, 200);
    for _ in 0..3 {
        assert_eq!(notified.next(LIMIT).as_deref(), Some("WATCHDOG=1"));
    }
    daemon.terminate();
    let before = notified.until("STOPPING=1");
    assert!(before.iter().all(|told| told == "WATCHDOG=1"), "{before:?}");
    assert_eq!(daemon.wait().code, Some(0));
}

#[test]
fn does_not_feed_the_watchdog_of_another_process() {
    let notified = Notified::new();
    let daemon = notified.by(Setup::on_files(), "20000").variable("WATCHDOG_PID", "1").start();
    daemon.stop();
    assert_eq!(notified.until("STOPPING=1"), ["READY=1"]);
}

#[test]
fn feeds_no_watchdog_while_it_is_not_live() {
    let notified = Notified::new();
    let setup = notified.by(Setup::on_files(), "400000").failpoints("publish.settled=hang");
    let daemon = setup.start();
    notified.until("WATCHDOG=1");
    assert_eq!(request_once(&daemon, &Payload::new("the last").body(), &[]).status, 200);
    // Unread notifications would fill the socket.
    let read_all = || while notified.next(Duration::from_millis(1)).is_some() {};
    wait_until("the watchdog is not notified", LIMIT, || {
        read_all();
        daemon
            .log()
            .contains("not notifying systemd's watchdog until this ends: the delivery task has not moved for")
    });
    assert_eq!(daemon.get("/livez").status, 503);
    read_all();
    assert_eq!(notified.next(Duration::from_secs(2)), None, "five times the interval");
}

#[test]
fn stays_live_while_it_delivers_what_is_left() {
    let notified = Notified::new();
    let setup = notified.by(Setup::on_missing_files(), "400000").text("shutdown.grace", "120s");
    let daemon = setup.start();
    let mut idle = idle(&daemon);
    daemon.terminate();
    assert!(idle.is_closed_by_server(), "its ingress has ended");
    notified.until("STOPPING=1");
    // A thread that does not move counts as stalled after 10 s.
    for _ in 0..60 {
        assert_eq!(notified.next(LIMIT).as_deref(), Some("WATCHDOG=1"));
    }
    assert_eq!(daemon.get("/livez").text(), "live\n");
    daemon.terminate();
    assert_eq!(daemon.wait().count("held"), 1);
}

#[test]
fn serves_the_socket_that_is_passed_instead_of_its_own() {
    // A single socket is that of the ingress, whatever its unit is called.
    for name in ["ingress", "plextrac-bridge.socket"] {
        let socket = held();
        // No address of this machine.
        let setup = passing(Setup::on_files().text("ingress.listen", "192.0.2.1:80"), name, &socket);
        let daemon = setup.start();
        assert_eq!(daemon.ingress, socket.local_addr().unwrap().to_string());
        let sent = Load { connections: 8, keys: 16, events: 200, ..Load::default() }.send(&daemon.ingress);
        let sent = sent.all_accepted();
        assert_eq!(daemon.stop().code, Some(0));
        assert_eq!(setup.judge(&sent), 0);
    }
}

#[test]
fn takes_a_socket_for_each_listener_by_its_name() {
    let (ingress, admin) = (held(), held());
    let setup = Setup::on_files().text("ingress.listen", "192.0.2.1:80").text("admin.listen", "192.0.2.1:81");
    let setup = passing(passing(setup, "admin", &admin), "ingress", &ingress);
    let daemon = setup.start();
    assert_eq!(daemon.admin, admin.local_addr().unwrap().to_string());
    assert_eq!(daemon.ingress, ingress.local_addr().unwrap().to_string());
    assert_eq!(request_once(&daemon, &Payload::new("by name").body(), &[]).status, 200);
    assert_eq!(daemon.wait_until_empty().count("published"), 1);
}

#[test]
fn takes_one_socket_for_the_admin_port_alone() {
    let admin = held();
    let daemon = passing(Setup::on_files().text("admin.listen", "192.0.2.1:81"), "admin", &admin).start();
    assert_eq!(daemon.admin, admin.local_addr().unwrap().to_string());
    assert_eq!(request_once(&daemon, &Payload::new("its own").body(), &[]).status, 200);
}

#[test]
fn says_what_is_wrong_with_what_is_passed() {
    let unbound = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let listens = "does not listen for TCP connections: its .socket unit needs ListenStream=";
    let refused = |setup: Setup, text: &str| {
        let stopped = setup.try_start().expect_err("it does not start");
        assert_eq!(stopped.code, Some(78), "{}", stopped.log);
        assert!(stopped.log.contains(text), "no {text:?} in: {}", stopped.log);
    };
    let files = Setup::on_files;
    refused(files().passing("ingress", File::open("/dev/null").unwrap()), listens);
    refused(files().passing("ingress", unbound()), listens);
    refused(files().passing("ingress", UnixDatagram::unbound().unwrap()), listens);
    refused(
        files().passing("http", held()).passing("ingress", held()),
        "\"http\" is for: let each .socket unit say",
    );
    refused(
        files().passing("ingress", held()).passing("ingress", held()),
        "two sockets named \"ingress\" are passed",
    );
    // The name of one, with a colon in it, is the names of two.
    refused(files().passing("ingress:admin", held()), "do not match: invalid LISTEN_FDNAMES");
}

#[test]
fn takes_no_sockets_that_are_for_another_process() {
    let foreign: [&[(&str, &str)]; 3] = [
        &[("LISTEN_FDS", "1"), ("LISTEN_PID", "1")],
        &[("LISTEN_FDS", "1"), ("LISTEN_PID", "1"), ("LISTEN_FDNAMES", "ingress")],
        &[("LISTEN_FDNAMES", "ingress")],
    ];
    for variables in foreign {
        let setup = Setup::on_files();
        let daemon = variables.iter().fold(setup, |setup, (name, value)| setup.variable(name, value)).start();
        assert_eq!(request_once(&daemon, &Payload::new("its own").body(), &[]).status, 200, "{variables:?}");
    }
}

#[test]
fn leaves_what_waits_in_the_queue_to_its_successor() {
    let socket = held();
    let setup = passing(Setup::on_missing_files().text("shutdown.grace", "120s"), "ingress", &socket);
    let daemon = setup.start();
    // One of each thread: both have stopped accepting once these are closed.
    let idle: Vec<Client> = (0..16).map(|_| idle(&daemon)).collect();
    daemon.terminate();
    assert!(idle.into_iter().all(|mut idle| idle.is_closed_by_server()));
    let body = Payload::new("in between").body();
    let mut client = asking(&daemon.ingress, &body);
    // The daemon is still there, delivering, and does not take it.
    assert_eq!(daemon.get("/livez").status, 200);
    assert_eq!(waiting(&socket), 1);
    daemon.terminate();
    assert_eq!(daemon.wait().count("accepted"), 16);
    assert_eq!(waiting(&socket), 1);
    setup.bring_the_broker_back();
    let daemon = setup.start();
    assert_eq!(client.answer().expect("the successor answers").status, 200);
    assert_eq!(daemon.wait_until_empty().count("published"), 17);
}

#[test]
fn serves_what_it_has_accepted_before_it_ends() {
    let socket = held();
    let daemon = passing(Setup::on_files().raw("ingress.threads", "1"), "ingress", &socket).start();
    let mut idle = idle(&daemon);
    let mut client = Client::connect(&daemon.ingress).unwrap();
    daemon.wait_until("both are accepted", LIMIT, |status| status.number("/connections/open") == 2);
    daemon.terminate();
    assert!(idle.is_closed_by_server());
    let body = Payload::new("on its way").body();
    let signature = sign(SECRET, &body);
    let answer = client.send("POST", PATH, &[("X-Authorization-HMAC-256", signature.as_str())], &body);
    assert_eq!(answer.expect("it is served").status, 200);
    assert!(client.is_closed_by_server(), "it was the last one");
    assert_eq!(daemon.wait().count("published"), 2);
}

#[test]
fn serves_what_it_has_accepted_over_the_limit_before_it_ends() {
    let socket = held();
    let setup = Setup::on_files().raw("ingress.threads", "1").raw("ingress.max_connections", "1");
    let daemon = passing(setup, "ingress", &socket).start();
    let mut idle = idle(&daemon);
    let mut over = asking(&daemon.ingress, &Payload::new("over the limit").body());
    wait_until("it is accepted", LIMIT, || waiting(&socket) == 0);
    daemon.terminate();
    assert_eq!(over.answer().expect("it is served").status, 200);
    assert!(idle.is_closed_by_server());
    assert_eq!(daemon.wait().count("published"), 2);
}

#[test]
fn refuses_and_loses_nothing_over_twenty_restarts_under_load() {
    let _one = heavy();
    let socket = held();
    let setup = Setup::on_files().text("ack", "journaled");
    let setup = passing(setup, "ingress", &socket);
    let mut daemon = setup.start();
    let load = Load { events: u64::MAX, connections: 4, keys: 16, rate: 400, apart: true, ..Load::default() };
    let running = load.start(&daemon.ingress);
    for restart in 0..20 {
        let enough = running.sent() + 20;
        wait_until("requests are answered", LIMIT, || running.sent() >= enough);
        let stopped = daemon.stop();
        assert_eq!(stopped.code, Some(0), "restart {restart}: {}", stopped.last);
        daemon = setup.start();
    }
    // A connection refused, closed or answered otherwise is not answered 200; nothing was sent twice.
    let sent = running.end().all_accepted();
    daemon.wait_until_empty();
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(setup.judge(&sent), 0, "repeats after orderly stops");
}

/// Checks that the unit starts the program, and each socket unit has a name that the program knows.
#[test]
fn knows_the_names_in_its_units() {
    let unit = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd").join(name);
        std::fs::read_to_string(path).expect("the unit is there")
    };
    let socket = unit("plextrac-bridge.socket");
    let value = |key: &str| socket.lines().find_map(|line| line.strip_prefix(key)).expect("it is set").to_owned();
    assert_eq!(value("FileDescriptorName="), "ingress");
    let default =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/default.toml")).unwrap();
    assert!(default.contains(&format!("listen = \"{}\"", value("ListenStream="))), "another port than the default");
    assert!(unit("plextrac-bridge.service").contains("\nType=notify\n"));
}
