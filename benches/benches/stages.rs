//! What each stage of an event costs by itself: time by criterion, and allocations, counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use hmac::{Hmac, KeyInit as _, Mac as _};
use hyper::HeaderMap;
use plextrac_bridge::accounting::{Ledger, Limits, SourceBook};
use plextrac_bridge::brokers::{Broker, Encoding, HeaderStyle, Headers};
use plextrac_bridge::ingress::validate::{Trust, Valid, validate};
use plextrac_bridge::ingress::{NamedSecret, Validation, Verifier};
use plextrac_bridge::message::{Event, Labels, Origin};
use plextrac_bridge::queue::journal::{self, Place, Record};
use plextrac_bridge::queue::{Ack, Buffer, Mode, Settlement};
use plextrac_bridge::secret::Secret;
use plextrac_bridge::settings::{Flags, load_from};
use sha2::Sha256;

/// Counts what this thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[expect(unsafe_code, reason = "an allocator is unsafe by its nature; this one only counts")]
// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const SECRET: &str = "a secret of this benchmark alone";

/// So many requests or events, where one alone would be too fast to see.
const MANY: usize = 1000;

/// Measures `work`, which does `times` of something, and says how often one of them allocates.
fn measure<T>(criterion: &mut Criterion, name: &str, times: usize, mut work: impl FnMut() -> T) {
    drop(work());
    let before = ALLOCATIONS.get();
    let kept = black_box(work());
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let each = (ALLOCATIONS.get() - before) as f64 / times as f64;
    drop(kept);
    println!("{name}: {each:.2} allocations each");
    let mut group = criterion.benchmark_group("stage");
    group.throughput(Throughput::Elements(times as u64));
    group.bench_function(name, |bencher| bencher.iter(|| black_box(work())));
    group.finish();
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
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("HMAC takes keys of every length");
    mac.update(body);
    faster_hex::hex_string(&mac.finalize().into_bytes())
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
    let labels = Labels::new(&payload.fields(), &[7; 32]);
    let boxed = body.clone().into_boxed_slice();
    Box::new(Event::labelled(origin, boxed, labels, Instant::now()))
}

fn ingress(criterion: &mut Criterion) {
    let body = body(1);
    let mut headers = HeaderMap::new();
    headers.insert("x-authorization-hmac-256", signature(&body).parse().expect("hex is a legal value"));
    let verifier = Verifier::new(&[NamedSecret { id: "default".into(), secret: Secret::new(SECRET) }]);
    measure(criterion, "verify", 1, || verifier.verify(&headers, &body).expect("it is signed"));
    measure(criterion, "validate", 1, || match validate(&body, Validation::Lenient, Trust::Signed) {
        Ok(Valid::Event(payload)) => payload.fields().cuid.len(),
        _ => panic!("the payload is valid"),
    });
}

fn broker() -> Box<dyn Broker> {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = directory.path().join("bridge.toml");
    let text =
        format!("[sources.plextrac]\nsecret = \"{SECRET}\"\n[broker.kafka]\nbootstrap_servers = \"localhost:1\"\n");
    std::fs::write(&file, text).expect("it can be written");
    let flags = Flags { config: Some(file), ..Flags::default() };
    let (settings, _) = load_from(&flags, Vec::new(), None).expect("the settings are sound");
    settings.broker.broker(&settings.terms())
}

fn address(criterion: &mut Criterion) {
    let (mut broker, event) = (broker(), event(1));
    measure(criterion, "address and key", 1, || broker.address(&event).expect("it has one"));
    let headers = Headers::new(HeaderStyle::CloudEvents, "ce_", "content-type", Encoding::Plain);
    measure(criterion, "headers", 1, || {
        let mut bytes = 0;
        headers.each(&event, |name, value| bytes += name.len() + value.len());
        bytes
    });
}

fn queue(criterion: &mut Criterion) {
    let mode = Mode { ack: Ack::Buffered, timeout: Duration::from_secs(4) };
    let ledger = Ledger::new(vec![SourceBook::new("plextrac".into(), [])]);
    let buffer = Buffer::new(mode, Limits { events: 2 * MANY, bytes: 64 << 20 }, ledger);
    let pair = buffer.add_pair("ReportPublished", "report");
    let (home, events) = (Arc::default(), (0..MANY).map(event).collect::<Vec<_>>());
    let mut taken = VecDeque::with_capacity(MANY);
    let mut settlement = Settlement::default();
    let mut group = criterion.benchmark_group("stage");
    group.throughput(Throughput::Elements(MANY as u64));
    group.bench_function("enqueue, take and settle", |bencher| {
        bencher.iter_batched(
            || events.clone(),
            |events| {
                for event in events {
                    buffer.enqueue(0, None, event, &home).expect("there is room");
                }
                buffer.take(MANY, &mut taken);
                for event in taken.drain(..) {
                    settlement.published.push(pair);
                    settlement.release(&event);
                }
                buffer.settle(&settlement, None);
                settlement.clear();
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

/// Groups as the journal's writer makes them: one write and one sync for each.
fn append(criterion: &mut Criterion) {
    for group in [1, 64] {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let mut writing = Writing::new(directory.path());
        let events: Vec<_> = (0..group).map(event).collect();
        measure(criterion, &format!("journal: a group of {group}"), group, || writing.commit(&events));
    }
}

struct Writing {
    layout: journal::Layout,
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

criterion_group!(stages, ingress, address, queue, append);
criterion_main!(stages);
