//! plextrac-bridge: the map.
pub mod brokers;
pub mod message;
pub mod secret;
pub mod settings;
pub mod template;
