//! One reading of the merged settings: the origin of each value, and what the sections find while they read.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::value::Tag;
use figment::{Figment, Metadata, Source};
use sha2::{Digest as _, Sha256};

use crate::settings::{defaults, environment};

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

/// One reading.
#[derive(Default)]
pub(super) struct Reading {
    /// The origin of each value.
    pub(super) figment: Figment,
    pub(super) problems: RefCell<Problems>,
    pub(super) files: RefCell<FileDigests>,
    /// The kinds and limits of the keys.
    pub(super) schemas: RefCell<Schemas>,
    /// Whether every table and list exists only to be described.
    pub(super) is_description: bool,
}

impl Reading {
    fn layer(&self, tag: Tag) -> Option<&Metadata> {
        self.figment.get_metadata(tag)
    }

    pub(super) fn is_from_environment(&self, tag: Tag) -> bool {
        self.layer(tag).is_some_and(|layer| layer.name == environment::NAME)
    }

    pub(super) fn is_default(&self, tag: Tag) -> bool {
        self.layer(tag).is_some_and(|layer| layer.name == defaults::NAME)
    }

    /// The origin of a value, for the operator; none if it is a default.
    pub(super) fn origin(&self, dotted: &str, tag: Tag) -> Option<String> {
        let layer = self.layer(tag)?;
        match (layer.name.as_ref(), &layer.source) {
            (defaults::NAME, _) => None,
            (defaults::FLAGS, _) => Some(format!("--{}", dotted.replace('.', "-"))),
            (environment::NAME, _) => Some(format!("environment variable {}", environment::variable(dotted))),
            (_, Some(Source::File(path))) => Some(path.display().to_string()),
            _ => None,
        }
    }
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
