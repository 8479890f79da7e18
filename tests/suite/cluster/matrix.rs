//! Every fault at length, on one broker: a table of what was found, whatever is red. `make soak CLUSTER=1 BROKER=kafka`.

use std::any::Any;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::fault::Fault;
use super::kafka::Kafka;
use super::nats::Nats;
use super::plan::{Judged, Plan, Seen};
use super::rabbitmq::Rabbitmq;
use super::rig::Rig;
use super::row::run;
use crate::support::heavy;

const PLAN: Plan = Plan {
    gone: Duration::from_secs(10),
    paused: Duration::from_secs(15),
    moved: Duration::from_mins(1),
    refusing: Duration::from_mins(1),
    // `retry_max` and 3 s.
    recovery: Duration::from_secs(5),
    judged: Judged::Everything,
};

#[test]
#[ignore = "long: make soak CLUSTER=1"]
fn every_fault_on_kafka() {
    every_fault::<Kafka>();
}

#[test]
#[ignore = "long: make soak CLUSTER=1"]
fn every_fault_on_rabbitmq() {
    every_fault::<Rabbitmq>();
}

#[test]
#[ignore = "long: make soak CLUSTER=1"]
fn every_fault_on_nats() {
    every_fault::<Nats>();
}

/// Makes the faults that `SOAK_FAULTS` names, as often as it names them, or each.
fn every_fault<R: Rig>() {
    let _one = heavy();
    let asked = std::env::var("SOAK_FAULTS").unwrap_or_default();
    let asked = asked.split_whitespace().flat_map(|name| R::ALL.iter().filter(move |fault| fault.name() == name));
    let mut faults: Vec<Fault> = asked.copied().collect();
    if faults.is_empty() {
        faults = R::ALL.to_vec();
    }
    let rig = R::start();
    let mut table = String::new();
    let mut red = 0;
    for fault in faults {
        println!("{}: {}", R::NAME, fault.name());
        let began = Instant::now();
        let found = catch_unwind(AssertUnwindSafe(|| run(&rig, fault, PLAN)));
        let (verdict, wrong) = verdict(found);
        red += usize::from(!wrong.is_empty());
        let colour = if wrong.is_empty() { "green" } else { "RED" };
        let mut row = format!("  {:<28}{colour:<6}{:>4} s  {verdict}\n", fault.name(), began.elapsed().as_secs());
        for line in wrong {
            writeln!(row, "      {line}").expect("a String takes everything");
        }
        println!("{row}");
        table.push_str(&row);
        // Whatever a red row left behind.
        rig.nodes().resume();
        rig.nodes().up();
    }
    println!("clusters of three, {}:\n{table}", R::NAME);
    assert_eq!(red, 0, "rows are red on {}:\n{table}", R::NAME);
}

/// Returns the numbers, and the lines of what is wrong.
fn verdict(found: Result<Seen, Box<dyn Any + Send>>) -> (String, Vec<String>) {
    match found {
        Ok(seen) => {
            let numbers = format!(
                "accepted {}, delivered {}, repeats {}, late {} counted {}, back {:.1} s after a plain client",
                seen.accepted,
                seen.delivered,
                seen.repeats,
                seen.late,
                seen.out_of_order,
                seen.recovered.as_secs_f64()
            );
            (numbers, seen.wrong)
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let text = text.unwrap_or_else(|| "a panic without a text".to_owned());
            (String::new(), text.lines().map(str::to_owned).take(6).collect())
        }
    }
}
