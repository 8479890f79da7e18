//! A name whose first address swallows every packet: a host that a firewall hides.

use std::net::{SocketAddr, TcpStream};
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

/// Connects to `localhost` where its first address answers nothing, and delivers.
fn connects_past_a_silent_address(table: &Table, port: u16) {
    let _silent = Silent::at(SocketAddr::from(([127, 0, 0, 9], port)));
    let setup = Setup::new(table).failpoints("dial.resolve=127.0.0.9+127.0.0.1");
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

fn nats(test: &str, over_tls: bool) {
    let port = ports(2);
    let broker = Broker::start(Kind::Nats, port, &[]);
    let name = unique(test);
    let scheme = if over_tls { "tls" } else { "nats" };
    let table = Table::new("nats")
        .raw("servers", json!([format!("{scheme}://localhost:{port}")]).to_string())
        .text("stream", &name)
        .text("subject", format!("{name}.{{event}}"));
    let table = if over_tls { table.text("ca_file", broker.fact("NATS_CA")) } else { table };
    connects_past_a_silent_address(&table, port);
}

#[test]
fn nats_connects_past_an_address_that_answers_nothing() {
    nats("nats_past_silent", false);
}

/// The certificate is for `localhost`, and has no address in it that is connected to.
#[test]
fn nats_checks_the_certificate_for_the_name_whatever_the_address() {
    nats("nats_past_silent_over_tls", true);
}

#[test]
fn rabbitmq_connects_past_an_address_that_answers_nothing() {
    let port = ports(4);
    let broker = Broker::start(Kind::Rabbitmq, port, &[]);
    let name = unique("rabbitmq_past_silent");
    let url = broker.fact("RABBITMQ_URL").replace("127.0.0.1", "localhost");
    let table = Table::new("rabbitmq").text("uri", url).text("exchange", &name).text("queue", &name);
    connects_past_a_silent_address(&table, port);
}
