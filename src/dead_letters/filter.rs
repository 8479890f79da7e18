//! Which letters are meant: by reason, event, id and age. What is not asked for matches everything.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::dead_letters::Letter;

/// The range of ages of a letter, by the time when it was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Age {
    /// At least so old.
    pub(crate) older_than: Option<Duration>,
    /// Younger than this.
    pub(crate) newer_than: Option<Duration>,
}

/// A choice of letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// One of these reasons; empty: any.
    pub(crate) reasons: Vec<String>,
    /// One of these events; empty: any.
    pub(crate) events: Vec<String>,
    /// One of these ids; empty: any.
    pub(crate) ids: Vec<String>,
    /// Fingerprint at this time or before.
    pub(crate) until: Option<SystemTime>,
    /// Fingerprint after this time.
    pub(crate) since: Option<SystemTime>,
}

impl Filter {
    /// Fixes the ages as of now: a request that waits must not choose other letters later.
    #[must_use]
    pub(crate) fn aged(mut self, age: Age, now: SystemTime) -> Self {
        let ago = |age: Duration| now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        self.until = age.older_than.map(ago);
        self.since = age.newer_than.map(ago);
        self
    }

    /// Whether it chooses everything.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a letter is meant.
    #[must_use]
    pub(crate) fn matches(&self, letter: &Letter) -> bool {
        let among = |list: &[String], text: &str| list.is_empty() || list.iter().any(|one| one == text);
        among(&self.reasons, &letter.reason)
            && among(&self.events, &letter.event)
            && among(&self.ids, &letter.id)
            && self.until.is_none_or(|until| letter.time <= until)
            && self.since.is_none_or(|since| letter.time > since)
    }

    pub(super) fn json(&self) -> Value {
        let time = |time: Option<SystemTime>| time.map(|time| humantime::format_rfc3339_millis(time).to_string());
        json!({
            "reasons": self.reasons, "events": self.events, "ids": self.ids,
            "until": time(self.until), "since": time(self.since),
        })
    }

    /// Reads what [`Self::json`] wrote. An unknown field is refused: it would choose fewer letters.
    pub(super) fn parse(value: &Value) -> Result<Self, String> {
        let fields = value.as_object().ok_or("`filter` is no object")?;
        let mut filter = Self::default();
        for (name, value) in fields {
            match name.as_str() {
                "reasons" => filter.reasons = texts(name, value)?,
                "events" => filter.events = texts(name, value)?,
                "ids" => filter.ids = texts(name, value)?,
                "until" => filter.until = moment(name, value)?,
                "since" => filter.since = moment(name, value)?,
                _ => return Err(format!("`filter.{name}` is unknown")),
            }
        }
        Ok(filter)
    }
}

fn texts(name: &str, value: &Value) -> Result<Vec<String>, String> {
    let list = value.as_array().and_then(|list| list.iter().map(|one| one.as_str().map(str::to_owned)).collect());
    list.ok_or_else(|| format!("`filter.{name}` is no list of texts"))
}

fn moment(name: &str, value: &Value) -> Result<Option<SystemTime>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => {
            humantime::parse_rfc3339(text).map(Some).map_err(|error| format!("`filter.{name}`: {error}"))
        }
        _ => Err(format!("`filter.{name}` is no time")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letters::letter::tests::letter;

    #[test]
    fn matches_by_reason_event_and_id() {
        let letter = letter("a");
        let of = |reason: &str, event: &str, id: &str| {
            let list = |text: &str| text.split_whitespace().map(str::to_owned).collect();
            Filter { reasons: list(reason), events: list(event), ids: list(id), ..Filter::default() }
                .matches(&letter)
        };
        assert!(of("", "", "") && of("other too_large", "ReportPublished", "b a"));
        assert!(!of("other", "", "") && !of("", "Other", "") && !of("", "", "b"));
    }

    #[test]
    fn matches_by_age() {
        let letter = letter("a");
        let now = letter.time + Duration::from_secs(100);
        let age = |older: Option<u64>, newer: Option<u64>| {
            let age =
                Age { older_than: older.map(Duration::from_secs), newer_than: newer.map(Duration::from_secs) };
            Filter::default().aged(age, now).matches(&letter)
        };
        assert!(age(Some(100), None) && !age(Some(101), None));
        assert!(age(None, Some(101)) && !age(None, Some(100)));
        assert!(age(Some(50), Some(150)) && !age(Some(150), Some(200)));
    }

    #[test]
    fn reads_what_it_wrote_and_refuses_what_it_does_not_know() {
        let age = Age { older_than: Some(Duration::from_secs(3)), newer_than: None };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let filter = Filter { ids: vec!["a".into()], ..Filter::default() }.aged(age, now);
        assert_eq!(Filter::parse(&filter.json()), Ok(filter.clone()));
        assert!(!filter.is_empty() && Filter::default().is_empty());
        for wrong in [json!(1), json!({"ids": "a"}), json!({"colour": []}), json!({"until": 1})] {
            assert!(Filter::parse(&wrong).is_err(), "{wrong}");
        }
    }
}
