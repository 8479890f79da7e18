//! The address form of a value: only `A-Z a-z 0-9 _ -`, at most 64 characters, never empty.

/// The maximum length of a value in an address, in characters.
pub(crate) const LONGEST_TOKEN: usize = 64;

/// Appends a value in its address form.
pub(crate) fn push_safe(text: &mut String, value: &str) {
    if value.is_empty() {
        text.push('_');
    }
    for character in value.chars().take(LONGEST_TOKEN) {
        let safe = character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
        text.push(if safe { character } else { '_' });
    }
}

/// A value in its address form.
pub(crate) fn safe(value: &str) -> String {
    let mut text = String::new();
    push_safe(&mut text, value);
    text
}
