//! Three servers of NATS JetStream, a stream with three replicas.

use std::path::Path;

use serde_json::{Value, json};

use super::fault::{Fault, Moment};
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

    const KEYS: u64 = 1;

    const SHORT: &'static [Fault] =
        &[Fault::LeaderKilled, Fault::FollowersPausedBehindOne, Fault::LeaderMoved, Fault::AddressRefuses];

    const ALL: &'static [Fault] = &[
        Fault::LeaderKilled,
        Fault::ConnectedKilled,
        Fault::LeaderAndConnectedKilled,
        Fault::RollingRestart,
        Fault::LeaderPaused,
        Fault::FollowersPaused,
        Fault::FollowersPausedBehindOne,
        Fault::MajorityGone,
        Fault::LeaderMoved,
        Fault::LeaderMovedAtLowRate,
        Fault::AddressRefuses,
        Fault::DeletedAndMadeAnew,
        Fault::PasswordRenewed,
        Fault::OneEvent(Moment::LeaderKilled),
        Fault::OneEvent(Moment::LeaderRestarted),
        Fault::OneEvent(Moment::FollowersKilled),
        Fault::OneEvent(Moment::FollowersPaused),
    ];

    const KIND: Kind = Kind::Nats;

    fn on(nodes: Nodes) -> Self {
        let fact = |name: &str| nodes.fact(&format!("NATS_CLUSTER_{name}"));
        let operator = Operator::start(&json!({
            "broker": "nats",
            "urls": fact("URLS"),
            "monitoring": fact("MONITORING"),
            "directories": fact("DIRECTORIES"),
        }));
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

    fn table_with_login(&self, place: &str, user: &str, file: &Path) -> Table {
        self.table(place).text("username", user).text("password_file", file.display().to_string())
    }

    fn over_tls(&self, table: Table, _user: &str, _file: &Path) -> Table {
        let urls: Vec<String> = self.urls().iter().map(|url| url.replace("nats://", "tls://")).collect();
        table.raw("servers", json!(urls).to_string())
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
