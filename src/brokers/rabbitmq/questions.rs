//! Questions to the broker before a message is refused: does the topology stand, is a missing exchange there by now?
//! One look at a time, and each kind at most once a second.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use lapin::Connection;
use tokio::time::{sleep_until, timeout};

use crate::brokers::rabbitmq::connection::{ATTEMPT, describe};
use crate::brokers::rabbitmq::publication::Publication;
use crate::brokers::rabbitmq::session::Owner;
use crate::brokers::rabbitmq::topology::{ExchangeLook, Exchanges, has_exchange};

/// A message that waits for its exchange to be looked for, with its id.
type Waiting = (Owner, Box<str>, Publication);

/// What was found, and which messages it is about.
pub(super) enum ExchangeAnswer {
    /// The topology stands, and yet these came back.
    Stands(Vec<Owner>),
    /// Something is gone, or the broker cannot say.
    Gone(String),
    /// Whether the exchange is there.
    Exchange(Arc<str>, bool, Vec<Waiting>),
}

enum FoundExchange {
    Topology(ExchangeLook),
    Exchange(Arc<str>, Result<bool, String>),
}

/// Messages whose fate hangs on a look at the broker.
#[derive(Default)]
pub(super) struct Questions {
    /// Came back since the running look began.
    returned: Vec<Owner>,
    /// Came back before it began.
    asked: Vec<Owner>,
    waiting: VecDeque<Waiting>,
    /// Confirms stay out.
    doubted: bool,
    look: Option<BoxFuture<'static, FoundExchange>>,
    looked: Option<Instant>,
}

impl fmt::Debug for Questions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Questions").field("returned", &self.returned.len()).finish_non_exhaustive()
    }
}

impl Questions {
    /// Each look takes some round trips, and each that finds nothing an error in the broker's log.
    const PAUSE: Duration = Duration::from_secs(1);

    pub(super) fn is_empty(&self) -> bool {
        self.returned.is_empty() && self.asked.is_empty() && self.waiting.is_empty()
    }

    /// A message came back: is the topology still what it was?
    pub(super) fn returned(&mut self, owner: Owner) {
        self.returned.push(owner);
    }

    /// A message waits for its exchange to be looked for.
    pub(super) fn ask(&mut self, owner: Owner, id: &str, publication: Publication) {
        self.waiting.push_back((owner, id.into(), publication));
    }

    /// When to look because confirms stay out, if that is not decided yet.
    pub(super) fn next_doubt(&self, doubtful: Instant) -> Option<Instant> {
        let idle = !self.doubted && self.look.is_none();
        idle.then(|| self.looked.map_or(doubtful, |looked| doubtful.max(looked + Self::PAUSE)))
    }

    /// Confirms stay out: is the topology still what it was?
    pub(super) fn doubt(&mut self) {
        self.doubted = true;
    }

    /// Whether messages wait for this exchange: later ones must not overtake them.
    pub(super) fn is_about(&self, exchange: &str) -> bool {
        self.waiting.iter().any(|(owner, ..)| *owner.exchange == *exchange)
    }

    /// Looks, when there is a question, and answers. Never ready without one; cancel-safe.
    pub(super) async fn answer(&mut self, connection: &Arc<Connection>, plan: &Arc<Exchanges>) -> ExchangeAnswer {
        loop {
            if let Some(look) = &mut self.look {
                let found = look.await;
                self.look = None;
                return self.take(found);
            }
            if self.doubted || !self.returned.is_empty() {
                if let Some(looked) = self.looked {
                    sleep_until((looked + Self::PAUSE).into()).await;
                }
                self.looked = Some(Instant::now());
                self.doubted = false;
                self.asked.append(&mut self.returned);
                self.look = Some(look(connection.clone(), plan.clone()).boxed());
            } else if let Some((owner, ..)) = self.waiting.front() {
                self.look = Some(look_for(connection.clone(), owner.exchange.clone()).boxed());
            } else {
                std::future::pending::<()>().await;
            }
        }
    }

    fn take(&mut self, found: FoundExchange) -> ExchangeAnswer {
        match found {
            FoundExchange::Topology(ExchangeLook::Stands) => {
                ExchangeAnswer::Stands(std::mem::take(&mut self.asked))
            }
            FoundExchange::Topology(ExchangeLook::Gone(text)) | FoundExchange::Exchange(_, Err(text)) => {
                ExchangeAnswer::Gone(text)
            }
            FoundExchange::Exchange(name, Ok(there)) => {
                let all = std::mem::take(&mut self.waiting);
                let (about, others): (Vec<_>, Vec<_>) =
                    all.into_iter().partition(|(owner, ..)| owner.exchange == name);
                self.waiting = others.into();
                ExchangeAnswer::Exchange(name, there, about)
            }
        }
    }
}

async fn look(connection: Arc<Connection>, plan: Arc<Exchanges>) -> FoundExchange {
    let look = timeout(ATTEMPT, plan.look(&connection)).await;
    FoundExchange::Topology(look.unwrap_or_else(|_| ExchangeLook::Gone("the broker does not answer".to_owned())))
}

async fn look_for(connection: Arc<Connection>, exchange: Arc<str>) -> FoundExchange {
    let found = match timeout(ATTEMPT, has_exchange(&connection, &exchange)).await {
        Ok(found) => found.map_err(|error| format!("cannot look at `{exchange}`: {}", describe(&error))),
        Err(_) => Err("the broker does not answer".to_owned()),
    };
    FoundExchange::Exchange(exchange, found)
}
