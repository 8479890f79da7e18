//! The rights that a login lacks, found without changing anything: requests that end in an error or are rolled back.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, Event};
use tokio::time::timeout;

use crate::brokers::rabbitmq::Settings;
use crate::brokers::rabbitmq::connection::describe;
use crate::brokers::rabbitmq::topology::{TemporaryChannel, Thing, declare, short};
use crate::brokers::template::Template;
use crate::brokers::{Finding, Topology};

/// The library reports the reason right after it has closed a channel.
const SAID: Duration = Duration::from_secs(1);

/// An action of the bridge at start, or with each event.
enum Trial<'a> {
    Publish { exchange: &'a str, key: String },
    Make(Thing<'a>),
    Bind { queue: &'a str, exchange: &'a str },
}

/// The findings about what the user may not do.
pub(super) async fn lacking(connection: &Connection, settings: &Settings) -> Vec<Finding> {
    let exchanges = settings.router.literals();
    let mut trials = Vec::new();
    for route in settings.router.main_first() {
        let key = route.key().map(Template::samples).map(|[key, _]| key).unwrap_or_default();
        if let Some(exchange) = route.address().literal() {
            trials.push(Trial::Publish { exchange, key });
        }
    }
    if settings.topology == Topology::Declare {
        trials.extend(exchanges.iter().map(|name| Trial::Make(Thing::Exchange(name))));
        if let Some(queue) = settings.queue.as_deref() {
            let exchange = exchanges.first().copied().unwrap_or_default();
            trials.extend([Trial::Make(Thing::Queue(queue)), Trial::Bind { queue, exchange }]);
        }
    }
    let mut refused = BTreeSet::new();
    let mut events = connection.events_listener();
    for trial in trials {
        // What is there is not made.
        if let Trial::Make(thing) = trial
            && TemporaryChannel::new(connection).has(thing).await.unwrap_or(false)
        {
            continue;
        }
        let Ok(channel) = connection.create_channel().await else { break };
        while let Some(Some(_)) = events.next().now_or_never() {}
        let Err(error) = try_out(&channel, &trial).await else { continue };
        let mut text = describe(&error);
        if matches!(error.kind(), lapin::ErrorKind::InvalidChannelState(..)) {
            // The broker closed the channel before the last request, which does not say why.
            if let Ok(Some(Event::Error(error))) = timeout(SAID, events.next()).await {
                text = describe(&error);
            }
        }
        // Anything else is something that is missing, or not as the trial needs it to be: said elsewhere.
        if text.starts_with("ACCESS_REFUSED") {
            refused.insert(permission(&trial, &text));
        }
    }
    refused.into_iter().map(Finding::Missing).collect()
}

async fn try_out(channel: &Channel, trial: &Trial<'_>) -> lapin::Result<()> {
    match trial {
        Trial::Publish { exchange, key } => {
            channel.tx_select().await?;
            let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
            drop(channel.basic_publish(short(exchange)?, short(key)?, options, &[], properties).await?);
            channel.tx_rollback().await
        }
        // A number where a name must be: the broker refuses it, but looks at the permission first.
        Trial::Make(thing) => {
            let argument = match thing {
                Thing::Exchange(_) => "alternate-exchange",
                Thing::Queue(_) => "x-dead-letter-exchange",
            };
            let mut arguments = FieldTable::default();
            arguments.insert(argument.into(), AMQPValue::LongInt(0));
            declare(channel, *thing, false, arguments).await.map(drop)
        }
        // A binding that is not there can be removed by a user who may make it.
        Trial::Bind { queue, exchange } => {
            let key = format!("plextrac-bridge.{}", fastrand::u64(..));
            channel.queue_unbind(short(queue)?, short(exchange)?, short(&key)?, FieldTable::default()).await
        }
    }
}

/// The permission in `ACCESS_REFUSED - access to exchange 'x' in vhost '/' refused for user 'u'`, as it is granted. Newer
/// brokers name the right before `access`.
fn permission(trial: &Trial<'_>, text: &str) -> String {
    let parts = || {
        let (what, user) = text.split_once("access to ")?.1.split_once(" refused for user ")?;
        let right = match trial {
            Trial::Make(_) => "configure",
            Trial::Bind { .. } if what.starts_with("exchange") => "read",
            Trial::Bind { .. } | Trial::Publish { .. } => "write",
        };
        Some(format!("the user {user} lacks the {right} permission on {what}"))
    };
    parts().unwrap_or_else(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_permission_as_it_is_granted() {
        let refused = |right: &str, what: &str| {
            format!("ACCESS_REFUSED - {right}access to {what} in vhost '/' refused for user 'u'")
        };
        let bind = Trial::Bind { queue: "q", exchange: "x" };
        let publish = Trial::Publish { exchange: "x", key: String::new() };
        for (trial, right, what) in [
            (&bind, "write", "queue 'q'"),
            (&bind, "read", "exchange 'x'"),
            (&publish, "write", "exchange 'x'"),
            (&publish, "write", "topic 'k' in exchange 'x'"),
            (&Trial::Make(Thing::Queue("q")), "configure", "queue 'q'"),
        ] {
            let expected = format!("the user 'u' lacks the {right} permission on {what} in vhost '/'");
            assert_eq!(permission(trial, &refused("", what)), expected);
            assert_eq!(permission(trial, &refused(&format!("{right} "), what)), expected);
        }
        assert_eq!(permission(&bind, "ACCESS_REFUSED - no"), "ACCESS_REFUSED - no");
    }
}
