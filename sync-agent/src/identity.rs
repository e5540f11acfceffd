//! Who the phone is: its key, made here and never leaving, and the certificate that the appliance gave for it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use sync_protocol::wire;

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot {doing} {path}")]
    File {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot make or read the phone's key")]
    Key(#[from] rcgen::Error),
    #[error("the appliance admitted this phone under another CA than the one it was told to trust")]
    ForeignCa,
}

/// The phone's key, and its certificate once it was admitted. Kept in the state directory.
pub struct Identity {
    directory: PathBuf,
    key: KeyPair,
    certificate: Option<Admission>,
}

/// What came of being admitted.
#[derive(Clone)]
pub struct Admission {
    pub certificate: CertificateDer<'static>,
    pub ca: CertificateDer<'static>,
    pub phone_id: String,
}

const KEY: &str = "key.der";
const CERTIFICATE: &str = "cert.der";
const CA: &str = "ca.der";
const PHONE_ID: &str = "phone-id";

impl Identity {
    /// Reads the identity, or makes a key. A certificate of another CA than `ca_fingerprint` does not count.
    pub fn open(directory: &Path, ca_fingerprint: &[u8; 32]) -> Result<Self, IdentityError> {
        fs::create_dir_all(directory).map_err(failed("create", directory))?;
        let key = match read(directory, KEY)? {
            Some(der) => KeyPair::try_from(&PrivatePkcs8KeyDer::from(der))?,
            None => {
                let key = KeyPair::generate()?;
                write(directory, KEY, &key.serialize_der())?;
                key
            }
        };
        let certificate = match (
            read(directory, CERTIFICATE)?,
            read(directory, CA)?,
            read(directory, PHONE_ID)?,
        ) {
            (Some(certificate), Some(ca), Some(phone_id))
                if fingerprint(&ca) == *ca_fingerprint =>
            {
                Some(Admission {
                    certificate: certificate.into(),
                    ca: ca.into(),
                    phone_id: String::from_utf8_lossy(&phone_id).into_owned(),
                })
            }
            _ => None,
        };
        Ok(Self {
            directory: directory.to_owned(),
            key,
            certificate,
        })
    }

    pub fn admission(&self) -> Option<&Admission> {
        self.certificate.as_ref()
    }

    /// The certification request, DER.
    pub fn request(&self) -> Result<Vec<u8>, IdentityError> {
        Ok(CertificateParams::new(Vec::new())?
            .serialize_request(&self.key)?
            .der()
            .to_vec())
    }

    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    /// Takes the appliance's answer, if it is from the CA that is trusted.
    pub fn admit(
        &mut self,
        admitted: wire::Admitted,
        ca_fingerprint: &[u8; 32],
    ) -> Result<(), IdentityError> {
        if fingerprint(&admitted.ca_der) != *ca_fingerprint {
            return Err(IdentityError::ForeignCa);
        }
        write(&self.directory, CA, &admitted.ca_der)?;
        write(&self.directory, PHONE_ID, admitted.phone_id.as_bytes())?;
        // The last one: without it the phone is not admitted.
        write(&self.directory, CERTIFICATE, &admitted.cert_der)?;
        self.certificate = Some(Admission {
            certificate: admitted.cert_der.into(),
            ca: admitted.ca_der.into(),
            phone_id: admitted.phone_id,
        });
        Ok(())
    }
}

/// SHA-256 of a certificate's DER: what a phone is told about its appliance's CA.
pub fn fingerprint(der: &[u8]) -> [u8; 32] {
    Sha256::digest(der).into()
}

fn read(directory: &Path, name: &str) -> Result<Option<Vec<u8>>, IdentityError> {
    let path = directory.join(name);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", &path)(error)),
    }
}

/// Whole or not at all, and for the agent's eyes only.
fn write(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), IdentityError> {
    let path = directory.join(name);
    let unfinished = directory.join(format!("{name}.new"));
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(failed("write", &path))
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::File {
        doing,
        path,
        source,
    }
}
