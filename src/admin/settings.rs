//! `[admin]`.

use std::net::SocketAddr;

use crate::settings::Section;

/// `[admin]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// The address to listen on; none turns the admin port off.
    pub(crate) listen: Option<SocketAddr>,
    /// Whether there is a page at `/`.
    pub(crate) page: bool,
}

impl Settings {
    /// Reads `[admin]`.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        let listen = section.optional_address("listen");
        Self { listen, page: section.flag("page") }
    }
}
