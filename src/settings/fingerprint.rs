//! A fingerprint of the settings: every key with its value, and every file of secrets or certificates with the digest
//! of its content, so that two readings can be compared. It exposes names, and the values in force without secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Value};
use sha2::{Digest as _, Sha256};

use crate::settings::defaults::leaves;
use crate::settings::effective::{Effective, EffectiveSettings};
use crate::settings::reading::FileDigests;

/// One reading of all settings.
#[derive(Clone, Default)]
pub(crate) struct Fingerprint {
    values: BTreeMap<String, Value>,
    files: FileDigests,
    effective: EffectiveSettings,
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fingerprint").finish_non_exhaustive()
    }
}

impl Fingerprint {
    pub(super) fn new(table: &Dict, files: FileDigests, effective: EffectiveSettings) -> Self {
        Self { values: given(table), files, effective }
    }

    /// The settings in force.
    pub(crate) fn effective(&self) -> &EffectiveSettings {
        &self.effective
    }

    /// The text in force of a setting.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.effective.get(key)?.value.as_str()
    }

    /// Shows a setting that has another origin than the layers.
    pub(crate) fn show(&mut self, key: &str, value: &str, origin: &str) {
        let shown = Effective { value: value.into(), origin: origin.to_owned() };
        self.effective.insert(key.to_owned(), shown);
    }

    /// Shows those settings as the old reading does that stay in force.
    pub(crate) fn keep(&mut self, old: &Self, stays: impl Fn(&String) -> bool) {
        self.effective.retain(|key, _| !stays(key));
        let kept = old.effective.iter().filter(|(key, _)| stays(key));
        self.effective.extend(kept.map(|(key, setting)| (key.clone(), setting.clone())));
    }

    /// The keys whose values, or whose files' contents, differ.
    #[must_use]
    pub(crate) fn changed(&self, other: &Self) -> BTreeSet<String> {
        let keys = self.values.keys().chain(other.values.keys());
        let values = keys.filter(|key| self.values.get(*key) != other.values.get(*key));
        let files = self.files.iter().filter(|(key, content)| {
            other.files.get(*key).is_some_and(|other| other.path == content.path && other != *content)
        });
        values.chain(files.map(|(key, _)| key)).cloned().collect()
    }

    /// The files of secrets and certificates, each with the key that names it.
    pub(super) fn files(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.files.iter().map(|(key, content)| (key.as_str(), content.path.as_path()))
    }

    /// Starts watching the files for changes.
    #[must_use]
    pub(crate) fn watch(&self) -> FileWatch {
        let seen = self.files.values().map(|content| (content.path.clone(), Some(content.digest)));
        FileWatch(seen.collect())
    }
}

/// The files of secrets and certificates as last read.
#[derive(Debug)]
pub(crate) struct FileWatch(BTreeMap<PathBuf, Option<[u8; 32]>>);

impl FileWatch {
    /// Whether the content of any file has changed since the last call. Blocks while it reads.
    pub(crate) fn has_changed(&mut self) -> bool {
        let mut changed = false;
        for (path, seen) in &mut self.0 {
            let Ok(now) = digest(std::fs::read(path)) else { continue };
            changed |= std::mem::replace(seen, now) != now;
        }
        changed
    }
}

/// The digest of what was read, or none where the file cannot be had. Other errors, as a lack of descriptors, say nothing of it.
fn digest(read: io::Result<Vec<u8>>) -> io::Result<Option<[u8; 32]>> {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied};
    match read {
        Ok(bytes) => Ok(Some(Sha256::digest(bytes).into())),
        Err(error) if [NotFound, PermissionDenied, NotADirectory, IsADirectory].contains(&error.kind()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The values of a table by their dotted keys. Empty ones count as absent.
pub(super) fn given(table: &Dict) -> BTreeMap<String, Value> {
    let is_given = |value: &Value| match value {
        Value::Dict(..) => false,
        Value::String(_, text) => !text.is_empty(),
        Value::Array(_, items) => !items.is_empty(),
        _ => true,
    };
    let given = leaves(table).into_iter().filter(|(_, value)| is_given(value));
    given.map(|(key, value)| (key, value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use figment::Provider as _;
    use figment::providers::{Format as _, Toml};

    use super::*;
    use crate::settings::reading::FileDigest;

    fn written(toml: &str, files: &[(&str, &str, &str)]) -> Fingerprint {
        let table = Toml::string(toml).data().unwrap().remove(&figment::Profile::Default).unwrap_or_default();
        let content = |(key, path, text): &(&str, &str, &str)| {
            ((*key).to_owned(), FileDigest::of(Path::new(path), text.as_bytes()))
        };
        Fingerprint::new(&table, files.iter().map(content).collect(), EffectiveSettings::default())
    }

    #[test]
    fn names_what_differs_and_shows_no_value() {
        let old = written("a = \"hunter2\"\n[b]\nc = 1\nd = \"\"\n[[b.e]]\nf = 1", &[("a_file", "x", "1")]);
        let new = written("a = \"hunter3\"\n[b]\nc = 1\n[[b.e]]\nf = 2", &[("a_file", "x", "2")]);
        assert_eq!(Vec::from_iter(old.changed(&new)), ["a", "a_file", "b.e"]);
        assert!(old.changed(&old.clone()).is_empty());
        assert!(!format!("{old:?}").contains("hunter2"));
    }

    #[test]
    fn sees_each_change_of_a_file_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, "1").unwrap();
        let mut watch = written("", &[("a", path.to_str().unwrap(), "1")]).watch();
        assert!(!watch.has_changed());
        std::fs::write(&path, "2").unwrap();
        assert_eq!([watch.has_changed(), watch.has_changed()], [true, false]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!([watch.has_changed(), watch.has_changed()], [true, false]);
    }

    #[test]
    fn takes_a_lack_of_descriptors_or_memory_for_no_change() {
        for code in [12, 23, 24] {
            assert!(digest(Err(io::Error::from_raw_os_error(code))).is_err(), "{code}");
        }
        assert_eq!(digest(Err(io::ErrorKind::NotFound.into())).unwrap(), None);
        assert!(digest(Ok(Vec::new())).unwrap().is_some());
    }
}
