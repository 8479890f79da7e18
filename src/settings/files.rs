//! Keys of a table that name files, and secrets, which may be in one.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use figment::value::Value;
use serde_json::json;

use crate::settings::Secret;
use crate::settings::reading::FileDigest;
use crate::settings::section::Section;

/// The length below which a secret causes a warning: 16 bytes are the least that cannot be guessed.
const SHORT_SECRET: usize = 16;

/// Shown in place of a value that might be a secret rather than a path.
const UNSHOWN: &str =
    "the file of that name, which is not shown: it may be the secret itself, or an address with one";

impl Section<'_> {
    /// A path; none if it is empty.
    pub(crate) fn path(&mut self, key: &str) -> Option<PathBuf> {
        self.note_kind(key, "file");
        Some(self.text(key)).filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    /// A path of a file that can be read now; none if it is empty or unreadable (a problem then).
    pub(crate) fn readable_file(&mut self, key: &str) -> Option<PathBuf> {
        let path = self.path(key)?;
        if std::fs::metadata(&path).is_ok_and(|metadata| !metadata.is_file()) {
            self.problem(key, format_args!("{} is not a file", path.display()));
            return None;
        }
        self.file(key).map(|(path, _)| path)
    }

    /// A file that must be given, and its content; `what` describes it.
    pub(crate) fn needed_file(&mut self, key: &str, what: &str) -> Option<(PathBuf, Vec<u8>)> {
        let found = self.file(key);
        self.describe("", json!({ "required": [key] }));
        if self.is_blank(key) {
            self.problem(key, format_args!("empty; name a file with {what}"));
        }
        found
    }

    /// A file and its content; none if it is not given or unreadable (a problem then).
    pub(crate) fn file(&mut self, key: &str) -> Option<(PathBuf, Vec<u8>)> {
        let path = self.path(key)?;
        match std::fs::read(&path) {
            Ok(content) => {
                self.note_file(key, &path, &content);
                self.warn_of_joined_blocks(key, &path, &content);
                Some((path, content))
            }
            Err(error) => {
                self.problem(key, format_args!("cannot read {}: {error}", shown(&path, is_name(&path))));
                None
            }
        }
    }

    /// Records the content of a file, so that changes can be detected.
    fn note_file(&self, key: &str, path: &Path, content: &[u8]) {
        self.reading.files.borrow_mut().insert(self.dotted(key), FileDigest::of(path, content));
    }

    /// A secret, given directly or in the file that `<key>_file` names; none if both are empty.
    pub(crate) fn secret(&mut self, key: &str) -> Option<Secret> {
        self.secret_from(key, &format!("{key}_file"))
    }

    /// Does the same as [`Section::secret`], with the name of the file's key.
    pub(crate) fn secret_from(&mut self, key: &str, file_key: &str) -> Option<Secret> {
        self.note_kind(key, "secret");
        self.describe("", json!({ "allOf": [{ "not": { "required": [key, file_key] } }] }));
        let value = self.value(key);
        let text = value.as_ref().map_or(Some(""), Value::as_str);
        if text.is_none() {
            // Never show the value: it is the secret.
            self.problem(key, "expected a text in quotes");
        }
        let text = text.unwrap_or_default();
        match self.path(file_key) {
            None if text.is_empty() => None,
            None => self.secret_value(key, text),
            // A file overrides a default; only two values that the user wrote contradict each other.
            Some(path) if text.is_empty() || self.is_default(key) => self.secret_file(file_key, &path),
            Some(_) => {
                self.contradiction(file_key, key, "keep one");
                None
            }
        }
    }

    /// A secret that is given in a file only; none if the key is empty.
    pub(crate) fn secret_in_file(&mut self, key: &str) -> Option<Secret> {
        let path = self.path(key)?;
        self.secret_file(key, &path)
    }

    /// A secret given directly. In a file of settings a line break is written on purpose.
    fn secret_value(&mut self, key: &str, text: &str) -> Option<Secret> {
        let doubt = Secret::doubt(text);
        let doubt = doubt.map_err(|wrong| self.problem(key, format_args!("the secret {wrong}"))).ok()?;
        if let Some(doubt) = doubt {
            self.warning(key, doubt);
        }
        Some(Secret::new(text))
    }

    fn secret_file(&mut self, key: &str, path: &Path) -> Option<Secret> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                self.problem(key, format_args!("cannot read {}: {error}", shown(path, is_surely_a_path(path))));
                return None;
            }
        };
        let shown = path.display();
        self.note_file(key, path, text.as_bytes());
        let read = Secret::read(&text);
        let (secret, doubt) = read.map_err(|wrong| self.problem(key, format_args!("{shown} {wrong}"))).ok()?;
        if let Some(doubt) = doubt {
            self.warning(key, format_args!("{shown}: {doubt}"));
        }
        self.warn_if_world_readable(key, path);
        Some(secret)
    }

    /// Warns about a block of PEM that does not begin a line: readers skip it.
    fn warn_of_joined_blocks(&mut self, key: &str, path: &Path, content: &[u8]) {
        const BEGIN: &[u8] = b"-----BEGIN ";
        let is_inside = |line: &[u8]| line.windows(BEGIN.len()).skip(1).any(|part| part == BEGIN);
        let line = content.split(|byte| *byte == b'\n').position(is_inside);
        if let Some(at) = line {
            let text = "`-----BEGIN` does not start the line, so that what follows is not read: put a line break before it";
            self.warning(key, format_args!("{}, line {}: {text}", path.display(), at + 1));
        }
    }

    /// Warns about a file of secrets that all users of the machine can read.
    pub(crate) fn warn_if_world_readable(&mut self, key: &str, path: &Path) {
        use std::os::unix::fs::PermissionsExt as _;
        if std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0) {
            self.warning(key, format_args!("{} can be read by all users; chmod o-r it", path.display()));
        }
    }

    /// Warns about a secret that can be guessed.
    pub(crate) fn warn_if_short(&mut self, key: &str, secret: &Secret) {
        if secret.reveal().len() < SHORT_SECRET {
            self.warning(key, format_args!("the secret is shorter than {SHORT_SECRET} bytes"));
        }
    }
}

fn shown(path: &Path, is_path: bool) -> Cow<'_, str> {
    if is_path { path.to_string_lossy() } else { UNSHOWN.into() }
}

/// Whether the text cannot be a secret that was given in place of the name of its file.
fn is_surely_a_path(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let is_rooted = ["/", "./", "../"].iter().any(|start| text.starts_with(start));
    let is_in_a_directory = path.parent().is_some_and(Path::is_dir);
    text.len() < SHORT_SECRET || (is_plain(&text) && (is_rooted || is_in_a_directory))
}

/// Whether the text cannot be a key in PEM or its base64, which have line breaks, or no dot.
fn is_name(path: &Path) -> bool {
    let text = path.to_string_lossy();
    is_surely_a_path(path) || (is_plain(&text) && text.contains('.'))
}

fn is_plain(text: &str) -> bool {
    !text.contains(['@', '+', '=', '\n']) && !text.contains("://")
}
