//! An authority of the test's own, the pairs it issues, and the configuration of a client that trusts it.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use std::{fs, io};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::raw;

/// Signs certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    /// Creates one.
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("no names are legal names");
        // OpenSSL takes a certificate whose issuer has its own name for self-signed.
        params.distinguished_name.push(DnType::CommonName, "an authority of this test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key can be made"));
        Self(issuer.expect("a certificate can be made"))
    }

    /// Its certificate.
    pub(crate) fn certificate(&self) -> String {
        self.0.pem()
    }

    /// Issues a pair for the daemon on loopback, or for a client.
    pub(crate) fn issue(&self) -> Pair {
        self.issue_until(4000)
    }

    /// The same, up to the beginning of a year.
    pub(crate) fn issue_until(&self, year: i32) -> Pair {
        self.issue_between(SystemTime::UNIX_EPOCH, year)
    }

    /// The same, from a time on.
    pub(crate) fn issue_from(&self, begin: SystemTime) -> Pair {
        self.issue_between(begin, 4000)
    }

    fn issue_between(&self, begin: SystemTime, year: i32) -> Pair {
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let mut params = CertificateParams::new(names).expect("the names are legal");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = begin.into();
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &*self.0).expect("a certificate can be made");
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// The configuration of a client that trusts this authority and presents a pair.
    pub(crate) fn client(&self, shows: Option<&Pair>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("the certificate is good");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the suites")
            .with_root_certificates(roots);
        let config = match shows {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).expect("it is PEM");
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("it is PEM");
                builder.with_client_auth_cert(vec![chain], key).expect("they belong together")
            }
        };
        Arc::new(config)
    }
}

impl Pair {
    /// Writes both beside each other: `NAME.crt` and `NAME.key`, readable by this user only.
    pub(crate) fn write(&self, directory: &Path, name: &str) -> (PathBuf, PathBuf) {
        use std::os::unix::fs::PermissionsExt as _;
        let (certificate, key) = (directory.join(format!("{name}.crt")), directory.join(format!("{name}.key")));
        fs::write(&certificate, &self.certificate).expect("the directory can be written");
        fs::write(&key, &self.key).expect("the directory can be written");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("the file is ours");
        (certificate, key)
    }
}

/// A connection with the handshake done.
pub(crate) fn over_tls(
    address: &str,
    config: Arc<ClientConfig>,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let name = "127.0.0.1".try_into().expect("it is a name");
    let mut connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
    let mut stream = raw::plain(address);
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(connection, stream))
}
