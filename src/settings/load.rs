//! The layers of the settings (defaults, file, environment, flags) merged into one table, which a reader then checks.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use figment::providers::{Format as _, Toml};
use figment::value::{Dict, Map, Tag, Value};
use figment::{Figment, Metadata, Profile, Provider};

use crate::settings::defaults::{self, Layer};
use crate::settings::effective::effective;
use crate::settings::environment::{self, Environment, contradictions, misspelt, variable};
use crate::settings::fingerprint::{Fingerprint, given};
use crate::settings::reading::{Problems, Reading, SettingsError};
use crate::settings::section::Section;

/// The file that is read, if it exists, when neither `--config` nor a variable names one.
pub(crate) const DEFAULT_FILE: &str = "/etc/plextrac-bridge/config.toml";

/// The command line flags that override file and environment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags {
    /// `--config`.
    pub(crate) config: Option<PathBuf>,
    /// `--log-level`.
    pub(crate) log_level: Option<String>,
    /// `--log-format`.
    pub(crate) log_format: Option<String>,
}

/// The findings of a reading of the settings that are no errors.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    /// Facts that an operator may not expect.
    pub(crate) notes: Vec<String>,
    /// Probable mistakes.
    pub(crate) warnings: Vec<String>,
    /// The files that were read, each with what it is for: "settings", or the key that names it.
    pub(crate) files: Vec<(PathBuf, String)>,
}

impl Findings {
    /// Logs the notes and warnings.
    pub(crate) fn log(&self) {
        self.notes.iter().for_each(|note| tracing::info!("{note}"));
        self.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    }
}

/// A file of settings, and its text as it was read.
#[derive(Clone)]
struct SettingsFile {
    path: PathBuf,
    text: String,
}

impl Provider for SettingsFile {
    fn metadata(&self) -> Metadata {
        Metadata::from("TOML file", self.path.as_path())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Toml::string(&self.text).data()
    }
}

/// The layers above the defaults, as text: files of secrets and certificates can be read again without them.
#[derive(Clone, Default)]
pub(crate) struct Layers {
    /// The file that `PLEXTRAC_BRIDGE_DEFAULTS` names.
    defaults: Option<SettingsFile>,
    file: Option<SettingsFile>,
    variables: Vec<(String, String)>,
    flags: Flags,
}

impl fmt::Debug for Layers {
    /// Shows nothing: the text may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layers").finish_non_exhaustive()
    }
}

impl Layers {
    /// Reads the layers of this process.
    ///
    /// # Errors
    /// A file cannot be read, or a variable is not UTF-8.
    pub(crate) fn of_process(flags: &Flags) -> Result<Self, SettingsError> {
        Self::read(flags, environment::of_process().map_err(SettingsError)?)
    }

    /// Reads the layers with these variables.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(crate) fn read(flags: &Flags, mut variables: Vec<(String, String)>) -> Result<Self, SettingsError> {
        variables.sort();
        let mut problems = Vec::new();
        let (defaults, file) = files(flags, &variables);
        let defaults = defaults.map_err(|problem| problems.push(problem)).ok().flatten();
        let file = file.map_err(|problem| problems.push(problem)).ok().flatten();
        if !problems.is_empty() {
            return Err(SettingsError(problems));
        }
        Ok(Self { defaults, file, variables, flags: flags.clone() })
    }

    /// Reads, for a command that needs one or two of them, as many settings as can be read: files that are missing, and
    /// lines that are no TOML, are left out. Also returns what was left out.
    pub(crate) fn as_far_as_readable(flags: &Flags) -> (Readable, Vec<String>) {
        let mut problems = Vec::new();
        let variables = environment::of_process().map_err(|found| problems.extend(found)).unwrap_or_default();
        let (defaults, file) = files(flags, &variables);
        let mut tables = vec![defaults::table()];
        for file in [defaults, file] {
            match file.map(|file| file.map(|file| readable_lines(&file))) {
                Ok(Some((table, problem))) => {
                    tables.push(table);
                    problems.extend(problem);
                }
                Ok(None) => {}
                Err(problem) => problems.push(problem),
            }
        }
        let variables = Environment(variables).data().unwrap_or_default();
        tables.extend(variables.get(&Profile::Default).cloned());
        (Readable(tables), problems)
    }

    /// The values of the settings file that a variable overrides.
    fn overridden(&self) -> Vec<String> {
        let Some(file) = &self.file else { return Vec::new() };
        let table = |data: Result<Map<Profile, Dict>, figment::Error>| {
            given(data.unwrap_or_default().get(&Profile::Default).unwrap_or(&Dict::new()))
        };
        let (written, set) = (table(file.data()), table(Environment(self.variables.clone()).data()));
        let overridden = set.keys().filter(|key| written.contains_key(*key));
        let (path, by) = (file.path.display(), "is overridden by environment variable");
        overridden.map(|key| format!("`{key}` in {path} {by} {}", variable(key))).collect()
    }
}

/// The settings that could be read, the lowest layer first.
pub(crate) struct Readable(Vec<Dict>);

impl Readable {
    /// The text of a key: `["admin", "listen"]`; none if it is empty.
    pub(crate) fn text(&self, path: &[&str]) -> Option<String> {
        let text = |table: &Dict| {
            let table = Value::Dict(Tag::Default, table.clone());
            table.find(&path.join("."))?.into_string()
        };
        self.0.iter().rev().find_map(text).filter(|text| !text.is_empty())
    }
}

/// The table in a file, without the lines that are no TOML, and the first problem.
fn readable_lines(file: &SettingsFile) -> (Dict, Option<String>) {
    let mut lines: Vec<&str> = file.text.split_inclusive('\n').collect();
    let mut problem = None;
    for _ in 0..=lines.len() {
        let error = match Toml::string(&lines.concat()).data() {
            Ok(mut data) => return (data.remove(&Profile::Default).unwrap_or_default(), problem),
            Err(error) => error,
        };
        let texts = syntax(error, &file.path);
        let line = texts.first().and_then(|text| text.split_once(": line ")?.1.split(',').next()?.parse().ok());
        problem = problem.or(texts.into_iter().next());
        // The end of an unfinished value may be reported behind the last line.
        let last = lines.iter().rposition(|line| line.trim() != "");
        let at = line
            .and_then(|line: usize| line.checked_sub(1))
            .filter(|at| lines.get(*at).is_some_and(|line| line.trim() != ""));
        match at.or(last) {
            Some(at) => lines[at] = "\n",
            None => break,
        }
    }
    (Dict::new(), problem)
}

type FileResult = Result<Option<SettingsFile>, String>;

/// The file of defaults and the settings file.
fn files(flags: &Flags, variables: &[(String, String)]) -> (FileResult, FileResult) {
    let named = |name: &str| {
        let path = Path::new(environment::value(variables, name)?);
        Some(named_file(&format!("environment variable {name}: {}", path.display()), path))
    };
    let file = match &flags.config {
        Some(path) => named_file(&format!("--config {}", path.display()), path).map(Some),
        None => named(environment::CONFIG).transpose().and_then(|file| match file {
            Some(file) => Ok(Some(file)),
            None => unnamed_file(Path::new(DEFAULT_FILE)),
        }),
    };
    (named(environment::DEFAULTS).transpose(), file)
}

/// A file that must be there.
fn named_file(place: &str, path: &Path) -> Result<SettingsFile, String> {
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(format!("{place}: not a file")),
        _ => std::fs::read_to_string(path)
            .map(|text| SettingsFile { path: path.to_owned(), text: without_mark(text) })
            .map_err(|error| format!("{place}: cannot read it: {error}")),
    }
}

/// Editors of other systems begin a file with a byte order mark.
fn without_mark(text: String) -> String {
    text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)
}

/// A file that may be missing: only if neither it nor a link to it exists.
fn unnamed_file(path: &Path) -> FileResult {
    let is_missing =
        |path: &Path| std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    // A directory that is a link to nowhere hides the file as well.
    let is_below_nothing = path.parent().is_none_or(|parent| is_missing(parent) || parent.is_dir());
    if is_missing(path) && is_below_nothing {
        return Ok(None);
    }
    let file = named_file(&path.display().to_string(), path);
    file.map(Some).map_err(|problem| {
        format!("{problem}; it exists, so it is not skipped: make it readable, or name another with --config")
    })
}

/// Merges the layers and has `read` check them; returns what it read, its fingerprint and the findings.
///
/// # Errors
/// All problems at once.
pub(crate) fn load_layers<T>(
    layers: &Layers,
    read: impl FnOnce(Section<'_>) -> Option<T>,
) -> Result<(T, Fingerprint, Findings), SettingsError> {
    let mut user = Figment::new();
    for file in [&layers.defaults, &layers.file].into_iter().flatten() {
        file.data().map_err(|error| SettingsError(syntax(error, &file.path)))?;
        user = user.merge(file);
    }
    user = user.merge(Environment(layers.variables.clone()));
    let no_file = Path::new("settings");
    let given = user.data().map_err(|error| SettingsError(syntax(error, no_file)))?;
    let given = given.get(&Profile::Default).cloned().unwrap_or_default();
    let flags = [("level", &layers.flags.log_level), ("format", &layers.flags.log_format)];
    let log = flags.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.as_deref()?.into())));
    let log = Some(log.collect::<Dict>()).filter(|log| !log.is_empty());
    let flags = log.map(|log| ("log".to_owned(), log.into())).into_iter().collect();
    let base = Layer(defaults::NAME, base(&given));
    let figment = Figment::new().merge(base).merge(user).merge(Layer(defaults::FLAGS, flags));
    let merged = figment.data().map_err(|error| SettingsError(syntax(error, no_file)))?;
    let merged = merged.get(&Profile::Default).cloned().unwrap_or_default();
    let reading = Reading { figment, ..Reading::default() };
    let settings = read(Section::top(&reading, merged.clone()));
    let Problems { mut errors, warnings, notes } = reading.problems.take();
    errors.extend(contradictions(&layers.variables));
    if !errors.is_empty() && layers.file.is_none() {
        let named = format!("there is no --config, no {}, and no {DEFAULT_FILE}", environment::CONFIG);
        errors.insert(0, format!("no settings file was read: {named}"));
    }
    let Some(settings) = settings.filter(|_| errors.is_empty()) else {
        // One of these may be the reason.
        errors.extend(misspelt(&layers.variables));
        return Err(SettingsError(errors));
    };
    let fingerprint = Fingerprint::new(&merged, reading.files.take(), effective(&reading, &merged));
    let texts = [(&layers.defaults, "defaults"), (&layers.file, "settings")];
    let texts = texts.into_iter().filter_map(|(file, what)| Some((file.as_ref()?.path.clone(), what.to_owned())));
    let files = texts.chain(fingerprint.files().map(|(key, path)| (path.to_owned(), format!("`{key}`")))).collect();
    let notes = layers.overridden().into_iter().chain(notes).collect();
    let warnings = misspelt(&layers.variables).into_iter().chain(warnings).collect();
    Ok((settings, fingerprint, Findings { notes, warnings, files }))
}

/// Describes a TOML error with its position, but without the line itself, which may hold a secret.
fn syntax(error: figment::Error, file: &Path) -> Vec<String> {
    let file = file.display();
    error.into_iter().map(|error| format!("{file}: {}", without_quotation(&error.kind.to_string()))).collect()
}

/// Removes the quotation from a TOML error: a line that ends in the position, the quoted lines (`2 | key = ...`, `  |
/// ^`), then the problem.
fn without_quotation(text: &str) -> String {
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    let place = first.strip_prefix("TOML parse error at ").unwrap_or(first);
    let quoted = |line: &str| line.trim_start_matches(|c: char| c == ' ' || c.is_ascii_digit()).starts_with('|');
    let wrong: Vec<&str> = lines.filter(|line| !quoted(line)).map(str::trim).collect();
    if wrong.is_empty() { place.to_owned() } else { format!("{place}: {}", wrong.join(", ")) }
}

/// The defaults that apply: templates only if file or environment name such a table.
fn base(given: &Dict) -> Dict {
    let mut base = defaults::table();
    let has_tls = matches!(given.get("ingress"), Some(Value::Dict(_, ingress)) if ingress.contains_key("tls"));
    if let Some(Value::Dict(_, ingress)) = base.get_mut("ingress").filter(|_| !has_tls) {
        ingress.remove("tls");
    }
    for (group, template) in [("sources", Some("plextrac")), ("broker", None)] {
        let templates = match base.remove(group) {
            Some(Value::Dict(_, templates)) => templates,
            _ => Dict::new(),
        };
        let Some(Value::Dict(tag, named)) = given.get(group) else { continue };
        let mut filled = Dict::new();
        for name in named.keys() {
            if let Some(defaults) = templates.get(template.unwrap_or(name)) {
                filled.insert(name.clone(), defaults.clone());
            }
        }
        base.insert(group.to_owned(), Value::Dict(*tag, filled));
    }
    base
}

/// Test support for the unit tests of the parts: reads one table as the daemon does.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    pub(crate) use crate::settings::reading::Problems;

    /// Reads `toml` (the inside of a table) over the defaults of the table at `path`, such as `["broker", "kafka"]`.
    pub(crate) fn read<T>(path: &[&str], toml: &str, read: impl FnOnce(&mut Section<'_>) -> T) -> (T, Problems) {
        let defaults =
            Value::Dict(Tag::Default, defaults::table()).find(&path.join(".")).and_then(Value::into_dict);
        let defaults = defaults.expect("the table is in config/default.toml");
        let figment = Figment::new().merge(Layer(defaults::NAME, defaults)).merge(Toml::string(toml));
        let table = figment.data().unwrap().remove(&Profile::Default).unwrap_or_default();
        let reading = Reading { figment, ..Reading::default() };
        let mut section = Section::top(&reading, table);
        let value = read(&mut section);
        section.finish();
        (value, reading.problems.take())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn takes_a_file_for_missing_only_if_nothing_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("etc/config.toml");
        let found = || unnamed_file(&path).map(|file| file.map(|file| file.text));
        assert_eq!(found(), Ok(None), "not even a directory");
        symlink("nowhere", directory.path().join("etc")).unwrap();
        assert!(found().unwrap_err().contains("cannot read it: "), "a link to nowhere in place of the directory");
        fs::remove_file(directory.path().join("etc")).unwrap();
        fs::create_dir(directory.path().join("etc")).unwrap();
        assert_eq!(found(), Ok(None));
        symlink("nowhere", &path).unwrap();
        assert!(found().unwrap_err().contains("cannot read it: No such file"), "a link to nowhere");
        fs::remove_file(&path).unwrap();
        symlink("config.toml", &path).unwrap();
        assert!(found().unwrap_err().contains("cannot read it: "), "a link to itself");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "\u{feff}ack = 1").unwrap();
        assert_eq!(found(), Ok(Some("ack = 1".to_owned())));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(found().unwrap_err().contains("not a file"));
        fs::remove_dir(&path).unwrap();
        fs::remove_dir(directory.path().join("etc")).unwrap();
        fs::write(directory.path().join("etc"), "").unwrap();
        assert!(found().is_err(), "a file in place of the directory");
    }

    #[test]
    fn reads_what_it_can_of_a_file_that_is_no_toml() {
        let file = |text: &str| SettingsFile { path: PathBuf::from("f"), text: text.to_owned() };
        for text in [
            "[admin]\nlisten = \"a\"\n[sources\n",
            "typo\n[admin]\nlisten = \"a\"\n",
            "x = \"unfinished\n[admin]\nlisten = \"a\"\ny = [1,\n",
            "[admin]\nlisten = \"a\"\nlisten = \"b\"\n[admin]\n",
            "[admin]\nlisten = \"a\"\n[x]\ny = \"\"\"unfinished\nz = 1\n",
        ] {
            let (table, problem) = readable_lines(&file(text));
            assert_eq!(Readable(vec![table]).text(&["admin", "listen"]).as_deref(), Some("a"), "{text}");
            assert!(problem.is_some_and(|problem| problem.starts_with("f: line ")), "{text}");
        }
        assert_eq!(readable_lines(&file("a = 1\n")).1, None);
    }
}
