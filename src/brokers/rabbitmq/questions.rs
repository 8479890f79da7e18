//! The look at the topology after a message came back, or has no confirm for long: does it still stand? At most one a
//! second.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use lapin::Connection;
use tokio::time::{sleep_until, timeout};

use crate::brokers::rabbitmq::connection::ATTEMPT;
use crate::brokers::rabbitmq::topology::{ExchangeLook, Exchanges};

/// The time for which the answer that the topology exists counts: longer than the wait for a try of an address.
const FRESH: Duration = Duration::from_secs(5);

/// The looks.
#[derive(Default)]
pub(super) struct Questions {
    is_doubted: bool,
    look: Option<BoxFuture<'static, ExchangeLook>>,
    looked: Option<Instant>,
    /// The time at which it was last found as it should be.
    stood: Option<Instant>,
}

impl fmt::Debug for Questions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Questions").field("looked", &self.looked).finish_non_exhaustive()
    }
}

impl Questions {
    /// Each look takes some round trips, and each that finds nothing an error in the broker's log.
    const PAUSE: Duration = Duration::from_secs(1);

    /// The time to look because confirms are missing, if that is not decided yet.
    pub(super) fn next_doubt(&self, doubtful: Instant) -> Option<Instant> {
        let idle = !self.is_doubted && self.look.is_none();
        idle.then(|| self.looked.map_or(doubtful, |looked| doubtful.max(looked + Self::PAUSE)))
    }

    /// Is the topology still what it was?
    pub(super) fn doubt(&mut self) {
        self.is_doubted = true;
    }

    /// Whether the topology was what it should be a moment ago.
    pub(super) fn has_stood(&self) -> bool {
        self.stood.is_some_and(|stood| stood.elapsed() < FRESH)
    }

    /// Looks, when there is a doubt; returns what is missing. Never ready without one; cancel-safe.
    pub(super) async fn answer(&mut self, connection: &Arc<Connection>, plan: &Arc<Exchanges>) -> Option<String> {
        loop {
            if let Some(look) = &mut self.look {
                let found = look.await;
                self.look = None;
                return match found {
                    ExchangeLook::Stands => {
                        self.stood = Some(Instant::now());
                        None
                    }
                    ExchangeLook::Gone(text) => Some(text),
                };
            }
            if !self.is_doubted {
                std::future::pending::<()>().await;
            }
            if let Some(looked) = self.looked {
                sleep_until((looked + Self::PAUSE).into()).await;
            }
            self.looked = Some(Instant::now());
            self.is_doubted = false;
            self.look = Some(look(connection.clone(), plan.clone()).boxed());
        }
    }
}

async fn look(connection: Arc<Connection>, plan: Arc<Exchanges>) -> ExchangeLook {
    let look = timeout(ATTEMPT, plan.look(&connection)).await;
    look.unwrap_or_else(|_| ExchangeLook::Gone("the broker does not answer".to_owned()))
}
