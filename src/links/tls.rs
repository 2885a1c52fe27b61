//! Our own rustls configuration for a link: ring, whom it trusts, a client certificate, what it asks for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use super::LinkError;

/// TLS towards a remote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM file of an own authority; see [`Roots`].
    pub ca: Option<PathBuf>,
    /// Client certificate and key, PEM files.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that the remote's certificate has to have, and that is asked for (SNI). Default: the host.
    pub server_name: Option<String>,
    /// Protocols that are offered (ALPN), the best first.
    pub alpn: Vec<String>,
}

/// What an own authority does to the web's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Roots {
    /// It takes their place.
    Instead,
    /// It is added to them.
    Beside,
}

impl Tls {
    /// The name to ask for at `host`.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn name(&self, host: &str) -> Result<ServerName<'static>, LinkError> {
        let name = self.server_name.as_deref().unwrap_or_else(|| host.trim_matches(['[', ']']));
        ServerName::try_from(name.to_owned()).map_err(|error| LinkError::Misconfigured(format!("{name}: {error}")))
    }
}

/// Reads the files anew at each connection, so that a renewed certificate needs no restart.
pub(super) fn client_config(tls: &Tls, own: Roots) -> Result<Arc<ClientConfig>, LinkError> {
    let mut roots = RootCertStore::empty();
    if tls.ca.is_none() || own == Roots::Beside {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if let Some(file) = &tls.ca {
        for certificate in certificates(file)? {
            roots.add(certificate).map_err(|error| wrong(file, &error))?;
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| LinkError::Misconfigured(format!("TLS: {error}")))?
        .with_root_certificates(roots);
    let mut config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, &error))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| wrong(certificate, &error))?
        }
    };
    config.alpn_protocols = tls.alpn.iter().map(|name| name.clone().into_bytes()).collect();
    Ok(Arc::new(config))
}

/// Whether a failed connection failed on certificates, which no retry mends.
pub(super) fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    // TLS 1.3 tells of a client's certificate only once it is used, and the clients wrap it beyond recognition.
    if error.to_string().contains("received fatal alert") {
        return true;
    }
    let mut cause = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = error.downcast_ref::<rustls::Error>().or_else(|| inner.and_then(|inner| inner.downcast_ref()));
        if let Some(tls) = tls {
            return matches!(
                tls,
                rustls::Error::InvalidCertificate(_)
                    | rustls::Error::AlertReceived(_)
                    | rustls::Error::PeerIncompatible(_)
                    | rustls::Error::InvalidMessage(_)
                    | rustls::Error::NoApplicationProtocol
            );
        }
        cause = error.source();
    }
    false
}

/// Of a PEM file; at least one.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let read = CertificateDer::pem_file_iter(file).map_err(|error| wrong(file, &error))?;
    let certificates = read.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(file, &error))?;
    if certificates.is_empty() {
        return Err(LinkError::Misconfigured(format!("{}: holds no PEM certificate", file.display())));
    }
    Ok(certificates)
}

fn wrong(file: &Path, error: &dyn std::fmt::Display) -> LinkError {
    LinkError::Misconfigured(format!("{}: {error}", file.display()))
}
