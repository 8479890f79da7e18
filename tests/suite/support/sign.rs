//! The sender's signature: lower-case hex of HMAC-SHA256 over the body's bytes.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// The value that PlexTrac sends in `X-Authorization-HMAC-256`.
pub(crate) fn sign(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(body);
    faster_hex::hex_string(mac.finalize().into_bytes().as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_openssl_does() {
        // printf '{"a":"\xc3\xa9"}' | openssl dgst -sha256 -hmac 0123456789abcdef
        assert_eq!(
            sign("0123456789abcdef", "{\"a\":\"é\"}".as_bytes()),
            "698630354a05d1b38b6b60c7ed4231d4e30d80df0fe2931e4a0ffba728ff7215"
        );
    }
}
