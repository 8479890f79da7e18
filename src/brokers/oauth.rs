//! Tokens of an OAuth 2.0 token endpoint, by client credentials (RFC 6749, 4.4): fetched before the first login, renewed
//! before they end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use hyper::{Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::brokers::dial::without_time;
use crate::brokers::tls::certificates;
use crate::brokers::{ConnectError, ErrorKind};
use crate::settings::{ENCODE, Secret, Section, is_ambiguous};

/// The time limit for an answer of the token endpoint.
const ANSWER: Duration = Duration::from_secs(5);

/// The pause between attempts to renew a token.
const AGAIN: Duration = Duration::from_secs(5);

/// The life of a token that does not say how long it is valid.
const USUAL_LIFE: Duration = Duration::from_mins(5);

/// The longest life that is believed; times beyond `SystemTime` would overflow.
const LONGEST_LIFE: Duration = Duration::from_hours(365 * 24);

/// The largest answer: a token with many claims has some KiB.
const LARGEST: usize = 64 << 10;

/// The keys of these settings.
const KEYS: [&str; 3] = ["oauth_token_endpoint", "oauth_client_id", "oauth_client_secret"];

/// The source of tokens.
#[derive(Clone, Debug)]
pub(super) struct OAuthSettings {
    endpoint: Uri,
    client_id: String,
    client_secret: Secret,
    scope: String,
    /// Trusted beside the system's certificates.
    ca_file: Option<PathBuf>,
}

impl OAuthSettings {
    /// Reads the keys that begin with `oauth_`; none if none is given, or one is missing (a problem then). `ca_file` is the
    /// one of the broker.
    pub(super) fn read(section: &mut Section<'_>, ca_file: Option<&Path>) -> Option<Self> {
        let text = section.text(KEYS[0]);
        let client_id = section.text(KEYS[1]);
        let client_secret = section.secret(KEYS[2]);
        let scope = section.text("oauth_scope");
        let given = [!text.is_empty(), !client_id.is_empty(), client_secret.is_some()];
        if !given.contains(&true) {
            if !scope.is_empty() {
                section.problem("oauth_scope", "given without `oauth_token_endpoint`");
            }
            return None;
        }
        for (key, _) in KEYS.iter().zip(given).filter(|(_, given)| !given) {
            section.problem(key, "empty; a token needs endpoint, client id and client secret");
        }
        let endpoint = endpoint(&text);
        match &endpoint {
            Err(wrong) if given[0] => section.problem(KEYS[0], wrong),
            Ok(uri) if uri.scheme_str() == Some("http") && !is_loopback(uri) => {
                section.warning(KEYS[0], "http:// sends the client secret and the token unprotected; use https://");
            }
            _ => {}
        }
        let ca_file = ca_file.map(Path::to_owned);
        Some(Self { endpoint: endpoint.ok()?, client_id, client_secret: client_secret?, scope, ca_file })
    }

    /// The name under which a broker's log has the connection.
    pub(super) fn client_id(&self) -> &str {
        &self.client_id
    }

    fn request(&self) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let mut form = "grant_type=client_credentials".to_owned();
        if !self.scope.is_empty() {
            form = format!("{form}&scope={}", encoded(&self.scope));
        }
        let login = format!("{}:{}", encoded(&self.client_id), encoded(self.client_secret.reveal()));
        Request::post(&self.endpoint)
            .header(AUTHORIZATION, format!("Basic {}", BASE64_STANDARD.encode(login)))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(Full::new(Bytes::from(form)))
    }

    async fn fetch(&self) -> Result<Token, ConnectError> {
        let asked = Instant::now();
        let failed = |kind, text: &str| ConnectError::new(kind, format!("no token from {}: {text}", self.endpoint));
        let request = self.request().map_err(|error| failed(ErrorKind::Authentication, &error.to_string()))?;
        let config = trusting(self.ca_file.as_deref()).map_err(|text| failed(ErrorKind::Tls, &text))?;
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(connector);
        let exchange = async {
            let response = client.request(request).await.map_err(|error| innermost(&error))?;
            let status = response.status();
            let body =
                Limited::new(response.into_body(), LARGEST).collect().await.map_err(|error| error.to_string())?;
            Ok::<_, String>((status, body.to_bytes()))
        };
        let answer = timeout(ANSWER, exchange).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER.as_secs())));
        let (status, body) = answer.map_err(|text| {
            let kind = if text.contains("certificate") { ErrorKind::Tls } else { ErrorKind::Connect };
            failed(kind, without_time(&text))
        })?;
        read(status, &body, asked).map_err(|text| failed(ErrorKind::Authentication, &text))
    }
}

fn endpoint(text: &str) -> Result<Uri, &'static str> {
    const FORM: &str = "write it as https://login.example.com/oauth2/token, without a user or a fragment";
    if is_ambiguous(text) {
        return Err(ENCODE);
    }
    let uri: Uri = text.parse().map_err(|_| FORM)?;
    let is_plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    let is_http = matches!(uri.scheme_str(), Some("https" | "http"));
    (is_plain && is_http).then_some(uri).ok_or(FORM)
}

fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn trusting(ca_file: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        roots.add_parsable_certificates(certificates("ca_file", path)?);
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(below) = cause.source() {
        cause = below;
    }
    cause.to_string()
}

/// Reads the answer; an error shows what the endpoint says of one, and nothing else of the body.
fn read(status: StatusCode, body: &[u8], asked: Instant) -> Result<Token, String> {
    let answer: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |key: &str| answer.get(key).and_then(serde_json::Value::as_str);
    if !status.is_success() {
        let said = [text("error"), text("error_description")].into_iter().flatten().collect::<Vec<_>>().join(": ");
        return Err(format!("status {}: {said}; check client id, secret and scope", status.as_u16()));
    }
    let token = text("access_token").filter(|token| !token.is_empty()).ok_or("an answer without `access_token`")?;
    let life = answer.get("expires_in").and_then(|life| life.as_f64().or_else(|| life.as_str()?.parse().ok()));
    let bounded = |seconds: f64| Duration::try_from_secs_f64(seconds.min(LONGEST_LIFE.as_secs_f64())).ok();
    let life = life.and_then(bounded).filter(|life| !life.is_zero()).unwrap_or(USUAL_LIFE);
    let ends = SystemTime::now() + life.saturating_sub(asked.elapsed());
    Ok(Token { text: Secret::new(token), ends, renew: asked + life.mul_f64(0.7) })
}

/// A token.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) text: Secret,
    /// The end of its life.
    pub(super) ends: SystemTime,
    /// The time of its renewal, before any client asks for another one.
    renew: Instant,
}

impl Token {
    /// Whether it should have been renewed.
    pub(super) fn is_due(&self) -> bool {
        self.renew <= Instant::now()
    }

    /// Whether its life has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ends <= SystemTime::now()
    }
}

/// The token of one broker, renewed as long as something holds this.
#[derive(Debug)]
pub(super) struct Tokens {
    settings: OAuthSettings,
    current: watch::Sender<Option<Arc<Token>>>,
    renewing: Mutex<Option<AbortHandle>>,
}

impl Drop for Tokens {
    fn drop(&mut self) {
        if let Some(renewing) = self.renewing.get_mut() {
            renewing.abort();
        }
    }
}

impl Tokens {
    /// No token yet.
    pub(super) fn new(settings: &OAuthSettings) -> Arc<Self> {
        Arc::new(Self { settings: settings.clone(), current: watch::Sender::new(None), renewing: Mutex::default() })
    }

    /// The name of the client.
    pub(super) fn client_id(&self) -> &str {
        self.settings.client_id()
    }

    /// The token that is there, if its life has not ended.
    pub(super) fn current(&self) -> Option<Arc<Token>> {
        self.current.borrow().clone().filter(|token| !token.has_ended())
    }

    /// Tells of each token that comes after the present one.
    pub(super) fn renewed(&self) -> watch::Receiver<Option<Arc<Token>>> {
        self.current.subscribe()
    }

    /// The token that is there, also one whose renewal fails, or else a new one; it is renewed from now on.
    ///
    /// # Errors
    /// The endpoint gives none.
    pub(super) async fn valid(&self) -> Result<Arc<Token>, ConnectError> {
        if let Some(token) = self.current() {
            return Ok(token);
        }
        let token = Arc::new(self.settings.fetch().await?);
        self.current.send_replace(Some(token.clone()));
        let mut renewing = self.renewing.lock();
        if renewing.is_none() {
            let task = tokio::spawn(renew(self.settings.clone(), self.current.clone()));
            *renewing = Some(task.abort_handle());
        }
        Ok(token)
    }
}

/// Renews the token for ever.
async fn renew(settings: OAuthSettings, current: watch::Sender<Option<Arc<Token>>>) {
    loop {
        let due = current.borrow().as_ref().map(|token| token.renew);
        if let Some(due) = due {
            sleep_until(due).await;
        }
        // Another request may have fetched one meanwhile.
        if current.borrow().as_ref().is_some_and(|token| !token.is_due()) {
            continue;
        }
        match settings.fetch().await {
            Ok(token) => {
                current.send_replace(Some(Arc::new(token)));
            }
            Err(error) => {
                tracing::warn!("cannot renew the token, trying again: {error}");
                sleep(AGAIN).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::testing;

    fn problems(toml: &str) -> (Vec<String>, Vec<String>) {
        // Any table with these keys: that of Kafka is one.
        let ((), problems) = testing::read(&["broker", "kafka"], toml, |section| {
            OAuthSettings::read(section, None);
            for key in section.keys() {
                section.text(&key);
            }
        });
        (problems.errors, problems.warnings)
    }

    #[test]
    fn asks_for_endpoint_id_and_secret_together() {
        let needs = |key: &str| format!("`{key}`: empty; a token needs endpoint, client id and client secret");
        let (errors, _) = problems("oauth_client_id = \"bridge\"");
        assert_eq!(errors[..2], [needs("oauth_token_endpoint"), needs("oauth_client_secret")]);
        let (errors, _) = problems("oauth_scope = \"kafka\"");
        assert_eq!(errors[0], "`oauth_scope`: given without `oauth_token_endpoint`");
    }

    #[test]
    fn takes_an_endpoint_of_http_without_a_user() {
        for good in ["https://login.example.com/token", "http://127.0.0.1:1/token?tenant=a"] {
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for bad in ["login.example.com", "ftp://a/token", "https://u:p@a/token", "https://a/token#b", "/token"] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
        let of = |url: &str| {
            format!("oauth_token_endpoint = {url:?}\noauth_client_id = \"a\"\noauth_client_secret = \"b\"")
        };
        assert_eq!(problems(&of("http://login.example.com/token")).1.len(), 1);
        assert!(problems(&of("http://localhost:1/token")).1.is_empty());
    }

    #[tokio::test]
    async fn reads_what_the_endpoint_answers_and_shows_no_body() {
        let now = Instant::now();
        let token = read(StatusCode::OK, br#"{"access_token":"abc","expires_in":100}"#, now).unwrap();
        assert_eq!((token.text.reveal(), token.renew - now), ("abc", Duration::from_secs(70)));
        let left = token.ends.duration_since(SystemTime::now()).unwrap();
        assert!(left > Duration::from_secs(90) && left <= Duration::from_secs(100), "{left:?}");
        let token = read(StatusCode::OK, br#"{"access_token":"abc","expires_in":"10"}"#, now).unwrap();
        assert_eq!(token.renew - now, Duration::from_secs(7));
        assert!(!format!("{token:?}").contains("abc"));
        let refused = br#"{"error":"invalid_client","error_description":"no such client"}"#;
        let text = read(StatusCode::UNAUTHORIZED, refused, now).unwrap_err();
        assert_eq!(text, "status 401: invalid_client: no such client; check client id, secret and scope");
        for body in ["", "hunter2", "{}", r#"{"access_token":""}"#] {
            let text = read(StatusCode::OK, body.as_bytes(), now).unwrap_err();
            assert_eq!(text, "an answer without `access_token`", "{body}");
        }
    }

    #[tokio::test]
    async fn bounds_the_life_that_the_endpoint_names() {
        let now = Instant::now();
        let life = |seconds: &str| {
            let body = format!("{{\"access_token\":\"abc\",\"expires_in\":{seconds}}}");
            read(StatusCode::OK, body.as_bytes(), now).unwrap().renew - now
        };
        assert_eq!(life("0"), USUAL_LIFE.mul_f64(0.7), "no life is no end");
        assert_eq!(life("-1"), USUAL_LIFE.mul_f64(0.7));
        assert_eq!((life("1"), life("10.0")), (Duration::from_millis(700), Duration::from_secs(7)));
        for endless in [i64::MAX.to_string(), u64::MAX.to_string()] {
            assert_eq!(life(&endless), LONGEST_LIFE.mul_f64(0.7));
        }
    }

    #[tokio::test]
    async fn logs_in_with_a_valid_token_while_the_endpoint_is_away() {
        let endpoint = Uri::from_static("http://127.0.0.1:1/token");
        let tokens = Tokens::new(&OAuthSettings {
            endpoint,
            client_id: "bridge".to_owned(),
            client_secret: Secret::new("secret"),
            scope: String::new(),
            ca_file: None,
        });
        assert!(tokens.valid().await.is_err());
        let hold = |ends| {
            let token = Token { text: Secret::new("abc"), ends, renew: Instant::now() };
            tokens.current.send_replace(Some(Arc::new(token)));
        };
        hold(SystemTime::now() + Duration::from_mins(1));
        assert_eq!(tokens.valid().await.unwrap().text.reveal(), "abc");
        hold(SystemTime::now());
        assert!(tokens.valid().await.is_err());
    }
}
