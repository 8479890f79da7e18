//! Failpoints: named places where a test makes the disk fail or the process end. Compiled in only with the feature
//! `failpoints`, which no release has, and in unit tests.
//!
//! `PLEXTRAC_BRIDGE_FAILPOINTS="journal.sync=error@3,journal.write=kill"`: an error at the third pass of
//! `journal.sync`, an end without any clean-up at the first of `journal.write`. `full` is the error of a full disk,
//! `invalid` the error of a file system that does not support the call, `hang` never returns, and a duration (`12s`) is
//! how long the pass takes. `error@3+` applies to every pass from the third on. `journal.unreadable=8192` makes the
//! block with this byte of each segment unreadable, `journal.header=3` the header of the segment of this number.

#[cfg(test)]
use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

struct Point {
    name: String,
    action: String,
    at: u64,
    and_later: bool,
    passed: AtomicU64,
}

/// Whether failpoints can be set; without, nothing of the following is left in the program.
const CAN_BE_SET: bool = cfg!(any(test, feature = "failpoints"));

static POINTS: LazyLock<Vec<Point>> = LazyLock::new(|| {
    let text = std::env::var("PLEXTRAC_BRIDGE_FAILPOINTS").unwrap_or_default();
    text.split(',').filter_map(parse).collect()
});

#[cfg(test)]
thread_local! {
    /// The bytes or numbers that a unit test made unreadable for its own thread, each with its failpoint.
    static UNREADABLE: RefCell<Vec<(&'static str, u64)>> = const { RefCell::new(Vec::new()) };
    /// The failpoints that a unit test set for its own thread, with the error of each.
    static HERE: RefCell<Vec<(&'static str, io::ErrorKind)>> = const { RefCell::new(Vec::new()) };
}

fn parse(part: &str) -> Option<Point> {
    let (name, action) = part.split_once('=')?;
    let (action, at) = action.split_once('@').unwrap_or((action, "1"));
    let and_later = at.ends_with('+');
    let at = at.trim_end_matches('+').parse().ok()?;
    Some(Point { name: name.into(), action: action.into(), at, and_later, passed: AtomicU64::new(0) })
}

fn points(name: &str) -> impl Iterator<Item = &'static Point> {
    static WARNED: OnceLock<()> = OnceLock::new();
    let points = if CAN_BE_SET { &POINTS[..] } else { &[] };
    points.iter().filter(move |point| point.name == name).inspect(|_| {
        WARNED.get_or_init(|| tracing::warn!("failpoints are set: this is a test"));
    })
}

/// Makes these failpoints fail on this thread until they are set again.
#[cfg(test)]
pub(crate) fn set_here(points: &[(&'static str, io::ErrorKind)]) {
    HERE.with_borrow_mut(|here| *here = points.to_vec());
}

/// Makes these bytes or numbers of failpoints unreadable on this thread until they are set again.
#[cfg(test)]
pub(crate) fn set_unreadable_here(points: &[(&'static str, u64)]) {
    UNREADABLE.with_borrow_mut(|here| *here = points.to_vec());
}

/// The interval of a repeated action, unless a test overrides it: `reload.look=50ms`.
pub(crate) fn every(name: &str, usual: Duration) -> Duration {
    points(name).find_map(|point| humantime::parse_duration(&point.action).ok()).unwrap_or(usual)
}

/// The addresses of every name, where a test sets them: `dial.resolve=127.0.0.9+127.0.0.1`.
pub(crate) fn addresses(name: &str) -> Option<Vec<std::net::IpAddr>> {
    points(name).find_map(|point| point.action.split('+').map(|address| address.parse().ok()).collect())
}

/// Passes a failpoint.
///
/// # Errors
/// The error that the test set.
pub(crate) fn pass(name: &str) -> io::Result<()> {
    #[cfg(test)]
    if let Some(kind) =
        HERE.with_borrow(|here| here.iter().find(|(point, _)| *point == name).map(|(_, kind)| *kind))
    {
        return Err(kind.into());
    }
    for point in points(name) {
        let passed = point.passed.fetch_add(1, Ordering::Relaxed) + 1;
        if passed != point.at && !(point.and_later && passed > point.at) {
            continue;
        }
        match point.action.as_str() {
            "kill" => std::process::abort(),
            "hang" => loop {
                std::thread::park();
            },
            "full" => return Err(io::ErrorKind::StorageFull.into()),
            "invalid" => return Err(rustix::io::Errno::INVAL.into()),
            action => match humantime::parse_duration(action) {
                Ok(time) => std::thread::sleep(time),
                Err(_) => return Err(io::Error::other(format!("the failpoint {name}"))),
            },
        }
    }
    Ok(())
}

/// Passes a read of the bytes `from..to` of a file.
///
/// # Errors
/// EIO if the test made one of these bytes unreadable.
pub(crate) fn unreadable(name: &str, from: u64, to: u64) -> io::Result<()> {
    let is_hit = |point: &Point| point.action.parse().is_ok_and(|byte: u64| (from..to).contains(&byte));
    #[cfg(test)]
    if UNREADABLE.with_borrow(|here| here.iter().any(|(point, at)| *point == name && (from..to).contains(at))) {
        return Err(rustix::io::Errno::IO.into());
    }
    if points(name).any(is_hit) { Err(rustix::io::Errno::IO.into()) } else { Ok(()) }
}
