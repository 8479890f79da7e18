//! A name whose first address swallows every packet: a host that a firewall hides.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::support::{Broker, Kind, LIMIT, Payload, Setup, Table, ports, request_once, said, unique};

/// The time within which a name with such an address is connected.
const WITHIN: Duration = Duration::from_secs(3);

/// Connections that fill the queue of a listener that accepts none, so that the kernel drops what else arrives.
struct Silent {
    _listener: Socket,
    _waiting: Vec<Socket>,
}

impl Silent {
    fn at(address: SocketAddr) -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket can be made");
        listener.bind(&address.into()).expect("the port is free at this address");
        listener.listen(0).expect("it can listen");
        let waiting = (0..4).map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket can be made");
            socket.set_nonblocking(true).expect("a socket can wait for nothing");
            // In progress, for ever.
            let _ = socket.connect(&address.into());
            socket
        });
        let waiting = waiting.collect();
        let silent = Self { _listener: listener, _waiting: waiting };
        let refused = TcpStream::connect_timeout(&address, Duration::from_millis(300));
        assert!(refused.is_err(), "{address} answers");
        silent
    }
}

/// Forwards each connection that is taken to this port of loopback.
pub(super) fn relay(listener: TcpListener, target: u16, takes: fn(&TcpStream) -> bool) {
    let forward = move |mut client: TcpStream| -> io::Result<()> {
        if !takes(&client) {
            return Ok(());
        }
        let mut server = TcpStream::connect(("127.0.0.1", target))?;
        let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            to.shutdown(Shutdown::Both)
        });
        io::copy(&mut client, &mut server)?;
        server.shutdown(Shutdown::Both)
    };
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(move || forward(client));
        }
    });
}

/// Connects to `localhost` where the first of its addresses answers nothing and this is the other one, and delivers.
fn connects_past_a_silent_address(table: &Table, other: SocketAddr) {
    let _silent = Silent::at(SocketAddr::from(([127, 0, 0, 9], other.port())));
    let setup = Setup::new(table).failpoints(&format!("dial.resolve=127.0.0.9+{}", other.ip()));
    let daemon = setup.start();
    let started = Instant::now();
    daemon.wait_until("it connects", LIMIT, |status| status.text("/broker/state") == "connected");
    let took = started.elapsed();
    assert!(took < WITHIN, "connected after {took:?}: {}", daemon.log());
    assert_eq!(request_once(&daemon, &Payload::new("cuid-1").body(), &[]).status, 200);
    let status = daemon.wait_until_empty();
    assert_eq!(status.count("published"), 1);
    let checked = setup.run(&["check", "--connect"]);
    assert_eq!(checked.status.code(), Some(0), "{}", said(&checked));
}

fn nats(test: &str, url: &str) -> Table {
    let name = unique(test);
    Table::new("nats")
        .raw("servers", json!([url]).to_string())
        .text("stream", &name)
        .text("subject", format!("{name}.{{event}}"))
}

#[test]
fn nats_connects_past_an_address_that_answers_nothing() {
    let port = ports(2);
    let _broker = Broker::start(Kind::Nats, port, &[]);
    let table = nats("nats_past_silent", &format!("nats://localhost:{port}"));
    connects_past_a_silent_address(&table, SocketAddr::from(([127, 0, 0, 1], port)));
}

/// The certificate is for `localhost`, and has no address in it that is connected to. What the client library resolves by
/// itself, 127.0.0.1, does not listen.
#[test]
fn nats_checks_the_certificate_for_the_name_whatever_the_address() {
    let target = ports(2);
    let broker = Broker::start(Kind::Nats, target, &[]);
    let address = SocketAddr::from(([127, 0, 0, 8], ports(1)));
    relay(TcpListener::bind(address).expect("the port is free at this address"), target, |_| true);
    let table = nats("nats_past_silent_over_tls", &format!("tls://localhost:{}", address.port()));
    connects_past_a_silent_address(&table.text("ca_file", broker.fact("NATS_CA")), address);
}

#[test]
fn rabbitmq_connects_past_an_address_that_answers_nothing() {
    let port = ports(4);
    let broker = Broker::start(Kind::Rabbitmq, port, &[]);
    let name = unique("rabbitmq_past_silent");
    let url = broker.fact("RABBITMQ_URL").replace("127.0.0.1", "localhost");
    let table = Table::new("rabbitmq").text("uri", url).text("exchange", &name).text("queue", &name);
    connects_past_a_silent_address(&table, SocketAddr::from(([127, 0, 0, 1], port)));
}
