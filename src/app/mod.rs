//! The assembly of all parts: settings, threads, reloads, the order of stopping. Only this folder knows all parts.

mod app;
mod journal;
mod memory;
mod offline;
mod open_files;
mod reload;
mod settings;
mod threads;

pub(crate) use app::{App, Signals, StartError, bind};
pub(crate) use offline::{Offline, open_offline};
pub(crate) use reload::Reloading;
pub(crate) use settings::{Settings, load, load_from, schema};
