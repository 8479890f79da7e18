//! `[admin]`.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::settings::Section;

/// `[admin]`.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The address to listen on; none turns the admin port off.
    pub(crate) listen: Option<SocketAddr>,
    /// Whether there is a page at `/`.
    pub(crate) page: bool,
    /// The names, beside addresses and `localhost`, that requests may call the bridge by.
    pub(crate) hosts: Arc<[String]>,
}

impl Settings {
    /// Reads `[admin]`.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        let listen = section.optional_address("listen");
        let hosts = section.texts("hosts");
        if let Some(wrong) = hosts.iter().find(|name| name.is_empty() || name.contains(['/', ':', ' '])) {
            section.problem(
                "hosts",
                format_args!(
                    "{wrong:?} is no name of a host; write it without scheme and port, as \"bridge.example.com\""
                ),
            );
        }
        Self { listen, page: section.flag("page"), hosts: hosts.into() }
    }
}
