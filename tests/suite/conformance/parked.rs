//! An address that takes nothing, and more events for it than the buffer holds: the others flow, also over a kill and a
//! stop, and in the end all of it arrives in order.

use serde_json::Value;

use super::rig::Rig;
use crate::support::{Daemon, LIMIT, Load, Oracle, Sent, Setup, Status, Table, assert_books_balance};

/// For the address that takes nothing: of about 2.7 KiB each, four times what the buffer holds.
const WAITING: u64 = 1_500;

/// For others, each time.
const OTHERS: u64 = 200;

/// Sends events to others, and waits until no more is held than what waits.
fn others_flow(daemon: &Daemon, series: &str) -> Sent {
    let load = Load { events: OTHERS, series: Some((series.to_owned(), 0)), ..Load::default() };
    let sent = load.send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until("the others flow", LIMIT, |status| status.count("held") <= WAITING);
    assert_books_balance(&status);
    let bytes = status.number("/buffer/bytes");
    assert!(bytes < 3 << 19, "{bytes} bytes in the buffer");
    sent
}

/// Runs it on a broker with these settings, by which the events `Trapped` go to the address that takes nothing, or hardly
/// any, until it is relieved.
pub(super) fn stops_nobody(rig: &impl Rig, table: &Table, relieve: impl FnOnce()) {
    let setup = Setup::new(table).text("ack", "journaled").text("publish.refuse_after", "0s");
    let setup = setup.text("ingress.max_body", "16KiB").text("buffer.max_bytes", "1MiB");
    let daemon = setup.start();
    let every = Some((1, "Trapped", "x".repeat(2_000)));
    let series = Some(("waits".to_owned(), 0));
    let load = Load { events: WAITING, connections: 1, keys: 1, every, series, ..Load::default() };
    let waiting = load.send(&daemon.ingress).all_accepted();
    let first = others_flow(&daemon, "first");
    daemon.kill();
    let daemon = setup.start();
    let second = others_flow(&daemon, "second");
    let stopped = daemon.stop();
    assert_eq!((stopped.code, stopped.count("lost")), (Some(0), 0));
    let daemon = setup.start();
    let recovered = daemon.status().count("recovered");
    assert_eq!(recovered, stopped.count("held"), "what was settled between them is not sent again");
    let third = others_flow(&daemon, "third");
    let shown = |status: &Status| status.0.pointer("/broker/waiting/0/events").and_then(Value::as_u64);
    let is_shown = |status: &Status| shown(status).is_some_and(|events| events > WAITING / 2);
    daemon.wait_until("all that waits is shown", LIMIT, is_shown);
    relieve();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("lost"), status.count("dead_lettered"), status.number("/buffer/bytes")), (0, 0, 0));
    let sent = waiting.and(first).and(second).and(third);
    let delivered = rig.read(sent.accepted());
    Oracle { sent: &sent, delivered: &delivered, dead: &[], out_of_order: 0 }.judge();
}
