//! Deadlines instead of sleeps, names no other test has, and the lock of the tests that load the machine.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::TcpListener;
use std::panic;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

/// The limit for anything that normally takes a moment: two cores may be busy with three brokers.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);

/// The interval between two checks of a condition.
const LOOK: Duration = Duration::from_millis(20);

/// Checks until there is a result; the panic names the missing one.
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

/// Checks until it is true.
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
    let mut taken = TAKEN.lock();
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
    ONE.lock()
}

/// Reports a panic at once, too, between the lines of the tests, and not only at the end of a long run.
pub(super) fn tell_panics_at_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            usual(panic);
            let thread = thread::current();
            let name = thread.name().unwrap_or("a thread");
            // Written directly, because output of `eprintln` is kept for the end. If this fails, it is reported there.
            let _ = writeln!(std::io::stderr(), "\n{name}: {panic}");
        }));
    });
}

/// Whether the long forms were asked for: `SUITE_LONG=1`.
pub(crate) fn long() -> bool {
    std::env::var_os("SUITE_LONG").is_some_and(|value| !value.is_empty())
}

/// Random numbers that can be repeated: `SUITE_SEED` with the number that is printed.
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
