//! The embedded file broker in the conformance suite.

use std::fs;

use super::rig::{Binding, Rig};
use crate::support::{Delivered, LIMIT, Payload, Setup, Table, assert_books_balance, files, request_once};

conform! { File:
    delivery {
        delivers_bodies_and_headers_unchanged
        delivers_whatever_a_genuine_payload_holds
        delivers_every_size_up_to_the_limit
        renders_addresses_and_keys_from_templates_and_routes
        keeps_the_order_of_every_key_over_10_000_events
        gives_a_repeated_request_the_same_id
        delivers_every_cuid
        delivers_equal_events_without_a_cuid_each
        sends_no_headers_when_told_so
        sends_elsewhere_after_a_reload_under_load
    }
    end {
        delivers_everything_before_it_ends_under_load
    }
}

struct File {
    directory: tempfile::TempDir,
}

impl Rig for File {
    const BINDING: Binding = Binding { prefix: "ce_", percent: false, also_content_type: None, own: &[] };

    fn new(_test: &str) -> Self {
        Self { directory: tempfile::tempdir().expect("a temporary directory can be made") }
    }

    fn table(&self) -> Table {
        Table::new("file").text("directory", self.directory.path().display().to_string()).text("name", "all")
    }

    fn templates(&self) -> Table {
        self.table()
            .text("name", "{event}.{targetType}.{source}")
            .route(&[("event", "Routed"), ("name", "special")])
    }

    fn rendered(&self, event: &str, target_type: &str, _payload: &Payload) -> (String, String) {
        (format!("{event}.{target_type}.plextrac"), String::new())
    }

    fn routed(&self, _payload: &Payload) -> (String, String) {
        ("special".to_owned(), String::new())
    }

    fn read(&self, _at_least: u64) -> Vec<Delivered> {
        files::read(self.directory.path())
    }
}

#[test]
fn a_file_that_cannot_be_written_parks_its_address_alone() {
    let setup = Setup::on_files();
    let obstacle = setup.directory().join("events/Stuck.report.ndjson");
    fs::create_dir_all(&obstacle).expect("the temporary directory can be written");
    let daemon = setup.start();
    for (number, event) in (0..).zip(["First", "Stuck", "Last"].repeat(3)) {
        let payload = Payload { event: event.to_owned(), ..Payload::new(format!("cuid-{number}")) };
        assert_eq!(request_once(&daemon, &payload.body(), &[]).status, 200);
    }
    let status = daemon.wait_until("the others flow, and what waits is shown", LIMIT, |status| {
        status.count("published") == 6 && status.0.pointer("/broker/waiting/0").is_some()
    });
    assert!(status.text("/broker/waiting/0/reason").contains("Is a directory"), "{}", status.0["broker"]);
    assert_books_balance(&status);
    fs::remove_dir(&obstacle).expect("it is empty");
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.count("lost"), status.count("dead_lettered")), (9, 0, 0));
    let mut addresses: Vec<String> = setup.delivered().into_iter().map(|delivered| delivered.address).collect();
    addresses.sort();
    let each_once = ["First.report", "Last.report", "Stuck.report"].map(|address| vec![address; 3]).concat();
    assert_eq!(addresses, each_once);
    assert_eq!(daemon.stop().code, Some(0));
}
