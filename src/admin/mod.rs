//! The admin port: `/livez`, `/readyz`, `/metrics`, `/status` and the page at `/`. GET and HEAD only; nothing on it
//! changes anything.

mod health;
mod page;
mod server;
mod settings;
mod status;

pub(crate) use server::{Admin, bind, serve};
pub(crate) use settings::Settings;
