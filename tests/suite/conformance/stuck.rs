//! One address of each broker that takes nothing until it is opened, beside others that take everything.

use serde_json::json;

use super::kafka::Kafka;
use super::nats::Nats;
use super::rabbitmq::Rabbitmq;
use super::rig::{Named, Remote, Rig};
use crate::support::{Delivered, Table, admin, read};

/// A broker of which one address can be made to take nothing.
pub(crate) trait Stuck: Remote + Named {
    /// The name in its address by which a report is recognised.
    fn stuck(&self) -> String;

    /// Makes the address, and returns the settings by which the events `Trapped` go there.
    fn jam(&self) -> Table;

    /// Has it take everything.
    fn open(&self);

    /// All that is stored, there and at the others.
    fn read_all(&self, at_least: u64) -> Vec<Delivered> {
        self.read(at_least)
    }
}

/// A topic of which two replicas must be in sync, and one is at a broker that does not exist.
impl Stuck for Kafka {
    fn stuck(&self) -> String {
        format!("{}-stuck", self.name())
    }

    fn jam(&self) -> Table {
        admin(&self.order(&json!({"do": "create_short", "topic": self.stuck()})));
        self.table().route(&[("event", "Trapped"), ("topic", &self.stuck()), ("key", "{targetCuid}")])
    }

    fn open(&self) {
        let config = json!({"min.insync.replicas": "1"});
        admin(&self.order(&json!({"do": "configure", "topic": self.stuck(), "config": config})));
    }
}

/// A queue of an exchange of its own that may have no message.
impl Stuck for Rabbitmq {
    fn stuck(&self) -> String {
        format!("{}-special", self.name())
    }

    fn jam(&self) -> Table {
        let stuck = self.stuck();
        let arguments = json!({"x-queue-type": "classic"});
        admin(&self.order(&json!({"do": "create", "exchange": stuck, "queue": stuck, "arguments": arguments})));
        let (limit, pattern) = (r#"{"max-length": 0, "overflow": "reject-publish"}"#, format!("^{stuck}$"));
        self.broker().rabbitmqctl(&["set_policy", &stuck, &pattern, limit, "--apply-to", "queues"]);
        self.table().route(&[("event", "Trapped"), ("exchange", &stuck)])
    }

    fn open(&self) {
        self.broker().rabbitmqctl(&["clear_policy", &self.stuck()]);
    }
}

/// A stream that is full.
impl Stuck for Nats {
    fn stuck(&self) -> String {
        format!("{}-stuck", self.name())
    }

    fn jam(&self) -> Table {
        let stuck = self.stuck();
        let order = |what: &str| {
            json!({"do": what, "stream": stuck, "subjects": [format!("{stuck}.>")],
            "config": {"max_bytes": 1, "discard": "new"}})
        };
        admin(&self.order(&order("create")));
        self.table().route(&[("event", "Trapped"), ("stream", &stuck), ("subject", &format!("{stuck}.{{event}}"))])
    }

    fn open(&self) {
        let stuck = self.stuck();
        let order = json!({"do": "update", "stream": stuck, "subjects": [format!("{stuck}.>")],
            "config": {"max_bytes": -1, "discard": "new"}});
        admin(&self.order(&order));
    }

    fn read_all(&self, at_least: u64) -> Vec<Delivered> {
        let mut all = self.read(at_least);
        all.extend(read(&self.order(&json!({"stream": self.stuck()}))));
        all
    }
}
