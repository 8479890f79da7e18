//! plextrac-bridge: the map.
pub mod accounting;
pub mod admin;
pub mod app;
pub mod brokers;
pub mod delivery;
pub mod ingress;
pub mod logs;
pub mod message;
pub mod metrics;
pub mod pulse;
pub mod queue;
pub mod secret;
pub mod settings;
pub mod shutdown;
pub mod template;
