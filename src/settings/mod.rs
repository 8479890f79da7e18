//! Reading the settings: the layers, and the sections that every part reads its own table from.

mod defaults;
mod effective;
mod environment;
mod files;
mod fingerprint;
mod load;
mod named;
mod problems;
mod reading;
mod schema;
mod secret;
mod section;
#[cfg(test)]
pub(crate) mod testing;
mod units;

pub(crate) use effective::{Effective, to_json};
pub(crate) use fingerprint::{FileWatch, Fingerprint};
pub(crate) use load::{Findings, Flags, Layers, load_layers};
pub(crate) use named::named;
pub(crate) use problems::{SettingsError, nearest};
pub(crate) use schema::describe;
pub(crate) use secret::*;
pub(crate) use section::Section;
