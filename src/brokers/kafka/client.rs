//! One producer of librdkafka: what its thread reports (verdicts, the state of the connection), and its slow end.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, DeliveryResult, Message as _};
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer};
use tokio::sync::Notify;

use crate::brokers::kafka::batch::BatchNumber;
use crate::brokers::kafka::record::{Extras, Size};
use crate::brokers::oauth::Tokens;
use crate::brokers::{ConnectError, ErrorKind, Sequence};

/// After a purge every verdict is there at once; this is for a machine under load.
const PURGE: Duration = Duration::from_millis(200);

/// The report of librdkafka about one message.
pub(super) enum DeliveryReport {
    Stored,
    Failed {
        code: RDKafkaErrorCode,
        topic: String,
        /// The size of a batch with this message alone.
        size: usize,
    },
}

/// A report with its message's sequence and the number of its topic.
pub(super) type NumberedReport = (Sequence, BatchNumber, DeliveryReport);

/// The first bit of the number in the value that librdkafka returns with a report; the sequence is below it.
const NUMBER_AT: u32 = 48;

/// A context that keeps nothing.
pub(super) struct Quiet;

impl ClientContext for Quiet {
    /// Without it librdkafka makes up a token of its own. No thread polls for the question: see [`give_token`].
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(level, facility, text);
    }
    fn stats_raw(&self, _: &[u8]) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

fn log(level: RDKafkaLogLevel, facility: &str, text: &str) {
    // It tells the properties with their values there, and those count as secrets.
    if facility.contains("CONF") {
        return;
    }
    // Whatever it finds important is reported by an error or a verdict too, which are logged where they are judged.
    tracing::debug!(severity = ?level, facility, "librdkafka: {text}");
}

/// The reports of the producer's thread, for the session to take.
#[derive(Default)]
pub(super) struct Reports {
    state: Mutex<ReportState>,
    /// Told when the first outcome is there, at a fatal error, when the brokers cannot be reached, and when nothing is
    /// sent at once any more.
    pub(super) news: Notify,
    /// Told when credentials or certificates were refused, for a connect that waits.
    pub(super) refused: Notify,
    sending_at_once: AtomicBool,
    /// The tokens to log in with, where it is done so.
    tokens: Option<Arc<Tokens>>,
}

#[derive(Default)]
struct ReportState {
    outcomes: Vec<NumberedReport>,
    /// The last thing that went wrong since the last success. librdkafka tells why credentials or certificates were refused
    /// only at first: kept until a success.
    reason: Option<ConnectError>,
    /// No broker can be reached because of it: one of several may go without harm.
    away: bool,
    /// The number of brokers of the cluster, as it was last told.
    brokers: usize,
    /// The brokers that refused credentials or certificates since the last success.
    refusing: BTreeSet<String>,
    /// The brokers of which it was said that they alone refuse.
    refused_alone: BTreeSet<String>,
}

impl ReportState {
    /// A broker answered.
    fn note_success(&mut self) {
        if self.reason.take().is_some() {
            self.away = false;
            self.refusing.clear();
        }
    }
}

impl Reports {
    pub(super) fn take(&self) -> Vec<NumberedReport> {
        std::mem::take(&mut self.state.lock().outcomes)
    }

    /// The number of outcomes to take.
    pub(super) fn count(&self) -> usize {
        self.state.lock().outcomes.len()
    }

    /// Whether librdkafka is about to send at once what it has.
    pub(super) fn is_sending_at_once(&self) -> bool {
        self.sending_at_once.load(Ordering::Acquire)
    }

    /// The last thing that went wrong since the last success.
    pub(super) fn reason(&self) -> Option<ConnectError> {
        self.state.lock().reason.clone()
    }

    /// The same, if no broker can be reached because of it.
    pub(super) fn away(&self) -> Option<ConnectError> {
        let state = self.state.lock();
        state.reason.clone().filter(|_| state.away)
    }

    /// The number of brokers of the cluster, as it last answered.
    pub(super) fn brokers(&self) -> usize {
        self.state.lock().brokers
    }

    /// A cluster of so many brokers answered.
    pub(super) fn note_brokers(&self, brokers: usize) {
        let mut state = self.state.lock();
        state.note_success();
        state.brokers = brokers;
    }

    pub(super) fn note_error(&self, code: RDKafkaErrorCode, text: &str) {
        let kind = match code {
            RDKafkaErrorCode::Authentication => ErrorKind::Authentication,
            RDKafkaErrorCode::SSL => ErrorKind::Tls,
            // A peer that hangs up in the middle of it comes as a lost connection, and so does one that looks at the
            // client's certificate after the handshake, as TLS 1.3 has it.
            _ if text.contains("SSL handshake failed") || text.contains("SSL alert") => ErrorKind::Tls,
            _ => ErrorKind::Connect,
        };
        // How long it took differs each time, and would make a new reason of it.
        let text = text.split(" (after ").next().unwrap_or(text);
        let is_refused = kind != ErrorKind::Connect;
        let all_down = code == RDKafkaErrorCode::AllBrokersDown;
        let mut state = self.state.lock();
        let was_away = state.away;
        if is_refused {
            let broker = broker(text).to_owned();
            state.refusing.insert(broker.clone());
            state.away |= state.refusing.len() >= state.brokers;
            if !state.away && state.refused_alone.insert(broker.clone()) {
                let kind = kind.name();
                tracing::warn!(broker = "kafka", kind, "{broker} refuses, the others are used: {text}");
            }
        }
        state.away |= all_down;
        // A refusal is followed only by the report that no broker is connected; "brokers are down" never says why.
        let is_known = |reason: &ConnectError| !is_refused && (reason.kind != kind || all_down);
        if !state.reason.as_ref().is_some_and(is_known) {
            // Which of how many are down is not reliable in librdkafka's own text.
            let text = if all_down { "connections are closed again at once, or never open" } else { text };
            state.reason = Some(ConnectError::new(kind, text));
        }
        let goes_away = state.away && !was_away;
        drop(state);
        if goes_away {
            self.news.notify_one();
        }
        if is_refused {
            self.refused.notify_one();
        }
    }
}

impl ClientContext for Reports {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    /// Called on the producer's thread, which must not wait: another one fetches tokens.
    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        let tokens = self.tokens.as_ref().ok_or("no token endpoint is set")?;
        let token = tokens.current().ok_or("there is no valid token")?;
        Ok(OAuthToken {
            token: token.text.reveal().to_owned(),
            principal_name: tokens.client_id().to_owned(),
            lifetime_ms: milliseconds(token.ends),
        })
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(level, facility, text);
    }

    fn stats_raw(&self, _: &[u8]) {}

    // Called twice for each error: only states are kept here, nothing is counted.
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka reports");
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Fatal) => self.news.notify_one(),
            Some(code) => self.note_error(code, reason),
            None => {}
        }
    }
}

impl ProducerContext for Reports {
    /// The sequence, and above it the number of the topic.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let outcome = match result {
            Ok(_) => DeliveryReport::Stored,
            Err((error, message)) => DeliveryReport::Failed {
                code: error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown),
                topic: message.topic().to_owned(),
                size: size(message),
            },
        };
        let opaque = opaque as u64;
        let number = BatchNumber::try_from(opaque >> NUMBER_AT).unwrap_or(BatchNumber::MAX);
        let mut state = self.state.lock();
        if matches!(outcome, DeliveryReport::Stored) {
            state.note_success();
        }
        state.outcomes.push((opaque & ((1 << NUMBER_AT) - 1), number, outcome));
        if state.outcomes.len() == 1 {
            self.news.notify_one();
        }
    }
}

/// The broker in `sasl_ssl://host:9093/1: SSL handshake failed: ..`, without its number.
fn broker(text: &str) -> &str {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    rest.split(['/', ' ']).next().unwrap_or(rest)
}

fn size(message: &BorrowedMessage<'_>) -> usize {
    let mut size = Size::new(message.key().unwrap_or_default(), message.payload().unwrap_or_default());
    for header in message.headers().into_iter().flat_map(rdkafka::message::Headers::iter) {
        size.header(header.key, header.value.unwrap_or_default());
    }
    size.bytes()
}

fn milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Gives a client the token to log in with.
#[expect(
    unsafe_code,
    reason = "rdkafka passes tokens only to clients that it polls, and it polls none of administration"
)]
pub(super) fn give_token(client: &rdkafka::client::Client<Quiet>, tokens: &Tokens) -> Result<(), String> {
    let token = tokens.current().ok_or("there is no valid token")?;
    let legal = |text: &str| CString::new(text).map_err(|_| "the token has a zero byte in it".to_owned());
    let (text, name) = (legal(token.text.reveal())?, legal(tokens.client_id())?);
    let mut error = [0; 256];
    // SAFETY: the client lives, both texts end in a zero byte, there are no extensions, and the buffer has its length.
    let code = unsafe {
        rdkafka::bindings::rd_kafka_oauthbearer_set_token(
            client.native_ptr(),
            text.as_ptr(),
            milliseconds(token.ends),
            name.as_ptr(),
            std::ptr::null_mut(),
            0,
            error.as_mut_ptr(),
            error.len(),
        )
    };
    let code = RDKafkaErrorCode::from(code);
    if code == RDKafkaErrorCode::NoError {
        Ok(())
    } else {
        Err(format!("librdkafka does not accept the token: {code}"))
    }
}

/// The producer. Its end takes 100 to 200 ms, so a thread of its own sees to it.
pub(super) struct Client(Option<ThreadedProducer<Reports>>);

impl Client {
    /// Creates a producer; it connects by itself in the background.
    pub(super) fn new(config: &ClientConfig, tokens: Option<Arc<Tokens>>) -> KafkaResult<Self> {
        Ok(Self(Some(config.create_with_context(Reports { tokens, ..Reports::default() })?)))
    }

    fn producer(&self) -> &ThreadedProducer<Reports> {
        self.0.as_ref().expect("the producer is there until drop")
    }

    /// The client as librdkafka knows it, which lives as long as this one.
    pub(super) fn native(&self) -> *mut rdkafka::types::RDKafka {
        self.producer().client().native_ptr()
    }

    pub(super) fn reports(&self) -> &Reports {
        self.producer().client().context()
    }

    /// All topics of the cluster: asked so, no broker creates one. Blocks.
    pub(super) fn metadata(&self, timeout: Duration) -> KafkaResult<Metadata> {
        let metadata = self.producer().client().fetch_metadata(None, timeout)?;
        self.reports().note_brokers(metadata.brokers().len());
        Ok(metadata)
    }

    /// The text of the fatal error, once there was one: then every other error means unsettled.
    pub(super) fn fatal(&self) -> Option<String> {
        self.producer().client().fatal_error().map(|(code, text)| format!("{code}: {text}"))
    }

    /// Hands a record to librdkafka's queue, which copies it; refused, the headers are back in `extras`.
    pub(super) fn send(
        &self,
        (sequence, number): (Sequence, BatchNumber),
        topic: &str,
        key: &str,
        body: &[u8],
        extras: &mut Extras,
    ) -> Result<(), RDKafkaErrorCode> {
        let opaque = usize::try_from(sequence | (u64::from(number) << NUMBER_AT));
        let opaque = opaque.expect("a sequence has as many bits as a pointer");
        let mut record = BaseRecord::with_opaque_to(topic, opaque).key(key.as_bytes()).payload(body);
        record.headers = extras.headers.take();
        record.timestamp = extras.timestamp;
        self.producer().send(record).map_err(|(error, record)| {
            extras.headers = record.headers;
            error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)
        })
    }

    /// Makes librdkafka send at once what it has, instead of waiting for `linger.ms`, on a thread that ends when all of it
    /// is answered, or after `patience`.
    pub(super) fn send_at_once(self: &Arc<Self>, patience: Duration) {
        self.reports().sending_at_once.store(true, Ordering::Release);
        let client = self.clone();
        tokio::task::spawn_blocking(move || client.flush(patience));
    }

    #[expect(unsafe_code, reason = "rdkafka's flush passes no time-out, and ends before librdkafka has noticed it")]
    fn flush(&self, patience: Duration) {
        let client = self.producer().client().native_ptr();
        let patience = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the pointer is valid as long as the producer, which `self` keeps; any thread may call it.
        let _ = unsafe { rdkafka::bindings::rd_kafka_flush(client, patience) };
        self.reports().sending_at_once.store(false, Ordering::Release);
        self.reports().news.notify_one();
    }

    /// Waits for verdicts, then gives up what has none. Blocks.
    pub(super) fn finish(&self, patience: Duration) {
        let producer = self.producer();
        if producer.flush(patience).is_err() {
            producer.purge(PurgeConfig::default().queue().inflight());
            // What has no verdict even now is unsettled all the same.
            let _ = producer.flush(PURGE);
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let producer = self.0.take();
        // Without a thread it ends here.
        let _ = std::thread::Builder::new().spawn(move || drop(producer));
    }
}
