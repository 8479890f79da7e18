//! The short faults of `make test`: one after the other on each cluster, the three clusters side by side.

use std::thread;
use std::time::{Duration, Instant};

use super::kafka::Kafka;
use super::nats::Nats;
use super::plan::{Judged, Plan};
use super::rabbitmq::Rabbitmq;
use super::rig::Rig;
use super::row::run;

const PLAN: Plan = Plan {
    gone: Duration::from_secs(10),
    paused: Duration::from_secs(12),
    moved: Duration::from_secs(10),
    refusing: Duration::from_secs(10),
    // `retry_max` and 3 s, three times over for a machine that is busy with other tests. A node that is killed is not started
    // again before, so a bridge that waits for that node is found out.
    recovery: Duration::from_secs(15),
    judged: Judged::Promises,
};

/// Runs the three in one test: each mostly waits, and few tests run at a time.
#[test]
fn keeps_every_promise_on_clusters_of_three() {
    thread::scope(|scope| {
        let spawn = |name: &str, faults: fn()| {
            thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, faults).expect("a thread can be made")
        };
        spawn("cluster of Kafka", faults::<Kafka>);
        spawn("cluster of RabbitMQ", faults::<Rabbitmq>);
        spawn("cluster of NATS", faults::<Nats>);
    });
}

fn faults<R: Rig>() {
    let began = Instant::now();
    let rig = R::start();
    println!("{}: up after {:.1} s", R::NAME, began.elapsed().as_secs_f64());
    for fault in R::SHORT {
        println!("{}: {} at {:.1} s", R::NAME, fault.name(), began.elapsed().as_secs_f64());
        let seen = run(&rig, *fault, PLAN);
        println!("{}: {seen:?}", R::NAME);
        assert!(seen.wrong.is_empty(), "{} on {}: {:?}", fault.name(), R::NAME, seen.wrong);
    }
    println!("{}: over after {:.1} s", R::NAME, began.elapsed().as_secs_f64());
}
