//! A stream before there is a session: looked at, created where `declare` says so, never changed; and what it will not
//! take.

use super::connection::NatsConnection;
use super::settings::{Settings, StreamPlan};
use super::stream::{self, StreamLimits, StreamLook};
use super::subjects;
use crate::brokers::template::Template;
use crate::brokers::{ConnectError, ErrorKind, Finding, LARGEST_HEADERS, Terms, Topology};

/// The purpose of a survey.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SurveyPurpose {
    /// A session begins: what is missing is created, where that is ours to do.
    Session,
    /// Nothing is changed, and everything is said.
    Inspection,
}

/// A stream that is being looked at, before there is a session.
struct Survey<'a> {
    connection: &'a mut NatsConnection,
    settings: &'a Settings,
    plan: &'a StreamPlan,
}

/// A stream as it is found, and what is to be said of it. Only the main one must be there.
pub(super) async fn survey(
    connection: &mut NatsConnection,
    settings: &Settings,
    plan: &StreamPlan,
    terms: &Terms,
    purpose: SurveyPurpose,
) -> Result<(StreamLook, Vec<Finding>), ConnectError> {
    let mut survey = Survey { connection, settings, plan };
    let found = match purpose {
        SurveyPurpose::Session => survey.establish().await,
        SurveyPurpose::Inspection => survey.look().await,
    };
    let is_main = plan == settings.main();
    let (look, mut findings) = match found {
        Err(error) if !is_main && connection.is_open() => {
            let is_forbidden = error.kind == ErrorKind::Authentication;
            let look = if is_forbidden { StreamLook::Forbidden } else { StreamLook::Silent };
            (look, vec![Finding::Warning(error.text)])
        }
        found => (found?, Vec::new()),
    };
    match purpose {
        SurveyPurpose::Session if look == StreamLook::Missing => {
            findings.push(Finding::Missing(missing_text(plan)));
        }
        SurveyPurpose::Session => {}
        SurveyPurpose::Inspection if look == StreamLook::Missing && is_created(settings, plan) => {
            findings.push(Survey { connection, settings, plan }.prospect().await);
        }
        SurveyPurpose::Inspection => findings.extend(state(&look, settings, plan)),
    }
    let stream = look.stream();
    findings.extend(stream.into_iter().flat_map(|stream| subjects_not_taken(stream, plan, settings.topology)));
    if stream.is_some() || is_main {
        findings.push(sizes(connection.max_payload(), stream, terms));
    }
    Ok((look, findings))
}

impl Survey<'_> {
    fn failed(&self, text: &str) -> ConnectError {
        ConnectError::new(ErrorKind::Connect, format!("{}: {text}", self.connection.at))
    }

    async fn look(&mut self) -> Result<StreamLook, ConnectError> {
        let Self { settings, plan: StreamPlan { name, .. }, .. } = *self;
        let subject = stream::info_subject(&settings.api, name);
        let ignores = settings.topology == Topology::Ignore;
        let look = match self.connection.ask(&subject, Vec::new()).await {
            Ok(Some(answer)) => stream::read(Some(&answer)),
            Ok(None) if ignores => StreamLook::Forbidden,
            Ok(None) => return Err(self.forbidden(&subject, "topology = \"ignore\"")),
            // Where permissions are refused somewhere on the way, nothing comes back at all.
            Err(error) if ignores && error.kind == ErrorKind::Connect && self.connection.is_open() => {
                StreamLook::Silent
            }
            Err(error) => return Err(error),
        };
        match look {
            StreamLook::Stands(StreamLimits { useless: Some(why), .. }) => {
                Err(self.failed(&format!("the stream {name} {why}; use another one")))
            }
            StreamLook::NoJetStream(why) => Err(self.no_jetstream(&why)),
            StreamLook::Unclear(why) => {
                Err(ConnectError::new(ErrorKind::Connect, format!("cannot look at the stream {name}: {why}")))
            }
            look => Ok(look),
        }
    }

    /// The stream as a session starts with it.
    async fn establish(&mut self) -> Result<StreamLook, ConnectError> {
        let (settings, plan) = (self.settings, self.plan);
        match self.look().await? {
            // The same text from each server of the cluster.
            StreamLook::Stands(StreamLimits { unable: Some(why), .. }) => {
                Err(ConnectError::new(ErrorKind::NotNow, format!("the stream {} {why}", plan.name)))
            }
            StreamLook::Missing if is_created(settings, plan) => self.create().await,
            StreamLook::Missing if settings.topology == Topology::Check && plan == settings.main() => {
                Err(self.failed(&missing_text(plan)))
            }
            look => Ok(look),
        }
    }

    async fn create(&mut self) -> Result<StreamLook, ConnectError> {
        let (settings, plan) = (self.settings, self.plan);
        let subject = stream::create_subject(&settings.api, &plan.name);
        let Some(answer) = self.connection.ask(&subject, stream::creation(settings, plan)).await? else {
            return Err(self.forbidden(&subject, "create the stream and set topology = \"check\""));
        };
        let why = match stream::read(Some(&answer)) {
            stream @ StreamLook::Stands(_) => return Ok(stream),
            StreamLook::NoJetStream(why) => return Err(self.no_jetstream(&why)),
            StreamLook::Unclear(why) => why,
            _ => "it does not exist".to_owned(),
        };
        let (name, subjects) = (&plan.name, plan.subjects.join(", "));
        Err(self.failed(&format!("cannot create the stream {name} with the subjects {subjects}: {why}")))
    }

    /// Whether the missing stream can be created at start, as far as the server tells.
    async fn prospect(&mut self) -> Finding {
        let (settings, plan) = (self.settings, self.plan);
        let (name, replicas) = (&plan.name, settings.stream_replicas);
        let impossible = |why: String| {
            Finding::Missing(format!("the stream {name} does not exist and cannot be created: {why}"))
        };
        if replicas > 1 && self.connection.is_alone() && settings.api == subjects::OWN_API {
            return impossible(format!("`stream_replicas` is {replicas}, but the server is in no cluster"));
        }
        let names = stream::names_subject(&settings.api);
        for subject in &plan.subjects {
            // Credentials that may not ask learn it at the start.
            let answer = self.connection.ask(&names, stream::taking(subject)).await;
            if let Some(other) = answer.ok().flatten().and_then(|answer| stream::first_name(&answer.payload)) {
                let advice = "name that stream, or change `subject` or `stream_subjects`";
                return impossible(format!("the stream {other} takes {subject}, or a part of it; {advice}"));
            }
        }
        let subjects = plan.subjects.join(", ");
        Finding::Good(format!("the stream {name} will be created at start and take {subjects}"))
    }

    fn no_jetstream(&self, why: &str) -> ConnectError {
        let api = &self.settings.api;
        self.failed(&if api == subjects::OWN_API {
            format!(
                "JetStream is not available: {why}; enable it for the server (`jetstream {{}}`) and this account: plain \
                 NATS confirms nothing"
            )
        } else {
            format!("JetStream is not available at {api}: {why}; check `domain` or `api_prefix`")
        })
    }

    fn forbidden(&self, subject: &str, instead: &str) -> ConnectError {
        let (at, who) = (&self.connection.at, self.settings.login.who());
        let text = format!("{at}: {who} may not publish to {subject}; permit it, or {instead}");
        ConnectError::new(ErrorKind::Authentication, text)
    }
}

/// Whether the bridge creates the stream where it is missing.
fn is_created(settings: &Settings, plan: &StreamPlan) -> bool {
    settings.topology == Topology::Declare && !plan.subjects.is_empty()
}

/// The findings of an inspection.
fn state(look: &StreamLook, settings: &Settings, plan: &StreamPlan) -> Vec<Finding> {
    let name = &plan.name;
    let stream = match look {
        StreamLook::Stands(stream) => stream,
        StreamLook::Missing => return vec![Finding::Missing(missing_text(plan))],
        StreamLook::Forbidden => {
            let text = format!("these credentials may not look at the stream {name}; nothing is known of it");
            return vec![Finding::Warning(text)];
        }
        _ => {
            let subject = stream::info_subject(&settings.api, name);
            let text = format!("nothing is known of the stream {name}: no answer to {subject}");
            return vec![Finding::Warning(text)];
        }
    };
    let mut findings =
        vec![Finding::Good(format!("the stream {name} exists and takes {}", stream.subjects.join(", ")))];
    if let Some(why) = stream.unable {
        findings.push(Finding::Warning(format!("the stream {name} {why}: events wait until that changes")));
    }
    if let (Some(messages), Topology::Declare) = (stream.unread, settings.topology) {
        findings.push(Finding::Warning(format!(
            "the stream {name} has {messages} messages, no consumer and no limit: it grows until the disk is full; read \
             it, or limit its age or size"
        )));
    }
    findings
}

/// The advice for a missing stream that the bridge does not create.
fn missing_text(plan: &StreamPlan) -> String {
    format!("the stream {} does not exist; create it, or set topology = \"declare\"", plan.name)
}

/// The findings about an existing stream: the subjects that it does not take. Where the topology is ignored, the account
/// may map a subject to another one.
fn subjects_not_taken(stream: &StreamLimits, plan: &StreamPlan, topology: Topology) -> Vec<Finding> {
    let mut shown = Vec::new();
    let mut findings = Vec::new();
    let (stream_name, takes) = (&plan.name, stream.subjects.join(", "));
    for template in &plan.templates {
        let (sample, pattern) = subjects::wanted_by(template);
        let name = shape(template);
        if stream.takes(&sample) || shown.contains(&name) {
            continue;
        }
        let is_never = !stream.subjects.iter().any(|subject| subjects::overlap(subject, &pattern));
        findings.push(if is_never && topology != Topology::Ignore {
            let text = "its events will be refused; change `subject` or the stream's subjects";
            Finding::Missing(format!("the stream {stream_name} takes {takes}, nothing of {name}: {text}"))
        } else {
            let text = "events it does not take will be refused";
            Finding::Warning(format!("the stream {stream_name} takes {takes}, not all of {name}; {text}"))
        });
        shown.push(name);
    }
    findings
}

/// A template for people: what comes after the first placeholder does not matter.
fn shape(template: &Template) -> String {
    template.literal().map_or_else(|| format!("{}{{..}}", template.literal_prefix()), str::to_owned)
}

/// Whether the largest body fits the server and the stream.
fn sizes(max_payload: usize, stream: Option<&StreamLimits>, terms: &Terms) -> Finding {
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
    fn tells_each_template_that_the_stream_does_not_take() {
        let toml =
            "subject = \"a.{event}\"\nstream_subjects = [\"a.>\"]\n[[routes]]\nevent = \"E\"\nsubject = \"b\"";
        let (settings, problems) = testing::read(&["broker", "nats"], toml, Settings::read);
        assert!(problems.errors.is_empty(), "{problems:?}");
        let not_taken =
            |takes: &[&str], topology| subjects_not_taken(&stream(takes, None), settings.main(), topology);
        assert_eq!(not_taken(&["a.>", "b"], Topology::Check), []);
        assert_eq!(not_taken(&["*.*", "b"], Topology::Check), []);
        let some = |subject| {
            let rest = "events it does not take will be refused";
            Finding::Warning(format!("the stream PLEXTRAC takes a.x, not all of {subject}; {rest}"))
        };
        let rest = "its events will be refused; change `subject` or the stream's subjects";
        let none = Finding::Missing(format!("the stream PLEXTRAC takes a.x, nothing of b: {rest}"));
        for topology in [Topology::Check, Topology::Declare] {
            assert_eq!(not_taken(&["a.x"], topology), [none.clone(), some("a.{..}")]);
        }
        assert_eq!(not_taken(&["a.x"], Topology::Ignore), [some("b"), some("a.{..}")]);
    }
}
