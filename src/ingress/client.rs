//! The client of a request, for logs and `/status` alone: the peer, or the address that trusted proxies report.

use std::net::{IpAddr, SocketAddr};

use hyper::header::HeaderMap;
use ipnet::IpNet;

/// Each proxy appends the address it speaks for; all headers of this name form one list.
const HEADER: &str = "x-forwarded-for";

/// The address of the client: the first from the right that is not a trusted proxy. Anything to the left of it may be
/// forged, and so may anything to the left of an entry that is not an address.
pub(super) fn client(peer: SocketAddr, trusted: &[IpNet], headers: &HeaderMap) -> String {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    if !is_trusted(peer.ip().to_canonical()) {
        return peer.to_string();
    }
    let mut client = None;
    let entries =
        headers.get_all(HEADER).iter().rev().flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
    for entry in entries {
        let Some(address) = address(entry) else { break };
        client = Some(address);
        if !is_trusted(address) {
            break;
        }
    }
    client.map_or_else(|| peer.to_string(), |client| client.to_string())
}

/// An address, with or without a port, IPv6 with or without brackets.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry.trim_ascii()).ok()?;
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let parsed = bare.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    parsed.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(peer: &str, lines: &[&str]) -> String {
        let trusted = ["127.0.0.0/8", "10.0.0.0/8", "2001:db8::/32"].map(|network| network.parse().unwrap());
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(HEADER, line.parse().unwrap());
        }
        client(peer.parse().unwrap(), &trusted, &headers)
    }

    #[test]
    fn takes_the_right_most_address_that_is_no_trusted_proxys() {
        for (client, lines) in [
            ("127.0.0.1:5", &[][..]),
            ("192.0.2.1", &["192.0.2.1"]),
            ("192.0.2.2", &["192.0.2.1, 192.0.2.2"]),
            ("192.0.2.2", &["192.0.2.1,192.0.2.2 , 10.1.2.3,10.0.0.1"]),
            ("192.0.2.2", &["192.0.2.1", "192.0.2.2, 10.0.0.2", "10.0.0.1"]),
            ("10.0.0.2", &["10.0.0.2, 10.0.0.1"]),
            ("192.0.2.1", &["192.0.2.1:4711"]),
            ("2001:db9::1", &["2001:db9::1, 2001:db8::1"]),
            ("2001:db9::1", &["[2001:db9::1]"]),
            ("2001:db9::1", &["[2001:db9::1]:4711, [2001:db8::1]:4711"]),
            ("192.0.2.1", &["::ffff:192.0.2.1, ::ffff:10.0.0.1"]),
        ] {
            assert_eq!(of("127.0.0.1:5", lines), client, "{lines:?}");
            assert_eq!(of("[::ffff:127.0.0.1]:5", &["192.0.2.1"]), "192.0.2.1");
        }
    }

    #[test]
    fn goes_no_further_than_what_is_no_address() {
        for (client, line) in [
            ("127.0.0.1:5", ""),
            ("127.0.0.1:5", "unknown"),
            ("127.0.0.1:5", "192.0.2.1, secret"),
            ("10.0.0.1", "192.0.2.1, _hidden, 10.0.0.1"),
            ("10.0.0.1", "192.0.2.1, , 10.0.0.1"),
            ("127.0.0.1:5", "192.0.2.1:99999"),
            ("127.0.0.1:5", "[192.0.2.1"),
        ] {
            assert_eq!(of("127.0.0.1:5", &[line]), client, "{line:?}");
        }
    }

    #[test]
    fn asks_nobody_else_where_the_peer_is_no_trusted_proxy() {
        assert_eq!(of("192.0.2.9:5", &["192.0.2.1"]), "192.0.2.9:5");
        let headers = HeaderMap::from_iter([(HEADER.parse().unwrap(), "192.0.2.1".parse().unwrap())]);
        assert_eq!(client("127.0.0.1:5".parse().unwrap(), &[], &headers), "127.0.0.1:5");
    }
}
