//! A stream at connect: looked at, created where `declare` says so, never changed; and what it will not take.

use super::connection::{NatsConnection, Unanswered};
use super::settings::{Settings, StreamPlan};
use super::stream::{self, StreamLimits, StreamLook};
use crate::brokers::template::Template;
use crate::brokers::{ConnectError, ErrorKind, Finding, LARGEST_HEADERS, Terms, Topology};

/// The state of the stream when a session starts.
#[derive(Debug)]
pub(super) enum KnownStream {
    /// It stands.
    Stands(StreamLimits),
    /// It does not.
    Missing,
    /// These credentials may not ask.
    Unasked,
    /// There was no answer.
    Unknown,
}

/// A stream as a session starts with it, created where that is ours to do; and what is to be said of it.
pub(super) async fn establish(
    connection: &mut NatsConnection,
    settings: &Settings,
    plan: &StreamPlan,
) -> Result<(KnownStream, Option<Finding>), ConnectError> {
    let known = look(connection, settings, plan).await?;
    able(&known, plan)?;
    if !matches!(known, KnownStream::Missing) {
        return Ok((known, None));
    }
    match settings.topology {
        Topology::Declare if !plan.subjects.is_empty() => {
            Ok((KnownStream::Stands(create(connection, settings, plan).await?), None))
        }
        Topology::Check if plan == settings.main() => {
            let text = format!("{}: {}", connection.at(), missing_text(plan));
            Err(ConnectError::new(ErrorKind::Connect, text))
        }
        _ => Ok((known, Some(Finding::Missing(missing_text(plan))))),
    }
}

/// Looks at a stream.
pub(super) async fn look(
    connection: &mut NatsConnection,
    settings: &Settings,
    plan: &StreamPlan,
) -> Result<KnownStream, ConnectError> {
    let subject = stream::info_subject(&settings.api, &plan.name);
    let at = connection.at().to_owned();
    let message = match connection.ask(&subject, Vec::new()).await {
        Ok(message) => message,
        Err(Unanswered::Forbidden) if settings.topology == Topology::Ignore => return Ok(KnownStream::Unasked),
        Err(Unanswered::Forbidden) => return Err(forbidden(&at, settings, &subject, "topology = \"ignore\"")),
        // Where permissions are refused somewhere on the way, nothing comes back at all.
        Err(Unanswered::Silence(error))
            if settings.topology == Topology::Ignore
                && error.kind == ErrorKind::Connect
                && connection.is_open() =>
        {
            return Ok(KnownStream::Unknown);
        }
        Err(Unanswered::Silence(error)) => return Err(error),
    };
    let name = &plan.name;
    match stream::read(&message) {
        StreamLook::Stands(StreamLimits { useless: Some(why), .. }) => {
            Err(ConnectError::new(ErrorKind::Connect, format!("{at}: the stream {name} {why}; use another one")))
        }
        StreamLook::Stands(stream) => Ok(KnownStream::Stands(stream)),
        StreamLook::Missing => Ok(KnownStream::Missing),
        StreamLook::NoJetStream(why) => Err(no_jetstream(&at, &settings.api, &why)),
        StreamLook::Unclear(why) => {
            Err(ConnectError::new(ErrorKind::Connect, format!("cannot look at the stream {name}: {why}")))
        }
    }
}

/// Creates a stream.
async fn create(
    connection: &mut NatsConnection,
    settings: &Settings,
    plan: &StreamPlan,
) -> Result<StreamLimits, ConnectError> {
    let subject = stream::create_subject(&settings.api, &plan.name);
    let at = connection.at().to_owned();
    let message = match connection.ask(&subject, stream::creation(settings, plan)).await {
        Ok(message) => message,
        Err(Unanswered::Forbidden) => {
            let instead = "create the stream and set topology = \"check\"";
            return Err(forbidden(&at, settings, &subject, instead));
        }
        Err(Unanswered::Silence(error)) => return Err(error),
    };
    let why = match stream::read(&message) {
        StreamLook::Stands(stream) => return Ok(stream),
        StreamLook::NoJetStream(why) => return Err(no_jetstream(&at, &settings.api, &why)),
        StreamLook::Missing => "it does not exist".to_owned(),
        StreamLook::Unclear(why) => why,
    };
    let (name, subjects) = (&plan.name, plan.subjects.join(", "));
    let text = format!("{at}: cannot create the stream {name} with the subjects {subjects}: {why}");
    Err(ConnectError::new(ErrorKind::Connect, text))
}

/// The error where the cluster stores nothing in the stream at the moment: the same text from each server of it.
pub(super) fn able(known: &KnownStream, plan: &StreamPlan) -> Result<(), ConnectError> {
    match known {
        KnownStream::Stands(StreamLimits { unable: Some(why), .. }) => {
            Err(ConnectError::new(ErrorKind::NotNow, format!("the stream {} {why}", plan.name)))
        }
        _ => Ok(()),
    }
}

/// The advice for a missing stream that the bridge does not create.
pub(super) fn missing_text(plan: &StreamPlan) -> String {
    format!("the stream {} does not exist; create it, or set topology = \"declare\"", plan.name)
}

fn no_jetstream(at: &str, api: &str, why: &str) -> ConnectError {
    let text = if api == "$JS.API" {
        format!(
            "{at}: JetStream is not available: {why}; enable it for the server (`jetstream {{}}`) and this account: \
             plain NATS confirms nothing"
        )
    } else {
        format!("{at}: JetStream is not available at {api}: {why}; check `domain` or `api_prefix`")
    };
    ConnectError::new(ErrorKind::Connect, text)
}

fn forbidden(at: &str, settings: &Settings, subject: &str, instead: &str) -> ConnectError {
    let text = format!("{at}: {} may not publish to {subject}; permit it, or {instead}", settings.login.who());
    ConnectError::new(ErrorKind::Authentication, text)
}

/// The warnings about an existing stream: the subjects that it does not take.
pub(super) fn subjects_not_taken(stream: &StreamLimits, plan: &StreamPlan) -> Vec<Finding> {
    let mut shown = Vec::new();
    for template in &plan.templates {
        let [sample, _] = template.samples();
        let name = shape(template);
        if !stream.takes(&sample) && !shown.contains(&name) {
            shown.push(name);
        }
    }
    let takes = stream.subjects.join(", ");
    let text = |subject| {
        let name = &plan.name;
        format!("the stream {name} takes {takes}, not all of {subject}; events it does not take will be refused")
    };
    shown.iter().map(|subject| Finding::Warning(text(subject))).collect()
}

/// A template for people: what comes after the first placeholder does not matter.
fn shape(template: &Template) -> String {
    template.literal().map_or_else(|| format!("{}{{..}}", template.literal_prefix()), str::to_owned)
}

/// Whether the largest body fits the server and the stream.
pub(super) fn sizes(max_payload: usize, stream: Option<&StreamLimits>, terms: &Terms) -> Finding {
    let needed = terms.max_body.saturating_add(LARGEST_HEADERS);
    let (limit, whose) = match stream.and_then(|stream| stream.max_message) {
        Some(limit) if limit < max_payload => (limit, "the stream's max_msg_size"),
        _ => (max_payload, "the server's max_payload"),
    };
    if needed <= limit {
        return Finding::Good(format!("{whose} of {limit} bytes is enough for ingress.max_body and headers"));
    }
    let fits = limit.saturating_sub(LARGEST_HEADERS);
    Finding::Warning(format!(
        "{whose} is {limit} bytes: bodies above about {fits} bytes will be refused; raise it, or lower ingress.max_body \
         from {} bytes",
        terms.max_body
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::testing;

    fn terms(max_body: usize) -> Terms {
        Terms { max_in_flight: 1, max_body, ..Terms::of_tests(Settings::headers) }
    }

    fn stream(subjects: &[&str], max_message: Option<usize>) -> StreamLimits {
        let subjects = subjects.iter().map(|subject| (*subject).to_owned()).collect();
        StreamLimits { subjects, max_message, useless: None, unable: None, unread: None }
    }

    #[test]
    fn compares_the_largest_message_with_both_limits() {
        let fits = 1024 + LARGEST_HEADERS;
        assert!(matches!(sizes(fits, None, &terms(1024)), Finding::Good(_)));
        assert!(matches!(sizes(fits - 1, None, &terms(1024)), Finding::Warning(_)));
        let finding = sizes(1 << 20, Some(&stream(&[], Some(20_000))), &terms(4000));
        let text = "the stream's max_msg_size is 20000 bytes: bodies above about 3616 bytes will be refused; raise it, \
                    or lower ingress.max_body from 4000 bytes";
        assert_eq!(finding, Finding::Warning(text.to_owned()));
    }

    #[test]
    fn warns_of_each_template_that_the_stream_does_not_take() {
        let toml =
            "subject = \"a.{event}\"\nstream_subjects = [\"a.>\"]\n[[routes]]\nevent = \"E\"\nsubject = \"b\"";
        let (settings, problems) = testing::read(&["broker", "nats"], toml, Settings::read);
        assert!(problems.errors.is_empty(), "{problems:?}");
        assert_eq!(subjects_not_taken(&stream(&["a.>", "b"], None), settings.main()), []);
        assert_eq!(subjects_not_taken(&stream(&["*.*", "b"], None), settings.main()), []);
        let findings = subjects_not_taken(&stream(&["a.x"], None), settings.main());
        let text = |subject| {
            let rest = "events it does not take will be refused";
            Finding::Warning(format!("the stream PLEXTRAC takes a.x, not all of {subject}; {rest}"))
        };
        assert_eq!(findings, [text("b"), text("a.{..}")]);
    }
}
