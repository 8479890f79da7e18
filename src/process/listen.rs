//! Listening sockets, as they are bound.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Binds a listening socket whose kernel queue has `backlog` places. With `shares_port`, other sockets of this program may
/// listen on the same address.
///
/// # Errors
/// The address is in use, or does not belong to this machine.
pub(crate) fn listen(address: SocketAddr, backlog: i32, shares_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    take_both_families(&socket, address)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shares_port)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// Lets a socket on `[::]` accept IPv4 as well, whatever the system's default is.
fn take_both_families(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_both_families_on_the_wildcard_whatever_the_default() {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        socket.set_only_v6(true).unwrap();
        take_both_families(&socket, "[::1]:0".parse().unwrap()).unwrap();
        assert!(socket.only_v6().unwrap(), "an address of one family");
        take_both_families(&socket, "[::]:0".parse().unwrap()).unwrap();
        assert!(!socket.only_v6().unwrap());
    }
}
