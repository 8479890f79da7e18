//! Exchanges and queue: made, checked or left alone at connect, looked at again when a message comes back.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, Connection, ExchangeKind};
use parking_lot::Mutex;

use crate::brokers::rabbitmq::Settings;
use crate::brokers::rabbitmq::connection::describe;
use crate::brokers::rabbitmq::memory::{ExchangeDoubt, ExchangeMemory};
use crate::brokers::{ConnectError, ErrorKind, Finding, Topology};

/// The queue takes everything that its topic exchange gets.
const EVERYTHING: &str = "#";

/// The topology that should exist.
#[derive(Clone, Debug)]
pub(super) struct Exchanges {
    pub(super) mode: Topology,
    pub(super) main: String,
    others: Vec<String>,
    queue: Option<String>,
    location: String,
}

/// The result of a second look, after a message was returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ExchangeLook {
    /// All is there; with `declare` the queue is bound again.
    Stands,
    /// Something is missing, or the broker cannot say.
    Gone(String),
}

#[derive(Clone, Copy)]
enum Thing<'a> {
    Exchange(&'a str),
    Queue(&'a str),
}

impl std::fmt::Display for Thing<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exchange(name) => write!(f, "the exchange `{name}`"),
            Self::Queue(name) => write!(f, "the queue `{name}`"),
        }
    }
}

impl Exchanges {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            mode: settings.topology,
            main: settings.main_exchange().to_owned(),
            others: settings.route_exchanges(),
            queue: settings.queue.clone(),
            location: settings.location(),
        }
    }

    /// Whether there is a queue that we know of: what a message to the main exchange must reach.
    pub(super) fn has_queue(&self) -> bool {
        self.mode != Topology::Ignore && self.queue.is_some()
    }

    /// Makes or checks what the settings say, at connect.
    pub(super) async fn establish(
        &self,
        connection: &Connection,
        known: &Mutex<ExchangeMemory>,
    ) -> Result<Vec<Finding>, ConnectError> {
        let mut scratch = TemporaryChannel { connection, channel: None };
        let main = Thing::Exchange(&self.main);
        match self.mode {
            Topology::Declare => self.declare(&mut scratch, known).await,
            Topology::Check => {
                let queue = self.queue.as_deref().map(Thing::Queue);
                for thing in [Some(main), queue].into_iter().flatten() {
                    self.require(&mut scratch, thing).await?;
                }
                known.lock().saw(&self.main);
                let mut findings = Vec::from_iter(self.type_of(&mut scratch, &self.main).await?);
                findings.extend(self.check_others(&mut scratch, known).await?);
                Ok(findings)
            }
            // Not looked at, unless a message has shown that it is missing: without it nothing can be sent.
            Topology::Ignore if known.lock().is_missing(&self.main) => {
                self.require(&mut scratch, main).await?;
                known.lock().saw(&self.main);
                Ok(Vec::new())
            }
            Topology::Ignore => Ok(Vec::new()),
        }
    }

    async fn require(&self, scratch: &mut TemporaryChannel<'_>, thing: Thing<'_>) -> Result<(), ConnectError> {
        if scratch.has(thing).await.map_err(|error| self.failed("look at", thing, &error))? {
            return Ok(());
        }
        let text = format!(
            "{thing} does not exist at {}; create it, or set topology = \"declare\" in [broker.rabbitmq]",
            self.location
        );
        Err(ConnectError::new(ErrorKind::Connect, text))
    }

    async fn check_others(
        &self,
        scratch: &mut TemporaryChannel<'_>,
        known: &Mutex<ExchangeMemory>,
    ) -> Result<Vec<Finding>, ConnectError> {
        let mut findings = Vec::new();
        for name in &self.others {
            let exchange = Thing::Exchange(name);
            if scratch.has(exchange).await.map_err(|error| self.failed("look at", exchange, &error))? {
                known.lock().saw(name);
                findings.extend(self.type_of(scratch, name).await?);
            } else {
                known.lock().doubt(name, None, ExchangeDoubt::Missing);
                let text = format!("{exchange} of a route does not exist; its events go to the dead letters");
                findings.push(Finding::Missing(text));
            }
        }
        Ok(findings)
    }

    async fn declare(
        &self,
        scratch: &mut TemporaryChannel<'_>,
        known: &Mutex<ExchangeMemory>,
    ) -> Result<Vec<Finding>, ConnectError> {
        let mut made = false;
        let mut findings = Vec::new();
        for name in std::iter::once(&self.main).chain(&self.others) {
            if self.make(scratch, Thing::Exchange(name)).await? {
                made = true;
            } else {
                findings.extend(self.type_of(scratch, name).await?);
            }
            known.lock().saw(name);
        }
        let Some(queue) = self.queue.as_deref() else { return Ok(findings) };
        made |= self.make(scratch, Thing::Queue(queue)).await?;
        match scratch.bind(queue, &self.main).await {
            Ok(()) => Ok(findings),
            // Rights to publish only: who made exchange and queue will have bound them too.
            Err(error) if is(&error, 403) && !made => {
                let text = format!(
                    "may not bind the queue `{queue}` to the exchange `{}`: {}; if it is bound already, set topology \
                     = \"check\"",
                    self.main,
                    describe(&error)
                );
                findings.push(Finding::Warning(text));
                Ok(findings)
            }
            Err(error) => Err(self.failed("bind", Thing::Queue(queue), &error)),
        }
    }

    /// A finding about an exchange that exists and is no topic exchange.
    async fn type_of(
        &self,
        scratch: &mut TemporaryChannel<'_>,
        name: &str,
    ) -> Result<Option<Finding>, ConnectError> {
        let other = scratch.other_type(name).await;
        let other = other.map_err(|error| self.failed("look at", Thing::Exchange(name), &error))?;
        Ok(other.map(|other| wrong_type(name, &other)))
    }

    /// Makes a thing if it is not there; true where it was not.
    async fn make(&self, scratch: &mut TemporaryChannel<'_>, thing: Thing<'_>) -> Result<bool, ConnectError> {
        if scratch.has(thing).await.map_err(|error| self.failed("look at", thing, &error))? {
            return Ok(false);
        }
        scratch.make(thing).await.map_err(|error| self.failed("create", thing, &error))?;
        Ok(true)
    }

    fn failed(&self, what: &str, thing: Thing<'_>, error: &lapin::Error) -> ConnectError {
        let hint = match error.kind() {
            lapin::ErrorKind::ProtocolError(error) if error.get_id() == 403 => {
                "; grant the permission, or create it and set topology = \"check\" in [broker.rabbitmq]"
            }
            _ => "",
        };
        let text = format!("cannot {what} {thing} at {}: {}{hint}", self.location, describe(error));
        ConnectError::new(ErrorKind::Connect, text)
    }

    /// A second look at main exchange and queue; with `declare` it binds them again.
    pub(super) async fn look(&self, connection: &Connection) -> ExchangeLook {
        let mut scratch = TemporaryChannel { connection, channel: None };
        let queue = self.queue.as_deref();
        for thing in [Some(Thing::Exchange(&self.main)), queue.map(Thing::Queue)].into_iter().flatten() {
            match scratch.has(thing).await {
                Ok(true) => {}
                Ok(false) => return ExchangeLook::Gone(format!("{thing} does not exist any more")),
                Err(error) => return ExchangeLook::Gone(format!("cannot look at {thing}: {}", describe(&error))),
            }
        }
        if let (Topology::Declare, Some(queue)) = (self.mode, queue) {
            match scratch.bind(queue, &self.main).await {
                Err(error) if !is(&error, 403) => {
                    return ExchangeLook::Gone(format!(
                        "cannot bind {}: {}",
                        Thing::Queue(queue),
                        describe(&error)
                    ));
                }
                _ => {}
            }
        }
        ExchangeLook::Stands
    }

    /// Describes what exists and what would be created, for a person; changes nothing.
    pub(super) async fn inspect(&self, connection: &Connection) -> Result<Vec<Finding>, ConnectError> {
        let mut scratch = TemporaryChannel { connection, channel: None };
        let exchanges = std::iter::once(&self.main).chain(&self.others).map(|name| Thing::Exchange(name));
        let queue = self.queue.as_deref().filter(|_| self.mode != Topology::Ignore).map(Thing::Queue);
        let mut findings = Vec::new();
        for thing in exchanges.chain(queue) {
            let there = scratch.has(thing).await.map_err(|error| self.failed("look at", thing, &error))?;
            let other = match thing {
                Thing::Exchange(name) if there && self.mode != Topology::Ignore => {
                    self.type_of(&mut scratch, name).await?
                }
                _ => None,
            };
            findings.push(match (there, self.mode) {
                (true, Topology::Declare) if let Thing::Queue(name) = thing => match scratch.unread(name).await {
                    Some(messages) => unread(name, messages),
                    None => Finding::Good(format!("{thing} exists")),
                },
                (true, _) => other.unwrap_or_else(|| Finding::Good(format!("{thing} exists"))),
                (false, Topology::Declare) => Finding::Good(format!("{thing} will be created at start")),
                (false, _) => Finding::Missing(format!("{thing} does not exist")),
            });
        }
        Ok(findings)
    }
}

fn is(error: &lapin::Error, code: u16) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(error) if error.get_id() == code)
}

/// A temporary channel: a failed passive declare closes it, and so does dropping it.
struct TemporaryChannel<'a> {
    connection: &'a Connection,
    channel: Option<Channel>,
}

impl TemporaryChannel<'_> {
    async fn channel(&mut self) -> Result<Channel, lapin::Error> {
        if let Some(channel) = self.channel.as_ref().filter(|channel| channel.status().connected()) {
            return Ok(channel.clone());
        }
        let channel = self.connection.create_channel().await?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    async fn has(&mut self, thing: Thing<'_>) -> Result<bool, lapin::Error> {
        let channel = self.channel().await?;
        let found = match thing {
            Thing::Exchange(name) => {
                let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
                channel.exchange_declare(short(name)?, ExchangeKind::Topic, options, FieldTable::default()).await
            }
            Thing::Queue(name) => {
                let options = QueueDeclareOptions { passive: true, ..Default::default() };
                channel.queue_declare(short(name)?, options, FieldTable::default()).await.map(|_| ())
            }
        };
        match found {
            Ok(()) => Ok(true),
            // Also 404: a queue whose node is down. That one is there, and the broker cannot say more.
            Err(error) if is(&error, 404) => {
                let said = describe(&error);
                if said.contains("no exchange") || said.contains("no queue") { Ok(false) } else { Err(error) }
            }
            // Another connection's exclusive queue: there, and not ours.
            Err(error) if is(&error, 405) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// The number of messages in a queue that has no consumer.
    async fn unread(&mut self, name: &str) -> Option<u32> {
        let channel = self.channel().await.ok()?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue = channel.queue_declare(short(name).ok()?, options, FieldTable::default()).await.ok()?;
        (queue.consumer_count() == 0).then(|| queue.message_count())
    }

    /// The type of an exchange that exists, where it is not the one that we would make. Only a declaration that is not
    /// passive is answered with it, and that needs a permission: without it nothing is known.
    async fn other_type(&mut self, name: &str) -> Result<Option<String>, lapin::Error> {
        match self.make(Thing::Exchange(name)).await {
            Ok(()) => Ok(None),
            Err(error) if is(&error, 406) => Ok(other_type(&describe(&error))),
            Err(error) if is(&error, 403) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn make(&mut self, thing: Thing<'_>) -> Result<(), lapin::Error> {
        let channel = self.channel().await?;
        match thing {
            Thing::Exchange(name) => {
                let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
                channel.exchange_declare(short(name)?, ExchangeKind::Topic, options, FieldTable::default()).await
            }
            Thing::Queue(name) => {
                let options = QueueDeclareOptions { durable: true, ..Default::default() };
                let mut arguments = FieldTable::default();
                let quorum = AMQPValue::LongString(LongString::from("quorum"));
                arguments.insert(ShortString::from("x-queue-type"), quorum);
                channel.queue_declare(short(name)?, options, arguments).await.map(|_| ())
            }
        }
    }

    async fn bind(&mut self, queue: &str, exchange: &str) -> Result<(), lapin::Error> {
        let channel = self.channel().await?;
        let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
        channel.queue_bind(short(queue)?, short(exchange)?, short(EVERYTHING)?, options, arguments).await
    }
}

fn short(name: &str) -> Result<ShortString, lapin::Error> {
    ShortString::try_new(name).map_err(|error| std::io::Error::other(error).into())
}

/// The type in `inequivalent arg 'type' for exchange 'x' in vhost '/': received 'topic' but current is 'direct'`; none
/// where something else than the type differs.
fn other_type(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("inequivalent arg 'type' for exchange")?;
    let (_, current) = rest.rsplit_once("but current is '")?;
    Some(current.split_once('\'')?.0.to_owned())
}

fn unread(name: &str, messages: u32) -> Finding {
    Finding::Warning(format!(
        "the queue `{name}` has {messages} messages and no consumer: it grows until something reads it; read it, limit it \
         by a policy, or set queue = \"\" and bind queues of your own"
    ))
}

fn wrong_type(name: &str, other: &str) -> Finding {
    let text = format!("the exchange `{name}` is a {other} exchange, not a topic exchange");
    let advice = "delete it, name another one, or set topology = \"ignore\" in [broker.rabbitmq]";
    match other {
        "direct" => Finding::Missing(format!("{text}: it routes only keys that equal a binding's; {advice}")),
        "headers" => Finding::Missing(format!("{text}: it routes by headers, not by keys; {advice}")),
        _ => Finding::Warning(format!("{text}: it does not route by the patterns of its bindings")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_type_that_an_exchange_has_and_nothing_else_that_differs() {
        let differs = |what: &str, received: &str, current: &str| {
            format!(
                "PRECONDITION_FAILED - inequivalent arg '{what}' for exchange 'it's' in vhost '/': received '{received}' \
                 but current is '{current}'"
            )
        };
        assert_eq!(other_type(&differs("type", "topic", "direct")).as_deref(), Some("direct"));
        assert_eq!(
            other_type(&differs("type", "topic", "x-consistent-hash")).as_deref(),
            Some("x-consistent-hash")
        );
        assert_eq!(other_type(&differs("durable", "true", "false")), None);
        assert_eq!(other_type("PRECONDITION_FAILED"), None);
    }
}
