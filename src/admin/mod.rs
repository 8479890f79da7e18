//! The admin port: `/livez`, `/readyz`, `/metrics`, `/status` and the page at `/`. GET and HEAD only; nothing on it
//! changes anything.

mod health;
mod server;
mod status;

pub(crate) use server::{Admin, Settings, bind, serve};
