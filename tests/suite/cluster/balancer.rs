//! A balancer in front of a cluster: each new connection goes to the next node that accepts it.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;

use crate::support::Node;

#[derive(Debug)]
struct Shared {
    targets: Vec<u16>,
    /// The node of the latest connection.
    behind: Mutex<Option<Node>>,
    ended: Mutex<bool>,
}

/// The balancer; it takes no more connections when dropped.
#[derive(Debug)]
pub(super) struct Balancer {
    port: u16,
    shared: Arc<Shared>,
}

impl Balancer {
    /// Listens below the ephemeral range and forwards to these ports of loopback, of node 1, 2 and 3.
    pub(super) fn to(targets: Vec<u16>) -> Self {
        let listener = (0..500)
            .find_map(|_| TcpListener::bind(("127.0.0.1", fastrand::u16(10_000..20_000))).ok())
            .expect("there is a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let shared = Arc::new(Shared { targets, behind: Mutex::new(None), ended: Mutex::new(false) });
        thread::spawn({
            let shared = shared.clone();
            move || shared.accept(&listener)
        });
        Self { port, shared }
    }

    /// The port it listens on.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The node of the latest connection.
    pub(super) fn behind(&self) -> Option<Node> {
        *self.shared.behind.lock()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        *self.shared.ended.lock() = true;
        // Wakes the thread that accepts; one that has ended needs none.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn accept(&self, listener: &TcpListener) {
        let mut turn = 0;
        for client in listener.incoming() {
            if *self.ended.lock() {
                return;
            }
            let Ok(client) = client else { continue };
            let nodes = (0..self.targets.len()).map(|step| (turn + step) % self.targets.len());
            let connect = |node: usize| Some((node, TcpStream::connect(("127.0.0.1", self.targets[node])).ok()?));
            // Without a node the client sees its connection end.
            let Some((node, server)) = nodes.into_iter().find_map(connect) else { continue };
            turn = node + 1;
            *self.behind.lock() = Some(node + 1);
            // One that ended at once needs no forwarding.
            let _ = forward(&client, &server);
        }
    }
}

fn forward(client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    for (mut from, mut to) in
        [(client.try_clone()?, server.try_clone()?), (server.try_clone()?, client.try_clone()?)]
    {
        thread::spawn(move || {
            // However it ends, it ends in both directions.
            let _ = io::copy(&mut from, &mut to);
            for end in [&from, &to] {
                let _ = end.shutdown(Shutdown::Both);
            }
        });
    }
    Ok(())
}
