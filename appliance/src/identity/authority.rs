//! The appliance's own certificate authority: it vouches for our servers and for admitted phones.
//!
//! Promises: the CA's key is made once, readable by its owner only, and never leaves this module; a phone's certificate
//! binds its key to its phone id. Leaves out: revocation lists (a phone that was put back into quarantine is refused
//! by the registry, whatever its certificate says).

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::crypto::ring as provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use time::{Duration, OffsetDateTime};

use crate::phones::PhoneId;

/// A certificate signing request above this is not one that any phone's TLS stack makes.
const CSR_BYTES_MAX: usize = 16 * 1024;
const CA_YEARS: i64 = 20;
const SERVER_DAYS: i64 = 397;
const PHONE_DAYS: i64 = 3 * 365;
/// Clocks of phones may be behind ours by so much.
const CLOCK_SKEW: Duration = Duration::days(2);

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("{action} {path}: {source}")]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("the authority's file {path} is damaged: {message}; restore it from a backup, or remove the folder to begin with a new authority (every phone must then enrol anew)")]
    Damaged { path: PathBuf, message: String },
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    #[error("the certificate signing request is not usable: {0}")]
    Request(String),
}

/// Signs certificates of servers and phones, and tells ours from foreign ones.
pub struct Authority {
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    verifier: Arc<dyn ClientCertVerifier>,
}

/// Who is at the other end of a connection, judged by its certificate alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Showed no certificate.
    Anonymous,
    /// Showed one of ours, for this phone, over this public key.
    Phone { id: PhoneId, key: KeyFingerprint },
    /// Showed one that we did not issue, or an expired one.
    Foreign { reason: String },
}

/// SHA-256 of a public key (its SubjectPublicKeyInfo), in hex.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct KeyFingerprint(pub String);

/// What a phone's signing request was found to hold.
pub struct PhoneRequest {
    pub key: KeyFingerprint,
    parsed: CertificateSigningRequestParams,
}

impl Authority {
    /// Opens the authority kept in `folder`, or makes it there.
    pub fn open(folder: &Path) -> Result<Authority, AuthorityError> {
        fs::create_dir_all(folder)
            .map_err(|source| AuthorityError::File { action: "make the folder", path: folder.to_owned(), source })?;
        let certificate_path = folder.join("ca.pem");
        let key_path = folder.join("ca.key");
        if !certificate_path.exists() {
            let (certificate, key) = make_authority()?;
            // The key first: a certificate without its key would be mistaken for a finished authority.
            write_private(&key_path, key.as_bytes())?;
            write_private(&certificate_path, certificate.as_bytes())?;
        }
        let pem = read(&certificate_path)?;
        let key = KeyPair::from_pem(&read(&key_path)?)
            .map_err(|e| AuthorityError::Damaged { path: key_path.clone(), message: e.to_string() })?;
        let damaged = |message: String| AuthorityError::Damaged { path: certificate_path.clone(), message };
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| damaged(e.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|e| damaged(e.to_string()))?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.clone()).map_err(|e| damaged(e.to_string()))?;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(provider::default_provider()))
                .build()
                .map_err(|e| damaged(e.to_string()))?;
        Ok(Authority { certificate, pem, issuer, verifier })
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of the CA certificate in hex: what a phone is told so that it trusts us at first sight.
    pub fn fingerprint(&self) -> String {
        sha256_hex(&self.certificate)
    }

    /// A fresh key and certificate for a server of ours, reachable under `names`.
    pub fn issue_server(&self, names: &[String]) -> Result<ServerIdentity, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name = common_name("Pollux appliance");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, SERVER_DAYS);
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(ServerIdentity {
            chain: vec![certificate.der().clone(), self.certificate.clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
        })
    }

    /// Checks a phone's signing request: its size, form and signature.
    pub fn read_request(&self, der: &[u8]) -> Result<PhoneRequest, AuthorityError> {
        if der.len() > CSR_BYTES_MAX {
            return Err(AuthorityError::Request(format!("{} bytes; at most {CSR_BYTES_MAX}", der.len())));
        }
        let parsed = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
            .map_err(|e| AuthorityError::Request(e.to_string()))?;
        Ok(PhoneRequest { key: request_key(der)?, parsed })
    }

    /// Signs `request` for the phone `id`. What the request asked for beside its key is ignored.
    pub fn issue_phone(&self, mut request: PhoneRequest, id: &PhoneId) -> Result<Vec<u8>, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(id.as_str());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, PHONE_DAYS);
        request.parsed.params = params;
        Ok(request.parsed.signed_by(&self.issuer)?.der().to_vec())
    }

    /// Judges the certificate that a client showed.
    pub fn judge(&self, chain: Option<&[CertificateDer<'_>]>, now: UnixTime) -> Peer {
        let Some([end_entity, intermediates @ ..]) = chain else {
            return Peer::Anonymous;
        };
        if let Err(error) = self.verifier.verify_client_cert(end_entity, intermediates, now) {
            return Peer::Foreign { reason: error.to_string() };
        }
        match subject_of(end_entity) {
            Some((name, key)) => match name.parse().ok() {
                Some(id) => Peer::Phone { id, key },
                None => Peer::Foreign { reason: "the certificate names no phone".into() },
            },
            None => Peer::Foreign { reason: "the certificate cannot be read".into() },
        }
    }
}

/// Key and certificate chain of one of our TLS servers.
pub struct ServerIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl ServerIdentity {
    /// TLS for people and their browsers: no client certificate is asked for.
    pub fn console_tls(&self) -> Result<Arc<rustls::ServerConfig>, AuthorityError> {
        let mut config = builder()?
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), PrivateKeyDer::Pkcs8(self.key.clone_key()))
            .map_err(tls)?;
        // WebSockets over HTTP/2 are not offered by every client; HTTP/1.1 carries them all.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// TLS for phones: a client certificate is asked for but not required, and judged by [`Authority::judge`] afterwards,
    /// so that a foreign one earns an explanation rather than a closed connection.
    pub fn sync_tls(&self) -> Result<Arc<rustls::ServerConfig>, AuthorityError> {
        let mut config = builder()?
            .with_client_cert_verifier(Arc::new(JudgeLater::new()))
            .with_single_cert(self.chain.clone(), PrivateKeyDer::Pkcs8(self.key.clone_key()))
            .map_err(tls)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Accepts any client certificate whose key the client proves to hold; who that is, is judged later.
#[derive(Debug)]
struct JudgeLater {
    provider: rustls::crypto::CryptoProvider,
}

impl JudgeLater {
    fn new() -> JudgeLater {
        JudgeLater { provider: provider::default_provider() }
    }
}

impl ClientCertVerifier for JudgeLater {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<rustls::server::danger::ClientCertVerified, rustls::Error> {
        Ok(rustls::server::danger::ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn builder() -> Result<rustls::ConfigBuilder<rustls::ServerConfig, rustls::WantsVerifier>, AuthorityError> {
    rustls::ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(tls)
}

fn tls(error: rustls::Error) -> AuthorityError {
    AuthorityError::Tls(error.to_string())
}

fn make_authority() -> Result<(String, String), AuthorityError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("Pollux authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, CA_YEARS * 365);
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn validity(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + Duration::days(days);
}

fn request_key(der: &[u8]) -> Result<KeyFingerprint, AuthorityError> {
    use x509_parser::prelude::FromDer;
    let (_, request) = x509_parser::certification_request::X509CertificationRequest::from_der(der)
        .map_err(|e| AuthorityError::Request(e.to_string()))?;
    Ok(KeyFingerprint(sha256_hex(request.certification_request_info.subject_pki.raw)))
}

fn subject_of(certificate: &CertificateDer<'_>) -> Option<(String, KeyFingerprint)> {
    use x509_parser::prelude::FromDer;
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    Some((name, KeyFingerprint(sha256_hex(parsed.public_key().raw))))
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}

fn read(path: &Path) -> Result<String, AuthorityError> {
    fs::read_to_string(path)
        .map_err(|source| AuthorityError::File { action: "read", path: path.to_owned(), source })
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), AuthorityError> {
    let partial = path.with_extension("partial");
    let write = || -> std::io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|source| AuthorityError::File { action: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(key: &KeyPair) -> Vec<u8> {
        CertificateParams::default().serialize_request(key).expect("request").der().to_vec()
    }

    #[test]
    fn a_phone_is_known_by_our_certificate_and_a_foreign_one_is_not() {
        let folder = tempfile::tempdir().expect("folder");
        let ours = Authority::open(&folder.path().join("a")).expect("authority");
        let theirs = Authority::open(&folder.path().join("b")).expect("authority");
        let id = "p-0123456789abcdef".parse::<PhoneId>().expect("id");
        let key = KeyPair::generate().expect("key");
        let issue = |authority: &Authority| {
            let request = authority.read_request(&request(&key)).expect("request");
            CertificateDer::from(authority.issue_phone(request, &id).expect("certificate"))
        };
        let certificate = issue(&ours);
        assert!(matches!(ours.judge(Some(&[certificate]), UnixTime::now()), Peer::Phone { id: found, .. } if found == id));
        assert!(matches!(ours.judge(Some(&[issue(&theirs)]), UnixTime::now()), Peer::Foreign { .. }));
        assert_eq!(ours.judge(None, UnixTime::now()), Peer::Anonymous);
    }

    #[test]
    fn the_authority_outlives_its_process_and_its_key_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("folder");
        let first = Authority::open(folder.path()).expect("authority").fingerprint();
        assert_eq!(Authority::open(folder.path()).expect("authority").fingerprint(), first);
        let mode = fs::metadata(folder.path().join("ca.key")).expect("key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn garbage_is_no_request() {
        let folder = tempfile::tempdir().expect("folder");
        let authority = Authority::open(folder.path()).expect("authority");
        for garbage in [&b""[..], b"\x30\x82\xff\xff", &[0; CSR_BYTES_MAX + 1]] {
            assert!(matches!(authority.read_request(garbage), Err(AuthorityError::Request(_))));
        }
    }
}
