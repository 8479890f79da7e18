//! The settings of `[broker.rabbitmq]`, and the URI read with what we add to it.

use crate::brokers::oauth::OAuthSettings;
use crate::brokers::rabbitmq::uri::{has_no_password, has_user, parse, uris};
use crate::brokers::template::TemplateKind;
use crate::brokers::tls::TlsFiles;
use crate::brokers::{Encoding, HeaderStyle, Headers, Router, TemplateNames, Topology};
use crate::settings::{Secret, Section, redact};
use lapin::uri::{AMQPScheme, AMQPUri};

/// AMQP 0-9-1, 4.2.5.3: names and keys travel as short strings, whose length is one byte.
pub(super) const SHORT_STRING: usize = 255;

/// In seconds. A stopped broker is noticed after two to two and a half of them; RabbitMQ's own 60 s would hold events
/// back for minutes. Half of it took a busy broker for a stopped one.
const HEARTBEAT: u16 = 6;

/// In bytes. lapin keeps two buffers of 32 frames for each connection: at RabbitMQ's own 128 KiB that is 8 MiB of idle
/// memory. Larger bodies are split, and the headers of an event take less than 1 KiB.
const FRAME_MAX: u32 = 16 * 1024;

/// The settings of `[broker.rabbitmq]`.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// One, or the nodes of a cluster; all with the same virtual host.
    uris: Vec<Secret>,
    /// In place of the user in the URIs, unless empty.
    username: String,
    /// In place of the password in the URIs.
    password: Option<Secret>,
    /// The source of tokens, which are then the password.
    pub(super) oauth: Option<OAuthSettings>,
    pub(in crate::brokers) router: Router,
    pub(super) topology: Topology,
    pub(super) queue: Option<String>,
    pub(super) tls: TlsFiles,
}

const SHAPE: TemplateNames = TemplateNames {
    address: "exchange",
    key: Some(("routing_key", TemplateKind::Address)),
    address_legal: |name| short("the exchange's name", name),
    key_legal: |key| short("the routing key", key),
};

impl Settings {
    /// Reads `[broker.rabbitmq]`.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        let (key, uris) = uris(section);
        let username = section.text("username");
        let password = section.secret("password");
        if !username.is_empty() && password.is_none() && uris.iter().any(has_no_password) {
            section.problem("username", "given without `password` or `password_file`");
        }
        let router = Router::read(section, SHAPE);
        refuse_placeholders(section, &router);
        let topology = Topology::read(section);
        let queue = Some(section.text("queue")).filter(|queue| !queue.is_empty());
        if let Some(Err(problem)) = queue.as_deref().map(|queue| short("the queue's name", queue)) {
            section.problem("queue", problem);
        }
        let tls = TlsFiles::read(section);
        let oauth = OAuthSettings::read(section, tls.ca.as_deref());
        let is_plain = |uri: &Secret| parse(uri.reveal()).is_ok_and(|uri| uri.scheme == AMQPScheme::AMQP);
        if uris.iter().any(is_plain) {
            let name = if key == "uris" { "one of `uris`" } else { "`uri`" };
            let text = format!("is for TLS, but {name} starts with amqp://; write amqps://");
            TlsFiles::refuse(section, &text, oauth.is_some());
        }
        if oauth.is_some() {
            if !username.is_empty() || password.is_some() {
                let given = if username.is_empty() { "password" } else { "username" };
                section.problem(given, "a token is given in its place; remove it, or the `oauth_` settings");
            }
            if uris.iter().any(has_user) {
                section.problem(key, "has a user in it, but a token is given in its place; remove one of them");
            }
        }
        Self { uris, username, password, oauth, router, topology, queue, tls }
    }

    /// The URIs with the user and password of the settings, and with our heartbeat and frame size, where none are given.
    pub(super) fn uris(&self, token: Option<&Secret>) -> Result<Vec<AMQPUri>, String> {
        self.uris.iter().map(|uri| parse(uri.reveal()).map(|uri| self.complete(uri, token))).collect()
    }

    fn complete(&self, mut uri: AMQPUri, token: Option<&Secret>) -> AMQPUri {
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        uri.query.frame_max.get_or_insert(FRAME_MAX);
        let userinfo = &mut uri.authority.userinfo;
        if !self.username.is_empty() {
            userinfo.username.clone_from(&self.username);
        }
        if let Some(password) = &self.password {
            password.reveal().clone_into(&mut userinfo.password);
        }
        if let Some(token) = token {
            // The broker takes name and rights from the token.
            userinfo.username.clear();
            token.reveal().clone_into(&mut userinfo.password);
        }
        uri
    }

    /// Host and port of each URI.
    pub(super) fn hosts(&self) -> Vec<(String, u16)> {
        let uris = self.uris(None).unwrap_or_default();
        uris.into_iter().map(|uri| (uri.authority.host, uri.authority.port)).collect()
    }

    /// The names of its headers.
    pub(crate) fn headers(style: HeaderStyle) -> Headers {
        Headers::new(style, "cloudEvents_", "content-type", Encoding::Plain)
    }

    /// The URIs without user, password and query.
    pub(super) fn location(&self) -> String {
        self.uris.iter().map(|uri| redact(uri.reveal())).collect::<Vec<_>>().join(", ")
    }

    /// One of them.
    pub(super) fn location_of(&self, host: usize) -> String {
        self.uris.get(host).map(|uri| redact(uri.reveal())).unwrap_or_default()
    }
}

fn short(what: &str, text: &str) -> Result<(), String> {
    if text.len() > SHORT_STRING {
        return Err(format!("{what} would be {} bytes, more than {SHORT_STRING}", text.len()));
    }
    Ok(())
}

/// The exchanges must be known at start: they are declared and checked, and the loss of each is recognised.
fn refuse_placeholders(section: &mut Section<'_>, router: &Router) {
    const TEXT: &str = "an exchange is named literally, without placeholders; use `routes` for more than one";
    if router.main().address().literal().is_none() {
        section.problem("exchange", TEXT);
    } else if router.has_placeholders() {
        section.problem("routes", TEXT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::testing;

    fn read(toml: &str) -> (Settings, Vec<String>) {
        let (settings, problems) = testing::read(&["broker", "rabbitmq"], toml, Settings::read);
        (settings, problems.errors)
    }

    #[test]
    fn takes_every_default() {
        let (settings, errors) = read("");
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(settings.location(), "amqp://localhost:5672/%2f");
        assert_eq!(settings.router.main().address().literal(), Some("plextrac"));
        assert_eq!(settings.queue.as_deref(), Some("plextrac-events"));
        assert_eq!(settings.topology, Topology::Declare);
        let uri = &settings.uris(None).unwrap()[0];
        assert_eq!(uri.query.heartbeat, Some(6));
        assert_eq!((uri.authority.userinfo.username.as_str(), settings.location_of(1).as_str()), ("guest", ""));
    }

    #[test]
    fn keeps_the_users_heartbeat_and_an_ipv6_host() {
        let (settings, errors) = read("uri = \"amqp://u:p@[fd00::5]:5673/v?heartbeat=20\"");
        assert!(errors.is_empty(), "{errors:?}");
        let uri = &settings.uris(None).unwrap()[0];
        assert_eq!((uri.query.heartbeat, uri.authority.host.as_str()), (Some(20), "fd00::5"));
        assert_eq!((uri.authority.port, uri.vhost.as_str()), (5673, "v"));
    }

    #[test]
    fn takes_a_file_in_place_of_the_default_uri_but_not_of_a_given_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("uri");
        std::fs::write(&path, "amqp://u:p@elsewhere/%2f\n").unwrap();
        let (settings, errors) = read(&format!("uri_file = {path:?}"));
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(settings.location(), "amqp://elsewhere/%2f");
        let (_, errors) = read(&format!("uri = \"amqp://h/%2f\"\nuri_file = {path:?}"));
        assert_eq!(errors[0], "`uri_file`: `uri` is given, too; keep one");
    }

    #[test]
    fn takes_the_nodes_of_a_cluster_with_user_and_password_beside_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        std::fs::write(&path, "p@ss\n").unwrap();
        let (settings, errors) = read(&format!(
            "uris = [\"amqp://u:hunter2@a/v\", \"amqp://b:5673/v\"]\nusername = \"me\"\npassword_file = {path:?}"
        ));
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(settings.location(), "amqp://a/v, amqp://b:5673/v");
        assert_eq!(settings.location_of(1), "amqp://b:5673/v");
        for uri in settings.uris(None).unwrap() {
            let userinfo = &uri.authority.userinfo;
            assert_eq!((userinfo.username.as_str(), userinfo.password.as_str()), ("me", "p@ss"));
            assert_eq!((uri.vhost.as_str(), uri.query.heartbeat), ("v", Some(6)));
        }
        assert!(!format!("{settings:?}").contains("p@ss") && !format!("{settings:?}").contains("hunter2"));
        let (settings, errors) = read("uri = \"amqp://u@h/\"\npassword = \"hunter2\"");
        assert!(errors.is_empty(), "{errors:?}");
        let userinfo = settings.uris(None).unwrap()[0].authority.userinfo.clone();
        assert_eq!((userinfo.username.as_str(), userinfo.password.as_str()), ("u", "hunter2"));
    }

    #[test]
    fn takes_a_token_in_place_of_user_and_password() {
        let oauth = "oauth_token_endpoint = \"https://login.example.com/token\"\noauth_client_id = \"bridge\"\n\
                     oauth_client_secret = \"hunter2hunter2\"\n";
        let (settings, errors) = read(&format!("uri = \"amqp://h/\"\n{oauth}"));
        assert!(errors.is_empty(), "{errors:?}");
        let userinfo = settings.uris(Some(&Secret::new("a token"))).unwrap()[0].authority.userinfo.clone();
        assert_eq!((userinfo.username.as_str(), userinfo.password.as_str()), ("", "a token"));
        let in_place = "a token is given in its place; remove it, or the `oauth_` settings";
        let password = format!("uri = \"amqp://h/\"\npassword = \"p\"\n{oauth}");
        assert_eq!(read(&password).1, [format!("`password`: {in_place}")]);
        let user = "`uri`: has a user in it, but a token is given in its place; remove one of them";
        assert_eq!(read(&format!("uri = \"amqp://u:p@h/\"\n{oauth}")).1, [user]);
    }

    #[test]
    fn refuses_uris_that_contradict_each_other_or_the_one() {
        let both = "`uris`: `uri` is given, too; keep one";
        assert_eq!(read("uri = \"amqp://a/\"\nuris = [\"amqp://b/\"]").1, [both]);
        let file = "`uris`: `uri_file` is given, too; keep one";
        assert_eq!(read("uri_file = \"/x\"\nuris = [\"amqp://b/\"]").1, [file]);
        let vhosts = "`uris`: the URIs have different virtual hosts; a cluster is given as one of them";
        assert_eq!(read("uris = [\"amqp://a/v\", \"amqp://b/w\"]").1, [vhosts]);
        let scheme = "`uris`: http://a/: must start with amqp:// or amqps://; write it as amqp://user:password@host:5672/%2f";
        assert_eq!(read("uris = [\"http://u:hunter2@a/\"]").1, [scheme]);
        let alone = "`username`: given without `password` or `password_file`";
        assert_eq!(read("uris = [\"amqp://a/\", \"amqp://u:p@b/\"]\nusername = \"u\"").1, [alone]);
    }

    #[test]
    fn says_what_is_wrong_with_a_uri_without_showing_it() {
        let form = "write it as amqp://user:password@host:5672/%2f";
        let cases = [
            ("http://u:hunter2@h/", format!("`uri`: must start with amqp:// or amqps://; {form}")),
            ("amqp:hunter2", format!("`uri`: no host; {form}")),
            ("hunter2", format!("`uri`: not a URI (relative URL without a base); {form}")),
            ("amqp://u:hunter2@h:x/", format!("`uri`: not a URI (invalid port number); {form}")),
            (
                "amqp://u:hunter2@h/?heartbeat=hunter2",
                "`uri`: user, password, virtual host or query cannot be read; percent-encode what is not a letter or \
                 digit there, and give frame_max, channel_max and heartbeat as whole numbers"
                    .to_owned(),
            ),
        ];
        for (uri, expected) in cases {
            let (settings, errors) = read(&format!("uri = {uri:?}"));
            assert_eq!(errors, [expected], "{uri}");
            assert!(!format!("{settings:?}").contains("hunter2"));
        }
    }

    #[test]
    fn takes_exchanges_literally_and_each_once() {
        let route = |exchange: &str| format!("[[routes]]\nevent = \"E\"\nexchange = \"{exchange}\"\n");
        let (settings, errors) = read(&(route("a") + &route("plextrac") + &route("a") + &route("b")));
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(settings.router.literals(), ["plextrac", "a", "b"]);
        let text = "an exchange is named literally, without placeholders; use `routes` for more than one";
        assert_eq!(read("exchange = \"x.{event}\"").1, [format!("`exchange`: {text}")]);
        assert_eq!(read(&route("{event}")).1, [format!("`routes`: {text}")]);
    }

    #[test]
    fn refuses_names_and_keys_that_are_too_long_or_empty() {
        let long = "k".repeat(200);
        assert_eq!(
            read(&format!("routing_key = \"{long}.{{event}}\"")).1,
            ["`routing_key`: the routing key would be 265 bytes, more than 255"]
        );
        assert_eq!(read("exchange = \"\"").1, ["`exchange`: empty"]);
        let long = "q".repeat(256);
        assert_eq!(
            read(&format!("queue = \"{long}\"")).1,
            ["`queue`: the queue's name would be 256 bytes, more than 255"]
        );
    }

    #[test]
    fn wants_certificate_and_key_together_and_only_with_tls() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.pem");
        std::fs::write(&path, "x").unwrap();
        let (_, errors) = read(&format!("uri = \"amqps://h/\"\ncertificate_file = {path:?}"));
        assert_eq!(errors, ["`certificate_file`: given without `key_file`"]);
        let (_, errors) = read(&format!("ca_file = {path:?}"));
        assert_eq!(errors, ["`ca_file`: is for TLS, but `uri` starts with amqp://; write amqps://"]);
        let oauth = "uri = \"amqp://h/\"\noauth_token_endpoint = \"https://h/t\"\noauth_client_id = \"a\"\n\
                     oauth_client_secret = \"b\"";
        let (_, errors) = read(&format!("{oauth}\nca_file = {path:?}"));
        assert!(errors.is_empty(), "the endpoint of tokens needs it: {errors:?}");
        let (settings, errors) =
            read(&format!("uri = \"amqps://h/\"\ncertificate_file = {path:?}\nkey_file = {path:?}"));
        assert!(errors.is_empty() && settings.tls.client.is_some(), "{errors:?}");
    }
}
