//! The journal's limit, which is kept to the byte, and the buffer's, which does not matter in this mode.

use crate::support::{LIMIT, Load, Note, Setup, wait_until};

const CAPACITY: u64 = 4 << 20;

/// Settings with four segments, which some hundred events fill, and long time-outs for a busy disk.
fn small_journal() -> Setup {
    Setup::on_missing_files()
        .text("ack", "journaled")
        .text("journal.max_bytes", &format!("{CAPACITY}B"))
        .text("publish.timeout", "60s")
}

fn large(events: u64) -> Load {
    Load { events, connections: 32, keys: 64, text: "x".repeat(8_000), ..Load::default() }
}

fn size(setup: &Setup) -> u64 {
    setup.segments().iter().map(|(_, size)| size).sum()
}

#[test]
fn answers_503_when_the_journal_is_full_and_passes_its_limit_by_no_byte() {
    let setup = small_journal();
    let daemon = setup.start();
    let running = large(1_000).start(&daemon.ingress);
    wait_until("the end of the load", LIMIT, || {
        assert!(size(&setup) <= CAPACITY, "{:?}", setup.segments());
        running.is_over()
    });
    let sent = running.end();
    let refused = sent.refused(503) as u64;
    assert_eq!(sent.accepted() + refused, 1_000);
    // Nothing of the limit may be left unused but the end of each segment and what is kept for the stop.
    assert!(sent.accepted() > 100 && refused > 400, "{} accepted", sent.accepted());
    let seconds = |note: &Note| note.retry_after.as_ref().and_then(|text| text.parse::<u32>().ok());
    for note in sent.0.iter().filter(|note| !note.accepted()) {
        assert!(seconds(note) > Some(0), "Retry-After {:?}", note.retry_after);
    }
    assert_eq!(daemon.metric("events_rejected_total", &[("reason", "buffer_full")]), refused);
    let ready = daemon.get("/readyz");
    assert!(ready.status == 503 && ready.text().contains("journal"), "{}", ready.text());
    assert_eq!(daemon.get("/livez").status, 200, "a full journal is no reason to be restarted");
    let status = daemon.status();
    assert_eq!((status.count("held"), status.number("/journal/events")), (sent.accepted(), sent.accepted()));
    assert_eq!(status.number("/journal/capacity_bytes"), CAPACITY);
    assert!(status.number("/journal/bytes") <= CAPACITY, "{}", status.0["journal"]);
    setup.bring_the_broker_back();
    daemon.wait_until_empty();
    wait_until("it is ready again", LIMIT, || daemon.get("/readyz").status == 200);
    // Again and again: delivered events make room.
    let after = Load { again: true, ..large(1_000) }.send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until_empty();
    assert!(size(&setup) <= CAPACITY, "{:?}", setup.segments());
    assert_eq!((status.number("/journal/events"), status.count("lost")), (0, 0));
    assert_eq!(setup.judge(&sent.and(after)), 0, "repeats although nothing went wrong");
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn starts_with_a_full_journal_and_delivers_it() {
    let setup = small_journal();
    let daemon = setup.start();
    let sent = large(1_000).send(&daemon.ingress);
    assert!(sent.refused(503) > 0, "the journal is not full");
    daemon.kill();
    let daemon = setup.start();
    let status = daemon.status();
    assert_eq!((status.count("recovered"), status.count("held")), (sent.accepted(), sent.accepted()));
    assert!(size(&setup) <= CAPACITY, "{:?}", setup.segments());
    let more = large(300).send(&daemon.ingress);
    assert!(more.refused(503) > 0, "there cannot be room for all of these");
    setup.bring_the_broker_back();
    daemon.wait_until_empty();
    assert_eq!(setup.judge(&sent.and(more)), 0, "repeats although nothing was sent before");
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn refuses_nothing_for_a_full_buffer_and_keeps_its_memory_bounded() {
    const EVENTS: u64 = 2_000;
    let setup = Setup::on_missing_files()
        .text("ack", "journaled")
        .text("journal.max_bytes", "256MiB")
        .text("journal.segment_bytes", "16MiB")
        .text("publish.timeout", "60s")
        .raw("buffer.max_events", "100")
        .text("buffer.max_bytes", "1MiB");
    let daemon = setup.start();
    let before = {
        large(200).send(&daemon.ingress).all_accepted();
        daemon.resident()
    };
    let sent = large(EVENTS).send(&daemon.ingress).all_accepted();
    let status = daemon.status();
    assert_eq!(status.count("held"), EVENTS + 200);
    assert!(status.number("/buffer/events") <= 100, "{}", status.0["buffer"]);
    assert_eq!(daemon.get("/readyz").status, 200, "events can still be accepted");
    // 16 MB of bodies went through.
    let grown = daemon.resident().saturating_sub(before);
    assert!(grown < 8 << 20, "{} MiB more than before", grown >> 20);
    setup.bring_the_broker_back();
    let status = daemon.wait_until_empty();
    assert_eq!(status.count("published"), EVENTS + 200);
    let delivered = setup.delivered();
    let ours: Vec<_> =
        delivered.iter().filter(|message| sent.0.iter().any(|note| note.id == message.id)).cloned().collect();
    let oracle = crate::support::Oracle { sent: &sent, delivered: &ours, dead: &[], out_of_order: 0 };
    assert_eq!(oracle.judge(), 0, "repeats although nothing went wrong");
    assert_eq!(daemon.stop().code, Some(0));
}
