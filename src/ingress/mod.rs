//! Where webhooks come in: accept, verify, validate, enqueue, answer.

mod accept;
mod body;
mod connection;
mod conversation;
mod deduplicate;
mod handle;
mod invalid;
mod refusals;
mod reply;
mod settings;
mod tls;
pub mod validate;
mod verify;

pub use accept::{Connections, Listeners, serve};
pub use deduplicate::{Deduplication, Key, Settings as DeduplicationSettings};
pub use handle::{Ingress, Shared, rebuild};
pub use invalid::{Invalids, revalidate};
pub use refusals::{Recent, RecentRefusal, UnknownPath, UnknownPaths};
pub use settings::{NamedSecret, Settings, Source, Validation, is_source_name, read_source};
pub use tls::Tls;
pub use verify::{Verified, Verifier, digest};
