//! The stages of an event, prepared for being measured one by one. Compiled into the library, where all other modules are private.

#![expect(clippy::vec_box, reason = "the queue hands events over as boxes")]

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hyper::HeaderMap;

use crate::app::load_from;
use crate::brokers::{Encoding, HeaderStyle, Headers, Router};
use crate::event::{Event, Labels, Origin};
use crate::ingress::validate::{Trust, Valid, validate};
use crate::ingress::{Validation, Verifier, sign};
use crate::queue::journal::{self, Place, Record};
use crate::queue::{Ack, Buffer, EventEnd, Mode, Settlement};
use crate::settings::{Flags, Layers, Secret};
use crate::status::{Ledger, Limits, SourceBook};

const SECRET: &str = "a secret of this benchmark alone";

/// The number of events of a stage where one alone would be too fast to see.
pub const MANY: usize = 1000;

/// One stage: its name, the number of events of each run, and the run.
pub struct Stage(pub String, pub usize, pub Box<dyn FnMut()>);

/// The stages of ingress and brokers, and the journal's groups as its writer makes them, each with one write and one sync.
#[must_use]
pub fn stages(directory: &Path) -> Vec<Stage> {
    let mut all = ingress();
    all.extend(address(directory));
    all.extend([1, 64].map(|group| append(&directory.join(group.to_string()), group)));
    all
}

fn stage<T>(name: &str, mut run: impl FnMut() -> T + 'static) -> Stage {
    Stage(name.to_owned(), 1, Box::new(move || drop(std::hint::black_box(run()))))
}

fn body(number: usize) -> Vec<u8> {
    let text = ".".repeat(120);
    format!(
        "{{\"cuid\":\"cm{number:022}\",\"actorCuid\":\"cmactor000000000000000001\",\"event\":\"ReportPublished\",\
         \"targetCuid\":\"cmtarget{number:017}\",\"targetType\":\"report\",\"clientId\":7,\"text\":\"{text}\"}}"
    )
    .into_bytes()
}

fn signature(body: &[u8]) -> String {
    sign(&Secret::new(SECRET), body)
}

fn event(number: usize) -> Box<Event> {
    let body = body(number);
    let hex: [u8; 64] = signature(&body).as_bytes().try_into().expect("64 digits");
    let origin = Origin {
        source: "plextrac".into(),
        signature: Some(hex),
        verified: true,
        traceparent: None,
        received: SystemTime::now(),
    };
    let Ok(Valid::Event(payload)) = validate(&body, Validation::Lenient, Trust::Signed) else {
        panic!("the payload is valid")
    };
    let labels = Labels::new(&payload, &[7; 32]);
    let boxed = body.clone().into_boxed_slice();
    Box::new(Event::labelled(origin, boxed, labels, Instant::now()))
}

fn ingress() -> Vec<Stage> {
    let body: &'static [u8] = body(1).leak();
    let mut headers = HeaderMap::new();
    headers.insert("x-authorization-hmac-256", signature(body).parse().expect("hex is a legal value"));
    let verifier = Verifier::new(Trust::Signed, &[Secret::new(SECRET)]);
    vec![
        stage("verify", move || verifier.verify(&headers, body).expect("it is signed")),
        stage("validate", || match validate(body, Validation::Lenient, Trust::Signed) {
            Ok(Valid::Event(payload)) => payload.cuid.len(),
            _ => panic!("the payload is valid"),
        }),
    ]
}

fn router(directory: &Path) -> Router {
    let file = directory.join("bridge.toml");
    let text =
        format!("[sources.plextrac]\nsecret = \"{SECRET}\"\n[broker.kafka]\nbootstrap_servers = \"localhost:1\"\n");
    std::fs::write(&file, text).expect("it can be written");
    let flags = Flags { config: Some(file), ..Flags::default() };
    let (settings, _) = Layers::read(&flags, Vec::new())
        .and_then(|layers| load_from(layers, None))
        .expect("the settings are sound");
    settings.broker.router.clone()
}

fn address(directory: &Path) -> [Stage; 2] {
    let (mut router, first, sent) = (router(directory), event(1), event(1));
    let headers = Headers::new(HeaderStyle::CloudEvents, "ce_", "content-type", Encoding::Plain);
    [
        stage("address and key", move || router.route(&first, || 0).expect("it has one")),
        stage("headers", move || {
            let mut bytes = 0;
            headers.each(&sent, |name, value| bytes += name.len() + value.len());
            bytes
        }),
    ]
}

/// The queue in memory: enqueue, take and settle [`MANY`] events.
pub struct Queue {
    buffer: Buffer,
    pair: u16,
    events: Vec<Box<Event>>,
    taken: VecDeque<Box<Event>>,
    settlement: Settlement,
}

/// The events of one run.
#[derive(Clone)]
pub struct QueueEvents(Vec<Box<Event>>);

impl Default for Queue {
    fn default() -> Self {
        let mode = Mode { ack: Ack::Buffered, timeout: Duration::from_secs(4) };
        let ledger = Ledger::new(vec![SourceBook::new("plextrac".into(), [])]);
        let buffer = Buffer::new(mode, Limits { events: 2 * MANY, bytes: 64 << 20 }, ledger);
        let pair = buffer.add_pair("ReportPublished", "report");
        let events = (0..MANY).map(event).collect();
        Self { buffer, pair, events, taken: VecDeque::with_capacity(MANY), settlement: Settlement::default() }
    }
}

impl Queue {
    /// The events of a run.
    #[must_use]
    pub fn events(&self) -> QueueEvents {
        QueueEvents(self.events.clone())
    }

    /// Enqueues, takes and settles them.
    ///
    /// # Panics
    /// Never: there is room for all.
    pub fn run(&mut self, events: QueueEvents) {
        for event in events.0 {
            self.buffer.enqueue(0, None, event, &Arc::default()).expect("there is room");
        }
        self.buffer.take(MANY, &mut self.taken);
        for event in self.taken.drain(..) {
            self.settlement.add(&event, EventEnd::Published(self.pair));
        }
        self.buffer.settle(&self.settlement, None);
        self.settlement.clear();
    }
}

fn append(directory: &Path, group: usize) -> Stage {
    let mut writing = Writing::new(directory);
    let events: Vec<_> = (0..group).map(event).collect();
    Stage(format!("journal: a group of {group}"), group, Box::new(move || writing.commit(&events)))
}

struct Writing {
    layout: journal::SegmentAllocator,
    writer: journal::Writer,
}

impl Writing {
    fn new(directory: &Path) -> Self {
        let settings = journal::Settings { max_bytes: 64 << 20, segment_bytes: 16 << 20 };
        let opened = journal::open(directory, &settings).expect("the journal can be made");
        Self { layout: opened.layout, writer: opened.writer }
    }

    fn commit(&mut self, events: &[Box<Event>]) {
        let mut run: Vec<(Place, Record<'_>)> = Vec::with_capacity(events.len());
        for event in events {
            let record = Record::of(event);
            let place = self.layout.reserve(record.length()).expect("there is room");
            run.push((place, record));
        }
        let next = self.layout.next();
        self.writer.commit(&run, next).expect("the disk takes it");
        let surplus = self.layout.release(next);
        self.writer.delete(&surplus);
    }
}
