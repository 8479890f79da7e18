//! Which letters are meant: by reason, event, id and age. What is not asked for matches everything.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::dead_letters::Letter;
use crate::dead_letters::versioned::Timestamp;

/// A choice of letters. An unknown field is refused: it would choose fewer of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Filter {
    /// One of these events; empty: any.
    pub(crate) events: Vec<String>,
    /// One of these ids; empty: any.
    pub(crate) ids: Vec<String>,
    /// One of these reasons; empty: any.
    pub(crate) reasons: Vec<String>,
    /// Written after this time.
    pub(crate) since: Option<Timestamp>,
    /// Written at this time or before.
    pub(crate) until: Option<Timestamp>,
}

impl Filter {
    /// Fixes the ages as of now: a request that waits must not choose other letters later.
    pub(crate) fn aged(self, older_than: Option<Duration>, newer_than: Option<Duration>, now: SystemTime) -> Self {
        let ago = |age| Timestamp(now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH));
        Self { until: older_than.map(ago), since: newer_than.map(ago), ..self }
    }

    /// Whether it chooses everything.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a letter is meant.
    pub(crate) fn matches(&self, letter: &Letter) -> bool {
        let among = |list: &[String], text: &str| list.is_empty() || list.iter().any(|one| one == text);
        among(&self.reasons, &letter.reason)
            && among(&self.events, &letter.event)
            && among(&self.ids, &letter.id)
            && self.until.is_none_or(|until| letter.time <= until.0)
            && self.since.is_none_or(|since| letter.time > since.0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
            let [older, newer] = [older, newer].map(|age| age.map(Duration::from_secs));
            Filter::default().aged(older, newer, now).matches(&letter)
        };
        assert!(age(Some(100), None) && !age(Some(101), None));
        assert!(age(None, Some(101)) && !age(None, Some(100)));
        assert!(age(Some(50), Some(150)) && !age(Some(150), Some(200)));
    }

    #[test]
    fn reads_what_it_wrote_and_refuses_what_it_does_not_know() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000_007);
        let filter =
            Filter { ids: vec!["a".into()], ..Filter::default() }.aged(Some(Duration::from_secs(3)), None, now);
        let text = serde_json::to_string(&filter).unwrap();
        assert!(text.ends_with("\"since\":null,\"until\":\"1970-01-12T13:46:37.007Z\"}"), "{text}");
        assert_eq!(serde_json::from_str::<Filter>(&text).unwrap(), filter);
        assert!(!filter.is_empty() && Filter::default().is_empty());
        for wrong in [json!(1), json!({"ids": "a"}), json!({"colour": []}), json!({"until": 1})] {
            assert!(serde_json::from_value::<Filter>(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
