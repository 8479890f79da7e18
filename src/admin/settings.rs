//! `[admin]`.

use std::net::SocketAddr;

use crate::settings::Section;

/// `[admin]`.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Where to listen; none turns it off.
    pub listen: Option<SocketAddr>,
    /// Whether there is a page at `/`.
    pub page: bool,
}

impl Settings {
    /// Reads `[admin]`.
    pub fn read(section: &mut Section<'_>) -> Self {
        let listen = if section.is_blank("listen") {
            section.text("listen");
            None
        } else {
            section.address("listen")
        };
        Self { listen, page: section.flag("page") }
    }
}
