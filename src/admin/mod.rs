//! The admin port: `/livez`, `/readyz`, `/metrics`, `/status` and the page at `/`. GET and HEAD only; nothing on it
//! changes anything.

mod health;
mod page;
mod reloads;
mod server;
mod settings;
mod status;

pub use health::Health;
pub use reloads::{Reload, Reloads};
pub use server::{Admin, bind, serve};
pub use settings::Settings;
