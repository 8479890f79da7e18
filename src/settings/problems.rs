//! The problems of the settings, as they are collected; and the word nearest to a mistyped one.

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

/// The word nearest to a mistyped one, if it is near enough.
pub(crate) fn nearest<'n>(typed: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    names
        .map(|name| (strsim::damerau_levenshtein(typed, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len().min(typed.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}
