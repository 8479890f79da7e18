//! Verify: HMAC-SHA256 over the raw bytes, compared in constant time with every secret of the source.
//!
//! Source: the vendor's page on webhooks; `X-Authorization-HMAC-256` is the hex of HMAC-SHA256(secret, body).

use hmac::{Hmac, KeyInit as _, Mac as _};
use hyper::header::HeaderMap;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use crate::event::Origin;
use crate::ingress::validate::Trust;
use crate::settings::Secret;

/// The header with the signature.
pub(super) const HEADER: &str = "x-authorization-hmac-256";

/// An optional prefix of the hex digits, in either case: some clients of the vendor's API write it.
const PREFIX: &[u8] = b"sha256=";

/// The keyed MACs of one source: each is cloned per request, which saves keying it again.
pub(crate) struct Verifier {
    trust: Trust,
    keyed: Vec<Hmac<Sha256>>,
}

/// The proof that a body is genuine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verified {
    /// The MAC, or the SHA-256 of an unsigned body.
    pub(crate) digest: [u8; 32],
    /// The number of the secret that matched.
    pub(crate) secret: Option<usize>,
    /// The 64 hex digits of the header as received, without a prefix; kept and forwarded.
    pub(crate) signature: Option<[u8; 64]>,
}

impl Verifier {
    /// Creates a verifier for the secrets of one source; where a signature is required, none is right without secrets.
    pub(crate) fn new<'s>(trust: Trust, secrets: impl IntoIterator<Item = &'s Secret>) -> Self {
        Self { trust, keyed: secrets.into_iter().map(keyed).collect() }
    }

    /// Whether a body with these headers can be genuine at all: it needs a well-formed signature.
    pub(crate) fn may_verify(&self, headers: &HeaderMap) -> bool {
        self.trust == Trust::Unsigned || header(headers).is_some()
    }

    /// Verifies a body; `None` is all that an unauthenticated sender learns.
    pub(crate) fn verify(&self, headers: &HeaderMap, body: &[u8]) -> Option<Verified> {
        let received = header(headers);
        if self.trust == Trust::Unsigned {
            let digest = Sha256::digest(body).into();
            return Some(Verified { digest, secret: None, signature: received.map(|(hex, _)| hex) });
        }
        let (hex, claimed) = received?;
        // All of them, without a branch: an answer takes as long whichever matches.
        let (mut found, mut which) = (Choice::from(0), 0u64);
        for (at, keyed) in self.keyed.iter().enumerate() {
            let equal = keyed.clone().chain_update(body).finalize().into_bytes().as_slice().ct_eq(&claimed);
            which.conditional_assign(&(at as u64), equal);
            found |= equal;
        }
        let secret = usize::try_from(which).ok();
        bool::from(found).then_some(Verified { digest: claimed, secret, signature: Some(hex) })
    }
}

fn keyed(secret: &Secret) -> Hmac<Sha256> {
    // RFC 2104, section 2.
    Hmac::new_from_slice(secret.reveal().as_bytes()).expect("HMAC takes keys of every length")
}

/// The signature of a body as PlexTrac computes it.
pub(crate) fn sign(secret: &Secret, body: &[u8]) -> String {
    faster_hex::hex_string(&keyed(secret).chain_update(body).finalize().into_bytes())
}

/// The digest of a body that was decided before: that of its signature if it was verified, else the SHA-256.
pub(super) fn digest(origin: &Origin, body: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    match &origin.signature {
        Some(hex) if origin.verified && faster_hex::hex_decode(hex, &mut digest).is_ok() => digest,
        _ => Sha256::digest(body).into(),
    }
}

/// The one well-formed signature header: its hex digits as received, and decoded.
fn header(headers: &HeaderMap) -> Option<([u8; 64], [u8; 32])> {
    let mut all = headers.get_all(HEADER).iter();
    let (Some(value), None) = (all.next(), all.next()) else { return None };
    let value = value.as_bytes().trim_ascii();
    let digits = match value.split_at_checked(PREFIX.len()) {
        Some((prefix, digits)) if prefix.eq_ignore_ascii_case(PREFIX) => digits,
        _ => value,
    };
    let hex: [u8; 64] = digits.try_into().ok()?;
    let mut digest = [0; 32];
    faster_hex::hex_decode(&hex, &mut digest).ok()?;
    Some((hex, digest))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    // RFC 4231, test case 2.
    const KEY: &str = "Jefe";
    const BODY: &[u8] = b"what do ya want for nothing?";
    const MAC: &str = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";

    fn verifier(secrets: &[&str]) -> Verifier {
        Verifier::new(Trust::Signed, &secrets.iter().map(|secret| Secret::new(*secret)).collect::<Vec<_>>())
    }

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn accepts_the_published_test_vector_in_either_case_with_outer_blanks() {
        for value in [MAC.to_owned(), MAC.to_uppercase(), format!("  {MAC}\t")] {
            let verified = verifier(&[KEY]).verify(&headers(&[&value]), BODY).unwrap();
            assert_eq!(verified.secret, Some(0));
            assert_eq!(verified.signature.unwrap().to_ascii_lowercase(), MAC.as_bytes());
        }
    }

    #[test]
    fn takes_a_prefix_in_either_case_and_keeps_the_digits_alone() {
        for value in [format!("sha256={MAC}"), format!(" SHA256={MAC} "), format!("Sha256={}", MAC.to_uppercase())]
        {
            let verified = verifier(&[KEY]).verify(&headers(&[&value]), BODY).unwrap();
            assert_eq!(verified.signature.unwrap().to_ascii_lowercase(), MAC.as_bytes(), "{value}");
        }
    }

    #[test]
    fn says_which_of_several_secrets_matched() {
        let verified = verifier(&["other", KEY, "third"]).verify(&headers(&[MAC]), BODY).unwrap();
        assert_eq!(verified.secret, Some(1));
    }

    #[test]
    fn refuses_missing_doubled_short_long_and_wrong_signatures() {
        let long = format!("{MAC}00");
        let not_hex = format!("{}g", &MAC[..63]);
        let (twice, other) = (format!("sha256=sha256={MAC}"), format!("sha512={MAC}"));
        let (cut, blank) = (format!("sha256={}", &MAC[..62]), format!("sha256= {MAC}"));
        let cases: [&[&str]; 12] = [
            &[],
            &[MAC, MAC],
            &[&MAC[..62]],
            &[&long],
            &[&not_hex],
            &[&twice],
            &[&other],
            &[&cut],
            &[&blank],
            &["sha256="],
            &[""],
            &["é"],
        ];
        for values in cases {
            assert_eq!(verifier(&[KEY]).verify(&headers(values), BODY), None, "{values:?}");
        }
        assert_eq!(verifier(&["other"]).verify(&headers(&[MAC]), BODY), None);
        assert_eq!(verifier(&[KEY]).verify(&headers(&[MAC]), b"what do ya want for nothing!"), None);
    }

    #[test]
    fn takes_the_hash_of_an_unsigned_body() {
        let unsigned = Verifier::new(Trust::Unsigned, &[]);
        let verified = unsigned.verify(&HeaderMap::new(), b"").unwrap();
        assert_eq!(verified.digest[..4], [0xe3, 0xb0, 0xc4, 0x42]);
        assert_eq!(verified.signature, None);
    }

    #[test]
    fn takes_nothing_without_a_secret_where_a_signature_is_required() {
        assert_eq!(verifier(&[]).verify(&HeaderMap::new(), BODY), None);
        assert_eq!(verifier(&[]).verify(&headers(&[MAC]), BODY), None);
    }
}
