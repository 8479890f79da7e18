//! The HTTP side of the bridge: accept, verify, validate, enqueue, answer.

mod accept;
mod body;
mod client;
mod connection;
mod connection_task;
mod connections;
mod current;
mod deduplicate;
mod departures;
mod handle;
mod head;
mod invalid;
mod not_http;
mod rebuild;
mod reply;
mod settings;
mod tls;
pub(crate) mod validate;
mod verify;

pub(crate) use accept::{Listeners, serve};
pub(crate) use body::LARGE as LARGE_BODY;
pub(crate) use connection_task::REPLACED;
pub(crate) use connections::Connections;
pub(crate) use current::CurrentIngress;
pub(crate) use deduplicate::{Deduplication, Settings as DeduplicationSettings};
pub(crate) use handle::Shared;
pub(crate) use invalid::{Invalids, Settings as InvalidSettings};
pub(crate) use not_http::Unreadable;
pub(crate) use rebuild::{Explanation, explain, known_by, rebuild, revalidate};
pub(crate) use settings::{Settings, Source, is_source_name, read_source};
pub(crate) use validate::Validation;
pub(crate) use verify::{Verifier, sign};
