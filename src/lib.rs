//! plextrac-bridge: the map.
pub mod accounting;
pub mod brokers;
pub mod delivery;
pub mod logs;
pub mod message;
pub mod metrics;
pub mod queue;
pub mod secret;
pub mod settings;
pub mod shutdown;
pub mod template;
