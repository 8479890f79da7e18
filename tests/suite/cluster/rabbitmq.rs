//! Three nodes of RabbitMQ behind a balancer, quorum queues.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::balancer::Balancer;
use super::fault::{Fault, Moment};
use super::rig::Rig;
use crate::support::{Kind, Node, Nodes, Operator, Table};

/// The cluster.
pub(super) struct Rabbitmq {
    operator: Operator,
    balancer: Balancer,
    nodes: Nodes,
}

impl Rig for Rabbitmq {
    const NAME: &'static str = "rabbitmq";

    // Each try can add a copy in the queues beside one that is full.
    const TRIED_WITHIN: Duration = Duration::from_mins(1);

    const COUNTS_EXACTLY: bool = false;

    const SHORT: &'static [Fault] = &[
        Fault::LeaderKilled,
        Fault::LeaderAndConnectedKilled,
        Fault::FollowersPaused,
        Fault::LeaderMoved,
        Fault::AddressRefuses,
    ];

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
        Fault::LimitRemoved,
        Fault::DeletedAndMadeAnew,
        Fault::PasswordRenewed,
        Fault::OneEvent(Moment::LeaderKilled),
        Fault::OneEvent(Moment::LeaderRestarted),
        Fault::OneEvent(Moment::FollowersKilled),
        Fault::OneEvent(Moment::FollowersPaused),
    ];

    const KIND: Kind = Kind::Rabbitmq;

    fn on(nodes: Nodes) -> Self {
        let urls = nodes.fact("RABBITMQ_CLUSTER_URLS");
        let port = |url: &String| url.rsplit_once(':').and_then(|(_, rest)| rest.split('/').next()?.parse().ok());
        let ports = urls.iter().map(|url| port(url).unwrap_or_else(|| panic!("no port in {url}"))).collect();
        let distribution = nodes.fact("RABBITMQ_CLUSTER_DISTRIBUTION");
        let facts = json!({"broker": "rabbitmq", "urls": urls, "distribution": distribution});
        Self { operator: Operator::start(&facts), balancer: Balancer::to(ports), nodes }
    }

    fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    fn operator(&self) -> &Operator {
        &self.operator
    }

    fn table(&self, place: &str) -> Table {
        Table::new("rabbitmq")
            .text("uri", self.login("bridge", "bridge-secret"))
            .text("exchange", place)
            .text("queue", place)
            .route(&[("event", "Trapped"), ("exchange", &format!("{place}-other")), ("routing_key", "trapped")])
    }

    fn table_with_login(&self, place: &str, _user: &str, file: &Path) -> Table {
        self.table(place).without("uri").text("uri_file", file.display().to_string())
    }

    fn over_tls(&self, table: Table, user: &str, file: &Path) -> Table {
        let uris = json!(self.nodes.fact("RABBITMQ_CLUSTER_TLS_URLS")).to_string();
        let table = table.without("uri_file").raw("uris", uris);
        table.text("username", user).text("password_file", file.display().to_string())
    }

    fn login(&self, user: &str, password: &str) -> String {
        format!("amqp://{user}:{password}@127.0.0.1:{}/%2f", self.balancer.port())
    }

    fn order(&self, place: &str, at_least: u64) -> Value {
        let url = &self.nodes.fact("RABBITMQ_CLUSTER_URLS")[0];
        let queues = [place.to_owned(), format!("{place}-other")];
        json!({"broker": "rabbitmq", "url": url, "queues": queues, "at_least": at_least})
    }

    fn connected(&self) -> Option<Node> {
        self.balancer.behind()
    }

    fn prepare(&self, place: &str) {
        self.operator.ask(&json!({"do": "prepare", "name": place, "alive": self.nodes.alive()}));
    }
}
