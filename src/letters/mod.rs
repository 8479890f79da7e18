//! Letters: events and bodies kept on disk as NDJSON for a person to look at, `dead-letters/` and `invalid/`.

mod desk;
mod filter;
mod letter;
mod read;
mod request;
mod store;

pub use desk::Desk;
pub use filter::{Age, Filter};
pub use letter::{Letter, Unreadable, VERSION};
pub use read::{Lines, files};
pub use request::{Action, BadRequest, Kind, Progress, Request, RequestState, Validity};
pub use store::{AtLimit, Entry, Held, Limits, Precedence, Store, WriteError};
