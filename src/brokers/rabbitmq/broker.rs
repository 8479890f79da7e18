//! The broker that the settings describe: makes sessions, and remembers between them what they learnt.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lapin::Channel;
use tokio::time::timeout;

use crate::brokers::dial;
use crate::brokers::oauth::Tokens;
use crate::brokers::rabbitmq::Settings;
use crate::brokers::rabbitmq::connection::{ATTEMPT, IdleConnection, Link, describe, open_channel};
use crate::brokers::rabbitmq::rights;
use crate::brokers::rabbitmq::session::RabbitmqSession;
use crate::brokers::rabbitmq::topology::Exchanges;
use crate::brokers::{Broker, ConnectError, ErrorKind, Finding, Headers, Session, Terms};

/// RabbitMQ.
pub(crate) struct Rabbitmq {
    headers: Headers,
    /// `publish.retry_max`.
    retry_max: Duration,
    plan: Arc<Exchanges>,
    kept: IdleConnection,
    tokens: Option<Arc<Tokens>>,
    /// The host at which the next attempt to connect starts.
    turn: usize,
}

impl Rabbitmq {
    /// The broker that these settings describe.
    #[must_use]
    pub(crate) fn new(settings: &Settings, terms: &Terms) -> Self {
        Self {
            headers: terms.headers.clone(),
            retry_max: terms.retry_max,
            plan: Arc::new(Exchanges::new(settings)),
            kept: IdleConnection::default(),
            tokens: settings.oauth.as_ref().map(Tokens::new),
            turn: 0,
        }
    }

    /// The connection kept from the last session, if it still answers, else a new one; with a channel that confirms.
    async fn link(&mut self) -> Result<(Link, Channel), ConnectError> {
        let kept = self.kept.lock().take();
        if let Some(link) = kept.filter(|link| link.is_alive() && !link.has_ended_token())
            && let Ok(Ok(channel)) = timeout(Duration::from_secs(1), open_channel(&link.connection)).await
        {
            return Ok((link, channel));
        }
        // It may have been restarted with another limit.
        self.plan.memory.lock().forget_limit();
        let link = Link::open(&self.plan.settings, self.tokens.as_deref(), &mut self.turn).await?;
        let channel = timeout(ATTEMPT, open_channel(&link.connection)).await.map_err(|_| self.silent())?;
        let channel = channel.map_err(|error| {
            let text = format!("{}: cannot open a channel: {}", link.location, describe(&error));
            ConnectError::new(ErrorKind::Connect, text)
        })?;
        Ok((link, channel))
    }

    fn silent(&self) -> ConnectError {
        let text = format!("{}: connected, but no answer within {} s", self.location(), ATTEMPT.as_secs());
        ConnectError::new(ErrorKind::Connect, text)
    }
}

#[async_trait]
impl Broker for Rabbitmq {
    fn name(&self) -> &'static str {
        "rabbitmq"
    }

    fn location(&self) -> String {
        self.plan.settings.location()
    }

    async fn connect(&mut self) -> Result<(Box<dyn Session>, Vec<Finding>), ConnectError> {
        let (link, channel) = self.link().await?;
        let established = timeout(ATTEMPT, self.plan.establish(&link.connection)).await;
        match established.unwrap_or_else(|_| Err(self.silent())) {
            Ok(findings) => {
                let (plan, kept) = (self.plan.clone(), self.kept.clone());
                let headers = self.headers.clone();
                let session = RabbitmqSession::new(link, channel, headers, plan, kept, self.retry_max);
                Ok((Box::new(session), findings))
            }
            Err(error) => {
                // What is missing will be asked for every second or two: not on a new connection each time.
                *self.kept.lock() = Some(link);
                Err(error)
            }
        }
    }

    async fn inspect(&mut self) -> Result<Vec<Finding>, ConnectError> {
        let mut refusing = Vec::new();
        let (mut link, _channel) = loop {
            match self.link().await {
                Ok(linked) => break linked,
                Err(error) if refusing.len() + 1 < self.plan.settings.hosts().len() => {
                    refusing.push(Finding::Warning(format!("{error}; the other nodes are used")));
                }
                Err(error) => return Err(error),
            }
        };
        let mut findings = vec![Finding::Good(format!("{} answers and takes the credentials", link.location))];
        findings.extend(refusing);
        let inspected = timeout(ATTEMPT, self.plan.inspect(&link.connection)).await;
        findings.extend(inspected.unwrap_or_else(|_| Err(self.silent()))?);
        if let Ok(lacking) = timeout(ATTEMPT, rights::lacking(&link.connection, &self.plan.settings)).await {
            findings.extend(lacking);
        } else {
            let why = link.blocked().map_or_else(
                || format!("no answer within {} s", ATTEMPT.as_secs()),
                |reason| format!("the broker has blocked the connection: {reason}"),
            );
            findings.push(Finding::Warning(format!("the user's permissions could not be checked: {why}")));
        }
        link.close(ATTEMPT).await;
        findings.extend(dial::silent(&self.plan.settings.hosts()).await);
        Ok(findings)
    }
}
