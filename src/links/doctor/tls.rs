//! The TLS step: the certificate that the remote shows, and whether it holds.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{Cause, Step};

/// Blocks: to be called where that is allowed.
pub(super) fn shake_hands(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    address: SocketAddr,
    timeout: Duration,
) -> Step {
    let shown = Arc::new(Looking::default());
    let looking = ClientConfig::builder_with_provider(Arc::clone(config.crypto_provider()))
        .with_safe_default_protocol_versions()
        .map(|builder| {
            let verifier: Arc<dyn ServerCertVerifier> = Arc::<Looking>::clone(&shown);
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        });
    if let Ok(looking) = looking {
        // It ends itself once it has the certificate: nothing is ever sent over it.
        drop(try_once(Arc::new(looking), name.clone(), address, timeout));
    }
    let certificate = shown.0.lock().as_ref().map_or_else(String::new, describe);
    match try_once(config, name, address, timeout) {
        Ok(version) => Step::ok("tls", format!("{version}; {certificate}")),
        Err(error) => {
            let words = words(&error);
            let advice = advice(&error);
            let words = if certificate.is_empty() { words } else { format!("{words}; {certificate}") };
            Step::failed("tls", words, advice)
        }
    }
}

fn try_once(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    address: SocketAddr,
    timeout: Duration,
) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let mut tls = ClientConnection::new(config, name).map_err(io::Error::other)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    Ok(tls.protocol_version().map_or_else(|| "TLS".to_owned(), |version| format!("{version:?}")))
}

/// rustls's own, which count seconds where the dates below say more.
fn words(error: &io::Error) -> String {
    match tls_error(error) {
        Some(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            "the certificate has ended".to_owned()
        }
        Some(Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        )) => "the certificate is not valid yet".to_owned(),
        Some(error) => error.to_string(),
        None => error.to_string(),
    }
}

fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

const HOST: (Cause, &str) =
    (Cause::Configuration, "write one of the certificate's names as the host in `url`, or have one made for this host");

#[expect(clippy::wildcard_enum_match_arm, reason = "the crate's own list, which grows: all others are the remote's")]
fn advice(error: &io::Error) -> (Cause, &'static str) {
    match tls_error(error) {
        Some(Error::InvalidCertificate(certificate)) => match certificate {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
                Cause::Remote,
                "the remote's certificate has ended: have it renewed there (or is this machine's clock wrong?)",
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                (Cause::Remote, "the certificate is not valid yet: is this machine's clock right?")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => HOST,
            CertificateError::UnknownIssuer => (
                Cause::Configuration,
                "nobody that we trust has signed it: name the file of the authority that did with `ca:`",
            ),
            _ => (Cause::Remote, "the remote's certificate cannot be used: have it replaced there"),
        },
        Some(Error::AlertReceived(_)) => (
            Cause::Permission,
            "the remote ended the handshake: does it ask for a client certificate (`cert:`, `key:`)?",
        ),
        Some(Error::InvalidMessage(_)) => {
            (Cause::Configuration, "no TLS is spoken there: the port, or the beginning of `url`, is wrong")
        }
        Some(_) => (Cause::Remote, "the two sides have no TLS in common: look at the remote's versions and ciphers"),
        None => super::SILENT,
    }
}

/// Its names, its dates, and who signed it.
fn describe(der: &CertificateDer<'static>) -> String {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return "its certificate cannot be read".to_owned();
    };
    let names = certificate.subject_alternative_name().ok().flatten();
    let mut shown: Vec<String> = names.iter().flat_map(|names| &names.value.general_names).filter_map(name).collect();
    if shown.is_empty() {
        shown.push(format!("no name ({})", certificate.subject()));
    }
    let validity = certificate.validity();
    format!(
        "its certificate is for {}, valid from {} to {}, signed by {}",
        shown.join(", "),
        validity.not_before,
        validity.not_after,
        certificate.issuer()
    )
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    if let GeneralName::DNSName(name) = name {
        Some((*name).to_owned())
    } else if let GeneralName::IPAddress(bytes) = name {
        let v4 = <[u8; 4]>::try_from(*bytes).map(|bytes| std::net::IpAddr::from(bytes).to_string());
        v4.or_else(|_length| <[u8; 16]>::try_from(*bytes).map(|bytes| std::net::IpAddr::from(bytes).to_string())).ok()
    } else {
        None
    }
}

/// Takes the certificate, and trusts nobody.
#[derive(Debug, Default)]
struct Looking(Mutex<Option<CertificateDer<'static>>>);

impl ServerCertVerifier for Looking {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        *self.0.lock() = Some(end_entity.clone().into_owned());
        Err(Error::General("seen".to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("seen".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("seen".to_owned()))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
