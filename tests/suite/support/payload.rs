//! Strict payloads as PlexTrac sends them, with a number that rises per key in a field of their own.

use serde_json::json;

/// Texts that break careless code: many planes, joiners, directions, escapes, separators, templates.
pub(crate) const UNICODE: [&str; 14] = [
    "",
    "Größe, café, Ångström",
    "日本語のレポート 한국어 中文",
    "العربية עברית",
    "👩‍👩‍👧‍👦🏳️‍🌈🇺🇳",
    "e\u{301}\u{323} \u{200b}\u{200e}\u{202e}",
    "line\u{2028}paragraph\u{2029}next\u{85}",
    "\u{0}\u{1}\u{1f}\u{7f}\t\r\n\u{8}\u{c}",
    "\u{fffd}\u{fffe}\u{ffff}\u{feff}",
    "\u{10000}\u{1f600}\u{10ffff}\u{e000}",
    "\"quoted\" \\back\\slash /solidus/ 'single'",
    "%CLIENT_NAME% %REPORT_NAME%||Client||Report",
    "<script>alert('x')</script>&amp;{event}{{}}",
    "key=value;a,b\\0 $(id) `id` ${HOME}",
];

/// One payload before it is written as JSON.
#[derive(Clone, Debug)]
pub(crate) struct Payload {
    /// The sender's id of the event.
    pub(crate) cuid: String,
    /// The name of the event.
    pub(crate) event: String,
    /// Kind of entity.
    pub(crate) target_type: String,
    /// The entity: the key of the tests that check order.
    pub(crate) target: String,
    /// Free text.
    pub(crate) text: String,
    /// Its place among those of its key.
    pub(crate) sequence: u64,
}

impl Payload {
    /// A payload with this id.
    pub(crate) fn new(cuid: impl Into<String>) -> Self {
        Self {
            cuid: cuid.into(),
            event: "ReportPublished".to_owned(),
            target_type: "report".to_owned(),
            target: "target-0".to_owned(),
            text: "Client||Report".to_owned(),
            sequence: 0,
        }
    }

    /// The bytes, as `JSON.stringify` writes them: no blank, raw UTF-8, the documented order of the fields.
    pub(crate) fn body(&self) -> Vec<u8> {
        let fields = [
            ("cuid", json!(self.cuid)),
            ("actorCuid", json!("actor-1")),
            ("event", json!(self.event)),
            ("targetCuid", json!(self.target)),
            ("targetType", json!(self.target_type)),
            ("text", json!(self.text)),
            ("sequence", json!(self.sequence)),
        ];
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", fields.join(",")).into_bytes()
    }

    /// The bytes, with a text that makes them exactly this many.
    pub(crate) fn body_of(mut self, bytes: usize) -> Vec<u8> {
        self.text.clear();
        let least = self.body().len();
        assert!(bytes >= least, "a payload of {bytes} bytes; this one has at least {least}");
        self.text = "x".repeat(bytes - least);
        self.body()
    }
}
