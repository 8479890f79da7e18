//! Durations and sizes in human form: a whole number and its unit.

use std::time::Duration;

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number = text[..digits].parse().ok()?;
    Some((number, text[digits..].trim_start()))
}

/// Reads a duration: `ms`, `s`, `m` or `h`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(milliseconds)?))
}

/// Reads a size in bytes: `B`, `KiB`, `MiB` or `GiB`.
pub(super) fn size(text: &str) -> Option<usize> {
    let (number, unit) = split(text)?;
    let bytes: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    usize::try_from(number.checked_mul(bytes)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_four_units_of_time() {
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration("5s"), Some(Duration::from_secs(5)));
        assert_eq!(duration("10m"), Some(Duration::from_mins(10)));
        assert_eq!(duration("1h"), Some(Duration::from_hours(1)));
    }

    #[test]
    fn refuses_bare_numbers_other_units_and_overflow() {
        for text in ["5", "", "s", "5 days", "-5s", "1.5s", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(duration(text), None, "{text}");
        }
        for text in ["5", "5KB", "5k", "", "18446744073709551615GiB"] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn reads_the_four_units_of_size() {
        assert_eq!(size("512B"), Some(512));
        assert_eq!(size("256KiB"), Some(256 * 1024));
        assert_eq!(size("64MiB"), Some(64 << 20));
        assert_eq!(size("1GiB"), Some(1 << 30));
    }
}
