//! TLS of the ingress: chain, key and authorities from the configured files, checked when they are read.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::OID_PKIX_ACCESS_DESCRIPTOR_CA_ISSUERS;
use x509_parser::time::ASN1Time;

use crate::settings::Section;

/// The usable `[ingress.tls]`.
#[derive(Clone)]
pub(crate) struct ServerTls {
    config: Arc<ServerConfig>,
    validity: CertificateValidity,
}

/// The time for which the server's certificate is valid, and its file.
#[derive(Clone, Debug)]
struct CertificateValidity {
    file: PathBuf,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl CertificateValidity {
    /// The problem now, if there is one.
    fn problem(&self) -> Option<String> {
        let now = SystemTime::now();
        let (what, time) = if self.not_after < now {
            ("ended at", self.not_after)
        } else if now < self.not_before {
            ("is not valid before", self.not_before)
        } else {
            return None;
        };
        let (file, time) = (self.file.display(), humantime::format_rfc3339_seconds(time));
        Some(format!("{file}: the certificate {what} {time}; senders refuse it"))
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("validity", &self.validity).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads `[ingress.tls]`; returns none after reporting a problem.
    ///
    /// # Panics
    /// Never: ring has suites of both protocol versions.
    pub(crate) fn read(section: &mut Section<'_>) -> Option<Self> {
        let (chain, key, clients) = (read_chain(section), read_key(section), read_clients(section));
        let ((chain, validity), (key_file, key)) = chain.zip(key)?;
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has suites of both protocol versions");
        match builder.with_client_cert_verifier(clients?).with_single_cert(chain, key) {
            Ok(mut config) => {
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                Some(Self { config: Arc::new(config), validity })
            }
            Err(error) => {
                let file = key_file.display();
                let text = match error {
                    rustls::Error::InconsistentKeys(_) => format!(
                        "{file} does not belong to the first certificate in `certificate_file`; the server's own \
                         comes first there, then its chain"
                    ),
                    error => format!("{file} cannot be used: {error}"),
                };
                section.problem("key_file", text);
                None
            }
        }
    }

    /// The time at which the server's certificate expires.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.validity.not_after
    }

    /// The problem if senders refuse this pair now, and did not refuse the one that it replaces.
    pub(crate) fn problem(&self, replaced: &Self) -> Option<String> {
        self.validity.problem().filter(|_| replaced.validity.problem().is_none())
    }

    /// Whether both come from the same reading: connections of one are then as good as those of the other.
    pub(super) fn is_same(one: Option<&Self>, other: Option<&Self>) -> bool {
        one.map(|tls| Arc::as_ptr(&tls.config)) == other.map(|tls| Arc::as_ptr(&tls.config))
    }

    /// The acceptor for handshakes.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.config.clone().into()
    }
}

type Chain = Vec<CertificateDer<'static>>;

/// The certificates of a file; reports a problem and returns none if there is none, or a broken one.
fn certificates(section: &mut Section<'_>, key: &str, path: &Path, content: &[u8]) -> Option<Chain> {
    let found: Result<Chain, pem::Error> = CertificateDer::pem_slice_iter(content).collect();
    match found {
        Ok(found) if !found.is_empty() => return Some(found),
        Ok(_) => {
            let text = format!("{}: it has no certificate in PEM (-----BEGIN CERTIFICATE-----)", path.display());
            section.problem(key, text);
        }
        Err(error) => section.problem(key, format_args!("{}: not PEM: {error}", path.display())),
    }
    None
}

/// The server's certificate with its chain, and its validity. A certificate that is not valid now only causes a warning:
/// a bridge that does not start accepts no events at all, and not every proxy checks. A reload keeps one that is valid.
fn read_chain(section: &mut Section<'_>) -> Option<(Chain, CertificateValidity)> {
    const KEY: &str = "certificate_file";
    let (path, content) = section.needed_file(KEY, "the certificate and its chain, in PEM")?;
    let chain = certificates(section, KEY, &path, &content)?;
    let validity = match x509_parser::parse_x509_certificate(&chain[0]) {
        Ok((_, certificate)) => {
            check_chain(section, KEY, &path, &chain, &certificate);
            certificate.validity().clone()
        }
        Err(error) => {
            section.problem(KEY, format_args!("{}: the certificate cannot be read: {error}", path.display()));
            return None;
        }
    };
    let time = |time: ASN1Time| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or_default())
    };
    let (not_before, not_after) = (time(validity.not_before), time(validity.not_after));
    let validity = CertificateValidity { file: path, not_before, not_after };
    if let Some(problem) = validity.problem() {
        section.warning(KEY, problem);
    }
    Some((chain, validity))
}

/// Warns where a client cannot get from the first certificate to an authority that it knows. An error would keep a bridge
/// from starting that clients with the missing certificates can reach.
fn check_chain(section: &mut Section<'_>, key: &str, path: &Path, chain: &Chain, first: &X509Certificate<'_>) {
    let path = path.display();
    if chain.len() == 1 && first.issuer() != first.subject() {
        let issuer = first.issuer();
        if names_its_issuer(first) {
            section.warning(key, format_args!(
                "{path}: it has the server's certificate alone, and clients that do not have that of its issuer \
                 ({issuer}) refuse it; append the authority's intermediate certificates"
            ));
        } else {
            section.remark(key, format_args!(
                "{path}: it has the server's certificate alone, which is enough only for clients that trust its issuer \
                 ({issuer}) itself; append the intermediate certificates if there are any"
            ));
        }
    }
    for (at, pair) in chain.windows(2).enumerate() {
        let [Ok((_, one)), Ok((_, next))] =
            [&pair[0], &pair[1]].map(|der| x509_parser::parse_x509_certificate(der))
        else {
            section.warning(key, format_args!("{path}: certificate {} of the chain cannot be read", at + 2));
            return;
        };
        if !is_signed_by(&one, &next) {
            section.warning(key, format_args!(
                "{path}: certificate {} ({}) did not sign the one before it, whose issuer is {}; clients refuse the chain: \
                 put each issuer's certificate behind the one that it signed",
                at + 2,
                next.subject(),
                one.issuer()
            ));
            return;
        }
    }
}

/// Whether a certificate says where its issuer's is: those of public authorities do, and their issuer is never one that
/// clients trust by itself.
fn names_its_issuer(certificate: &X509Certificate<'_>) -> bool {
    certificate.extensions().iter().any(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityInfoAccess(access) => {
            access.iter().any(|place| place.access_method == OID_PKIX_ACCESS_DESCRIPTOR_CA_ISSUERS)
        }
        _ => false,
    })
}

fn is_signed_by(certificate: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
    certificate.issuer() == issuer.subject()
        && match certificate.verify_signature(Some(issuer.public_key())) {
            // What cannot be verified here is left to the clients.
            Ok(()) | Err(X509Error::SignatureUnsupportedAlgorithm) => true,
            Err(_) => false,
        }
}

fn read_key(section: &mut Section<'_>) -> Option<(PathBuf, PrivateKeyDer<'static>)> {
    const KEY: &str = "key_file";
    let (path, content) = section.needed_file(KEY, "the certificate's private key, in PEM")?;
    section.warn_if_world_readable(KEY, &path);
    let text = match PrivateKeyDer::from_pem_slice(&content) {
        Ok(key) => return Some((path, key)),
        Err(pem::Error::NoItemsFound) => {
            "it has no private key in PEM (-----BEGIN PRIVATE KEY-----); remove its passphrase if it has one"
        }
        // Not the error's own text: it may quote a line.
        Err(_) => "not PEM, or truncated",
    };
    section.problem(KEY, format_args!("{}: {text}", path.display()));
    None
}

/// The clients that may connect: all, or those with a certificate from one of the authorities.
fn read_clients(section: &mut Section<'_>) -> Option<Arc<dyn ClientCertVerifier>> {
    const KEY: &str = "client_ca_file";
    if section.is_blank(KEY) {
        section.path(KEY);
        return Some(WebPkiClientVerifier::no_client_auth());
    }
    let (path, content) = section.file(KEY)?;
    let mut roots = RootCertStore::empty();
    let mut certificates = certificates(section, KEY, &path, &content)?.into_iter();
    let added = certificates.try_for_each(|certificate| roots.add(certificate)).map_err(|error| error.to_string());
    let provider = Arc::new(ring::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let verifier = added.and_then(|()| builder.build().map_err(|error| error.to_string()));
    let unusable = |error: String| {
        section.problem(KEY, format_args!("{}: a certificate in it cannot be used: {error}", path.display()));
    };
    verifier.map_err(unusable).ok()
}
