//! Signed requests, made in advance: what the load costs is reading and writing alone.

use std::io::Write as _;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// What every program that is measured knows.
pub const SECRET: &str = "a secret of this benchmark alone";

/// Where the program takes webhooks.
pub const PATH: &str = "/webhooks/plextrac";

/// One whole HTTP request.
pub type Request = Box<[u8]>;

/// So many different events of about `size` bytes (350 at least), numbered from `from` in the batch called `batch`.
pub fn requests(batch: &str, count: usize, size: usize, path: &str) -> Vec<Request> {
    let keyed = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("HMAC takes keys of every length");
    (0..count).map(|number| request(&keyed, &body(batch, number, size), path)).collect()
}

/// A payload as documented: some events, some kinds of target.
fn body(batch: &str, number: usize, size: usize) -> String {
    let (event, target) = [
        ("ReportPublished", "report"),
        ("FindingPublished", "finding"),
        ("AssessmentSubmitted", "assessment"),
        ("SchedulerEngagementSubmitted", "engagement"),
    ][number % 4];
    let mut body = format!(
        "{{\"cuid\":\"cm{batch}{number:018}\",\"actorCuid\":\"cmactor00000000000000{:04}\",\"event\":\"{event}\",\
         \"targetCuid\":\"cmtarget0000000000{number:08}\",\"targetType\":\"{target}\",\"clientId\":{},\
         \"reportId\":{number},\"text\":\"Example Client Ltd || External penetration test, third quarter: \
         the status has changed",
        number % 50,
        number % 200,
    );
    body.extend(std::iter::repeat_n('.', size.saturating_sub(body.len() + 2)));
    body.push_str("\"}");
    body
}

fn request(keyed: &Hmac<Sha256>, body: &str, path: &str) -> Request {
    let mut mac = keyed.clone();
    mac.update(body.as_bytes());
    let signature = faster_hex::hex_string(&mac.finalize().into_bytes());
    let mut request = Vec::with_capacity(body.len() + 300);
    write!(
        request,
        "POST {path} HTTP/1.1\r\nAccept: application/json, text/plain, */*\r\nContent-Type: application/json\r\n\
         X-Authorization-HMAC-256: {signature}\r\nUser-Agent: axios/1.7.9\r\nContent-Length: {}\r\n\
         Host: 127.0.0.1\r\nConnection: keep-alive\r\n\r\n{body}",
        body.len()
    )
    .expect("a Vec takes everything");
    request.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_documented_payloads_of_the_asked_size() {
        for size in [350, 1000, 100_000] {
            let body = body("a", 7, size);
            assert!(body.len().abs_diff(size) <= 2, "{}", body.len());
            let value: serde_json::Value = serde_json::from_str(&body).expect("it is JSON");
            assert_eq!(value["event"], "SchedulerEngagementSubmitted");
        }
    }
}
