//! Deadlines instead of sleeps, names no other test has, and the lock of the tests that load the machine.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::TcpListener;
use std::panic;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take that normally takes a moment: two cores may be busy with three brokers.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);

/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(20);

/// Looks until there is something to see; the panic names what never came.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        thread::sleep(LOOK);
    }
}

/// Looks until it is true.
pub(crate) fn wait_until(what: &str, limit: Duration, mut look: impl FnMut() -> bool) {
    wait_for(what, limit, || look().then_some(()));
}

/// A name that no other test of this run has, nor begins with: legal as topic, queue, stream and subject token.
pub(crate) fn unique(test: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // Addresses have limits, and templates make them longer.
    format!("{test:.40}-{number}x")
}

/// A port for one test alone, free a moment ago; below those of brokers, proxies and clients.
pub(super) fn port() -> u16 {
    static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..500 {
        let port = fastrand::u16(5_000..10_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && taken.insert(port) {
            return port;
        }
    }
    panic!("no free port found");
}

/// One heavy test at a time, so that a time-out means a defect and not a busy machine.
pub(crate) fn heavy() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on a panic is also told at once, between the lines of the tests, and not only at the end of a long run.
pub(super) fn tell_panics_at_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            usual(panic);
            let thread = thread::current();
            let name = thread.name().unwrap_or("a thread");
            // Written by itself: what `eprintln` writes is kept for the end. Who cannot write it has it there.
            let _ = writeln!(std::io::stderr(), "\n{name}: {panic}");
        }));
    });
}

/// Whether the long forms were asked for: `SUITE_LONG=1`.
pub(crate) fn long() -> bool {
    std::env::var_os("SUITE_LONG").is_some_and(|value| !value.is_empty())
}

/// Chances that can be had again: `SUITE_SEED` with the number that is printed.
pub(crate) fn random() -> fastrand::Rng {
    let asked = std::env::var("SUITE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = asked.unwrap_or_else(|| fastrand::u64(..));
    println!("SUITE_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// A file of the project's tests.
pub(super) fn test_file(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}
