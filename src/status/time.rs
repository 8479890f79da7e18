//! Times of the wall clock as numbers, the same in `/metrics` and `/status`.

use std::time::SystemTime;

use serde::Serializer;

/// A wall-clock time as Prometheus writes it; 0 for none.
pub(crate) fn unix_seconds(time: impl Into<Option<SystemTime>>) -> f64 {
    time.into()
        .and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok())
        .map_or(0.0, |since| since.as_secs_f64())
}

/// Writes a time so in JSON.
pub(crate) fn timestamp<S: Serializer>(
    time: &(impl Into<Option<SystemTime>> + Copy),
    to: S,
) -> Result<S::Ok, S::Error> {
    to.serialize_f64(unix_seconds(*time))
}
