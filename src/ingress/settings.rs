//! `[ingress]` and `[sources.*]`.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use serde_json::json;

use crate::event::Origin;
use crate::ingress::tls::ServerTls;
use crate::ingress::validate::{Trust, Validation};
use crate::ingress::verify::{Verified, Verifier};
use crate::settings::{Secret, Section};

/// The largest `ingress.max_body`: positions in a body are 32 bits.
const LARGEST_BODY: usize = 1 << 30;

/// `[ingress]`.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The address to listen on.
    pub(crate) listen: SocketAddr,
    /// The number of threads.
    pub(crate) threads: usize,
    /// The size limit of a body, in bytes.
    pub(crate) max_body: usize,
    /// The maximum number of connections, all threads together.
    pub(crate) max_connections: usize,
    /// The longest time for a head, from its first byte, and for the first request of a connection to begin.
    pub(crate) header_timeout: Duration,
    /// The longest time a connection may be idle between requests.
    pub(crate) idle_timeout: Duration,
    /// The longest time for a body.
    pub(crate) body_timeout: Duration,
    /// The proxies whose `X-Forwarded-For` is trusted.
    pub(crate) trusted_proxies: Arc<[IpNet]>,
    /// The settings of HTTPS, if the table is present.
    pub(crate) tls: Option<ServerTls>,
}

impl Settings {
    /// Reads `[ingress]`.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        let threads = section.integer("threads", 0, 1024);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let most_connections = section.integer("max_connections", 1, 1_000_000);
        let settings = Self {
            listen: section.address("listen").unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
            threads: usize::try_from(threads).ok().filter(|threads| *threads > 0).unwrap_or(cores),
            max_body: section.size("max_body"),
            max_connections: usize::try_from(most_connections).unwrap_or(1),
            header_timeout: section.duration("header_timeout"),
            idle_timeout: section.duration("idle_timeout"),
            body_timeout: section.duration("body_timeout"),
            trusted_proxies: read_networks(section),
            tls: read_tls(section),
        };
        if settings.max_body == 0 || settings.max_body > LARGEST_BODY {
            section.problem("max_body", "must be from \"1B\" to \"1GiB\"");
        }
        for (key, value) in [
            ("header_timeout", settings.header_timeout),
            ("idle_timeout", settings.idle_timeout),
            ("body_timeout", settings.body_timeout),
        ] {
            if value.is_zero() {
                section.problem(key, "must be above 0");
            }
        }
        settings
    }
}

fn read_networks(section: &mut Section<'_>) -> Arc<[IpNet]> {
    const KEY: &str = "trusted_proxies";
    let mut networks = Vec::new();
    let texts = section.texts(KEY);
    section.describe(KEY, json!({ "items": { "pattern": "^[0-9a-fA-F:.]+(/[0-9]{1,3})?$" } }));
    for text in texts {
        if let Ok(network) = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
            networks.push(network);
        } else {
            let text = format!("{text:?} is not a network; write it as \"10.0.0.0/8\" or \"2001:db8::/32\"");
            section.problem(KEY, text);
        }
    }
    networks.into()
}

fn read_tls(section: &mut Section<'_>) -> Option<ServerTls> {
    let is_named = section.has("tls");
    let mut table = section.section("tls");
    let tls = if is_named { ServerTls::read(&mut table) } else { None };
    table.finish();
    tls
}

/// A secret and its id.
#[derive(Clone, Debug)]
pub(crate) struct NamedSecret {
    /// The id shown in metrics and `/status`.
    pub(crate) id: Arc<str>,
    /// The secret.
    pub(crate) secret: Secret,
}

/// `[sources.NAME]`.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The name.
    pub(crate) name: Arc<str>,
    /// The path it answers.
    pub(crate) path: String,
    /// Whether a signature is required. The settings say so: a source without secrets takes nothing, unless it is unsigned.
    pub(crate) trust: Trust,
    /// The secrets; none if unsigned.
    pub(crate) secrets: Vec<NamedSecret>,
    /// The strictness of validation.
    pub(crate) validation: Validation,
}

impl Source {
    /// Whether a signature is required.
    pub(crate) fn is_signed(&self) -> bool {
        self.trust == Trust::Signed
    }

    /// The check of signatures.
    pub(super) fn verifier(&self) -> Verifier {
        Verifier::new(self.trust, self.secrets.iter().map(|named| &named.secret))
    }

    /// The origin of an event from this source.
    pub(super) fn origin(
        &self,
        verified: &Verified,
        traceparent: Option<Box<str>>,
        received: SystemTime,
    ) -> Origin {
        Origin {
            source: self.name.clone(),
            signature: verified.signature,
            verified: self.is_signed(),
            traceparent,
            received,
        }
    }
}

/// Whether a source may have this name.
pub(crate) fn is_source_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Checks that a path is written as a URL carries it: senders encode other paths, and would never reach it.
fn check_path(path: &str) -> Result<(), String> {
    if !path.starts_with('/') || path.contains(['?', '#']) {
        return Err(format!("{path:?} is not a path; it starts with `/` and has no query"));
    }
    let hex = |at: usize| path.as_bytes().get(at).is_some_and(u8::is_ascii_hexdigit);
    if path.match_indices('%').any(|(at, _)| !hex(at + 1) || !hex(at + 2)) {
        return Err(format!(
            "{path:?} has a `%` without two hexadecimal digits behind it; a `%` itself is written %25"
        ));
    }
    let parsed = url::Url::parse(&format!("http://bridge{path}"));
    let carried = parsed.map_err(|error| format!("{path:?} is not a path: {error}"))?;
    if carried.path() != path {
        return Err(format!("{path:?} is sent as {0:?} in a URL; write {0:?}", carried.path()));
    }
    Ok(())
}

/// Reads one `[sources.NAME]`.
pub(crate) fn read_source(name: &str, section: &mut Section<'_>) -> Source {
    let path = section.text("path");
    section.describe("path", json!({ "pattern": r"^/[^?#\s]*$" }));
    if let Err(problem) = check_path(&path) {
        section.problem("path", problem);
    }
    let mut secrets = Vec::new();
    if let Some(secret) = section.secret("secret") {
        section.warn_if_short("secret", &secret);
        secrets.push(NamedSecret { id: "default".into(), secret });
    }
    let single = if section.is_blank("secret_file") { "secret" } else { "secret_file" };
    let several = read_secrets(section);
    if !several.is_empty() && !secrets.is_empty() {
        section.contradiction("secrets", single, "put all into `secrets`, and remove the other");
    }
    let given_by = if several.is_empty() { single } else { "secrets" };
    secrets.extend(several);
    let unsigned = section.flag("unsigned");
    // Otherwise what is given is wrong, and reported.
    let is_blank =
        |section: &Section<'_>| ["secret", "secret_file", "secrets"].iter().all(|key| section.is_blank(key));
    if unsigned && !secrets.is_empty() {
        let place = section.given_at(given_by);
        let text =
            format!("a source with a secret cannot be unsigned, and {place} gives one; remove one of the two");
        section.problem("unsigned", text);
    } else if unsigned {
        section.warning("unsigned", format_args!("anyone who reaches {path} can publish events"));
    } else if secrets.is_empty() && (is_blank(section) || section.is_sound()) {
        let text = "no secret; set `secret`, `secret_file` or `secrets` to what PlexTrac's webhook form has, or \
                    `unsigned = true`";
        section.problem("secret", text);
    }
    let validation =
        section.choice("validation", &Validation::ALL.map(|validation| (validation.name(), validation)));
    let trust = if unsigned { Trust::Unsigned } else { Trust::Signed };
    Source { name: name.into(), path, trust, secrets, validation }
}

fn read_secrets(section: &mut Section<'_>) -> Vec<NamedSecret> {
    let mut secrets = Vec::new();
    let mut ids = BTreeSet::new();
    for mut table in section.sections("secrets") {
        let id = table.text("id");
        table.describe("", json!({ "required": ["id"] }));
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            table.problem("id", "a secret has an id of letters, digits, `.`, `_` and `-`");
        } else if !ids.insert(id.clone()) {
            table.problem("id", format_args!("two secrets have the id {id:?}"));
        }
        match table.secret_from("value", "file") {
            Some(secret) => {
                table.warn_if_short("value", &secret);
                secrets.push(NamedSecret { id: id.into(), secret });
            }
            None if table.is_blank("file") && table.is_blank("value") => {
                table.problem("value", "missing; give `value` or `file`");
            }
            None => {}
        }
        table.finish();
    }
    secrets
}
