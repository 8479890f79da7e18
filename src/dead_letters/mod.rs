//! Letters: events and bodies kept on disk as NDJSON for a person to look at, `dead-letters/` and `invalid/`.

mod desk;
mod filter;
mod letter;
mod read;
mod request;
mod store;

pub(crate) use desk::Desk;
pub(crate) use filter::{Age, Filter};
pub(crate) use letter::{Letter, NotALetter};
pub(crate) use read::{Lines, files};
pub(crate) use request::{Action, BadRequest, Progress, Request, RequestState, StoreKind, Validity};
pub(crate) use store::{NewLetter, Precedence, Store, StoreCounts, StoreLimits};
