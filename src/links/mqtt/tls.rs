//! Our own rustls configuration for a link: ring, the web's roots or only the named authority, a client certificate.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::Tls;
use crate::links::LinkError;

/// Reads the files anew at each connection, so that a renewed certificate needs no restart.
pub(in crate::links) fn client_config(tls: &Tls) -> Result<Arc<ClientConfig>, LinkError> {
    let mut roots = RootCertStore::empty();
    match &tls.ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(file) => {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| wrong(file, &error))?;
            }
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| LinkError::Misconfigured(format!("TLS: {error}")))?
        .with_root_certificates(roots);
    let config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, &error))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| wrong(certificate, &error))?
        }
    };
    Ok(Arc::new(config))
}

/// Whether a failed connection failed on certificates, which no retry mends.
pub(super) fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
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
            );
        }
        cause = error.source();
    }
    false
}

/// Of a PEM file; at least one.
pub(in crate::links) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, LinkError> {
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
