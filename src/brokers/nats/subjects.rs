//! Subjects: what is legal, what covers what, and which subjects a stream needs for some templates.
//!
//! Source: <https://docs.nats.io/nats-concepts/subjects>.

use crate::brokers::template::Template;

/// A server reads control lines of at most 4096 bytes; reply inbox and lengths need less than half of one.
const LONGEST: usize = 2048;

/// The prefix of questions to the server's own JetStream.
pub(super) const OWN_API: &str = "$JS.API";

/// Says why nothing can be published to this subject.
pub(super) fn legal(subject: &str) -> Result<(), String> {
    if subject.contains(['*', '>']) {
        return Err(format!("the subject {subject:?} has a wildcard; events are published to plain subjects"));
    }
    legal_tokens(subject)
}

/// Says why a stream cannot take this subject, which may have wildcards.
pub(super) fn legal_pattern(subject: &str) -> Result<(), String> {
    if subject == ">" {
        return Err("the subject \">\" would take everything on the server, its own messages too".to_owned());
    }
    let tokens = subject.split('.').count();
    let odd = subject.split('.').enumerate().any(|(at, token)| match token {
        "*" => false,
        ">" => at + 1 != tokens,
        _ => token.contains(['*', '>']),
    });
    if odd {
        let rule = "`*` stands for one whole token, `>` for all the last ones";
        return Err(format!("the subject {subject:?} has a wildcard in the wrong place; {rule}"));
    }
    legal_tokens(subject)
}

/// Says why subjects cannot start with this, which may be the server's own.
pub(super) fn legal_prefix(prefix: &str) -> Result<(), String> {
    if prefix.contains(['*', '>']) {
        return Err(format!("the subject {prefix:?} has a wildcard; give what comes before it"));
    }
    legal_tokens(prefix.strip_prefix('$').filter(|rest| !rest.is_empty()).unwrap_or(prefix))
}

fn legal_tokens(subject: &str) -> Result<(), String> {
    let wrong = if subject.is_empty() {
        "is empty"
    } else if subject.len() > LONGEST {
        return Err(format!("the subject would be {} bytes, more than {LONGEST}", subject.len()));
    } else if subject.contains(|character: char| character.is_whitespace() || character.is_control()) {
        "has a blank or a control character"
    } else if subject.split('.').any(str::is_empty) {
        "has an empty token; check its dots"
    } else if subject.starts_with('$') {
        "starts with `$`, which belongs to the server"
    } else {
        return Ok(());
    };
    Err(format!("the subject {subject:?} {wrong}"))
}

/// Says why a stream cannot have this name.
pub(super) fn legal_stream(name: &str) -> Result<(), String> {
    let odd = |character: char| {
        character.is_whitespace() || character.is_control() || ['.', '*', '>', '/', '\\'].contains(&character)
    };
    if name.is_empty() {
        return Err("empty; name the stream that the events go to".to_owned());
    }
    // The server's own limit, JSMaxNameLen.
    if name.len() > 255 || name.contains(odd) {
        let rule = "a stream's name has at most 255 bytes, no blanks, dots, slashes or wildcards";
        return Err(format!("{name:?} is not a legal stream name; {rule}"));
    }
    Ok(())
}

/// Whether a pattern takes everything that a subject, perhaps itself a pattern, stands for.
pub(super) fn covers(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(wanted), Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
}

/// Whether some subject is taken by both patterns: no stream may have two such.
pub(super) fn overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (Some(">"), Some(_)) | (Some(_), Some(">")) | (None, None) => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            _ => return false,
        }
    }
}

/// The subjects of a stream for these templates: literal ones as they are, else the whole tokens before the first
/// placeholder and `>`. None if one has no such tokens.
pub(super) fn derived<'t>(templates: impl Iterator<Item = &'t Template>) -> Option<Vec<String>> {
    let mut subjects: Vec<String> = Vec::new();
    for template in templates {
        let subject = match template.literal() {
            Some(literal) => literal.to_owned(),
            None => format!("{}.>", template.literal_prefix().rsplit_once('.')?.0),
        };
        // Derived subjects are either disjoint or one within the other: the server refuses the latter.
        if !subjects.iter().any(|known| covers(known, &subject)) {
            subjects.retain(|known| !covers(&subject, known));
            subjects.push(subject);
        }
    }
    Some(subjects)
}

/// A subject of a template, and the pattern of all of them: what an operator would permit.
pub(super) type Wanted = (String, String);

/// A subject of the template, and the pattern of all of them.
pub(super) fn wanted_by(template: &Template) -> Wanted {
    let [subject, other] = template.samples();
    let tokens = subject.split('.').zip(other.split('.')).map(|(one, other)| if one == other { one } else { "*" });
    let pattern = tokens.collect::<Vec<_>>().join(".");
    (subject, pattern)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::brokers::template::TemplateKind;

    #[test]
    fn takes_plain_subjects_only() {
        for subject in ["a", "a.b", "plextrac.Report_Published.report", "é.b-c_d"] {
            assert_eq!(legal(subject), Ok(()), "{subject}");
        }
        let wrong = ["", ".", ".a", "a.", "a..b", "a b", "a\tb", "a\u{a0}b", "a\0", "a.*", "a.>", "a*b", "$JS.API"];
        for subject in wrong {
            assert!(legal(subject).is_err(), "{subject:?}");
        }
        assert!(legal(&"a".repeat(LONGEST)).is_ok());
        assert!(legal(&"a".repeat(LONGEST + 1)).is_err());
    }

    #[test]
    fn takes_wildcards_as_whole_tokens_in_patterns() {
        for pattern in ["a.*", "a.>", "*.a", "a.*.b.>", "a.b"] {
            assert_eq!(legal_pattern(pattern), Ok(()), "{pattern}");
        }
        for pattern in [">", "a.>.b", "a.b*", "a>", "a..>", ""] {
            assert!(legal_pattern(pattern).is_err(), "{pattern:?}");
        }
    }

    #[test]
    fn knows_legal_stream_names() {
        assert_eq!(legal_stream("PLEXTRAC_2-b"), Ok(()));
        for name in ["", "a.b", "a b", "a*", ">", "a/b", "a\\b", "a\n"] {
            assert!(legal_stream(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn covers_what_the_server_would_take() {
        for (pattern, subject) in
            [("a.>", "a.b"), ("a.>", "a.b.c"), ("a.*", "a.b"), ("a.*.c", "a.b.c"), ("a.>", "a.*"), ("a.>", "a.>")]
        {
            assert!(covers(pattern, subject), "{pattern} {subject}");
        }
        for (pattern, subject) in
            [("a.>", "a"), ("a.*", "a.b.c"), ("a.b", "a.*"), ("a.*", "a.>"), ("a", "a.b"), ("A.b", "a.b")]
        {
            assert!(!covers(pattern, subject), "{pattern} {subject}");
        }
    }

    #[test]
    fn derives_the_subjects_of_a_stream() {
        let derive = |texts: &[&str]| {
            let templates: Vec<_> =
                texts.iter().map(|text| Template::parse(TemplateKind::Address, text).unwrap()).collect();
            derived(templates.iter())
        };
        let list = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(derive(&["plextrac.{event}.{targetType}"]), list(&["plextrac.>"]));
        assert_eq!(derive(&["a.b{event}"]), list(&["a.>"]));
        assert_eq!(derive(&["reports", "a.{event}"]), list(&["reports", "a.>"]));
        assert_eq!(derive(&["a.reports", "a.{event}", "a.b.{event}"]), list(&["a.>"]));
        assert_eq!(derive(&["{event}.a"]), None);
        assert_eq!(derive(&["a{event}"]), None);
    }

    #[test]
    fn makes_a_pattern_of_whole_tokens() {
        let wanted = |text: &str| wanted_by(&Template::parse(TemplateKind::Address, text).unwrap());
        assert_eq!(wanted("a.{event}.b{source}"), ("a._.b_".to_owned(), "a.*.*".to_owned()));
        assert_eq!(wanted("a.b"), ("a.b".to_owned(), "a.b".to_owned()));
    }

    proptest! {
        #[test]
        fn what_covers_also_overlaps(
            one in "([ab*]\\.){0,3}[ab*>]", other in "([ab*]\\.){0,3}[ab*>]",
        ) {
            prop_assert!(!covers(&one, &other) || overlap(&one, &other));
            prop_assert_eq!(overlap(&one, &other), overlap(&other, &one));
        }
    }
}
