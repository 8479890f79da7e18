//! What each stage of an event costs by itself: time by criterion, and allocations, counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use plextrac_bridge::bench::{MANY, Queue, Stage, stages};

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

fn each(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    for Stage(name, times, run) in stages(directory.path()) {
        measure(criterion, &name, times, run);
    }
}

fn queue(criterion: &mut Criterion) {
    let mut queue = Queue::default();
    let mut group = criterion.benchmark_group("stage");
    group.throughput(Throughput::Elements(MANY as u64));
    group.bench_function("enqueue, take and settle", |bencher| {
        // Two closures borrow the queue: the events of all runs are equal.
        let events = queue.events();
        bencher.iter_batched(|| events.clone(), |events| queue.run(events), BatchSize::LargeInput);
    });
    group.finish();
}

criterion_group!(benches, each, queue);
criterion_main!(benches);
