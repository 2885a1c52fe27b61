//! A listener's TLS as it is now. The files are read at the start and whenever they change; connections that are there keep what
//! they have.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;

use super::files::{Finding, Material, Sources, examine};
use crate::broker::TlsConfig;
use crate::broker::reload::{Reloadable, Reread};
use crate::clock::{Clock, WallMs};

/// See the module.
pub(in crate::broker) struct Certificates {
    config: TlsConfig,
    /// For the log: the listener's address.
    name: String,
    /// What is spoken behind it, by its name in ALPN (RFC 7301).
    protocol: &'static [u8],
    current: ArcSwap<Current>,
    clock: Arc<dyn Clock>,
}

/// A server's side for clients that ask for the protocol by its name, and one for all others: those that know no ALPN, or names of
/// their own, are let in as ever.
struct Current {
    named: Arc<ServerConfig>,
    plain: Arc<ServerConfig>,
    not_after_s: i64,
}

impl Current {
    fn new(material: Material, protocol: &[u8]) -> Self {
        let mut named = material.config.clone();
        named.alpn_protocols = vec![protocol.to_vec()];
        Self { named: Arc::new(named), plain: Arc::new(material.config), not_after_s: material.not_after_s }
    }
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(in crate::broker) fn load(
        config: &TlsConfig,
        name: String,
        is_websocket: bool,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, String> {
        let protocol: &[u8] = if is_websocket { b"http/1.1" } else { b"mqtt" };
        let current = ArcSwap::from_pointee(Current::new(read(config, &name, clock.wall())?, protocol));
        Ok(Self { config: config.clone(), name, protocol, current, clock })
    }

    /// For a client that offers these protocols.
    pub(super) fn server_config<'a>(&self, mut offered: impl Iterator<Item = &'a [u8]>) -> Arc<ServerConfig> {
        let current = self.current.load();
        let config = if offered.any(|name| name == self.protocol) { &current.named } else { &current.plain };
        Arc::clone(config)
    }

    /// When the server's certificate ends, seconds since 1970.
    pub(in crate::broker) fn not_after_s(&self) -> i64 {
        self.current.load().not_after_s
    }
}

impl Reloadable for Certificates {
    fn name(&self) -> String {
        format!("the certificates of {}", self.name)
    }

    fn reread(&self) -> Reread {
        Reread::Certificates(self.name.clone())
    }

    fn files(&self) -> Vec<PathBuf> {
        let TlsConfig { cert, key, client_ca, crl, .. } = &self.config;
        [Some(cert), Some(key), client_ca.as_ref(), crl.as_ref()].into_iter().flatten().cloned().collect()
    }

    fn reload(&self) -> Result<(), String> {
        let material = read(&self.config, &self.name, self.clock.wall())?;
        self.current.store(Arc::new(Current::new(material, self.protocol)));
        Ok(())
    }
}

/// Warnings go to the log.
fn read(config: &TlsConfig, name: &str, now: WallMs) -> Result<Material, String> {
    let text = |path: &Path| fs::read_to_string(path).map_err(|error| unreadable(path, &error));
    let (cert, key) = (text(&config.cert)?, text(&config.key)?);
    let client_ca = config.client_ca.as_deref().map(text).transpose()?;
    let crl = config.crl.as_deref().map(text).transpose()?;
    let sources = Sources { cert: &cert, key: &key, client_ca: client_ca.as_deref(), crl: crl.as_deref() };
    let (material, findings) = examine(sources, config.client_cert, config.versions, now);
    for warning in findings.iter().filter(|finding| !finding.is_error) {
        tracing::warn!(listener = name, "{warning}");
    }
    material.ok_or_else(|| {
        let errors: Vec<String> = findings.iter().filter(|finding| finding.is_error).map(Finding::to_string).collect();
        errors.join("; ")
    })
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}
