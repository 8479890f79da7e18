//! The layers of the settings (defaults, file, environment, flags) merged into one table, which a reader then checks.

use std::path::{Path, PathBuf};

use figment::providers::{Format as _, Toml};
use figment::value::{Dict, Value};
use figment::{Figment, Profile, Provider as _};

use crate::settings::defaults::{self, Defaults};
use crate::settings::environment::Environment;
use crate::settings::fingerprint::Fingerprint;
use crate::settings::section::{Problems, Reading, Section};

/// The file that is read, if it exists, when there is no `--config`.
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

/// All problems of the settings.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub(crate) struct SettingsError(pub(crate) Vec<String>);

/// Merges the layers and has `read` check them; returns what it read, its fingerprint and the warnings.
///
/// # Errors
/// All problems at once.
pub(crate) fn load_layers<T>(
    flags: &Flags,
    mut variables: Vec<(String, String)>,
    read: impl FnOnce(Section<'_>) -> Option<T>,
) -> Result<(T, Fingerprint, Vec<String>), SettingsError> {
    variables.sort();
    let mut user = Figment::new();
    let file = file(flags)?;
    if let Some(path) = file {
        user = user.merge(Toml::file_exact(path));
    }
    user = user.merge(Environment(variables));
    let given = user.data().map_err(|error| SettingsError(syntax(error, file)))?;
    let mut given = given.get(&Profile::Default).cloned().unwrap_or_default();
    for (key, value) in [("level", &flags.log_level), ("format", &flags.log_format)] {
        if let Some(value) = value {
            set(&mut given, "log", key, value);
        }
    }
    let flag_layer = Defaults(only(&given, "log"));
    let figment = Figment::new().merge(Defaults(base(&given))).merge(user);
    let figment =
        if flags.log_level.is_some() || flags.log_format.is_some() { figment.merge(flag_layer) } else { figment };
    let merged = figment.data().map_err(|error| SettingsError(syntax(error, file)))?;
    let merged = merged.get(&Profile::Default).cloned().unwrap_or_default();
    let reading = Reading { figment, ..Reading::default() };
    let settings = read(Section::top(&reading, merged.clone()));
    let Problems { mut errors, warnings } = reading.problems.take();
    if !errors.is_empty() && file.is_none() {
        errors.insert(0, format!("no settings file was read: there is no --config, and no {DEFAULT_FILE}"));
    }
    match settings {
        Some(settings) if errors.is_empty() => {
            Ok((settings, Fingerprint::new(&merged, reading.files.take()), warnings))
        }
        _ => Err(SettingsError(errors)),
    }
}

fn file(flags: &Flags) -> Result<Option<&Path>, SettingsError> {
    let Some(path) = &flags.config else {
        let default = Path::new(DEFAULT_FILE);
        return Ok(default.exists().then_some(default));
    };
    match std::fs::File::open(path).and_then(|file| file.metadata()) {
        Ok(metadata) if metadata.is_file() => Ok(Some(path)),
        Ok(_) => Err(SettingsError(vec![format!("--config {}: not a file", path.display())])),
        Err(error) => Err(SettingsError(vec![format!("--config {}: cannot read it: {error}", path.display())])),
    }
}

/// Describes a TOML error with its position, but without the line itself, which may hold a secret.
fn syntax(error: figment::Error, file: Option<&Path>) -> Vec<String> {
    let file = file.map_or_else(|| "settings".to_owned(), |path| path.display().to_string());
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

fn set(table: &mut Dict, section: &str, key: &str, text: &str) {
    let entry = table.entry(section.to_owned()).or_insert_with(|| Value::from(Dict::new()));
    if let Value::Dict(_, below) = entry {
        below.insert(key.to_owned(), Value::from(text));
    }
}

fn only(table: &Dict, section: &str) -> Dict {
    table.get(section).map(|value| Dict::from([(section.to_owned(), value.clone())])).unwrap_or_default()
}
