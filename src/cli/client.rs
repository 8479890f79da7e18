//! The HTTP client of the commands, and the secret that signs what they send.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::app::Settings;
use crate::ingress::Source;
use crate::settings::{Flags, Secret};
use bytes::Bytes;
use clap::Args;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http_body_util::{BodyExt as _, Full};
use hyper::header::{CONTENT_TYPE, RETRY_AFTER};
use hyper::{Request, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use sha2::Sha256;

use crate::cli;

/// The time limit for an answer: PlexTrac itself gives up after five seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The secret that signs.
#[derive(Debug, Args)]
pub(super) struct Signer {
    /// Sign as this source of the settings [default: the only one]
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Sign with the secret in this file instead of one of the settings
    #[arg(long, value_name = "FILE", conflicts_with = "source")]
    secret_file: Option<PathBuf>,
}

impl Signer {
    /// Finds the secret (none if unsigned), and the URL of the source if the settings have it.
    pub(super) fn identity(&self, flags: &Flags) -> Result<(Option<Secret>, Option<String>), ExitCode> {
        if let Some(path) = &self.secret_file {
            let text = std::fs::read_to_string(path)
                .map_err(|error| cli::failed(format_args!("cannot read {}: {error}", path.display())))?;
            let wrong = |wrong| cli::failed(format_args!("{} {wrong}", path.display()));
            let (secret, doubt) = Secret::read(&text).map_err(wrong)?;
            if let Some(doubt) = doubt {
                cli::warn(format_args!("{}: {doubt}", path.display()));
            }
            return Ok((Some(secret), None));
        }
        let (settings, _) = cli::settings(flags)?;
        let source = source(&settings, self.source.as_deref())?;
        let scheme = if settings.ingress.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}{}", local(settings.ingress.listen), source.path);
        Ok((source.secrets.first().map(|named| named.secret.clone()), Some(url)))
    }
}

/// The source of this name, or the only one.
pub(super) fn source<'s>(settings: &'s Settings, name: Option<&str>) -> Result<&'s Source, ExitCode> {
    let source = match name {
        Some(name) => settings.sources.iter().find(|source| *source.name == *name),
        None if settings.sources.len() == 1 => settings.sources.first(),
        None => None,
    };
    source.ok_or_else(|| {
        let names: Vec<&str> = settings.sources.iter().map(|source| &*source.name).collect();
        cli::failed(format_args!("name one of the sources with --source: {}", names.join(", ")))
    })
}

/// An address to connect to when `address` is listened on, because 0.0.0.0 cannot be connected to.
pub(super) fn local(mut address: std::net::SocketAddr) -> std::net::SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    address
}

/// The signature of a body as PlexTrac computes it.
pub(super) fn sign(secret: &Secret, body: &[u8]) -> String {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.reveal().as_bytes()).expect("HMAC takes keys of every length");
    mac.update(body);
    faster_hex::hex_string(&mac.finalize().into_bytes())
}

/// An answer, as far as a sender needs it.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Bytes,
}

/// A client for http and https; only https needs certificates of authorities.
#[derive(Clone)]
pub(super) struct Http(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Http {
    /// A client for this URL.
    pub(super) fn new(url: &Uri) -> Result<Self, ExitCode> {
        let (builder, provider) = (HttpsConnectorBuilder::new(), rustls::crypto::ring::default_provider());
        let builder = if url.scheme_str() == Some("https") {
            builder
                .with_provider_and_native_roots(provider)
                .map_err(|error| cli::failed(format_args!("cannot load the system's certificates: {error}")))?
        } else {
            let config = rustls::ClientConfig::builder_with_provider(std::sync::Arc::new(provider))
                .with_safe_default_protocol_versions()
                .map_err(cli::failed)?
                .with_root_certificates(rustls::RootCertStore::empty());
            builder.with_tls_config(config.with_no_client_auth())
        };
        let connector = builder.https_or_http().enable_http1().build();
        Ok(Self(Client::builder(TokioExecutor::new()).build(connector)))
    }

    /// Sends a body, signed.
    pub(super) async fn post(&self, url: &Uri, body: Bytes, signature: Option<&str>) -> Result<Response, String> {
        let mut request = Request::post(url).header(CONTENT_TYPE, "application/json");
        if let Some(signature) = signature {
            request = request.header("X-Authorization-HMAC-256", signature);
        }
        let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
        self.ask(request).await
    }

    async fn ask(&self, request: Request<Full<Bytes>>) -> Result<Response, String> {
        let exchange = async {
            let response = self.0.request(request).await.map_err(|error| with_causes(&error))?;
            let status = response.status().as_u16();
            let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            let retry_after = seconds.map(Duration::from_secs);
            let body = response.into_body().collect().await.map_err(|error| with_causes(&error))?.to_bytes();
            Ok(Response { status, retry_after, body })
        };
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, exchange).await;
        answered.unwrap_or_else(|_| Err(format!("no answer within {ANSWER_TIMEOUT:?}")))
    }
}

fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
