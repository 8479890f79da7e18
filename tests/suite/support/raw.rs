//! Bytes out, bytes in: for exchanges that are not proper requests and answers.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// Longer than the daemon may take to close.
const PATIENCE: Duration = Duration::from_secs(20);

/// A plain connection.
pub(crate) fn plain(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the daemon listens");
    stream.set_nodelay(true).expect("a socket takes options");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes options");
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket takes options");
    stream
}

/// Writes everything and reads until the daemon closes; panics if it never does.
#[track_caller]
pub(crate) fn until_closed(address: &str, bytes: &[u8]) -> String {
    let mut stream = plain(address);
    // Refused half-way, the rest of the bytes cannot be sent.
    let _ = stream.write_all(bytes);
    rest(&mut stream)
}

/// Does the same for a sender that ends its side after the last byte.
#[track_caller]
pub(crate) fn until_closed_by_both(address: &str, bytes: &[u8]) -> String {
    let mut stream = plain(address);
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    rest(&mut stream)
}

/// Everything up to the end of a connection.
#[track_caller]
pub(crate) fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("the connection stays open ({error}) after {:?}", String::from_utf8_lossy(&bytes)),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The status codes of all answers in a text.
pub(crate) fn statuses(text: &str) -> Vec<u16> {
    let codes = text.match_indices("HTTP/1.1 ").filter_map(|(at, start)| text.get(at + start.len()..)?.get(..3));
    codes.filter_map(|code| code.parse().ok()).collect()
}
