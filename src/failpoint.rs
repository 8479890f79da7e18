//! Failpoints: named places where a test makes the disk fail or the process die. Compiled in only with the feature
//! `failpoints`, which no release has.
//!
//! `PLEXTRAC_BRIDGE_FAILPOINTS="journal.sync=error@3,journal.write=kill"`: at the third pass of `journal.sync` an
//! error, at the first of `journal.write` an end without any clean-up. `full` is the error of a full disk, `hang`
//! ends neither way. `error@3+` is every pass from the third on.

use std::io;
use std::time::Duration;

/// How often something is done, unless a test says otherwise: `reload.look=50ms`.
#[cfg(not(feature = "failpoints"))]
#[inline]
#[must_use]
pub fn every(_name: &str, usual: Duration) -> Duration {
    usual
}

/// How often something is done, unless a test says otherwise: `reload.look=50ms`.
#[cfg(feature = "failpoints")]
#[must_use]
pub fn every(name: &str, usual: Duration) -> Duration {
    let text = std::env::var("PLEXTRAC_BRIDGE_FAILPOINTS").unwrap_or_default();
    let mut points = text.split(',').filter_map(|part| part.split_once('='));
    let given = points.find(|(point, _)| *point == name);
    given.and_then(|(_, time)| humantime::parse_duration(time).ok()).unwrap_or(usual)
}

/// Passes a failpoint.
///
/// # Errors
/// The one that the test asked for.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn pass(_name: &str) -> io::Result<()> {
    Ok(())
}

/// Passes a failpoint.
///
/// # Errors
/// The one that the test asked for.
#[cfg(feature = "failpoints")]
pub fn pass(name: &str) -> io::Result<()> {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{LazyLock, OnceLock};

    struct Point {
        name: String,
        action: String,
        at: u64,
        and_later: bool,
        passed: AtomicU64,
    }
    static POINTS: LazyLock<Vec<Point>> = LazyLock::new(|| {
        let text = std::env::var("PLEXTRAC_BRIDGE_FAILPOINTS").unwrap_or_default();
        let parse = |part: &str| {
            let (name, action) = part.split_once('=')?;
            let (action, at) = action.split_once('@').unwrap_or((action, "1"));
            let and_later = at.ends_with('+');
            let at = at.trim_end_matches('+').parse().ok()?;
            Some(Point { name: name.into(), action: action.into(), at, and_later, passed: AtomicU64::new(0) })
        };
        text.split(',').filter_map(parse).collect()
    });
    static WARNED: OnceLock<()> = OnceLock::new();
    for point in POINTS.iter().filter(|point| point.name == name) {
        WARNED.get_or_init(|| tracing::warn!("failpoints are set: this is a test"));
        let passed = point.passed.fetch_add(1, Ordering::Relaxed) + 1;
        if passed != point.at && !(point.and_later && passed > point.at) {
            continue;
        }
        match point.action.as_str() {
            "kill" => std::process::abort(),
            "hang" => loop {
                std::thread::park();
            },
            "full" => return Err(io::Error::from(io::ErrorKind::StorageFull)),
            _ => return Err(io::Error::other(format!("the failpoint {name}"))),
        }
    }
    Ok(())
}
