//! TLS towards the services that know who a client is: ring, the web's roots or only the named authority.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::{ClientConfig, RootCertStore};

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    /// The file of authorities.
    #[error("{}: {error}", .path.display())]
    File { path: PathBuf, error: FileError },
    /// TLS itself.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Why a file of authorities cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// It is no PEM.
    #[error("{0}")]
    Pem(#[from] pem::Error),
    /// It is PEM without a certificate.
    #[error("it holds no PEM certificate")]
    Empty,
    /// A certificate in it.
    #[error(transparent)]
    Certificate(rustls::Error),
}

/// The authorities in PEM text: for `check`, too.
///
/// # Errors
/// [`FileError`]: there are none, or one cannot be used.
pub fn authorities(text: &[u8]) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text) {
        roots.add(certificate?).map_err(FileError::Certificate)?;
    }
    if roots.is_empty() { Err(FileError::Empty) } else { Ok(roots) }
}

/// A client's settings that trust `ca`, or the web's roots.
///
/// # Errors
/// [`TlsError`]: the file cannot be used.
pub(super) fn client_config(ca: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = match ca {
        None => webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect(),
        Some(file) => {
            let read = std::fs::read(file).map_err(FileError::Io).and_then(|text| authorities(&text));
            read.map_err(|error| TlsError::File { path: file.to_owned(), error })?
        }
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}
