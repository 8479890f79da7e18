//! The settings of `[broker.nats]`: read and checked, secrets taken out of URLs.
//!
//! Length: half of it are its tests.

use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde_json::json;
use url::Url;

use super::login::{Login, login};
use super::subjects;
use crate::brokers::template::{Template, TemplateKind};
use crate::brokers::tls::TlsFiles;
use crate::brokers::{Encoding, HeaderStyle, Headers, Route, Router, TemplateNames, Topology};
use crate::settings::{ENCODE, Secret, Section, is_ambiguous, redact};

/// The port where a URL names none.
const DEFAULT_PORT: u16 = 4222;

/// The server refuses a shorter duplicate window.
const LEAST_WINDOW: Duration = Duration::from_millis(100);

/// The settings of `[broker.nats]`.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Without user and password; `nats` or `tls`, with a host.
    pub(super) servers: Vec<Url>,
    pub(super) login: Login,
    pub(super) tls: TlsFiles,
    /// TLS before the server's first word, for servers that wait for it.
    pub(super) tls_first: bool,
    pub(in crate::brokers) router: Router,
    /// The main stream, then those that only routes name.
    pub(super) streams: Vec<StreamPlan>,
    /// The prefix of questions to JetStream: `$JS.API`, another domain's, or one that an account exports.
    pub(super) api: String,
    /// The prefix of the subjects of answers.
    pub(super) inbox_prefix: String,
    pub(super) topology: Topology,
    pub(super) stream_replicas: i64,
    pub(super) duplicate_window: Duration,
}

/// A stream that messages go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StreamPlan {
    pub(super) name: String,
    /// The subject templates of its routes.
    pub(super) templates: Vec<Template>,
    /// Its subjects if it is created here; none where nothing says which.
    pub(super) subjects: Vec<String>,
}

/// The stream takes the place of a key: one of several can refuse what another one takes.
const SHAPE: TemplateNames = TemplateNames {
    address: "subject",
    key: Some(("stream", TemplateKind::Name)),
    address_legal: subjects::legal,
    key_legal: subjects::legal_stream,
};

impl Settings {
    /// The names of its headers. The binding has the content type as a header of its own; `content-type` is what consumers
    /// knew first.
    pub(crate) fn headers(style: HeaderStyle) -> Headers {
        Headers::new(style, "ce-", "content-type", Encoding::Percent)
            .with_content_type_also_as("ce-datacontenttype")
    }

    /// Reads `[broker.nats]`.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        let (servers, found) = servers(section);
        let login = login(section, found);
        let tls = TlsFiles::read(section);
        let tls_first = section.flag("tls_first");
        let (api, inbox_prefix) = (api(section), inbox_prefix(section));
        let router = Router::read(section, SHAPE);
        let topology = Topology::read(section);
        let streams = streams(section, &router, topology);
        let stream_replicas = section.integer("stream_replicas", 1, 5);
        let duplicate_window = section.duration("duplicate_window");
        if duplicate_window < LEAST_WINDOW {
            section.problem("duplicate_window", "shorter than \"100ms\", the least that a stream takes");
        }
        Self {
            servers,
            login,
            tls,
            tls_first,
            router,
            streams,
            api,
            inbox_prefix,
            topology,
            stream_replicas,
            duplicate_window,
        }
    }

    /// The stream of everything that no route sends elsewhere.
    pub(super) fn main(&self) -> &StreamPlan {
        &self.streams[0]
    }

    /// Host and port of each server.
    pub(super) fn hosts(&self) -> Vec<(String, u16)> {
        self.servers.iter().map(host).collect()
    }

    /// The servers without secrets.
    pub(super) fn location(&self) -> String {
        self.servers.iter().map(|url| redact(url.as_str())).collect::<Vec<_>>().join(", ")
    }
}

/// Host and port of a server.
pub(super) fn host(server: &Url) -> (String, u16) {
    let name = server.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    (name.to_owned(), server.port().unwrap_or(DEFAULT_PORT))
}

/// The servers, and who their URLs say we are.
fn servers(section: &mut Section<'_>) -> (Vec<Url>, Login) {
    let mut servers = Vec::new();
    let mut logins: Vec<Login> = Vec::new();
    let texts = section.texts("servers");
    section.describe("servers", json!({ "minItems": 1, "items": { "pattern": "^(nats|tls)://" } }));
    if section.is_blank("servers") {
        section.problem("servers", "empty; name at least one, such as [\"nats://localhost:4222\"]");
    }
    for text in texts {
        match server(&text) {
            Ok((url, login)) => {
                servers.push(url);
                if login != Login::Anonymous && !logins.contains(&login) {
                    logins.push(login);
                }
            }
            Err(wrong) => section.problem("servers", format_args!("{}: {wrong}", redact(&text))),
        }
    }
    if logins.len() > 1 {
        section.problem("servers", "the URLs have different users or passwords; all servers are given the same");
    }
    (servers, logins.into_iter().next().unwrap_or(Login::Anonymous))
}

/// One server's URL without user and password, and those.
fn server(text: &str) -> Result<(Url, Login), &'static str> {
    const FORM: &str = "a server is written nats://HOST:PORT, or tls://HOST:PORT for TLS";
    if is_ambiguous(text) {
        return Err(ENCODE);
    }
    let mut url = Url::parse(text).map_err(|_| FORM)?;
    if !matches!(url.scheme(), "nats" | "tls") || url.host_str().is_none_or(str::is_empty) {
        return Err(FORM);
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() {
        return Err("there is something after host and port; remove it");
    }
    let decode = |part: &str| percent_decode_str(part).decode_utf8().map(std::borrow::Cow::into_owned);
    let user = decode(url.username()).map_err(|_| "the user is not UTF-8")?;
    let password = url.password().map(decode).transpose().map_err(|_| "the password is not UTF-8")?;
    let login = match (user, password) {
        (user, None) if user.is_empty() => Login::Anonymous,
        // As the other clients of NATS read it: nats://TOKEN@HOST.
        (token, None) => Login::Token(Secret::new(token)),
        (user, Some(password)) => Login::Password(user, Secret::new(password)),
    };
    // Both succeed for a URL with a host.
    let _ = url.set_password(None);
    let _ = url.set_username("");
    Ok((url, login))
}

/// The subject that questions to JetStream start with.
fn api(section: &mut Section<'_>) -> String {
    let domain = section.text("domain");
    let prefix = section.text("api_prefix");
    if !domain.is_empty() && !prefix.is_empty() {
        section.contradiction("api_prefix", "domain", "keep one");
    }
    if domain.contains('.') {
        section.problem("domain", format_args!("{domain:?} has a dot; a domain is one token"));
    }
    for (key, text) in [("domain", &domain), ("api_prefix", &prefix)] {
        if let Some(Err(wrong)) =
            Some(text).filter(|text| !text.is_empty()).map(|text| subjects::legal_prefix(text))
        {
            section.problem(key, wrong);
        }
    }
    match (domain.is_empty(), prefix.is_empty()) {
        (true, true) => subjects::OWN_API.to_owned(),
        (false, _) => format!("$JS.{domain}.API"),
        (true, false) => prefix,
    }
}

fn inbox_prefix(section: &mut Section<'_>) -> String {
    let prefix = section.text("inbox_prefix");
    if let Err(wrong) = subjects::legal_prefix(&prefix) {
        section.problem("inbox_prefix", wrong);
    }
    prefix
}

/// The streams of the routes, each with its subjects: the main one takes them from the settings, the others from the
/// templates of their routes.
fn streams(section: &mut Section<'_>, router: &Router, topology: Topology) -> Vec<StreamPlan> {
    let name = |route: &Route| route.key().and_then(Template::literal).unwrap_or_default().to_owned();
    let mut plans: Vec<StreamPlan> = Vec::new();
    // The last route is the one for everything else.
    for route in router.main_first() {
        let name = name(route);
        let template = route.address().clone();
        match plans.iter_mut().find(|plan| plan.name == name) {
            Some(plan) => plan.templates.push(template),
            None => plans.push(StreamPlan { name, templates: vec![template], subjects: Vec::new() }),
        }
    }
    // It came twice.
    plans[0].templates.remove(0);
    for plan in &mut plans {
        plan.subjects = subjects::derived(plan.templates.iter()).unwrap_or_default();
    }
    let given = stream_subjects(section);
    if !given.is_empty() {
        plans[0].subjects = given;
    }
    if topology == Topology::Declare {
        for (key, wrong) in undeclarable(&plans) {
            section.problem(key, wrong);
        }
    }
    plans
}

/// The reasons why not all of these streams can be created.
fn undeclarable(plans: &[StreamPlan]) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    if plans[0].subjects.is_empty() {
        let text = "a subject template starts with a placeholder, so nothing says what the stream shall take; set it, \
                    such as [\"plextrac.>\"]";
        problems.push(("stream_subjects", text.to_owned()));
    }
    for (at, plan) in plans.iter().enumerate() {
        for subject in &plan.subjects {
            let overlaps = |other: &&StreamPlan| other.subjects.iter().any(|its| subjects::overlap(its, subject));
            if let Some(other) = plans[..at].iter().find(overlaps) {
                let text = format!(
                    "the streams {:?} and {:?} would both take {subject:?}; give the routes of one other subjects, set \
                     `stream_subjects`, or create the streams and set topology = \"check\"",
                    other.name, plan.name
                );
                problems.push(("routes", text));
                break;
            }
        }
    }
    problems
}

/// The given subjects of the main stream.
fn stream_subjects(section: &mut Section<'_>) -> Vec<String> {
    let given = section.texts("stream_subjects");
    for (at, subject) in given.iter().enumerate() {
        if let Err(wrong) = subjects::legal_pattern(subject) {
            section.problem("stream_subjects", wrong);
        } else if let Some(other) = given[..at].iter().find(|other| subjects::overlap(other, subject)) {
            section.problem(
                "stream_subjects",
                format_args!("{other:?} and {subject:?} overlap; a stream takes neither"),
            );
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::testing::{self, Problems};

    fn read(toml: &str) -> (Settings, Problems) {
        testing::read(&["broker", "nats"], toml, Settings::read)
    }

    fn errors(toml: &str) -> Vec<String> {
        read(toml).1.errors
    }

    #[test]
    fn takes_the_defaults() {
        let (settings, problems) = read("");
        assert!(problems.errors.is_empty() && problems.warnings.is_empty(), "{problems:?}");
        assert_eq!(settings.location(), "nats://localhost:4222");
        assert_eq!((settings.login.clone(), settings.topology), (Login::Anonymous, Topology::Declare));
        assert_eq!((settings.main().name.as_str(), settings.stream_replicas), ("PLEXTRAC", 1));
        assert_eq!(settings.main().subjects, ["plextrac.>"]);
        assert_eq!(settings.duplicate_window, Duration::from_mins(10));
        assert_eq!((settings.api.as_str(), settings.inbox_prefix.as_str()), ("$JS.API", "_INBOX"));
    }

    #[test]
    fn takes_user_and_password_out_of_the_urls() {
        let (settings, problems) =
            read(r#"servers = ["nats://me:p%40ss@one:1", "tls://me:p%40ss@[::1]:2", "nats://c"]"#);
        assert!(problems.errors.is_empty(), "{problems:?}");
        assert_eq!(settings.login, Login::Password("me".to_owned(), Secret::new("p@ss")));
        assert_eq!(settings.location(), "nats://one:1, tls://[::1]:2, nats://c");
        assert!(!format!("{settings:?}").contains("ss@") && !format!("{settings:?}").contains("p@"));
        let (settings, _) = read(r#"servers = ["nats://s3cret@one"]"#);
        assert_eq!(settings.login, Login::Token(Secret::new("s3cret")));
    }

    #[test]
    fn refuses_what_is_no_server() {
        let form = "a server is written nats://HOST:PORT, or tls://HOST:PORT for TLS";
        assert_eq!(errors(r#"servers = ["u:pw@host"]"#), [format!("`servers`: [not a URL]: {form}")]);
        assert_eq!(errors(r#"servers = ["http://u:pw@host"]"#), [format!("`servers`: http://host/: {form}")]);
        assert_eq!(errors(r#"servers = ["nats://"]"#), [format!("`servers`: [not a URL]: {form}")]);
        let behind = "there is something after host and port; remove it";
        assert_eq!(errors(r#"servers = ["nats://h/x?a=b"]"#), [format!("`servers`: nats://h/x: {behind}")]);
        let empty = "`servers`: empty; name at least one, such as [\"nats://localhost:4222\"]";
        assert_eq!(errors("servers = []"), [empty]);
    }

    #[test]
    fn refuses_two_ways_to_log_in() {
        let different = "`servers`: the URLs have different users or passwords; all servers are given the same";
        assert_eq!(errors(r#"servers = ["nats://a:b@h", "nats://a:c@i"]"#), [different]);
        let second = "a second way to log in; give one of `credentials_file`, `nkey_seed_file`, `username` with \
                      `password`, `token`, or a user in the URLs";
        assert_eq!(errors("username = \"a\"\npassword = \"b\"\ntoken = \"t\""), [format!("`token`: {second}")]);
        assert_eq!(errors("token = \"t\"\nservers = [\"nats://a:b@h\"]"), [format!("`servers`: {second}")]);
        assert_eq!(errors("username = \"a\""), ["`username`: given without `password` or `password_file`"]);
        assert_eq!(errors("password = \"a\""), ["`username`: missing; `password` is given"]);
    }

    #[test]
    fn refuses_files_that_do_not_fit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        std::fs::write(&path, "x").unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(
            errors(&format!("certificate_file = {path:?}")),
            ["`certificate_file`: given without `key_file`"]
        );
        assert_eq!(errors(&format!("key_file = {path:?}")), ["`key_file`: given without `certificate_file`"]);
        let key = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIG.x\n";
        for inline in [key, "/MC4CAQAwBQYDK2VwBCIEIGx\n.", "MC4CAQAwBQYDK2VwBCIEIGx"] {
            let text = errors(&format!("key_file = {inline:?}")).join(" ");
            assert!(text.contains("which is not shown") && !text.contains("VwBC"), "{text}");
        }
        assert!(errors("key_file = \"certificates/of/the/bridge.key\"")[0].contains("bridge.key"));
        let wrong = format!(
            "`credentials_file`: {path} is not a .creds file: cannot parse user JWT from the credentials file"
        );
        assert_eq!(errors(&format!("credentials_file = {path:?}")), [wrong]);
    }

    #[test]
    fn reads_the_seed_of_a_user_and_of_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("seed");
        let toml = format!("nkey_seed_file = {:?}", path.to_str().unwrap());
        let seed = nkeys::KeyPair::new_user().seed().unwrap();
        std::fs::write(&path, format!("-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"))
            .unwrap();
        let (settings, problems) = read(&toml);
        assert!(problems.errors.is_empty(), "{problems:?}");
        assert_eq!(settings.login, Login::Seed(Secret::new(seed.as_str())));
        assert!(!format!("{settings:?}").contains(&seed));
        std::fs::write(&path, nkeys::KeyPair::new_account().seed().unwrap()).unwrap();
        let other = "`nkey_seed_file`: holds a seed that is not a user's; a user's starts with SU";
        assert_eq!(errors(&toml), [other]);
        std::fs::write(&path, &seed[1..]).unwrap();
        assert_eq!(errors(&toml), ["`nkey_seed_file`: holds no nkey seed; a user's starts with SU"]);
    }

    #[test]
    fn takes_a_domain_or_a_prefix_and_says_what_is_wrong_with_them() {
        let (settings, problems) = read("domain = \"hub\"\ninbox_prefix = \"_INBOX_bridge\"\ntls_first = true");
        assert!(problems.errors.is_empty() && settings.tls_first, "{problems:?}");
        assert_eq!((settings.api.as_str(), settings.inbox_prefix.as_str()), ("$JS.hub.API", "_INBOX_bridge"));
        assert_eq!(read("api_prefix = \"JS.hub\"").0.api, "JS.hub");
        let both = "`api_prefix`: `domain` is given, too; keep one";
        assert_eq!(errors("domain = \"hub\"\napi_prefix = \"JS.hub\""), [both]);
        assert_eq!(errors("domain = \"a.b\""), ["`domain`: \"a.b\" has a dot; a domain is one token"]);
        let dots = "`api_prefix`: the subject \"JS.hub.\" has an empty token; check its dots";
        assert_eq!(errors("api_prefix = \"JS.hub.\""), [dots]);
        let wildcard = "`inbox_prefix`: the subject \"_INBOX.>\" has a wildcard; give what comes before it";
        assert_eq!(errors("inbox_prefix = \"_INBOX.>\""), [wildcard]);
        assert_eq!(errors("inbox_prefix = \"\""), ["`inbox_prefix`: the subject \"\" is empty"]);
    }

    #[test]
    fn checks_subjects_and_stream() {
        let wildcard = "`subject`: the subject \"a.*._\" has a wildcard; events are published to plain subjects";
        assert_eq!(errors("subject = \"a.*.{event}\""), [wildcard]);
        let prefix = "`stream_subjects`: a subject template starts with a placeholder, so nothing says what the stream \
                      shall take; set it, such as [\"plextrac.>\"]";
        assert_eq!(errors("subject = \"{event}.a\""), [prefix]);
        assert_eq!(errors("subject = \"{event}.a\"\nstream_subjects = [\"*.a\"]"), [""; 0]);
        assert_eq!(errors("subject = \"{event}.a\"\ntopology = \"check\""), [""; 0]);
        let overlap = "`stream_subjects`: \"a.>\" and \"a.b\" overlap; a stream takes neither";
        assert_eq!(errors("stream_subjects = [\"a.>\", \"a.b\"]"), [overlap]);
        let name = "`stream`: \"a.b\" is not a legal stream name; a stream's name has at most 255 bytes, no blanks, dots, \
                    slashes or wildcards";
        assert_eq!(errors("stream = \"a.b\""), [name]);
        let replicas = "`stream_replicas`: expected a whole number, 1 to 5, found 6";
        assert_eq!(errors("stream_replicas = 6"), [replicas]);
        let window = "`duplicate_window`: shorter than \"100ms\", the least that a stream takes";
        assert_eq!(errors("duplicate_window = \"99ms\""), [window]);
    }

    #[test]
    fn gives_each_stream_the_subjects_of_its_routes() {
        let route = |more: &str| format!("[[routes]]\nevent = \"E\"\n{more}\n");
        let audit = route("stream = \"AUDIT\"\nsubject = \"audit.{event}\"");
        let toml = format!("{}{audit}{}", route("subject = \"a\""), route("stream = \"AUDIT\"\nsubject = \"b\""));
        let (settings, problems) = read(&toml);
        assert!(problems.errors.is_empty(), "{problems:?}");
        let plans: Vec<_> =
            settings.streams.iter().map(|plan| (plan.name.as_str(), plan.subjects.clone())).collect();
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(plans, [("PLEXTRAC", list(&["a", "plextrac.>"])), ("AUDIT", list(&["audit.>", "b"]))]);
        let of_its_own =
            format!("stream_subjects = [\"plextrac.>\"]\n{}", audit.replace("audit.{event}", "{event}.x"));
        let (settings, problems) = read(&of_its_own);
        assert!(problems.errors.is_empty() && settings.streams[1].subjects.is_empty(), "{problems:?}");
    }

    #[test]
    fn says_what_is_wrong_with_the_stream_of_a_route() {
        let route = |stream: &str| format!("[[routes]]\nevent = \"E\"\nstream = \"{stream}\"");
        let rule = "a stream's name has at most 255 bytes, no blanks, dots, slashes or wildcards";
        for wrong in ["a.b", "a b", "a*", "a/b", ">"] {
            let expected = format!("`routes[0].stream`: {wrong:?} is not a legal stream name; {rule}");
            assert_eq!(errors(&format!("topology = \"check\"\n{}", route(wrong))), [expected]);
        }
        let empty = "`routes[0].stream`: empty; name the stream that the events go to";
        assert_eq!(errors(&format!("topology = \"check\"\n{}", route(""))), [empty]);
        let both = "`routes`: the streams \"PLEXTRAC\" and \"AUDIT\" would both take \"plextrac.>\"; give the routes of one \
                    other subjects, set `stream_subjects`, or create the streams and set topology = \"check\"";
        assert_eq!(errors(&route("AUDIT")), [both]);
        assert_eq!(errors(&format!("topology = \"check\"\n{}", route("AUDIT"))), [""; 0]);
    }
}
