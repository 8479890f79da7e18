//! Reading letters without owning them: a store may be written meanwhile.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

/// The order in which lines are dropped at the limit, where lines may be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Precedence {
    /// After all of those that go first; it takes their room.
    Last,
    /// Before all others; it takes only the room of its own kind.
    First,
}

/// The suffix of a file of letters that are dropped first: connection tests.
const FIRST: &str = "-probes";

/// The name of a file of letters.
pub(super) fn name(number: u64, precedence: Precedence) -> String {
    let first = if precedence == Precedence::First { FIRST } else { "" };
    format!("{number:08}{first}.ndjson")
}

/// The number of a file of letters.
pub(super) fn number(path: &Path) -> Option<u64> {
    let stem = path.file_stem()?.to_str()?;
    (path.extension()? == "ndjson").then(|| stem.strip_suffix(FIRST).unwrap_or(stem).parse().ok())?
}

/// Returns the precedence with which the letters of a file are dropped, by its name.
pub(super) fn precedence(path: &Path) -> Precedence {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    if stem.is_some_and(|stem| stem.ends_with(FIRST)) { Precedence::First } else { Precedence::Last }
}

/// The files of a directory with their numbers, oldest first; none where there is no such directory.
///
/// # Errors
/// The directory cannot be read.
pub(crate) fn files(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if let Some(number) = number(&path) {
            files.push((number, path));
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// The whole lines of a file, without their ends. A last one that is still being written, or torn, is left out.
/// Its errors name the file.
#[derive(Debug)]
pub(crate) struct Lines {
    reader: BufReader<File>,
    path: PathBuf,
}

impl Lines {
    /// Opens a file; none if it does not exist any more, which happens during a reading.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn open(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => Ok(Some(Self { reader: BufReader::with_capacity(1 << 16, file), path: path.to_owned() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(cannot_read(path, &error)),
        }
    }
}

fn cannot_read(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display()))
}

impl Iterator for Lines {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = Vec::new();
        match self.reader.read_until(b'\n', &mut line) {
            Ok(_) if line.pop() == Some(b'\n') => Some(Ok(line)),
            Ok(_) => None,
            Err(error) => Some(Err(cannot_read(&self.path, &error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_whole_lines_of_numbered_files_only() {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [("00000010.ndjson", "c\n"), ("00000002.ndjson", "a\n\nb\ntorn"), ("x.ndjson", "x\n")] {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let files = files(directory.path()).unwrap();
        assert_eq!(files.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [2, 10]);
        let lines: Vec<Vec<u8>> = Lines::open(&files[0].1).unwrap().unwrap().map(Result::unwrap).collect();
        assert_eq!(lines, [&b"a"[..], b"", b"b"]);
        assert!(Lines::open(&directory.path().join("gone")).unwrap().is_none());
        assert!(super::files(&directory.path().join("gone")).unwrap().is_empty());
    }
}
