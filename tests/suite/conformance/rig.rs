//! What a broker supplies to the cases: names of its own, settings, reading back, and ways to break it.

use std::ops::Deref;

use crate::support::{Broker, Delivered, Oracle, Payload, Proxy, Sent, Setup, Status, Table};

/// How a broker's binding writes the headers.
pub(crate) struct Binding {
    /// Before the name of each attribute.
    pub(crate) prefix: &'static str,
    /// Whether values are percent-encoded.
    pub(crate) percent: bool,
    /// A second header for the content type.
    pub(crate) also_content_type: Option<&'static str>,
    /// Headers of the broker itself.
    pub(crate) own: &'static [&'static str],
}

/// A place of one test on a broker.
pub(crate) trait Rig: Sized {
    /// How headers are written.
    const BINDING: Binding;
    /// Whether the broker itself drops a message with an id that it has.
    const DROPS_REPEATS: bool = false;

    /// A place on the shared broker, named after the test.
    fn new(test: &str) -> Self;

    /// The settings that publish to it: one address, a key per target where the broker has keys.
    fn table(&self) -> Table;

    /// The settings with every placeholder of an address, and a route for the event `Routed`.
    fn templates(&self) -> Table;

    /// Address and key that `templates` gives; event and target type as they stand in addresses.
    fn rendered(&self, event: &str, target_type: &str, payload: &Payload) -> (String, String);

    /// Address and key of the event `Routed`.
    fn routed(&self, payload: &Payload) -> (String, String);

    /// All that is stored, in the broker's order; waits for this many where the broker cannot say how many there are.
    fn read(&self, at_least: u64) -> Vec<Delivered>;
}

/// What a message can be refused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trap {
    /// Larger than the broker takes.
    TooLarge,
    /// To an address that does not exist.
    Missing,
    /// To an address that leads nowhere.
    Unroutable,
    /// To an address these credentials may not write to.
    Forbidden,
}

/// Settings under which events called `Trapped` are refused, all others not.
pub(crate) struct Trapped {
    /// The settings.
    pub(crate) table: Table,
    /// The text of the trapped events.
    pub(crate) text: String,
    /// The reason in the dead letter.
    pub(crate) reason: &'static str,
}

/// A broker behind a network: it can be away, slow, shut or wrong.
pub(crate) trait Remote: Rig {
    /// What a small message can be refused for, behind the proxy too.
    const SMALL_TRAP: Trap;

    /// A place on the shared broker behind a proxy of its own.
    fn proxied(test: &str) -> Self;

    /// A place on a broker of its own.
    fn private(test: &str) -> Self;

    /// A place on a broker of its own, behind a proxy of its own.
    fn private_and_proxied(test: &str) -> Self;

    /// The broker itself.
    fn broker(&self) -> &Broker;

    /// The proxy, for a place made by `proxied`.
    fn proxy(&self) -> &Proxy;

    /// Lays a trap; the broker must know this kind.
    fn trap(&self, trap: Trap) -> Trapped;

    /// The settings with this password, which is wrong.
    fn with_password(&self, password: &str) -> Table;

    /// The settings over TLS, without `ca_file`.
    fn over_tls(&self) -> Table;

    /// The certificate of the authority that signed the broker's.
    fn authority(&self) -> String;

    /// Deletes topic, queue or stream as an administrator would.
    fn delete(&self);

    /// Makes what `delete` deleted.
    fn create(&self);
}

/// The name of a place: what a missing one is called by.
pub(crate) trait Named {
    /// Topic, queue or stream.
    fn name(&self) -> &str;
}

/// The shared broker, or one of the test's own.
pub(crate) enum Instance {
    /// For all tests.
    Shared(&'static Broker),
    /// For this test.
    Own(Box<Broker>),
}

impl Deref for Instance {
    type Target = Broker;

    fn deref(&self) -> &Broker {
        match self {
            Self::Shared(broker) => broker,
            Self::Own(broker) => broker,
        }
    }
}

/// Reads back, judges everything, and returns how many messages were repeats.
pub(crate) fn judge(rig: &impl Rig, setup: &Setup, sent: &Sent, status: &Status, out_of_order: u64) -> usize {
    let dead = setup.dead_letters();
    let delivered = rig.read(status.count("published"));
    let oracle = Oracle { sent, delivered: &delivered, dead: &dead, out_of_order };
    let repeats = oracle.judge();
    oracle.agrees_with(status);
    repeats
}
