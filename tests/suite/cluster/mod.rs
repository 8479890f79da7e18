//! Clusters of three: nodes that die, hang and restart, leaders that move, addresses that take nothing, all under load.
//! The short forms on the three brokers side by side within `make test`, every fault at length by `make soak CLUSTER=1`.

// The brokers.
mod kafka;
mod nats;
mod rabbitmq;

// The part that a broker supplies.
mod rig;

// A balancer in front of RabbitMQ.
mod balancer;

// The faults.
mod fault;

// Lengths, strictness, numbers.
mod plan;

// One fault under load, and the verdict.
mod row;

// One node with a bad certificate.
mod certificates;

// Every fault, at length.
mod matrix;

// The short faults of `make test`.
mod short;
