//! The part that a broker supplies to the faults: its three nodes, an operator, settings, reading back.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::fault::Fault;
use crate::support::{Delivered, Kind, Node, Nodes, Operator, Table, read, unique};

/// One of the two addresses of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// The address of most events.
    Main,
    /// The address of those called `Trapped`.
    Other,
}

/// A cluster of three nodes of one broker.
pub(super) trait Rig: Sized {
    /// Its name in the table of results.
    const NAME: &'static str;

    /// The longest time between two tries of an address that refuses.
    const TRIED_WITHIN: Duration = Duration::ZERO;

    /// Whether the broker says enough for an exact count of late events; otherwise it is never too low.
    const COUNTS_EXACTLY: bool;

    /// With so many keys order is judged; one where the broker has none, and an address is the unit of order.
    const KEYS: u64 = 12;

    /// The faults that `make test` has.
    const SHORT: &'static [Fault];

    /// Every fault that this broker can have.
    const ALL: &'static [Fault];

    /// The kind of its nodes.
    const KIND: Kind;

    /// Starts the nodes.
    fn start() -> Self {
        Self::on(Nodes::start(Self::KIND))
    }

    /// The cluster of these nodes.
    fn on(nodes: Nodes) -> Self;

    /// The nodes.
    fn nodes(&self) -> &Nodes;

    /// The operator of the cluster, and a plain client beside the bridge.
    fn operator(&self) -> &Operator;

    /// The settings that publish to a place, events called `Trapped` to its other address.
    fn table(&self, place: &str) -> Table;

    /// The same as this user, whose password, or what carries it, is in a file.
    fn table_with_login(&self, place: &str, user: &str, file: &Path) -> Table;

    /// Settings with a login, made over for nodes that take clients over TLS.
    fn over_tls(&self, table: Table, user: &str, file: &Path) -> Table;

    /// The content of that file.
    fn login(&self, _user: &str, password: &str) -> String {
        password.to_owned()
    }

    /// The order for the reader.
    fn order(&self, place: &str, at_least: u64) -> Value;

    /// The node of the bridge's connection; none where the bridge has one to each.
    fn connected(&self) -> Option<Node>;

    /// Makes what the bridge does not declare.
    fn prepare(&self, place: &str);

    /// Makes the other address of a place take nothing, and say so.
    fn refuse(&self, place: &str) {
        self.operator().ask(&json!({"do": "refuse", "name": place, "alive": self.nodes().alive()}));
    }

    /// Makes it take everything again.
    fn accept(&self, place: &str) {
        self.operator().ask(&json!({"do": "accept", "name": place, "alive": self.nodes().alive()}));
    }
}

/// A topic, queue or stream of one fault alone, and what belongs to it.
pub(super) struct Place<'a, R> {
    /// The cluster it is on.
    pub(super) rig: &'a R,
    name: String,
}

impl<'a, R: Rig> Place<'a, R> {
    /// Names it, on a cluster that is whole.
    pub(super) fn new(rig: &'a R, fault: &str) -> Self {
        let place = Self { rig, name: unique(fault) };
        place.operate("whole", &json!({}));
        rig.prepare(&place.name);
        place
    }

    /// The settings that publish to it.
    pub(super) fn table(&self) -> Table {
        self.rig.table(&self.name)
    }

    /// The same as this user, whose password is in a file.
    pub(super) fn table_with_login(&self, user: &str, file: &Path) -> Table {
        self.rig.table_with_login(&self.name, user, file)
    }

    /// Gives this user this password; connections with an older one stay for now.
    pub(super) fn set_password(&self, user: &str, password: &str) {
        self.operate("credentials", &json!({"user": user, "password": password}));
    }

    /// Ends the connections of those who logged in with an older password.
    pub(super) fn expel(&self, user: &str) {
        self.operate("expel", &json!({"user": user}));
    }

    /// Waits until all nodes run and all replicas have what the leader has.
    pub(super) fn wait_until_whole(&self) {
        self.operate("whole", &json!({"member": true}));
    }

    /// The node that leads.
    pub(super) fn leader(&self) -> Node {
        let leader = self.operate("leader", &json!({}));
        leader.as_u64().and_then(|node| Node::try_from(node).ok()).expect("a node has a number")
    }

    /// The nodes that follow.
    pub(super) fn followers(&self) -> Vec<Node> {
        let leader = self.leader();
        (1..=3).filter(|node| *node != leader).collect()
    }

    /// Moves the leader: to this node, or to any other.
    pub(super) fn move_leader(&self, to: Option<Node>) {
        self.operate("move", &json!({"to": to}));
    }

    /// Publishes as a plain client; returns once that is confirmed.
    pub(super) fn publish(&self, address: Address) {
        self.operate("probe", &json!({"other": address == Address::Other}));
    }

    /// Makes the other address take nothing.
    pub(super) fn refuse(&self) {
        self.rig.refuse(&self.name);
    }

    /// Makes it take everything again.
    pub(super) fn accept(&self) {
        self.rig.accept(&self.name);
    }

    /// Gives one more order: `delete`, `create`, `partitions`, `unlimit`.
    pub(super) fn order(&self, what: &str) {
        self.operate(what, &json!({}));
    }

    /// Reads all that is stored, without what the plain client published.
    pub(super) fn read(&self, at_least: u64) -> Vec<Delivered> {
        let mut delivered = read(&self.rig.order(&self.name, at_least));
        delivered.retain(|message| !message.id.starts_with("probe"));
        delivered
    }

    fn operate(&self, what: &str, with: &Value) -> Value {
        let mut order = json!({"do": what, "name": self.name, "alive": self.rig.nodes().alive()});
        for (name, value) in with.as_object().into_iter().flatten() {
            order[name] = value.clone();
        }
        self.rig.operator().ask(&order)
    }
}
