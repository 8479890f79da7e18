//! The brokers: real ones, started by the project's own script; how many messages each of them holds, in its own words.

use std::collections::HashMap;
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use async_nats::jetstream;
use lapin::options::{QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, TopicPartitionList};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

/// Which broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Apache Kafka.
    Kafka,
    /// RabbitMQ.
    Rabbitmq,
    /// NATS with JetStream.
    Nats,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Kafka, Self::Rabbitmq, Self::Nats];

    /// Its name in the settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Rabbitmq => "rabbitmq",
            Self::Nats => "nats",
        }
    }
}

/// Topic, exchange, queue or stream, as the bridge's defaults name them.
pub const TOPIC: &str = "plextrac-events";
/// See [`TOPIC`].
pub const EXCHANGE: &str = "plextrac";
const QUEUE: &str = "plextrac-events";
/// See [`TOPIC`].
pub const STREAM: &str = "PLEXTRAC";

/// Requests of one message each that Kafka takes before anything is measured: a JVM compiles what runs often, for its
/// first minutes, and would do it on the cores that are measured.
const WARM_UP: usize = 40_000;

/// The client that counts is not to be waited for longer than this.
const PATIENCE: Duration = Duration::from_secs(20);

/// Running brokers of our own; they end with this process.
pub struct Brokers {
    home: PathBuf,
    facts: HashMap<Kind, HashMap<String, String>>,
    runtime: Runtime,
    kafka: Option<BaseConsumer>,
    rabbitmq: Option<lapin::Connection>,
    nats: Option<jetstream::Context>,
}

impl Brokers {
    /// Starts these.
    pub fn start(kinds: &[Kind], home: &Path) -> Result<Self> {
        let mut facts = HashMap::new();
        for kind in kinds {
            facts.insert(*kind, up(*kind, home)?);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut brokers = Self { home: home.to_owned(), facts, runtime, kafka: None, rabbitmq: None, nats: None };
        for kind in kinds {
            brokers.connect(*kind).with_context(|| format!("connect to {}", kind.name()))?;
        }
        Ok(brokers)
    }

    fn connect(&mut self, kind: Kind) -> Result<()> {
        match kind {
            Kind::Kafka => {
                let mut config = ClientConfig::new();
                config.set("bootstrap.servers", self.fact(kind, "KAFKA_BOOTSTRAP")?).set("group.id", "bench");
                self.kafka = Some(config.create()?);
                self.warm_kafka(&config).context("warm Kafka up")?;
            }
            Kind::Rabbitmq => {
                let url = self.fact(kind, "RABBITMQ_URL")?;
                let connecting =
                    async { lapin::Connection::connect(&url, lapin::ConnectionProperties::default()).await };
                self.rabbitmq = Some(self.runtime.block_on(connecting)?);
            }
            Kind::Nats => {
                let url = self.fact(kind, "NATS_URL")?;
                let address: async_nats::ServerAddr = url.parse()?;
                let options = match (address.username(), address.password()) {
                    (Some(user), Some(password)) => {
                        async_nats::ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
                    }
                    _ => async_nats::ConnectOptions::new(),
                };
                let connected = async { options.connect(address).await.map(jetstream::new) };
                self.nats = Some(self.runtime.block_on(connected)?);
            }
        }
        Ok(())
    }

    fn warm_kafka(&self, config: &ClientConfig) -> Result<()> {
        const TOPIC: &str = "warm-up";
        let admin: AdminClient<DefaultClientContext> = config.create()?;
        let topic = NewTopic::new(TOPIC, 1, TopicReplication::Fixed(1));
        self.runtime.block_on(admin.create_topics([&topic], &AdminOptions::new()))?;
        let began = Instant::now();
        let producer: BaseProducer =
            config.clone().set("batch.num.messages", "1").set("linger.ms", "0").create()?;
        for _ in 0..WARM_UP / 1_000 {
            for _ in 0..1_000 {
                let record = BaseRecord::<(), _>::to(TOPIC).payload(&[0; 350]);
                producer.send(record).map_err(|(error, _)| error)?;
            }
            producer.flush(PATIENCE)?;
        }
        eprintln!("kafka warmed up in {:.1} s", began.elapsed().as_secs_f64());
        Ok(())
    }

    /// A line that the script printed.
    pub fn fact(&self, kind: Kind, name: &str) -> Result<String> {
        let facts = self.facts.get(&kind).with_context(|| format!("{} was not started", kind.name()))?;
        facts.get(name).cloned().with_context(|| format!("up.sh printed no {name}"))
    }

    /// The runtime of the clients.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The connection to RabbitMQ.
    pub fn rabbitmq(&self) -> Result<&lapin::Connection> {
        self.rabbitmq.as_ref().context("not connected")
    }

    /// The connection to NATS.
    pub fn nats(&self) -> Result<&jetstream::Context> {
        self.nats.as_ref().context("not connected")
    }

    /// All lines that the script printed.
    pub fn facts(&self) -> impl Iterator<Item = (&String, &String)> {
        self.facts.values().flatten()
    }

    /// The process that is stopped to play a broker that is away.
    pub fn pid(&self, kind: Kind) -> Result<i32> {
        Ok(self.fact(kind, &format!("{}_PID", kind.name().to_uppercase()))?.parse()?)
    }

    /// The bridge's table for this broker.
    pub fn table(&self, kind: Kind) -> Result<String> {
        Ok(match kind {
            Kind::Kafka => {
                format!("[broker.kafka]\nbootstrap_servers = \"{}\"\n", self.fact(kind, "KAFKA_BOOTSTRAP")?)
            }
            Kind::Rabbitmq => format!("[broker.rabbitmq]\nuri = \"{}\"\n", self.fact(kind, "RABBITMQ_URL")?),
            Kind::Nats => format!("[broker.nats]\nservers = [\"{}\"]\n", self.fact(kind, "NATS_URL")?),
        })
    }

    /// How many messages it holds; 0 where there is no topic, queue or stream yet.
    pub fn count(&self, kind: Kind) -> Result<u64> {
        match kind {
            Kind::Kafka => self.count_kafka(),
            Kind::Rabbitmq => {
                let connection = self.rabbitmq()?;
                let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
                self.runtime.block_on(async {
                    // A channel of its own: asking for a queue that is not there ends it.
                    let channel = connection.create_channel().await?;
                    let queue = channel.queue_declare(QUEUE.into(), options, FieldTable::default()).await?;
                    channel.close(0, "".into()).await?;
                    Ok(queue.message_count().into())
                })
            }
            Kind::Nats => {
                let stream = self.nats()?.get_stream(STREAM);
                Ok(self.runtime.block_on(stream)?.cached_info().state.messages)
            }
        }
    }

    fn count_kafka(&self) -> Result<u64> {
        let consumer = self.kafka.as_ref().context("not connected")?;
        let metadata = consumer.fetch_metadata(Some(TOPIC), PATIENCE)?;
        let mut partitions = TopicPartitionList::new();
        for partition in metadata.topics().iter().flat_map(MetadataTopic::partitions) {
            partitions.add_partition(TOPIC, partition.id());
        }
        let mut count = 0;
        for partition in partitions.elements() {
            let (low, high) = consumer.fetch_watermarks(TOPIC, partition.partition(), PATIENCE)?;
            count += u64::try_from(high - low)?;
        }
        Ok(count)
    }

    /// Waits until it holds so many; how long ago the last look before was that saw fewer is at most some
    /// milliseconds.
    pub fn wait_for(&self, kind: Kind, messages: u64, limit: Duration) -> Result<Instant> {
        let deadline = Instant::now() + limit;
        loop {
            // Kafka knows none of its partitions for a moment after it stood still.
            let count = self.count(kind);
            if matches!(count, Ok(count) if count >= messages) {
                return Ok(Instant::now());
            }
            if Instant::now() > deadline {
                let count = count.with_context(|| format!("count what {} holds", kind.name()))?;
                bail!("{} holds {count} of {messages} messages after {} s", kind.name(), limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Forgets what it holds, where that costs it memory.
    pub fn empty(&self, kind: Kind) -> Result<()> {
        match kind {
            // On disk, and of no concern to what comes next.
            Kind::Kafka => {}
            Kind::Rabbitmq => {
                let connection = self.rabbitmq()?;
                self.runtime.block_on(async {
                    let channel = connection.create_channel().await?;
                    channel.queue_purge(QUEUE.into(), QueuePurgeOptions::default()).await?;
                    channel.close(0, "".into()).await
                })?;
            }
            Kind::Nats => {
                let context = self.nats()?;
                self.runtime.block_on(async {
                    context.get_stream(STREAM).await?.purge().await.map_err(anyhow::Error::from)
                })?;
            }
        }
        Ok(())
    }
}

impl Drop for Brokers {
    fn drop(&mut self) {
        self.rabbitmq = None;
        self.nats = None;
        // They end with this process in any case.
        let _ = script("down.sh").args(["--kill", "--wipe"]).env("BROKERS_HOME", &self.home).status();
    }
}

fn script(name: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/brokers").join(name))
}

fn up(kind: Kind, home: &Path) -> Result<HashMap<String, String>> {
    // A file and no pipe: a broker inherits what the script has open, and lives on.
    let mut said = tempfile::tempfile()?;
    let status = script("up.sh")
        .arg(kind.name())
        .env("BROKERS_HOME", home)
        .env("BROKERS_OWNER_PID", std::process::id().to_string())
        .env(format!("{}_PORT", kind.name().to_uppercase()), "auto")
        // As it is run by people: with the optimising compiler.
        .env("KAFKA_JVM_OPTS", "-XX:+UseG1GC")
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .status()?;
    anyhow::ensure!(status.success(), "up.sh {} failed", kind.name());
    said.rewind()?;
    let mut text = String::new();
    said.read_to_string(&mut text)?;
    let line = |line: &str| {
        let (name, value) = line.split_once('=')?;
        Some((name.to_owned(), value.trim_matches('\'').to_owned()))
    };
    Ok(text.lines().filter_map(line).collect())
}
