//! Connections to the one appliance that is trusted: the one whose chain holds the CA certificate with the pinned
//! fingerprint. No other root counts, and the address it is reached at does not matter.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use sync_protocol::APPLIANCE_SERVER_NAME;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use super::LinkError;
use crate::config::Config;
use crate::identity::{Identity, fingerprint};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How soon a dead connection is noticed: after both.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects; with the phone's certificate if it has one and `with_certificate`.
pub(super) async fn connect(
    config: &Config,
    identity: &Identity,
    with_certificate: bool,
) -> Result<Channel, LinkError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(PinnedCa {
        fingerprint: config.ca_fingerprint,
        provider: provider.clone(),
    });
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut tls = match identity.admission().filter(|_| with_certificate) {
        Some(admission) => {
            let chain = vec![admission.certificate.clone(), admission.ca.clone()];
            tls.with_client_auth_cert(chain, identity.key())?
        }
        None => tls.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(tls));
    let address = config.appliance.clone();
    let connect = tower::service_fn(move |_| {
        let (connector, address) = (connector.clone(), address.clone());
        async move {
            let name = ServerName::try_from(APPLIANCE_SERVER_NAME)
                .expect("the appliance's name is a DNS name");
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            io::Result::Ok(TokioIo::new(connector.connect(name, tcp).await?))
        }
    });
    // The scheme is http because TLS is the connector's business.
    let endpoint = Endpoint::from_shared(format!("http://{APPLIANCE_SERVER_NAME}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector(connect).await?)
}

/// Accepts a server whose chain contains the pinned CA certificate and verifies up to it.
#[derive(Debug)]
struct PinnedCa {
    fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates
            .iter()
            .find(|certificate| fingerprint(certificate) == self.fingerprint);
        let ca = ca.ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
