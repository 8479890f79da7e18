//! Three servers of NATS JetStream, a stream with three replicas.

use serde_json::{Value, json};

use super::fault::Fault;
use super::rig::Rig;
use crate::support::{Kind, Node, Nodes, Operator, Table};

/// The cluster.
pub(super) struct Nats {
    operator: Operator,
    nodes: Nodes,
}

impl Nats {
    fn urls(&self) -> Vec<String> {
        self.nodes.fact("NATS_CLUSTER_URLS")
    }
}

impl Rig for Nats {
    const NAME: &'static str = "nats";

    const COUNTS_EXACTLY: bool = true;

    // The others: a leader without a majority takes events that it does not acknowledge, which ends in dead letters; one
    // that steps down drops events between those that it takes, which are late then and not counted.
    const SHORT: &'static [Fault] =
        &[Fault::LeaderAndConnectedKilled, Fault::ConnectedKilled, Fault::AddressRefuses];

    const ALL: &'static [Fault] = &[
        Fault::LeaderKilled,
        Fault::ConnectedKilled,
        Fault::LeaderAndConnectedKilled,
        Fault::RollingRestart,
        Fault::LeaderPaused,
        Fault::FollowersPaused,
        Fault::MajorityGone,
        Fault::LeaderMoved,
        Fault::LeaderMovedAtLowRate,
        Fault::AddressRefuses,
        Fault::DeletedAndMadeAnew,
    ];

    fn start() -> Self {
        let nodes = Nodes::start(Kind::Nats);
        let (urls, monitoring) = (nodes.fact("NATS_CLUSTER_URLS"), nodes.fact("NATS_CLUSTER_MONITORING"));
        let operator = Operator::start(&json!({"broker": "nats", "urls": urls, "monitoring": monitoring}));
        Self { operator, nodes }
    }

    fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    fn operator(&self) -> &Operator {
        &self.operator
    }

    fn table(&self, place: &str) -> Table {
        Table::new("nats")
            .raw("servers", json!(self.urls()).to_string())
            .text("stream", place)
            .text("subject", format!("{place}.{{event}}.report"))
            .raw("stream_replicas", "3")
    }

    fn order(&self, place: &str, _at_least: u64) -> Value {
        json!({"broker": "nats", "url": self.urls()[0], "stream": place})
    }

    fn connected(&self) -> Option<Node> {
        let node = self.operator.ask(&json!({"do": "connected", "alive": self.nodes.alive()}));
        node.as_u64().and_then(|node| Node::try_from(node).ok())
    }

    fn prepare(&self, _place: &str) {}
}
