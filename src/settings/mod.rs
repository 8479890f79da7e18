//! Reading the settings: the layers, and the sections that every part reads its own table from.

mod defaults;
mod effective;
mod environment;
mod files;
mod fingerprint;
mod load;
mod named;
mod reading;
mod schema;
mod secret;
mod section;
mod units;

pub(crate) use effective::{Effective, to_json};
pub(crate) use fingerprint::{FileWatch, Fingerprint};
#[cfg(test)]
pub(crate) use load::testing;
pub(crate) use load::{Findings, Flags, Layers, load_layers};
pub(crate) use named::{named, nearest};
pub(crate) use reading::SettingsError;
pub(crate) use schema::describe;
pub(crate) use secret::*;
pub(crate) use section::Section;
