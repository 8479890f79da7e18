//! The client libraries alone, as the ceiling of the delivering side: the round trip of a lone message, and a loop that
//! sends as fast as the broker confirms, with the bridge's headers, guarantees and limit of unconfirmed messages.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_STREAM, NATS_MESSAGE_ID};
use async_nats::jetstream::context::PublishAckFuture;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Channel, Confirmation};
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use serde::Serialize;

use crate::brokers::{Brokers, EXCHANGE, Kind, STREAM, TOPIC};
use crate::measure::own_cpu;

/// Lone messages, one every [`INTERVAL`].
const LONE: usize = 50;

/// The time between two lone messages.
pub const INTERVAL: Duration = Duration::from_millis(20);

/// As many as the bridge's default of `publish.max_in_flight`.
const IN_FLIGHT: usize = 1_000;

/// No confirmation for so long: something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);

const KEY: &str = "ReportPublished.report";

/// Names and values as long as those of the bridge's events.
const HEADERS: [(&str, &str); 8] = [
    ("specversion", "1.0"),
    ("id", "plextrac:cm00000000000000000000000000"),
    ("source", "/webhooks/plextrac"),
    ("type", "com.plextrac.ReportPublished"),
    ("subject", "report/cmtarget000000000000000000"),
    ("time", "2026-01-01T00:00:00.000000Z"),
    ("content-type", "application/json"),
    ("x-authorization-hmac-256", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"),
];

/// The figures of a client library by itself.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Ceiling {
    /// From sending a lone message to its confirmation, the median in microseconds.
    pub lone: f64,
    /// Messages confirmed a second in the loop.
    pub rate: f64,
    /// Processor time per message of the loop, in microseconds.
    pub cpu: f64,
}

/// Sends lone messages, then so many as fast as they are confirmed, to where the bridge sends its events.
pub fn measure(kind: Kind, brokers: &Brokers, messages: usize, size: usize) -> Result<Ceiling> {
    let body = vec![b'x'; size];
    match kind {
        Kind::Kafka => of(Kafka::new(brokers)?, messages, &body),
        Kind::Rabbitmq => of(Rabbitmq::new(brokers)?, messages, &body),
        Kind::Nats => of(Nats::new(brokers), messages, &body),
    }
}

/// A confirmation of RabbitMQ's under way.
type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One client of a broker.
trait Client {
    /// Sends a message; waits while too many are unconfirmed.
    fn send(&mut self, body: &[u8]) -> Result<()>;
    /// Sends at once what waits for more, and waits until all are confirmed.
    fn confirmed(&mut self) -> Result<()>;
    /// From now on many are sent.
    fn many(&mut self) -> Result<()> {
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn of(mut client: impl Client, messages: usize, body: &[u8]) -> Result<Ceiling> {
    let mut trips = Vec::new();
    for _ in 0..LONE {
        std::thread::sleep(INTERVAL);
        let sent = Instant::now();
        client.send(body)?;
        client.confirmed()?;
        trips.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    trips.sort_by(f64::total_cmp);
    client.many()?;
    let (began, cpu) = (Instant::now(), own_cpu()?);
    for _ in 0..messages {
        client.send(body)?;
    }
    client.confirmed()?;
    let cpu = own_cpu()?.saturating_sub(cpu);
    Ok(Ceiling {
        lone: trips[LONE / 2],
        rate: messages as f64 / began.elapsed().as_secs_f64(),
        cpu: cpu.as_secs_f64() * 1e6 / messages as f64,
    })
}

/// The messages without a confirmation, counted by the producer's thread.
#[derive(Default)]
struct Unconfirmed {
    failed: AtomicUsize,
    count: Mutex<usize>,
    fewer: Condvar,
}

impl ClientContext for Unconfirmed {}

impl ProducerContext for Unconfirmed {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        self.failed.fetch_add(usize::from(result.is_err()), Ordering::Relaxed);
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.fewer.notify_one();
    }
}

impl Unconfirmed {
    /// Waits until there are at most so many.
    fn wait(&self, most: usize) -> Result<()> {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.fewer.wait_timeout_while(count, PATIENCE, |count| *count > most);
        let is_late = waited.unwrap_or_else(PoisonError::into_inner).1.timed_out();
        anyhow::ensure!(!is_late, "Kafka confirms nothing");
        anyhow::ensure!(self.failed.load(Ordering::Relaxed) == 0, "Kafka refused messages");
        Ok(())
    }
}

struct Kafka {
    config: rdkafka::ClientConfig,
    producer: ThreadedProducer<Unconfirmed>,
    headers: OwnedHeaders,
}

impl Kafka {
    fn new(brokers: &Brokers) -> Result<Self> {
        let mut config = rdkafka::ClientConfig::new();
        config
            .set("bootstrap.servers", brokers.fact(Kind::Kafka, "KAFKA_BOOTSTRAP")?)
            .set("enable.idempotence", "true")
            .set("linger.ms", "0");
        let producer = config.create_with_context(Unconfirmed::default())?;
        let headers = HEADERS.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key: &format!("ce_{key}"), value: Some(*value) })
        });
        Ok(Self { config, producer, headers })
    }

    fn context(&self) -> &Arc<Unconfirmed> {
        self.producer.client().context()
    }
}

impl Client for Kafka {
    fn send(&mut self, body: &[u8]) -> Result<()> {
        self.context().wait(IN_FLIGHT - 1)?;
        *self.context().count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        loop {
            let record = BaseRecord::to(TOPIC).key(KEY).payload(body).headers(self.headers.clone());
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }

    fn confirmed(&mut self) -> Result<()> {
        self.context().wait(0)
    }

    fn many(&mut self) -> Result<()> {
        // Its own default, for the batches that it makes best.
        self.config.set("linger.ms", "5");
        self.producer = self.config.create_with_context(Unconfirmed::default())?;
        Ok(())
    }
}

struct Rabbitmq<'b> {
    brokers: &'b Brokers,
    channel: Channel,
    properties: BasicProperties,
    unconfirmed: VecDeque<BoxFuture<'static, lapin::Result<Confirmation>>>,
}

impl<'b> Rabbitmq<'b> {
    fn new(brokers: &'b Brokers) -> Result<Self> {
        let connection = brokers.rabbitmq()?;
        let channel = brokers.runtime().block_on(async {
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            anyhow::Ok(channel)
        })?;
        let mut headers = FieldTable::default();
        for (name, value) in HEADERS {
            headers.insert(format!("cloudEvents_{name}").into(), AMQPValue::LongString(LongString::from(value)));
        }
        let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
        Ok(Self { brokers, channel, properties, unconfirmed: VecDeque::new() })
    }

    fn wait(&mut self, most: usize) -> Result<()> {
        while self.unconfirmed.len() > most {
            let Some(confirm) = self.unconfirmed.pop_front() else { break };
            let confirmation = self.brokers.runtime().block_on(confirm)?;
            anyhow::ensure!(matches!(confirmation, Confirmation::Ack(None)), "RabbitMQ refused a message");
        }
        Ok(())
    }
}

impl Client for Rabbitmq<'_> {
    fn send(&mut self, body: &[u8]) -> Result<()> {
        self.wait(IN_FLIGHT - 1)?;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = self.properties.clone();
        let publish = self.channel.basic_publish(EXCHANGE.into(), KEY.into(), options, body, properties);
        self.unconfirmed.push_back(Box::pin(self.brokers.runtime().block_on(publish)?));
        Ok(())
    }

    fn confirmed(&mut self) -> Result<()> {
        self.wait(0)
    }
}

struct Nats<'b> {
    brokers: &'b Brokers,
    headers: HeaderMap,
    /// The number of the next message, which the server knows a repeat by; no other run begins with it.
    next: u128,
    unconfirmed: VecDeque<PublishAckFuture>,
}

impl<'b> Nats<'b> {
    fn new(brokers: &'b Brokers) -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in HEADERS {
            headers.insert(format!("ce-{name}"), value);
        }
        headers.insert(NATS_EXPECTED_STREAM, STREAM);
        let next = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        Self { brokers, headers, next, unconfirmed: VecDeque::new() }
    }

    fn wait(&mut self, most: usize) -> Result<()> {
        while self.unconfirmed.len() > most {
            let Some(ack) = self.unconfirmed.pop_front() else { break };
            self.brokers.runtime().block_on(async { ack.await }).context("NATS confirms a message")?;
        }
        Ok(())
    }
}

impl Client for Nats<'_> {
    fn send(&mut self, body: &[u8]) -> Result<()> {
        self.wait(IN_FLIGHT - 1)?;
        let (subject, mut headers) = (format!("plextrac.{KEY}"), self.headers.clone());
        headers.insert(NATS_MESSAGE_ID, format!("cm00000000000000000000000000-{}", self.next));
        self.next += 1;
        let publish = self.brokers.nats()?.publish_with_headers(subject, headers, body.to_vec().into());
        self.unconfirmed.push_back(self.brokers.runtime().block_on(publish)?);
        Ok(())
    }

    fn confirmed(&mut self) -> Result<()> {
        self.wait(0)
    }
}
