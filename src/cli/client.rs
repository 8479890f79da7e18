//! The HTTP client of the commands.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{CONTENT_TYPE, RETRY_AFTER};
use hyper::{Request, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::cli;

/// The time limit for an answer: PlexTrac itself gives up after five seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The addresses to connect to, in turn, when this one is listened on: a wildcard cannot be connected to, and that of IPv6
/// stands for both families.
pub(super) fn local(address: SocketAddr) -> Vec<SocketAddr> {
    let hosts: &[IpAddr] = match address.ip() {
        ip if !ip.is_unspecified() => return vec![address],
        IpAddr::V4(_) => &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
        IpAddr::V6(_) => &[IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)],
    };
    hosts.iter().map(|host| SocketAddr::new(*host, address.port())).collect()
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
