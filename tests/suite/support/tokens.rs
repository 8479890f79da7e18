//! A token endpoint of the test's own: tokens signed with ES256, and the key to check them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};
use serde_json::{Value, json};

/// The next answers.
#[derive(Clone, Debug)]
pub(crate) struct Grants {
    /// The secret of the client `bridge`.
    pub(crate) secret: String,
    /// The life of a token.
    pub(crate) life: Duration,
    /// Whether tokens are signed with a key that is not the announced one.
    pub(crate) forged: bool,
    /// The number of tokens given.
    pub(crate) given: usize,
}

/// The endpoint; it serves as long as this process.
#[derive(Clone, Debug)]
pub(crate) struct TokenServer {
    key: Arc<KeyPair>,
    port: u16,
    grants: Arc<Mutex<Grants>>,
}

impl TokenServer {
    /// Starts one whose tokens live so long.
    pub(crate) fn start(life: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let grants = Grants { secret: "client-secret-1".to_owned(), life, forged: false, given: 0 };
        let key = Arc::new(KeyPair::generate().expect("a key can be made"));
        let server = Self { key, port, grants: Arc::new(Mutex::new(grants)) };
        let serving = server.clone();
        thread::spawn(move || listener.incoming().flatten().for_each(|stream| serving.serve(stream)));
        server
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/token", self.port)
    }

    /// Changes the next answers.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Grants)) {
        change(&mut self.grants.lock());
    }

    /// The number of tokens given.
    pub(crate) fn given(&self) -> usize {
        self.grants.lock().given
    }

    /// The set of keys that checks its tokens.
    pub(crate) fn key_set(&self) -> String {
        let point = self.key.der_bytes();
        let part = |from: usize| BASE64_URL_SAFE_NO_PAD.encode(&point[from..from + 32]);
        json!({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "k1", "x": part(1), "y": part(33)}]})
            .to_string()
    }

    /// The same key in PEM.
    pub(crate) fn public_key(&self) -> String {
        self.key.public_key_pem()
    }

    fn serve(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().expect("a socket can be doubled"));
        let (mut authorization, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                if line.trim_end().is_empty() {
                    break;
                }
                continue;
            };
            match name.to_ascii_lowercase().as_str() {
                "authorization" => value.clone_into(&mut authorization),
                "content-length" => length = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        let mut form = vec![0; length];
        if reader.read_exact(&mut form).is_err() {
            return;
        }
        let (status, body) = self.answer(&authorization, &String::from_utf8_lossy(&form));
        let body = body.to_string();
        // A client that has gone needs no answer.
        let _ = write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
    }

    fn answer(&self, authorization: &str, form: &str) -> (&'static str, Value) {
        let mut grants = self.grants.lock();
        // Percent-encoded before, as the standard says.
        let login = BASE64_STANDARD.encode(format!("bridge:{}", grants.secret.replace('-', "%2D")));
        if authorization != format!("Basic {login}") {
            return ("401 Unauthorized", json!({"error": "invalid_client"}));
        }
        if !form.contains("grant_type=client_credentials") {
            return ("400 Bad Request", json!({"error": "unsupported_grant_type"}));
        }
        grants.given += 1;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is right").as_secs();
        let claims = json!({
            "sub": "bridge", "iss": "test", "aud": ["kafka", "rabbitmq"], "iat": now, "exp": now + grants.life.as_secs(),
            "jti": grants.given.to_string(),
            "scope": "rabbitmq.configure:*/* rabbitmq.write:*/*/* rabbitmq.write:*/* rabbitmq.read:*/* rabbitmq.read:*/*/*",
        });
        let other = KeyPair::generate().expect("a key can be made");
        let token = signed(&claims, if grants.forged { &other } else { &self.key });
        ("200 OK", json!({"access_token": token, "token_type": "Bearer", "expires_in": grants.life.as_secs()}))
    }
}

fn signed(claims: &Value, key: &KeyPair) -> String {
    let encoded = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", encoded(&json!({"alg": "ES256", "typ": "JWT", "kid": "k1"})), encoded(claims));
    let der = key.sign(text.as_bytes()).expect("it can sign");
    format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(fixed(&der)))
}

/// Both numbers of a signature with 32 bytes each, from a sequence of two integers.
fn fixed(der: &[u8]) -> Vec<u8> {
    let mut rest = &der[2..];
    let mut out = Vec::new();
    for _ in 0..2 {
        let length = usize::from(rest[1]);
        let number = &rest[2..2 + length];
        let number = &number[number.len().saturating_sub(32)..];
        out.resize(out.len() + 32 - number.len(), 0);
        out.extend_from_slice(number);
        rest = &rest[2 + length..];
    }
    out
}
