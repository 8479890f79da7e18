//! The interface to systemd: states and watchdog, see `sd_notify(3)`; sockets that were opened before the start, see
//! `sd_listen_fds(3)`. Without systemd it does nothing.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use listenfd::ListenFd;
pub(crate) use sd_notify::NotifyState;
use socket2::SockRef;

/// Notifies systemd of a state, if it listens (`NOTIFY_SOCKET`): [`NotifyState::Ready`] once both listeners answer, and after
/// [`NotifyState::Reloading`], whatever the result.
pub(crate) fn notify(state: &NotifyState<'_>) {
    let told = match state {
        // From version 253 on systemd requires the time at which it began.
        NotifyState::Reloading => {
            NotifyState::monotonic_usec_now().and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now]))
        }
        state => sd_notify::notify(std::slice::from_ref(state)),
    };
    if let Err(error) = told {
        tracing::warn!("cannot notify systemd that the bridge is {state:?}: {error}");
    }
}

/// Notifies systemd's watchdog at half its interval (`WATCHDOG_USEC`), as long as `stalled` reports nothing. Returns at
/// once if there is no watchdog.
pub(crate) async fn feed_watchdog(stalled: impl Fn() -> Vec<String>) {
    let Some(interval) = sd_notify::watchdog_enabled().filter(|interval| *interval > Duration::ZERO) else {
        return;
    };
    let mut due = tokio::time::interval(interval / 2);
    let mut was_alive = true;
    loop {
        due.tick().await;
        let problems = stalled();
        if problems.is_empty() {
            if let Err(error) = sd_notify::notify(&[NotifyState::Watchdog]) {
                tracing::warn!("cannot notify systemd's watchdog: {error}");
            }
        } else if was_alive {
            tracing::error!("not notifying systemd's watchdog until this ends: {}", problems.join(", "));
        }
        was_alive = problems.is_empty();
    }
}

/// The listening sockets that systemd passed; missing ones are bound according to the settings.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    /// For webhooks, instead of `ingress.listen`.
    pub(crate) ingress: Option<TcpListener>,
    /// For the admin port, instead of `admin.listen`.
    pub(crate) admin: Option<TcpListener>,
}

/// The reason why passed sockets cannot be used; the text says what to change.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct PassedError(String);

/// Takes the sockets that systemd passed (`LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`). Must be called once, before
/// anything else is opened or started, because the descriptors have fixed numbers.
///
/// # Errors
/// Something other than listening TCP sockets was passed, or their purpose is ambiguous.
pub(crate) fn sockets() -> Result<Passed, PassedError> {
    let mismatch = |error: io::Error| {
        PassedError(format!(
            "LISTEN_FDS, LISTEN_FDNAMES and the received descriptors do not match: {error}; let a .socket unit \
             of systemd start the bridge, or unset these variables"
        ))
    };
    let mut passed = Passed::default();
    // Names without sockets, and those of another process, mean nothing.
    if sd_notify::listen_fds().map_err(mismatch)?.len() == 0 {
        return Ok(passed);
    }
    let announced = sd_notify::listen_fds_with_names().map_err(mismatch)?;
    let names: Vec<String> = announced.map(|(_, name)| name).collect();
    let mut sockets = ListenFd::from_env();
    for (at, name) in names.iter().enumerate() {
        let place = match name.as_str() {
            "admin" => &mut passed.admin,
            "ingress" => &mut passed.ingress,
            // systemd names a socket after its unit if the unit does not name it.
            _ if names.len() == 1 => &mut passed.ingress,
            _ => {
                return Err(PassedError(format!(
                    "{} sockets are passed, and it is not clear what {name:?} is for: let each .socket unit say \
                     FileDescriptorName=ingress or FileDescriptorName=admin",
                    names.len()
                )));
            }
        };
        let socket = sockets.take_tcp_listener(at).ok().flatten().filter(is_listening).ok_or_else(|| {
            PassedError(format!(
                "the passed socket {name:?} does not listen for TCP connections: its .socket unit needs ListenStream= \
                 with an address and a port, and Accept=no"
            ))
        })?;
        if place.replace(socket).is_some() {
            return Err(PassedError(format!(
                "two sockets named {name:?} are passed: keep one ListenStream=; [::]:8080 with BindIPv6Only=both takes \
                 IPv4 too"
            )));
        }
    }
    Ok(passed)
}

fn is_listening(socket: &TcpListener) -> bool {
    let is_listener = SockRef::from(socket).is_listener();
    is_listener.unwrap_or(false) && socket.set_nonblocking(true).is_ok()
}
