//! Validate: one pass of `serde_json` over the borrowed text. Nothing is serialised again, ever.
//!
//! Known fields are found as raw text first, so that "not JSON" (400) is distinguished from everything else; then each is
//! decoded, except `text`, which is only checked to be a string. Deviations from the documented payload are noted:
//! `lenient` continues without the field, `strict` refuses most deviations.
//!
//! Length: half of it is the tests of one table.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::event::{ContentType, Deviation, Deviations, Field, Fields};
use crate::ingress::reply::Rejection;
use crate::settings::named;
use crate::status::{KeptReason, Reason};

/// The longest `cuid`; a longer one counts as absent. An AMQP `message_id` has at most 255 bytes, and the event id adds
/// 13.
const LONGEST_CUID: usize = 200;

named! {
    /// The strictness of payload validation.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Validation {
        /// Only the documented payload is accepted.
        Strict = "strict",
        /// Every signed object is accepted; fields that cannot be used count as absent.
        Lenient = "lenient",
    }
}

/// Whether a signature vouches for the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// The signature is right: the body is genuine, whatever is unusual about it.
    Signed,
    /// The source requires no signature.
    Unsigned,
}

/// A body that is answered 200.
#[derive(Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "it lives on the stack for a moment; a box would be an allocation per event"
)]
pub(crate) enum Valid<'a> {
    /// An event to publish.
    Event(Payload<'a>),
    /// A connection test: an empty body, an object without fields, or JSON that is no object. The text says which.
    Probe(&'static str),
}

/// The problem with a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// Not one JSON value in UTF-8: 400.
    Malformed(String),
    /// An object, but not one that this source accepts: 422. The text names the field.
    Undocumented(String),
}

impl Invalid {
    /// The reason and the text with which a signed body is kept.
    pub(super) fn kept(&self) -> (KeptReason, &str) {
        match self {
            Self::Malformed(text) => (KeptReason::Malformed, text),
            Self::Undocumented(text) => (KeptReason::Invalid, text),
        }
    }
}

impl From<Invalid> for Rejection {
    fn from(invalid: Invalid) -> Self {
        match invalid {
            Invalid::Malformed(text) => Self::new(Reason::Malformed, format!("not JSON: {text}")),
            Invalid::Undocumented(text) => Self::new(Reason::Invalid, text),
        }
    }
}

/// The decoded fields; a field that is absent or unusable is empty.
pub(crate) type Payload<'a> = Fields<Cow<'a, str>>;

/// Whether a payload names an event or an entity: an unsigned object needs at least that.
fn says_something(payload: &Payload<'_>) -> bool {
    let Fields { event, cuid, target_cuid, client_id, report_id, finding_id, assessment_id, .. } = payload;
    [event, cuid, target_cuid, client_id, report_id, finding_id, assessment_id]
        .iter()
        .any(|field| !field.is_empty())
}

/// Validates a body.
///
/// # Errors
/// The problem, worded for the sender and the log.
pub(crate) fn validate(body: &[u8], validation: Validation, trust: Trust) -> Result<Valid<'_>, Invalid> {
    let mut found = match parse(body).map_err(Invalid::Malformed)? {
        Parsed::Object(found) if found.count == 0 => return Ok(Valid::Probe("an object without fields")),
        Parsed::Object(found) => found,
        Parsed::Other(what) => return Ok(Valid::Probe(what)),
    };
    let payload = found.read();
    if validation == Validation::Strict
        && let Some(problem) = found.undocumented()
    {
        return Err(Invalid::Undocumented(problem));
    }
    if trust == Trust::Unsigned && !says_something(&payload) {
        let text = "neither `event` nor any documented id can be used; a source without signatures requires one";
        return Err(Invalid::Undocumented(text.to_owned()));
    }
    Ok(Valid::Event(payload))
}

/// Reads any body in the most lenient way, as far as possible: once accepted or kept, it is an event.
pub(crate) fn read_any(body: &[u8]) -> Payload<'_> {
    match parse(body) {
        Ok(Parsed::Object(mut found)) => found.read(),
        Ok(Parsed::Other(_)) if !body.is_empty() => Payload::default(),
        Ok(Parsed::Other(_)) | Err(_) => Payload { content_type: ContentType::Octets, ..Payload::default() },
    }
}

/// A body that is JSON, or empty.
enum Parsed<'a> {
    Object(RawFields<'a>),
    /// Not an object; the text says what it is.
    Other(&'static str),
}

/// Reads a body as one JSON value; the error says why it is not one.
fn parse(body: &[u8]) -> Result<Parsed<'_>, String> {
    if body.is_empty() {
        return Ok(Parsed::Other("an empty body"));
    }
    let text = std::str::from_utf8(body).map_err(|error| format!("not UTF-8 at byte {}", error.valid_up_to()))?;
    if text.starts_with('\u{feff}') {
        return Err("starts with a byte order mark".to_owned());
    }
    let value = text.trim_ascii_start();
    if value.starts_with('{') {
        let mut found = RawFields::default();
        each(text, |key, value| found.add(key, value)).map_err(|error| error.to_string())?;
        return Ok(Parsed::Object(found));
    }
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| error.to_string())?;
    Ok(Parsed::Other(kind(value)))
}

/// The kind of a JSON value, by its first character.
fn kind(value: &str) -> &'static str {
    match value.as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b't' | b'f') => "true or false",
        Some(b'n') => "null",
        _ => "a number",
    }
}

fn is_null(raw: &RawValue) -> bool {
    raw.get().starts_with('n')
}

/// A decoded string, or its deviation from one.
fn string(raw: &RawValue) -> Result<Cow<'_, str>, Deviation> {
    let text = raw.get();
    if !text.starts_with('"') {
        return Err(if is_null(raw) { Deviation::Null } else { Deviation::Type });
    }
    let inside = &text[1..text.len() - 1];
    if !inside.contains('\\') {
        return Ok(Cow::Borrowed(inside));
    }
    // It was scanned as JSON already: only a lone surrogate can be wrong.
    serde_json::from_str::<String>(text).map(Cow::Owned).map_err(|_| Deviation::Surrogate)
}

/// The known fields as raw text, the last of each, and what was noted while finding and decoding them.
#[derive(Default)]
struct RawFields<'a> {
    raw: [Option<&'a RawValue>; Field::COUNT],
    deviations: Deviations,
    has_odd_key: bool,
    /// The number of fields, known or not.
    count: usize,
}

impl<'a> RawFields<'a> {
    fn add(&mut self, key: Option<&'a RawValue>, value: &'a RawValue) {
        self.count += 1;
        match key.map_or(Ok(None), known) {
            Ok(Some(field)) if self.raw[field as usize].replace(value).is_some() => {
                self.deviations.note(field, Deviation::Duplicate);
            }
            Ok(_) => {}
            Err(_) => self.has_odd_key = true,
        }
    }

    fn read(&mut self) -> Payload<'a> {
        let cuid = self.required(Field::Cuid);
        let mut payload = Payload {
            cuid: if cuid.len() > LONGEST_CUID { Cow::Borrowed("") } else { cuid },
            actor_cuid: self.required(Field::ActorCuid),
            event: self.required(Field::Event),
            target_cuid: self.target(),
            target_type: self.required(Field::TargetType),
            client_id: self.id(Field::ClientId),
            report_id: self.id(Field::ReportId),
            finding_id: self.id(Field::FindingId),
            assessment_id: self.id(Field::AssessmentId),
            ..Payload::default()
        };
        let flaw = self.id(Field::FlawId);
        if payload.finding_id.is_empty() {
            payload.finding_id = flaw;
        }
        self.check_text();
        payload.deviations = self.deviations;
        payload
    }

    /// The reason why this is not the documented payload. Fields may be empty, except `event`; `null` counts as absent.
    fn undocumented(&self) -> Option<String> {
        let deviations = &self.deviations;
        if self.has_odd_key {
            return Some("a key has a lone surrogate".to_owned());
        }
        if deviations.is_empty() {
            return None;
        }
        if let Some((field, _)) = deviations.iter().find(|(_, deviation)| *deviation == Deviation::Duplicate) {
            return Some(format!("`{}` is given twice", field.name()));
        }
        if deviations.has(Field::TargetCuids, Deviation::BothTargets) {
            return Some("`targetCuid` and `targetCuids` are both given; exactly one is documented".to_owned());
        }
        let is_absent = |field: Field| self.raw[field as usize].is_none_or(is_null);
        let required = [Field::Cuid, Field::ActorCuid, Field::Event, Field::TargetType, Field::Text];
        if let Some(missing) = required.into_iter().find(|field| is_absent(*field)) {
            return Some(format!("`{}` is missing", missing.name()));
        }
        if is_absent(Field::TargetCuid) && is_absent(Field::TargetCuids) {
            return Some("neither `targetCuid` nor `targetCuids` is given; exactly one is documented".to_owned());
        }
        if deviations.has(Field::Event, Deviation::Empty) {
            return Some("`event` is empty".to_owned());
        }
        Field::ALL.into_iter().find_map(|field| self.wrong_value(field))
    }

    fn wrong_value(&self, field: Field) -> Option<String> {
        let deviations = &self.deviations;
        let (raw, name) = (self.raw[field as usize]?, field.name());
        let is_list = field == Field::TargetCuids && raw.get().starts_with('[');
        if is_list && [Deviation::Null, Deviation::Type].iter().any(|kind| deviations.has(field, *kind)) {
            let items: Vec<&RawValue> = serde_json::from_str(raw.get()).unwrap_or_default();
            let wrong = items.into_iter().find(|item| !item.get().starts_with('"'));
            let found = wrong.map_or("something else", |item| kind(item.get()));
            return Some(format!("`{name}` has {found}, a string is documented"));
        }
        if deviations.has(field, Deviation::Type) {
            let documented = match field {
                Field::TargetCuids => "a list of strings",
                Field::ClientId | Field::ReportId | Field::FindingId | Field::FlawId | Field::AssessmentId => {
                    "a number"
                }
                _ => "a string",
            };
            return Some(format!("`{name}` is {}, {documented} is documented", kind(raw.get())));
        }
        deviations.has(field, Deviation::Surrogate).then(|| format!("`{name}` has a lone surrogate"))
    }
}

/// Decoding, which notes what is not as documented.
impl<'a> RawFields<'a> {
    fn required(&mut self, field: Field) -> Cow<'a, str> {
        let Some(raw) = self.raw[field as usize] else {
            self.deviations.note(field, Deviation::Missing);
            return Cow::Borrowed("");
        };
        self.string(field, raw)
    }

    fn string(&mut self, field: Field, raw: &'a RawValue) -> Cow<'a, str> {
        string(raw).and_then(|text| if text.is_empty() { Err(Deviation::Empty) } else { Ok(text) }).unwrap_or_else(
            |deviation| {
                self.deviations.note(field, deviation);
                Cow::Borrowed("")
            },
        )
    }

    /// An optional id: a number as it is written, or a string.
    fn id(&mut self, field: Field) -> Cow<'a, str> {
        match self.raw[field as usize] {
            None => Cow::Borrowed(""),
            Some(raw) if raw.get().starts_with(|c: char| c == '-' || c.is_ascii_digit()) => {
                Cow::Borrowed(raw.get())
            }
            Some(raw) => self.string(field, raw),
        }
    }

    /// The one target; if it cannot be used, the first usable of several.
    fn target(&mut self) -> Cow<'a, str> {
        let (one, several) = (self.raw[Field::TargetCuid as usize], self.raw[Field::TargetCuids as usize]);
        match (one, several) {
            (None, None) => self.deviations.note(Field::TargetCuid, Deviation::Missing),
            (Some(one), Some(several)) if !is_null(one) && !is_null(several) => {
                self.deviations.note(Field::TargetCuids, Deviation::BothTargets);
            }
            _ => {}
        }
        let one = one.map(|raw| self.string(Field::TargetCuid, raw)).unwrap_or_default();
        let several = several.map(|raw| self.first_of(raw)).unwrap_or_default();
        if one.is_empty() { several } else { one }
    }

    fn first_of(&mut self, raw: &'a RawValue) -> Cow<'a, str> {
        if !raw.get().starts_with('[') {
            let deviation = if is_null(raw) { Deviation::Null } else { Deviation::Type };
            self.deviations.note(Field::TargetCuids, deviation);
            return Cow::Borrowed("");
        }
        let mut first = None;
        // It was scanned as JSON already.
        let _ = each(raw.get(), |_, item| match string(item) {
            Ok(text) if text.is_empty() => self.deviations.note(Field::TargetCuids, Deviation::Empty),
            Ok(text) => first = first.take().or(Some(text)),
            Err(deviation) => self.deviations.note(Field::TargetCuids, deviation),
        });
        first.unwrap_or_else(|| {
            self.deviations.note(Field::TargetCuids, Deviation::Empty);
            Cow::Borrowed("")
        })
    }

    /// Checks `text`, which is never decoded: it may be empty, and may have a lone surrogate.
    fn check_text(&mut self) {
        let deviation = match self.raw[Field::Text as usize] {
            Some(raw) if raw.get().starts_with('"') => return,
            Some(raw) if is_null(raw) => Deviation::Null,
            Some(_) => Deviation::Type,
            None => Deviation::Missing,
        };
        self.deviations.note(Field::Text, deviation);
    }
}

/// Gives every item of a list, or every value of an object behind its key, to a function, in one pass. As raw text: a
/// lone surrogate is valid JSON, in a key, too.
fn each<'a>(text: &'a str, visit: impl FnMut(Option<&'a RawValue>, &'a RawValue)) -> serde_json::Result<()> {
    struct Each<F>(F);
    impl<'a, F: FnMut(Option<&'a RawValue>, &'a RawValue)> Visitor<'a> for Each<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list or an object")
        }

        fn visit_seq<A: SeqAccess<'a>>(mut self, mut list: A) -> Result<(), A::Error> {
            while let Some(item) = list.next_element()? {
                self.0(None, item);
            }
            Ok(())
        }

        fn visit_map<A: MapAccess<'a>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some((key, value)) = map.next_entry()? {
                self.0(Some(key), value);
            }
            Ok(())
        }
    }
    let mut text = serde_json::Deserializer::from_str(text);
    text.deserialize_any(Each(visit))?;
    text.end()
}

/// The known field that a key names, also if it is written with escapes; an error if it has a lone surrogate.
fn known(key: &RawValue) -> Result<Option<Field>, Deviation> {
    let text = key.get();
    let inside = &text[1..text.len() - 1];
    if inside.contains('\\') { string(key).map(|name| Field::named(&name)) } else { Ok(Field::named(inside)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        r#"{"cuid":"c","actorCuid":"a","event":"E","targetCuid":"t","targetType":"report","text":"x"}"#;

    fn strict(body: &str) -> Result<Valid<'_>, Invalid> {
        validate(body.as_bytes(), Validation::Strict, Trust::Signed)
    }

    fn lenient(body: &str) -> Payload<'_> {
        match validate(body.as_bytes(), Validation::Lenient, Trust::Signed) {
            Ok(Valid::Event(payload)) => payload,
            other => panic!("{body}: {other:?}"),
        }
    }

    fn plain<'p>(payload: &'p Payload<'_>) -> Fields<&'p str> {
        Fields {
            cuid: &payload.cuid,
            actor_cuid: &payload.actor_cuid,
            event: &payload.event,
            target_cuid: &payload.target_cuid,
            target_type: &payload.target_type,
            client_id: &payload.client_id,
            report_id: &payload.report_id,
            finding_id: &payload.finding_id,
            assessment_id: &payload.assessment_id,
            deviations: payload.deviations,
            content_type: payload.content_type,
        }
    }

    fn undocumented(body: &str) -> String {
        match strict(body) {
            Err(Invalid::Undocumented(text)) => text,
            other => panic!("{body}: {other:?}"),
        }
    }

    /// The documented payload with a part of its text replaced.
    fn good_with(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from), "{from}");
        GOOD.replace(from, to)
    }

    #[test]
    fn borrows_the_fields_of_the_documented_payload() {
        for validation in [Validation::Strict, Validation::Lenient] {
            let valid = validate(GOOD.as_bytes(), validation, Trust::Signed);
            let Ok(Valid::Event(payload)) = valid else { panic!("no event: {valid:?}") };
            let fields = plain(&payload);
            assert_eq!(
                (fields.cuid, fields.actor_cuid, fields.event, fields.target_cuid, fields.target_type),
                ("c", "a", "E", "t", "report")
            );
            assert!(matches!(payload.cuid, Cow::Borrowed(_)));
            assert!(fields.deviations.is_empty() && fields.content_type == ContentType::Json);
        }
    }

    #[test]
    fn decodes_escapes_and_takes_the_first_of_several_targets() {
        let body = r#" {"cuid":"\u00e9","actorCuid":"a","\u0065vent":"\ud83d\ude00","targetCuids":["x\n","y"],
            "targetType":"report","text":"\ud800","extra":[1e999,{"cuid":5}]} "#;
        let Ok(Valid::Event(payload)) = strict(body) else { panic!("no event") };
        let fields = plain(&payload);
        assert_eq!((fields.cuid, fields.event, fields.target_cuid), ("é", "😀", "x\n"));
        assert!(fields.deviations.is_empty(), "{}", fields.deviations);
    }

    #[test]
    fn tells_what_is_not_json_from_a_connection_test_in_both_ways() {
        let bad: [&[u8]; 12] = [
            b" ",
            b"{",
            b"{}x",
            b"{\"a\":1,}",
            b"\xef\xbb\xbf{}",
            b"\xef\xbb\xbf",
            b"{\"a\":\"\xff\"}",
            b"{\"a\":\"\x01\"}",
            b"{'a':1}",
            b"nul",
            b"{\"a\":\"\\x\"}",
            b"{\"\x01\":1}",
        ];
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let probes = [
            ("", "an empty body"),
            ("{}", "an object without fields"),
            (" { }\n", "an object without fields"),
            ("[]", "a list"),
            (" [{\"event\":\"E\"}]", "a list"),
            ("1", "a number"),
            ("-0.5e3", "a number"),
            ("\"a\"", "a string"),
            ("null", "null"),
            ("true", "true or false"),
            ("\"\\ud800\"", "a string"),
            (&deep, "a list"),
        ];
        for validation in [Validation::Strict, Validation::Lenient] {
            for trust in [Trust::Signed, Trust::Unsigned] {
                for body in bad {
                    let valid = validate(body, validation, trust);
                    assert!(matches!(valid, Err(Invalid::Malformed(_))), "{body:?}: {valid:?}");
                }
                for (body, what) in probes {
                    assert_eq!(validate(body.as_bytes(), validation, trust), Ok(Valid::Probe(what)));
                }
            }
        }
    }

    #[test]
    fn names_the_field_that_is_not_as_documented_when_strict() {
        let replaced = |from: &str, to: &str| undocumented(&good_with(from, to));
        assert_eq!(replaced(r#""cuid":"c","#, ""), "`cuid` is missing");
        assert_eq!(replaced(r#","text":"x""#, ""), "`text` is missing");
        assert_eq!(replaced(r#""c""#, "null"), "`cuid` is missing");
        assert_eq!(replaced(r#""x""#, "null"), "`text` is missing");
        assert_eq!(replaced(r#""E""#, "5"), "`event` is a number, a string is documented");
        assert_eq!(replaced(r#""E""#, r#""""#), "`event` is empty");
        assert_eq!(replaced(r#""x""#, "{}"), "`text` is an object, a string is documented");
        assert_eq!(replaced(r#""a""#, r#""\ud800""#), "`actorCuid` has a lone surrogate");
        assert_eq!(replaced(r#""text":"x""#, r#""text":"x","text":"y""#), "`text` is given twice");
        assert_eq!(replaced(r#""text":"x""#, r#""text":"x","\ud800":1"#), "a key has a lone surrogate");
        let neither = "neither `targetCuid` nor `targetCuids` is given; exactly one is documented";
        assert_eq!(replaced(r#""targetCuid":"t","#, ""), neither);
        assert_eq!(replaced(r#""targetCuid":"t""#, r#""targetCuid":null"#), neither);
        assert_eq!(replaced(r#""targetCuid":"t""#, r#""targetCuid":null,"targetCuids":null"#), neither);
        assert_eq!(
            replaced(r#""targetCuid":"t""#, r#""targetCuid":"t","targetCuids":["t"]"#),
            "`targetCuid` and `targetCuids` are both given; exactly one is documented"
        );
        assert_eq!(
            replaced(r#""targetCuid":"t""#, r#""targetCuids":["t",7]"#),
            "`targetCuids` has a number, a string is documented"
        );
        assert_eq!(
            replaced(r#""targetCuid":"t""#, r#""targetCuids":[null]"#),
            "`targetCuids` has null, a string is documented"
        );
        assert_eq!(
            replaced(r#""targetCuid":"t""#, r#""targetCuids":"t""#),
            "`targetCuids` is a string, a list of strings is documented"
        );
        assert_eq!(
            replaced(r#""text":"x""#, r#""text":"x","clientId":[]"#),
            "`clientId` is a list, a number is documented"
        );
        assert_eq!(undocumented(r#"{"clientId":7,"reportId":"12","findingId":345}"#), "`cuid` is missing");
        assert_eq!(undocumented(r#"{"test":true}"#), "`cuid` is missing");
    }

    #[test]
    fn takes_null_for_nothing_where_strict_asks_for_nothing() {
        for (from, to, deviations) in [
            (r#""targetCuid":"t""#, r#""targetCuid":null,"targetCuids":["t"]"#, "targetCuid:null"),
            (r#""targetCuid":"t""#, r#""targetCuid":"t","targetCuids":null"#, "targetCuids:null"),
            (r#""text":"x""#, r#""text":"x","reportId":null,"flawId":null"#, "reportId:null,flawId:null"),
            (r#""c""#, r#""""#, "cuid:empty"),
            (r#""targetCuid":"t""#, r#""targetCuids":[]"#, "targetCuids:empty"),
            (r#""targetCuid":"t""#, r#""targetCuids":["","t"]"#, "targetCuids:empty"),
            (r#""text":"x""#, r#""text":"","clientId":7,"reportId":"12""#, ""),
        ] {
            let body = good_with(from, to);
            let Ok(Valid::Event(payload)) = strict(&body) else { panic!("{body}: {:?}", strict(&body)) };
            assert_eq!(payload.deviations.to_string(), deviations, "{body}");
            assert_eq!(payload, lenient(&body), "{body}");
        }
    }

    #[test]
    fn goes_on_without_what_cannot_be_used_when_lenient() {
        for (body, cuid, event, target, deviations) in [
            (good_with(r#","text":"x""#, ""), "c", "E", "t", "text:missing"),
            (good_with(r#""c""#, "null"), "", "E", "t", "cuid:null"),
            (good_with(r#""c""#, "7"), "", "E", "t", "cuid:type"),
            (good_with(r#""c""#, r#""""#), "", "E", "t", "cuid:empty"),
            (good_with(r#""c""#, r#""\ud800""#), "", "E", "t", "cuid:surrogate"),
            (good_with(r#""E""#, r#"["E"]"#), "c", "", "t", "event:type"),
            (good_with(r#""E""#, r#""E","event":"F""#), "c", "F", "t", "event:duplicate"),
            (good_with(r#""E""#, r#""E","event":null"#), "c", "", "t", "event:null,event:duplicate"),
            (good_with(r#""x""#, "false"), "c", "E", "t", "text:type"),
            (good_with(r#""t""#, r#""t","targetCuids":["u"]"#), "c", "E", "t", "targetCuids:both_targets"),
            (
                good_with(r#""t""#, r#"5,"targetCuids":["u"]"#),
                "c",
                "E",
                "u",
                "targetCuid:type,targetCuids:both_targets",
            ),
            (
                good_with(r#""t""#, r#"null,"targetCuids":[null,7,"","\ud800","v","w"]"#),
                "c",
                "E",
                "v",
                "targetCuid:null,targetCuids:null,targetCuids:type,targetCuids:empty,targetCuids:surrogate",
            ),
            (good_with(r#""targetCuid":"t","#, ""), "c", "E", "", "targetCuid:missing"),
            (good_with(r#""targetCuid":"t""#, r#""targetCuids":{"a":"t"}"#), "c", "E", "", "targetCuids:type"),
            (good_with(r#""x""#, r#""x","\ud800":1,"new":[]"#), "c", "E", "t", ""),
        ] {
            let payload = lenient(&body);
            let fields = plain(&payload);
            assert_eq!((fields.cuid, fields.event, fields.target_cuid), (cuid, event, target), "{body}");
            assert_eq!(fields.deviations.to_string(), deviations, "{body}");
        }
    }

    #[test]
    fn reads_ids_that_are_numbers_or_strings_and_the_older_name_of_one() {
        let payload = lenient(r#"{"clientId":7,"reportId":"12","flawId":-3.5e2,"assessmentId":true}"#);
        let fields = plain(&payload);
        assert_eq!(
            (fields.client_id, fields.report_id, fields.finding_id, fields.assessment_id),
            ("7", "12", "-3.5e2", "")
        );
        assert!(fields.deviations.has(Field::AssessmentId, Deviation::Type));
        assert!(!fields.deviations.has(Field::FindingId, Deviation::Missing));
        for (body, finding, deviations) in [
            (r#"{"findingId":1,"flawId":2}"#, "1", ""),
            (r#"{"findingId":null,"flawId":"2"}"#, "2", "findingId:null"),
            (r#"{"findingId":{},"flawId":""}"#, "", "findingId:type,flawId:empty"),
        ] {
            let payload = lenient(body);
            let ids = |(field, _): &(Field, Deviation)| matches!(field, Field::FindingId | Field::FlawId);
            let mut found = Deviations::default();
            payload.deviations.iter().filter(ids).for_each(|(field, deviation)| found.note(field, deviation));
            assert_eq!((&*payload.finding_id, found.to_string().as_str()), (finding, deviations), "{body}");
        }
    }

    #[test]
    fn counts_a_cuid_that_makes_too_long_an_id_as_absent() {
        for (length, is_used) in [(200, true), (201, false)] {
            let cuid = "c".repeat(length);
            let body = good_with(r#""c""#, &format!("{cuid:?}"));
            assert_eq!(lenient(&body).cuid, if is_used { cuid.as_str() } else { "" });
            assert!(lenient(&body).deviations.is_empty() && strict(&body).is_ok());
        }
        let body = good_with(r#""c""#, &format!("{:?}", "é".repeat(101)));
        assert_eq!(lenient(&body).cuid, "", "bytes count, not characters");
    }

    #[test]
    fn asks_an_unsigned_object_for_an_event_or_an_id() {
        let unsigned = |body: &'static str| validate(body.as_bytes(), Validation::Lenient, Trust::Unsigned);
        for body in [
            r#"{"event":"E"}"#,
            r#"{"cuid":"c"}"#,
            r#"{"targetCuids":[null,"t"]}"#,
            r#"{"clientId":7}"#,
            r#"{"reportId":"7"}"#,
            r#"{"flawId":7}"#,
            r#"{"assessmentId":7}"#,
        ] {
            assert!(matches!(unsigned(body), Ok(Valid::Event(_))), "{body}");
        }
        for body in [
            r#"{"hello":"world"}"#,
            r#"{"event":null,"clientId":""}"#,
            r#"{"event":7}"#,
            r#"{"targetType":"report","text":"x","actorCuid":"a"}"#,
        ] {
            assert!(matches!(unsigned(body), Err(Invalid::Undocumented(_))), "{body}");
            assert_eq!(lenient(body).content_type, ContentType::Json, "signed: {body}");
        }
    }

    #[test]
    fn reads_any_body_as_it_was_read_when_it_was_accepted() {
        let body = good_with(r#""text":"x""#, r#""text":1,"cuid":"d""#);
        assert_eq!(read_any(body.as_bytes()), lenient(&body));
        for body in [&b"[]"[..], b"7", b" null "] {
            assert_eq!(read_any(body), Payload::default(), "{body:?}");
        }
        for body in [&b""[..], b"{", b"\xff", b"\xef\xbb\xbf{}", b" "] {
            assert_eq!(read_any(body).content_type, ContentType::Octets, "{body:?}");
            assert_eq!(read_any(body).event, "", "{body:?}");
        }
        assert!(read_any(b"{}").deviations.has(Field::Event, Deviation::Missing));
    }

    #[test]
    fn reads_no_deeper_than_it_must() {
        let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let body = GOOD.replace(r#""text""#, &format!(r#""extra":{nested},"text""#));
        assert!(matches!(strict(&body), Ok(Valid::Event(_))));
        let body = GOOD.replace(r#""E""#, &nested);
        assert_eq!(undocumented(&body), "`event` is a list, a string is documented");
        let body = GOOD.replace(r#""targetCuid":"t""#, &format!(r#""targetCuids":[{nested},"t"]"#));
        assert_eq!(lenient(&body).target_cuid, "t");
    }
}
