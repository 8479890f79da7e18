//! Exchanges and queue: made, checked or left alone at connect, looked at again when a message comes back.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ExchangeKind, Queue};
use parking_lot::Mutex;

use crate::brokers::rabbitmq::Settings;
use crate::brokers::rabbitmq::connection::describe;
use crate::brokers::rabbitmq::memory::ExchangeMemory;
use crate::brokers::{ConnectError, ErrorKind, Finding, RefusalReason, Topology};

/// The queue takes everything that its topic exchange gets.
const EVERYTHING: &str = "#";

/// The topology that should exist, and what is known of it beyond one session.
#[derive(Debug)]
pub(super) struct Exchanges {
    pub(super) settings: Settings,
    pub(super) memory: Mutex<ExchangeMemory>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Thing<'a> {
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
        Self { settings: settings.clone(), memory: Mutex::default() }
    }

    /// The exchange of everything that has no route of its own.
    pub(super) fn main(&self) -> &str {
        self.settings.router.main().address().literal().unwrap_or_default()
    }

    /// Whether there is a queue that we know of: what a message to the main exchange must reach.
    pub(super) fn has_queue(&self) -> bool {
        self.settings.topology != Topology::Ignore && self.settings.queue.is_some()
    }

    fn queue(&self) -> Option<Thing<'_>> {
        self.settings.queue.as_deref().map(Thing::Queue)
    }

    fn things(&self) -> impl Iterator<Item = Thing<'_>> {
        self.settings.router.literals().into_iter().map(Thing::Exchange).chain(self.queue())
    }

    /// Makes or checks what the settings say, at connect.
    pub(super) async fn establish(&self, connection: &Connection) -> Result<Vec<Finding>, ConnectError> {
        let (mode, main) = (self.settings.topology, self.main());
        let mut scratch = TemporaryChannel::new(connection);
        let (mut findings, mut has_made) = (Vec::new(), false);
        for thing in self.things() {
            // Not looked at, unless a message has shown that it is missing: without it nothing can be sent.
            let is_lost = thing == Thing::Exchange(main) && self.memory.lock().is_missing(main);
            if mode == Topology::Ignore && !is_lost {
                continue;
            }
            match (self.provide(&mut scratch, thing, &mut has_made).await, thing) {
                (Ok(found), _) => findings.extend(found),
                // The events of a route wait for its exchange; those of all others do not.
                (Err(error), Thing::Exchange(name)) if name != main && connection.status().connected() => {
                    self.memory.lock().doubt(name, None, RefusalReason::NoDestination);
                    findings.push(Finding::Warning(error.text));
                }
                (Err(error), _) => return Err(error),
            }
        }
        if let (Topology::Declare, Some(queue)) = (mode, &self.settings.queue) {
            findings.extend(self.bind(&mut scratch, queue, has_made).await?);
        }
        Ok(findings)
    }

    /// Makes or checks one thing.
    async fn provide(
        &self,
        scratch: &mut TemporaryChannel<'_>,
        thing: Thing<'_>,
        has_made: &mut bool,
    ) -> Result<Option<Finding>, ConnectError> {
        let mut finding = None;
        match (self.exists(scratch, thing).await?, self.settings.topology, thing) {
            (true, Topology::Ignore, _) | (true, _, Thing::Queue(_)) => {}
            (true, _, Thing::Exchange(name)) => finding = self.type_of(scratch, name).await?,
            (false, Topology::Declare, _) => {
                let declared = scratch.declare(thing, false).await;
                declared.map_err(|error| self.failed("create", thing, &error))?;
                *has_made = true;
            }
            (false, _, Thing::Exchange(name)) if name != self.main() => {
                self.memory.lock().doubt(name, None, RefusalReason::NoDestination);
                let text = format!("{thing} of a route does not exist; its events become dead letters");
                return Ok(Some(Finding::Missing(text)));
            }
            (false, ..) => {
                let text = format!(
                    "{thing} does not exist at {}; create it, or set topology = \"declare\" in [broker.rabbitmq]",
                    self.settings.location()
                );
                return Err(ConnectError::new(ErrorKind::Connect, text));
            }
        }
        if let Thing::Exchange(name) = thing {
            self.memory.lock().saw(name);
        }
        Ok(finding)
    }

    async fn exists(&self, scratch: &mut TemporaryChannel<'_>, thing: Thing<'_>) -> Result<bool, ConnectError> {
        scratch.has(thing).await.map_err(|error| self.failed("look at", thing, &error))
    }

    /// Binds the queue; a finding, where that is forbidden and may have been done by another.
    async fn bind(
        &self,
        scratch: &mut TemporaryChannel<'_>,
        queue: &str,
        has_made: bool,
    ) -> Result<Option<Finding>, ConnectError> {
        match scratch.bind(queue, self.main()).await {
            Ok(()) => Ok(None),
            // Rights to publish only: who made exchange and queue will have bound them too.
            Err(error) if is(&error, 403) && !has_made => Ok(Some(Finding::Warning(format!(
                "may not bind the queue `{queue}` to the exchange `{}`: {}; if it is bound already, set topology = \
                 \"check\"",
                self.main(),
                describe(&error)
            )))),
            Err(error) => Err(self.failed("bind", Thing::Queue(queue), &error)),
        }
    }

    /// A finding about an exchange that exists and is no topic exchange. Only a declaration that is not passive is answered
    /// with the type, and that needs a permission: without it nothing is known.
    async fn type_of(
        &self,
        scratch: &mut TemporaryChannel<'_>,
        name: &str,
    ) -> Result<Option<Finding>, ConnectError> {
        match scratch.declare(Thing::Exchange(name), false).await {
            Ok(_) => Ok(None),
            Err(error) if is(&error, 406) => {
                Ok(other_type(&describe(&error)).map(|other| wrong_type(name, &other)))
            }
            Err(error) if is(&error, 403) => Ok(None),
            Err(error) => Err(self.failed("look at", Thing::Exchange(name), &error)),
        }
    }

    fn failed(&self, what: &str, thing: Thing<'_>, error: &lapin::Error) -> ConnectError {
        let hint = if is(error, 403) {
            "; grant the permission, or create it and set topology = \"check\" in [broker.rabbitmq]"
        } else {
            ""
        };
        let text = format!("cannot {what} {thing} at {}: {}{hint}", self.settings.location(), describe(error));
        ConnectError::new(ErrorKind::Connect, text)
    }

    /// A second look at main exchange and queue, if we know of one; with `declare` it binds them again. `Err`: something is
    /// missing, or the broker cannot say.
    pub(super) async fn look(&self, connection: &Connection) -> Result<(), String> {
        let mut scratch = TemporaryChannel::new(connection);
        if !self.has_queue() {
            let answers = scratch.channel().await.map(drop);
            return answers.map_err(|error| format!("cannot open a channel: {}", describe(&error)));
        }
        for thing in std::iter::once(Thing::Exchange(self.main())).chain(self.queue()) {
            match scratch.has(thing).await {
                Ok(true) => {}
                Ok(false) => return Err(format!("{thing} does not exist any more")),
                Err(error) => return Err(format!("cannot look at {thing}: {}", describe(&error))),
            }
        }
        if let (Topology::Declare, Some(queue)) = (self.settings.topology, &self.settings.queue)
            && let Err(error) = scratch.bind(queue, self.main()).await
            && !is(&error, 403)
        {
            return Err(format!("cannot bind {}: {}", Thing::Queue(queue), describe(&error)));
        }
        Ok(())
    }

    /// Describes what exists and what would be created, for a person; changes nothing.
    pub(super) async fn inspect(&self, connection: &Connection) -> Result<Vec<Finding>, ConnectError> {
        let mut scratch = TemporaryChannel::new(connection);
        let (mode, mut findings) = (self.settings.topology, Vec::new());
        let is_watched = |thing: &Thing<'_>| mode != Topology::Ignore || matches!(thing, Thing::Exchange(_));
        for thing in self.things().filter(is_watched) {
            let exists = Finding::Good(format!("{thing} exists"));
            findings.push(match (self.exists(&mut scratch, thing).await?, mode) {
                (true, Topology::Ignore) => exists,
                (true, mode) => match thing {
                    Thing::Exchange(name) => self.type_of(&mut scratch, name).await?.unwrap_or(exists),
                    Thing::Queue(_) if mode == Topology::Declare => scratch.unread(thing).await.unwrap_or(exists),
                    Thing::Queue(_) => exists,
                },
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
pub(super) struct TemporaryChannel<'a> {
    connection: &'a Connection,
    channel: Option<Channel>,
}

impl<'a> TemporaryChannel<'a> {
    pub(super) fn new(connection: &'a Connection) -> Self {
        Self { connection, channel: None }
    }

    async fn channel(&mut self) -> Result<Channel, lapin::Error> {
        if let Some(channel) = self.channel.as_ref().filter(|channel| channel.status().connected()) {
            return Ok(channel.clone());
        }
        let channel = self.connection.create_channel().await?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    /// Declares a thing as we would make it, or, if `passive`, only asks for it; a queue answers with its counts.
    async fn declare(&mut self, thing: Thing<'_>, passive: bool) -> Result<Option<Queue>, lapin::Error> {
        let mut arguments = FieldTable::default();
        if matches!(thing, Thing::Queue(_)) && !passive {
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        }
        declare(&self.channel().await?, thing, passive, arguments).await
    }

    /// Whether it exists.
    pub(super) async fn has(&mut self, thing: Thing<'_>) -> Result<bool, lapin::Error> {
        match self.declare(thing, true).await {
            Ok(_) => Ok(true),
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

    /// A finding about a queue that has no consumer.
    async fn unread(&mut self, thing: Thing<'_>) -> Option<Finding> {
        let queue = self.declare(thing, true).await.ok()?.filter(|queue| queue.consumer_count() == 0)?;
        Some(Finding::Warning(format!(
            "{thing} has {} messages and no consumer: it grows until something reads it; read it, limit it by a policy, or \
             set queue = \"\" and bind queues of your own",
            queue.message_count()
        )))
    }

    async fn bind(&mut self, queue: &str, exchange: &str) -> Result<(), lapin::Error> {
        let channel = self.channel().await?;
        let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
        channel.queue_bind(short(queue)?, short(exchange)?, short(EVERYTHING)?, options, arguments).await
    }
}

/// Declares a durable thing, or, if `passive`, only asks for it; a queue answers with its counts.
pub(super) async fn declare(
    channel: &Channel,
    thing: Thing<'_>,
    passive: bool,
    arguments: FieldTable,
) -> Result<Option<Queue>, lapin::Error> {
    let durable = !passive;
    match thing {
        Thing::Exchange(name) => {
            let options = ExchangeDeclareOptions { passive, durable, ..Default::default() };
            channel.exchange_declare(short(name)?, ExchangeKind::Topic, options, arguments).await.map(|()| None)
        }
        Thing::Queue(name) => {
            let options = QueueDeclareOptions { passive, durable, ..Default::default() };
            channel.queue_declare(short(name)?, options, arguments).await.map(Some)
        }
    }
}

pub(super) fn short(name: &str) -> Result<ShortString, lapin::Error> {
    ShortString::try_new(name).map_err(|error| std::io::Error::other(error).into())
}

/// The type in `inequivalent arg 'type' for exchange 'x' in vhost '/': received 'topic' but current is 'direct'`; none
/// where something else than the type differs.
fn other_type(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("inequivalent arg 'type' for exchange")?;
    let (_, current) = rest.rsplit_once("but current is '")?;
    Some(current.split_once('\'')?.0.to_owned())
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
