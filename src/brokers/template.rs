//! Templates of addresses and keys: `plextrac.{event}.{targetType}`.
//!
//! In an *address* a value is made safe (only `A-Z a-z 0-9 _ -`, at most 64, never empty); in a *key* it stands as
//! it is.

use crate::event::{Event, LONGEST_TOKEN, push_safe};

/// The kind of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TemplateKind {
    /// Topic, routing key, subject, file name: `{event}`, `{targetType}`, `{source}`, made safe.
    Address,
    /// Record key: also `{cuid}`, `{actorCuid}`, `{targetCuid}`, `{clientId}`, `{reportId}`, `{findingId}`,
    /// `{assessmentId}`, as they are.
    Key,
    /// A name as it is written, without placeholders: a stream.
    Name,
}

/// A placeholder, and the value that replaces it.
type Placeholder = (&'static str, fn(&Event) -> &str);

/// The placeholders; addresses know the first three, which are all that a cached text depends on.
const PLACEHOLDERS: [Placeholder; 10] = [
    ("event", Event::event),
    ("targetType", Event::target_type),
    ("source", |event| &event.origin.source),
    ("cuid", Event::cuid),
    ("actorCuid", Event::actor_cuid),
    ("targetCuid", Event::target_cuid),
    ("clientId", Event::client_id),
    ("reportId", Event::report_id),
    ("findingId", Event::finding_id),
    ("assessmentId", Event::assessment_id),
];

/// The number of placeholders that addresses know.
const OF_ADDRESSES: usize = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    /// By its place in [`PLACEHOLDERS`].
    Placeholder(usize),
}

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    kind: TemplateKind,
    parts: Vec<Part>,
}

impl Template {
    /// Parses a template of this kind.
    ///
    /// # Errors
    /// Unbalanced braces, unknown placeholders, or nothing at all.
    pub(crate) fn parse(kind: TemplateKind, text: &str) -> Result<Self, String> {
        if kind == TemplateKind::Name {
            return Ok(Self { kind, parts: vec![Part::Literal(text.to_owned())] });
        }
        if text.is_empty() {
            return Err("empty".to_owned());
        }
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            let brace = || {
                let at = text[..text.len() - rest.len() + at].chars().count() + 1;
                format!("a brace without its partner at character {at}; placeholders look like {{event}}")
            };
            let name = rest[at..].strip_prefix('{').and_then(|inside| inside.split_once('}'));
            let (name, behind) = name.filter(|(name, _)| !name.contains('{')).ok_or_else(brace)?;
            if at > 0 {
                parts.push(Part::Literal(rest[..at].to_owned()));
            }
            parts.push(Part::Placeholder(placeholder(kind, name)?));
            rest = behind;
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.to_owned()));
        }
        Ok(Self { kind, parts })
    }

    /// A template of one underscore: what stands in for one that could not be read.
    #[must_use]
    pub(crate) fn placeholder(kind: TemplateKind) -> Self {
        Self { kind, parts: vec![Part::Literal("_".to_owned())] }
    }

    /// Renders the template for an event.
    #[must_use]
    pub(crate) fn render(&self, event: &Event) -> String {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(literal) => text.push_str(literal),
                Part::Placeholder(at) => match (self.kind, PLACEHOLDERS[*at].1(event)) {
                    (TemplateKind::Address, value) => push_safe(&mut text, value),
                    (TemplateKind::Key | TemplateKind::Name, value) => text.push_str(value),
                },
            }
        }
        text
    }

    /// Whether the rendered text depends on nothing but source, event and target type, so that it can be cached.
    #[must_use]
    pub(crate) fn is_cacheable(&self) -> bool {
        self.parts.iter().all(|part| !matches!(part, Part::Placeholder(at) if *at >= OF_ADDRESSES))
    }

    /// The text, if there is no placeholder in it.
    #[must_use]
    pub(crate) fn literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// The text before the first placeholder.
    #[must_use]
    pub(crate) fn literal_prefix(&self) -> &str {
        match self.parts.first() {
            Some(Part::Literal(text)) => text,
            _ => "",
        }
    }

    /// The template with every placeholder as the shortest and the longest value: what can be checked at start.
    #[must_use]
    pub(crate) fn samples(&self) -> [String; 2] {
        ["_".to_owned(), "_".repeat(LONGEST_TOKEN)].map(|value| {
            self.parts
                .iter()
                .map(|part| match part {
                    Part::Literal(text) => text.as_str(),
                    Part::Placeholder(_) => value.as_str(),
                })
                .collect()
        })
    }
}

fn placeholder(kind: TemplateKind, name: &str) -> Result<usize, String> {
    let known = match kind {
        TemplateKind::Address => &PLACEHOLDERS[..OF_ADDRESSES],
        TemplateKind::Key | TemplateKind::Name => &PLACEHOLDERS[..],
    };
    if let Some(at) = known.iter().position(|(known, _)| *known == name) {
        return Ok(at);
    }
    let lower = name.to_lowercase().replace('_', "");
    let near = known
        .iter()
        .map(|(known, _)| (strsim::damerau_levenshtein(&known.to_lowercase(), &lower), *known))
        .min()
        .filter(|(distance, _)| *distance <= 2);
    let hint = near.map(|(_, near)| format!(", did you mean {{{near}}}?")).unwrap_or_default();
    let known: Vec<String> = known.iter().map(|(name, _)| format!("{{{name}}}")).collect();
    Err(format!("unknown placeholder {{{name}}}{hint}; known here: {}", known.join(" ")))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;
    use crate::event::{Fields, Origin};

    fn event(name: &str, target_type: &str, cuid: &str) -> Event {
        let origin = Origin {
            source: "main".into(),
            signature: None,
            verified: false,
            traceparent: None,
            received: SystemTime::UNIX_EPOCH,
        };
        let fields = Fields {
            cuid,
            event: name,
            target_type,
            actor_cuid: "actor",
            target_cuid: "target",
            client_id: "7",
            report_id: "12",
            finding_id: "x-9",
            assessment_id: "",
            ..Fields::default()
        };
        Event::new(origin, Box::default(), &fields, &[0; 32])
    }

    #[test]
    fn renders_values_safe_in_addresses_and_bare_in_keys() {
        let event = event("Report Published/é", "", "c{1}");
        let address = Template::parse(TemplateKind::Address, "p.{source}.{event}.{targetType}").unwrap();
        assert_eq!(address.render(&event), "p.main.Report_Published__._");
        let key =
            Template::parse(TemplateKind::Key, "{event}|{targetType}|{cuid}|{actorCuid}|{targetCuid}").unwrap();
        assert_eq!(key.render(&event), "Report Published/é||c{1}|actor|target");
    }

    #[test]
    fn renders_the_optional_ids_in_keys() {
        let key = Template::parse(TemplateKind::Key, "{clientId}/{reportId}/{findingId}/{assessmentId}").unwrap();
        assert_eq!(key.render(&event("E", "t", "c")), "7/12/x-9/");
        assert!(
            !key.is_cacheable() && Template::parse(TemplateKind::Key, "{event}{source}").unwrap().is_cacheable()
        );
        assert!(Template::parse(TemplateKind::Address, "{clientId}").is_err());
    }

    #[test]
    fn names_the_nearest_placeholder() {
        let error = Template::parse(TemplateKind::Address, "{target_type}").unwrap_err();
        assert_eq!(
            error,
            "unknown placeholder {target_type}, did you mean {targetType}?; known here: {event} {targetType} {source}"
        );
        assert!(Template::parse(TemplateKind::Address, "{cuid}").is_err());
    }

    #[test]
    fn refuses_braces_without_a_partner() {
        for text in ["{", "}", "a{event", "a}b", "{ev{event}}", "{event}}"] {
            let error = Template::parse(TemplateKind::Key, text).unwrap_err();
            assert!(error.starts_with("a brace without its partner at character "), "{text}: {error}");
        }
        assert_eq!(Template::parse(TemplateKind::Key, ""), Err("empty".to_owned()));
    }

    #[test]
    fn cuts_a_value_at_64_characters() {
        let event = event(&"é".repeat(100), "t", "");
        let template = Template::parse(TemplateKind::Address, "{event}").unwrap();
        assert_eq!(template.render(&event), "_".repeat(64));
    }

    proptest! {
        #[test]
        fn an_address_value_is_always_safe(value in any::<String>()) {
            let rendered = Template::parse(TemplateKind::Address, "{event}").unwrap().render(&event(&value, "", ""));
            prop_assert!((1..=64).contains(&rendered.len()));
            prop_assert!(rendered.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'));
        }

        #[test]
        fn a_key_value_stands_as_it_is(value in any::<String>()) {
            let rendered = Template::parse(TemplateKind::Key, "<{cuid}>").unwrap().render(&event("", "", &value));
            prop_assert_eq!(rendered, format!("<{value}>"));
        }

        #[test]
        fn parsing_never_panics_and_literals_survive(text in "[a-z{}é.]{0,20}") {
            if let Ok(template) = Template::parse(TemplateKind::Key, &text)
                && !text.contains('{') {
                    prop_assert_eq!(template.render(&event("", "", "")), text);
                }
        }
    }
}
