//! `config/default.toml`, compiled in: the only place of defaults; and what is done with whole tables.

use toml::{Table, Value};

/// The text of the reference.
pub(crate) const TEXT: &str = include_str!("../../config/default.toml");

/// The whole reference as a table.
///
/// # Panics
/// If `config/default.toml` is not TOML: a test reads it.
pub(super) fn table() -> Table {
    TEXT.parse().expect("config/default.toml is TOML")
}

/// Every value of a table by its dotted key; an empty table is one.
pub(super) fn leaves(table: &Table) -> Vec<(String, &Value)> {
    fn below<'t>(path: &str, table: &'t Table, leaves: &mut Vec<(String, &'t Value)>) {
        for (key, value) in table {
            match value {
                Value::Table(table) if !table.is_empty() => below(&format!("{path}{key}."), table, leaves),
                value => leaves.push((format!("{path}{key}"), value)),
            }
        }
    }
    let mut leaves = Vec::new();
    below("", table, &mut leaves);
    leaves
}

/// The value at a dotted path, where `[0]` follows the name of a list of tables; a key may have dots itself.
pub(super) fn find<'t>(table: &'t Table, path: &str) -> Option<&'t Value> {
    let here = || match path.strip_suffix(']').and_then(|path| path.rsplit_once('[')) {
        Some((list, at)) => table.get(list)?.get(at.parse::<usize>().ok()?),
        None => table.get(path),
    };
    let below = |(at, _)| find(find(table, &path[..at])?.as_table()?, &path[at + 1..]);
    here().or_else(|| path.match_indices('.').find_map(below))
}

/// Puts the values of one table in place of those of another.
pub(super) fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(into)), Value::Table(from)) => merge(into, from),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}
