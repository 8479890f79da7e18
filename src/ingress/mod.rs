//! Where webhooks come in: accept, verify, validate, enqueue, answer.

mod accept;
mod body;
mod client;
mod connection;
mod connection_task;
mod connections;
mod deduplicate;
mod deviating;
mod handle;
mod head;
mod invalid;
mod live;
mod not_http;
mod observed;
mod refusals;
mod reply;
mod settings;
mod tls;
pub mod validate;
mod verify;

pub use accept::{Listeners, serve, take_both_families};
pub use body::LARGE as LARGE_BODY;
pub use connections::Connections;
pub use deduplicate::{Deduplication, Key, Settings as DeduplicationSettings};
pub use deviating::{Deviating, DeviatingEvents, EventName};
pub use handle::{Endpoint, Ingress, Shared, has_cuid, rebuild};
pub use invalid::{Invalids, Settings as InvalidSettings, revalidate};
pub use live::Live;
pub use not_http::Unreadable;
pub use observed::Observed;
pub use refusals::{Recent, RecentRefusal, UnknownPath, UnknownPaths};
pub use settings::{NamedSecret, Settings, Source, Validation, is_source_name, read_source};
pub use tls::Tls;
pub use verify::{Verified, Verifier, digest};
