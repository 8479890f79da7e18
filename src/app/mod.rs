//! The assembly of all parts: settings, threads, reloads, the order of stopping. Only this folder knows all parts.

mod app;
mod journal;
mod offline;
mod parts;
mod reload;
mod resources;
mod settings;
mod threads;

pub(crate) use app::{App, Signals, StartError, bind};
pub(crate) use offline::{Offline, open_offline};
pub(crate) use reload::Reloading;
pub(crate) use settings::{Settings, load, load_from, schema};
