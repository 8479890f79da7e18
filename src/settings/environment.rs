//! The environment as a layer of the settings: `PLEXTRAC_BRIDGE__INGRESS__LISTEN` is `ingress.listen`.
//!
//! Every value stays text until a setting needs another type, so that a password of digits stays a password.

use figment::value::{Dict, Map, Tag, Value};
use figment::{Error, Metadata, Profile, Provider};

use crate::settings::secret::without_line_break;
use crate::settings::{defaults, nearest};

/// The layer's name in figment's metadata.
pub(super) const NAME: &str = "environment";

/// The prefix. It ends in two underscores, because Kubernetes injects `PLEXTRAC_BRIDGE_PORT` and the like for a service
/// of that name.
const PREFIX: &str = "PLEXTRAC_BRIDGE__";

/// The program's name as all of its variables have it.
const PROGRAM: &str = "PLEXTRAC_BRIDGE";

/// Names the settings file, unless `--config` does.
pub(super) const CONFIG: &str = "PLEXTRAC_BRIDGE_CONFIG";

/// Names a file that is read below the settings file.
pub(super) const DEFAULTS: &str = "PLEXTRAC_BRIDGE_DEFAULTS";

/// The variables of this process that concern settings, also misspelt ones; each loses one line break at its end.
///
/// # Errors
/// Values that are not UTF-8.
pub(super) fn of_process() -> Result<Vec<(String, String)>, Vec<String>> {
    let mut variables = Vec::new();
    let mut unreadable = Vec::new();
    for (name, value) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let is_setting = name.starts_with(PREFIX) || [CONFIG, DEFAULTS].contains(&name.as_str());
        match value.into_string() {
            Ok(value) if name.to_uppercase().starts_with(PROGRAM) => {
                variables.push((name, without_line_break(&value).to_owned()));
            }
            Err(_) if is_setting => unreadable.push(format!("environment variable {name}: not UTF-8")),
            _ => {}
        }
    }
    if unreadable.is_empty() { Ok(variables) } else { Err(unreadable) }
}

/// The value of a variable that names a file; an empty one counts as absent.
pub(super) fn value<'v>(variables: &'v [(String, String)], wanted: &str) -> Option<&'v str> {
    let named = variables.iter().find(|(name, _)| name == wanted);
    named.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
}

/// A warning for each variable that looks like a setting and is none. Those that Kubernetes injects do not.
pub(super) fn misspelt(variables: &[(String, String)]) -> Vec<String> {
    variables.iter().filter_map(|(name, _)| Some((name, meant(name)?))).map(warning).collect()
}

fn warning((name, meant): (&String, String)) -> String {
    format!("environment variable {name} is ignored: it is no setting; did you mean {meant}?")
}

/// The variable that a misspelt one stands for.
fn meant(name: &str) -> Option<String> {
    let upper = name.to_uppercase();
    let rest = upper.strip_prefix(PROGRAM)?;
    if name.starts_with(PREFIX) || [CONFIG, DEFAULTS].contains(&name) {
        return None;
    }
    if rest.starts_with("__") {
        return Some(upper);
    }
    let rest = rest.trim_start_matches('_');
    if let Some(same) = same_letters(&rest.to_lowercase().replace("__", ".")) {
        return Some(same);
    }
    if let Some((top, below)) = rest.split_once("__") {
        let top = top.to_lowercase();
        let defaults = defaults::table();
        let table = nearest(&top, defaults.keys().map(String::as_str))?;
        return Some(format!("{PREFIX}{}__{below}", table.to_uppercase()));
    }
    nearest(rest, ["CONFIG", "DEFAULTS"].into_iter()).map(|meant| format!("{PROGRAM}_{meant}"))
}

/// A problem for each variable beside which another one gives a key in its place: only one of the two could count.
pub(super) fn contradictions(variables: &[(String, String)]) -> Vec<String> {
    let given = variables.iter().filter(|(_, value)| !value.is_empty());
    let names: Vec<&String> = given.map(|(name, _)| name).filter(|name| name.starts_with(PREFIX)).collect();
    let below = |whole: &str| {
        let table = format!("{whole}__").to_uppercase();
        names.iter().find(|name| name.to_uppercase().starts_with(&table))
    };
    let pairs = names.iter().filter_map(|whole| Some((whole, below(whole)?)));
    let variable = "environment variable";
    pairs
        .map(|(whole, key)| format!("{variable} {whole}: {variable} {key} is given, too; remove one of the two"))
        .collect()
}

/// The name of a dotted key without the difference between one underscore and two.
fn plain(dotted: &str) -> String {
    dotted.replace('.', "_")
}

/// The variable of a known key that differs from this one only by dots and underscores.
pub(super) fn same_letters(dotted: &str) -> Option<String> {
    let wanted = plain(dotted);
    let defaults = defaults::table();
    let leaves = defaults::leaves(&defaults);
    leaves.iter().find(|(key, _)| plain(key) == wanted).map(|(key, _)| variable(key))
}

/// The variable of the known key that is nearest to this one as a whole.
pub(super) fn nearest_variable(dotted: &str) -> Option<String> {
    let defaults = defaults::table();
    let names: Vec<String> = defaults::leaves(&defaults).iter().map(|(key, _)| plain(key)).collect();
    same_letters(nearest(&plain(dotted), names.iter().map(String::as_str))?)
}

/// The variable that sets a dotted key.
pub(super) fn variable(dotted: &str) -> String {
    format!("{PREFIX}{}", dotted.to_uppercase().replace('.', "__"))
}

/// The variables of this process that start with the prefix.
pub(super) struct Environment(pub(super) Vec<(String, String)>);

impl Provider for Environment {
    fn metadata(&self) -> Metadata {
        Metadata::named(NAME)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        let mut top = Dict::new();
        for (name, text) in &self.0 {
            let Some(path) = name.strip_prefix(PREFIX) else { continue };
            if text.is_empty() {
                continue;
            }
            let lower = path.to_lowercase();
            let keys: Vec<&str> = lower.split("__").collect();
            insert(&mut top, &keys, text);
        }
        Ok(Profile::Default.collect(top))
    }
}

fn insert(table: &mut Dict, keys: &[&str], text: &str) {
    match keys {
        [] => {}
        [last] => {
            table.insert((*last).to_owned(), Value::String(Tag::Default, text.to_owned()));
        }
        [first, rest @ ..] => {
            let below = table.entry((*first).to_owned()).or_insert_with(|| Value::Dict(Tag::Default, Dict::new()));
            if !matches!(below, Value::Dict(..)) {
                *below = Value::Dict(Tag::Default, Dict::new());
            }
            if let Value::Dict(_, below) = below {
                insert(below, rest, text);
            }
        }
    }
}
