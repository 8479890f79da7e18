//! Dead letters: events and bodies kept on disk as NDJSON for a person to look at, in `dead-letters/` and `invalid/`, and
//! what is done on request with them.

mod control;
mod filter;
mod letter;
mod read;
mod replay;
mod request;
mod selection;
mod store;
mod versioned;

pub(crate) use control::{ControlSocket, connect};
pub(crate) use filter::Filter;
pub(crate) use letter::{Letter, largest_line};
pub(crate) use read::{Lines, Precedence, files};
pub(crate) use replay::{Requests, Stores};
pub(crate) use request::{Action, Progress, Request, RequestState, StoreKind, Validity};
pub(crate) use selection::RebuildLetter;
pub(crate) use store::{NewLetter, SharedStore, Store, WriteError};
