//! Test support for the unit tests of the parts: reads one table as the daemon does.

use figment::providers::{Format as _, Toml};
use figment::value::{Tag, Value};
use figment::{Figment, Profile, Provider as _};

use super::defaults::{self, Layer};
pub(crate) use super::problems::Problems;
use super::reading::Reading;
use super::section::Section;

/// Reads `toml` (the inside of a table) over the defaults of the table at `path`, such as `["broker", "kafka"]`.
pub(crate) fn read<T>(path: &[&str], toml: &str, read: impl FnOnce(&mut Section<'_>) -> T) -> (T, Problems) {
    let defaults = Value::Dict(Tag::Default, defaults::table()).find(&path.join(".")).and_then(Value::into_dict);
    let defaults = defaults.expect("the table is in config/default.toml");
    let figment = Figment::new().merge(Layer(defaults::NAME, defaults)).merge(Toml::string(toml));
    let table = figment.data().unwrap().remove(&Profile::Default).unwrap_or_default();
    let reading = Reading { figment, ..Reading::default() };
    let mut section = Section::top(&reading, table);
    let value = read(&mut section);
    section.finish();
    (value, reading.problems.take())
}
