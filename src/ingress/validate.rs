//! Validate: one pass of `serde_json` over the borrowed text. Nothing is serialised again, ever.
//!
//! Known fields are found as raw text first, so that "no JSON" (400) is told apart from "not the documented payload"
//! (422) whatever stands in them; then each is decoded, except `text`, which is only checked to be a string.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::ingress::settings::Validation;
use crate::message::Fields;

/// The documented fields. Source: the vendor's page on webhook payloads.
const NAMES: [&str; 7] = ["cuid", "actorCuid", "event", "targetCuid", "targetCuids", "targetType", "text"];
const CUID: usize = 0;
const ACTOR: usize = 1;
const EVENT: usize = 2;
const TARGET: usize = 3;
const TARGETS: usize = 4;
const TYPE: usize = 5;
const TEXT: usize = 6;

/// A valid body.
#[derive(Debug, PartialEq, Eq)]
pub enum Valid<'a> {
    /// An event to publish.
    Event(Payload<'a>),
    /// A connection test: an object with none of `event`, `cuid`, `targetType`.
    Probe,
}

/// What is wrong with a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// Not one JSON value in UTF-8: 400.
    Malformed(String),
    /// JSON, but not the documented payload: 422. The text names the field.
    Undocumented(String),
}

/// The decoded fields; a missing one is empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Payload<'a> {
    cuid: Cow<'a, str>,
    actor_cuid: Cow<'a, str>,
    event: Cow<'a, str>,
    target_cuid: Cow<'a, str>,
    target_type: Cow<'a, str>,
}

impl Payload<'_> {
    /// The fields as templates and headers need them.
    #[must_use]
    pub fn fields(&self) -> Fields<'_> {
        Fields {
            cuid: &self.cuid,
            actor_cuid: &self.actor_cuid,
            event: &self.event,
            target_cuid: &self.target_cuid,
            target_type: &self.target_type,
        }
    }
}

/// Looks at a body.
///
/// # Errors
/// What is wrong with it, for the sender's log.
pub fn validate(body: &[u8], validation: Validation) -> Result<Valid<'_>, Invalid> {
    let text = std::str::from_utf8(body)
        .map_err(|error| Invalid::Malformed(format!("not UTF-8 at byte {}", error.valid_up_to())))?;
    if text.starts_with('\u{feff}') {
        return Err(Invalid::Malformed("starts with a byte order mark".to_owned()));
    }
    let malformed = |error: serde_json::Error| Invalid::Malformed(error.to_string());
    if !text.trim_ascii_start().starts_with('{') {
        serde_json::from_str::<IgnoredAny>(text).map_err(malformed)?;
        return Err(Invalid::Undocumented("the body is no JSON object".to_owned()));
    }
    let found: Found<'_> = serde_json::from_str(text).map_err(malformed)?;
    if let Some(problem) = found.problem {
        return Err(Invalid::Undocumented(problem));
    }
    if [EVENT, CUID, TYPE].iter().all(|at| found.raw[*at].is_none()) {
        return Ok(Valid::Probe);
    }
    decode(&found.raw, validation).map(Valid::Event).map_err(Invalid::Undocumented)
}

fn decode<'a>(raw: &[Option<&'a RawValue>; NAMES.len()], validation: Validation) -> Result<Payload<'a>, String> {
    if raw[TARGET].is_some() && raw[TARGETS].is_some() {
        return Err("`targetCuid` and `targetCuids` are both given; exactly one is documented".to_owned());
    }
    let required: &[usize] = match validation {
        Validation::Strict => &[CUID, ACTOR, EVENT, TYPE, TEXT],
        Validation::Lenient => &[EVENT],
    };
    if let Some(missing) = required.iter().find(|at| raw[**at].is_none()) {
        return Err(format!("`{}` is missing", NAMES[*missing]));
    }
    if validation == Validation::Strict && raw[TARGET].is_none() && raw[TARGETS].is_none() {
        return Err("neither `targetCuid` nor `targetCuids` is given; exactly one is documented".to_owned());
    }
    let string = |at: usize| raw[at].map_or(Ok(Cow::Borrowed("")), |raw| string(NAMES[at], raw));
    let payload = Payload {
        cuid: string(CUID)?,
        actor_cuid: string(ACTOR)?,
        event: string(EVENT)?,
        target_type: string(TYPE)?,
        target_cuid: match raw[TARGETS] {
            Some(raw) => first_of(raw)?,
            None => string(TARGET)?,
        },
    };
    if let Some(raw) = raw[TEXT]
        && !raw.get().starts_with('"')
    {
        return Err(wrong_type("text", "a string", raw));
    }
    if payload.event.is_empty() {
        return Err("`event` is empty".to_owned());
    }
    Ok(payload)
}

fn wrong_type(name: &str, wanted: &str, raw: &RawValue) -> String {
    let found = match raw.get().as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b't' | b'f') => "true or false",
        Some(b'n') => "null",
        _ => "a number",
    };
    format!("`{name}` is {found}, {wanted} is documented")
}

fn string<'a>(name: &str, raw: &'a RawValue) -> Result<Cow<'a, str>, String> {
    let text = raw.get();
    if !text.starts_with('"') {
        return Err(wrong_type(name, "a string", raw));
    }
    let inside = &text[1..text.len() - 1];
    if !inside.contains('\\') {
        return Ok(Cow::Borrowed(inside));
    }
    // It was scanned as JSON already: only a lone surrogate can be wrong with it.
    serde_json::from_str::<String>(text).map(Cow::Owned).map_err(|_| format!("`{name}` has a lone surrogate"))
}

/// The first of the list; all must be strings.
fn first_of(raw: &RawValue) -> Result<Cow<'_, str>, String> {
    if !raw.get().starts_with('[') {
        return Err(wrong_type("targetCuids", "a list of strings", raw));
    }
    let items: Vec<&RawValue> =
        serde_json::from_str(raw.get()).map_err(|error| format!("`targetCuids` cannot be read: {error}"))?;
    let mut first = None;
    for item in items {
        let text =
            string("targetCuids", item).map_err(|text| text.replace("`targetCuids` is", "`targetCuids` has"))?;
        first.get_or_insert(text);
    }
    Ok(first.unwrap_or_default())
}

/// The known fields as raw text, and the first problem that is none of JSON's.
#[derive(Default)]
struct Found<'a> {
    raw: [Option<&'a RawValue>; NAMES.len()],
    problem: Option<String>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Found<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Found<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found<'de>, A::Error> {
                let mut found = Found::default();
                // Keys as raw text too: a lone surrogate in one is valid JSON, and not this pass's to refuse.
                while let Some(key) = map.next_key::<&'de RawValue>()? {
                    match known(key) {
                        Ok(Some(at)) => {
                            let value = map.next_value()?;
                            if found.raw[at].replace(value).is_some() {
                                found.problem.get_or_insert_with(|| format!("`{}` is given twice", NAMES[at]));
                            }
                        }
                        Ok(None) => {
                            map.next_value::<IgnoredAny>()?;
                        }
                        Err(problem) => {
                            map.next_value::<IgnoredAny>()?;
                            found.problem.get_or_insert(problem);
                        }
                    }
                }
                Ok(found)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// Which known field a key names, also where it is written with escapes.
fn known(key: &RawValue) -> Result<Option<usize>, String> {
    let text = key.get();
    let inside = &text[1..text.len() - 1];
    if !inside.contains('\\') {
        return Ok(NAMES.iter().position(|name| *name == inside));
    }
    match serde_json::from_str::<String>(text) {
        Ok(name) => Ok(NAMES.iter().position(|known| *known == name)),
        Err(_) => Err("a key has a lone surrogate".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        r#"{"cuid":"c","actorCuid":"a","event":"E","targetCuid":"t","targetType":"report","text":"x"}"#;

    fn strict(body: &str) -> Result<Valid<'_>, Invalid> {
        validate(body.as_bytes(), Validation::Strict)
    }

    fn undocumented(body: &str, validation: Validation) -> String {
        match validate(body.as_bytes(), validation) {
            Err(Invalid::Undocumented(text)) => text,
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn borrows_the_fields_of_the_documented_payload() {
        let Valid::Event(payload) = strict(GOOD).unwrap() else { panic!("no probe") };
        let fields = payload.fields();
        assert_eq!(
            (fields.cuid, fields.actor_cuid, fields.event, fields.target_cuid, fields.target_type),
            ("c", "a", "E", "t", "report")
        );
        assert!(matches!(payload.cuid, Cow::Borrowed(_)));
    }

    #[test]
    fn decodes_escapes_and_takes_the_first_of_several_targets() {
        let body = r#" {"cuid":"\u00e9","actorCuid":"a","\u0065vent":"\ud83d\ude00","targetCuids":["x\n","y"],
            "targetType":"report","text":"\ud800","extra":[1e999,{"cuid":5}]} "#;
        let Valid::Event(payload) = strict(body).unwrap() else { panic!("no probe") };
        let fields = payload.fields();
        assert_eq!((fields.cuid, fields.event, fields.target_cuid), ("é", "😀", "x\n"));
    }

    #[test]
    fn tells_no_json_from_the_wrong_json() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let bad: [&[u8]; 12] = [
            b"",
            b" ",
            b"{",
            b"{}x",
            b"{\"a\":1,}",
            b"\xef\xbb\xbf{}",
            b"{\"a\":\"\xff\"}",
            b"{\"a\":\"\x01\"}",
            b"{'a':1}",
            b"nul",
            b"{\"a\":\"\\x\"}",
            b"{\"\x01\":1}",
        ];
        for body in bad {
            assert!(matches!(validate(body, Validation::Strict), Err(Invalid::Malformed(_))), "{body:?}");
        }
        for body in ["[]", "1", "\"a\"", "null", "\"\\ud800\"", deep.as_str()] {
            assert_eq!(undocumented(body, Validation::Lenient), "the body is no JSON object");
        }
    }

    #[test]
    fn names_the_field_that_is_not_as_documented() {
        let replaced = |from: &str, to: &str| undocumented(&GOOD.replace(from, to), Validation::Strict);
        assert_eq!(replaced(r#""cuid":"c","#, ""), "`cuid` is missing");
        assert_eq!(replaced(r#","text":"x""#, ""), "`text` is missing");
        assert_eq!(replaced(r#""E""#, "5"), "`event` is a number, a string is documented");
        assert_eq!(replaced(r#""E""#, r#""""#), "`event` is empty");
        assert_eq!(replaced(r#""x""#, "null"), "`text` is null, a string is documented");
        assert_eq!(replaced(r#""a""#, r#""\ud800""#), "`actorCuid` has a lone surrogate");
        assert_eq!(replaced(r#""text":"x""#, r#""text":"x","text":"y""#), "`text` is given twice");
        assert_eq!(replaced(r#""text":"x""#, r#""text":"x","\ud800":1"#), "a key has a lone surrogate");
        assert_eq!(
            replaced(r#""targetCuid":"t","#, ""),
            "neither `targetCuid` nor `targetCuids` is given; exactly one is documented"
        );
        assert_eq!(
            replaced(r#""targetCuid":"t""#, r#""targetCuid":"t","targetCuids":["t"]"#),
            "`targetCuid` and `targetCuids` are both given; exactly one is documented"
        );
        assert_eq!(
            replaced(r#""targetCuid":"t""#, r#""targetCuids":["t",7]"#),
            "`targetCuids` has a number, a string is documented"
        );
        assert_eq!(
            replaced(r#""targetCuid":"t""#, r#""targetCuids":"t""#),
            "`targetCuids` is a string, a list of strings is documented"
        );
    }

    #[test]
    fn asks_only_for_the_event_when_lenient() {
        assert!(matches!(validate(br#"{"event":"E"}"#, Validation::Lenient), Ok(Valid::Event(_))));
        assert_eq!(undocumented(r#"{"cuid":"c"}"#, Validation::Lenient), "`event` is missing");
        assert_eq!(
            undocumented(r#"{"event":"E","text":1}"#, Validation::Lenient),
            "`text` is a number, a string is documented"
        );
    }

    #[test]
    fn sees_a_connection_test() {
        for body in ["{}", r#"{"text":"hello"}"#, r#"{"test":true,"targetCuid":"x"}"#] {
            assert_eq!(strict(body), Ok(Valid::Probe), "{body}");
        }
        assert!(strict(r#"{"targetType":"report"}"#).is_err());
    }

    #[test]
    fn reads_no_deeper_than_it_must() {
        let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let body = GOOD.replace(r#""text""#, &format!(r#""extra":{nested},"text""#));
        assert!(matches!(strict(&body), Ok(Valid::Event(_))));
        let body = GOOD.replace(r#""E""#, &nested);
        assert_eq!(undocumented(&body, Validation::Strict), "`event` is a list, a string is documented");
    }
}
