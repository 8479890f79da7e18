//! The JSON of letters, requests and progress: objects with the version of their format.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The version of a line.
const VERSION: u64 = 1;

#[derive(Serialize)]
struct Versioned<'c, T> {
    #[serde(flatten)]
    content: &'c T,
    version: u64,
}

/// Writes a value as an object; the version is its last field.
pub(super) fn encode<T: Serialize>(content: &T) -> String {
    serde_json::to_string(&Versioned { content, version: VERSION }).expect("texts and numbers can be written")
}

/// Reads what [`encode`] wrote, or says why it cannot. A field that is `null` is absent.
pub(super) fn decode<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    let mut fields: Map<String, Value> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    match fields.remove("version").as_ref().and_then(Value::as_u64) {
        Some(VERSION) => {}
        Some(version) if version > VERSION => {
            return Err(format!(
                "written in version {version} of the format, this program reads up to {VERSION}; use the newer \
                 plextrac-bridge"
            ));
        }
        _ => return Err("no `version`".to_owned()),
    }
    fields.retain(|_, value| !value.is_null());
    serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())
}

/// A point in time, as a text; to the nanosecond where it has more than milliseconds: equal events of one source are told
/// apart by nothing else.
pub(super) mod rfc3339 {
    use std::time::{Duration, SystemTime};

    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        // Its text ends with the year 9999; a clock beyond that is wrong anyway.
        let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
        let time = (*time).clamp(SystemTime::UNIX_EPOCH, last);
        let nanos = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
        if nanos.is_multiple_of(1_000_000) {
            to.collect_str(&humantime::format_rfc3339_millis(time))
        } else {
            to.collect_str(&humantime::format_rfc3339_nanos(time))
        }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_rfc3339(&text).map_err(|error| D::Error::custom(format_args!("{text:?}: {error}")))
    }
}

/// A point in time that may be absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Timestamp(#[serde(with = "rfc3339")] pub(crate) std::time::SystemTime);
