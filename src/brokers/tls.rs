//! The files of TLS as each network broker reads them: checked with the settings, read again at each connect, so that
//! renewed ones are taken.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::settings::Section;

const KEYS: [&str; 3] = ["ca_file", "certificate_file", "key_file"];

/// The files of TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::brokers) struct TlsFiles {
    /// The authorities to trust, and no others.
    pub(in crate::brokers) ca: Option<PathBuf>,
    /// The client's certificate with its chain, and its key.
    pub(in crate::brokers) client: Option<(PathBuf, PathBuf)>,
}

impl TlsFiles {
    /// Reads the three keys of a broker's table.
    pub(in crate::brokers) fn read(section: &mut Section<'_>) -> Self {
        let [ca, certificate, key] = KEYS.map(|name| section.readable_file(name));
        if let Some(path) = &key {
            section.warn_if_world_readable("key_file", path);
        }
        for [name, other] in [["certificate_file", "key_file"], ["key_file", "certificate_file"]] {
            if !section.is_blank(name) && section.is_blank(other) {
                section.problem(name, format_args!("given without `{other}`"));
            }
        }
        Self { ca, client: certificate.zip(key) }
    }

    /// Adds this problem to each key that is given, where the connection has no TLS; `keeps_ca`: but not to `ca_file`, which is
    /// for the endpoint of tokens, too.
    pub(in crate::brokers) fn refuse(section: &mut Section<'_>, text: &str, keeps_ca: bool) {
        for name in KEYS {
            let is_kept = keeps_ca && name == "ca_file";
            if !is_kept && !section.is_blank(name) {
                section.problem(name, text);
            }
        }
    }

    /// The configuration of a client, with what is made of the check of a server's certificate. With a `ca_file` only that is
    /// trusted: the system's certificates stay out.
    pub(in crate::brokers) fn client_config(
        &self,
        check: impl FnOnce(Arc<WebPkiServerVerifier>) -> Arc<dyn ServerCertVerifier>,
    ) -> Result<ClientConfig, String> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(match &self.ca {
            Some(path) => certificates("ca_file", path)?,
            None => rustls_native_certs::load_native_certs().certs,
        });
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| format!("no certificate to trust: {error}"))?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(check(verifier));
        let Some((certificate, key)) = &self.client else { return Ok(builder.with_no_client_auth()) };
        let chain = certificates("certificate_file", certificate)?;
        let key = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| format!("`key_file`: no PEM key in {}: {error}", key.display()))?;
        builder.with_client_auth_cert(chain, key).map_err(|error| format!("`certificate_file`: {error}"))
    }
}

/// The certificates of a file, which this key of the settings names.
pub(in crate::brokers) fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let list: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| format!("`{key}`: cannot read {}: {error}", path.display()))?;
    if list.is_empty() {
        return Err(format!("`{key}`: no PEM certificate in {}", path.display()));
    }
    Ok(list)
}
