//! One reading of the merged settings: the origin of each value, and what the sections find while they read.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use toml::Table;

use crate::settings::defaults::{find, merge};
use crate::settings::environment;

/// A file that was read, and the SHA-256 of its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileDigest {
    pub(super) path: PathBuf,
    pub(super) digest: [u8; 32],
}

impl FileDigest {
    pub(super) fn of(path: &Path, bytes: &[u8]) -> Self {
        Self { path: path.to_owned(), digest: Sha256::digest(bytes).into() }
    }
}

/// The files that were read, by the key that names them.
pub(super) type FileDigests = BTreeMap<String, FileDigest>;

/// The JSON Schema noted for each key, by its dotted path; `[0]` follows the name of a list of tables.
pub(super) type Schemas = BTreeMap<String, serde_json::Value>;

/// The layers of the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Layer {
    Defaults,
    File(PathBuf),
    Environment,
    Flags,
    /// A text that a unit test reads.
    #[cfg(test)]
    Text,
}

/// One reading.
#[derive(Default)]
pub(super) struct Reading {
    /// The lowest first.
    pub(super) layers: Vec<(Layer, Table)>,
    pub(super) problems: RefCell<Problems>,
    pub(super) files: RefCell<FileDigests>,
    /// The kinds and limits of the keys.
    pub(super) schemas: RefCell<Schemas>,
    /// Whether every table and list exists only to be described.
    pub(super) is_description: bool,
}

impl Reading {
    /// Starts a reading of these layers.
    pub(super) fn new(layers: Vec<(Layer, Table)>) -> Self {
        Self { layers, ..Self::default() }
    }

    /// The values that count, of all layers.
    pub(super) fn merged(&self) -> Table {
        merged(&self.layers)
    }

    /// The layer that a value comes from, by its dotted path.
    fn layer(&self, dotted: &str) -> Option<&Layer> {
        let above = self.layers.iter().rev();
        above.map(|(layer, table)| (layer, find(table, dotted))).find_map(|(layer, found)| found.and(Some(layer)))
    }

    pub(super) fn is_from_environment(&self, dotted: &str) -> bool {
        self.layer(dotted) == Some(&Layer::Environment)
    }

    pub(super) fn is_default(&self, dotted: &str) -> bool {
        self.layer(dotted) == Some(&Layer::Defaults)
    }

    /// The origin of a value, for the operator; none if it is a default.
    pub(super) fn origin(&self, dotted: &str) -> Option<String> {
        match self.layer(dotted)? {
            Layer::Defaults => None,
            Layer::File(path) => Some(path.display().to_string()),
            Layer::Environment => Some(format!("environment variable {}", environment::variable(dotted))),
            Layer::Flags => Some(format!("--{}", dotted.replace('.', "-"))),
            #[cfg(test)]
            Layer::Text => None,
        }
    }
}

/// The values that count, where each layer goes above those before it.
pub(super) fn merged(layers: &[(Layer, Table)]) -> Table {
    let mut merged = Table::new();
    for (_, table) in layers {
        merge(&mut merged, table.clone());
    }
    merged
}

/// Errors and warnings, in the order in which they were found.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    /// Problems that prevent the start.
    pub(crate) errors: Vec<String>,
    /// Problems that are logged at the start and shown by `check`.
    pub(crate) warnings: Vec<String>,
    /// Facts that an operator may not expect, shown likewise.
    pub(crate) notes: Vec<String>,
}

/// All problems of the settings.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub(crate) struct SettingsError(pub(crate) Vec<String>);
