//! The only part that knows all others: build, run, ordered shutdown. Filled in by the integrator.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::links;
use crate::router::Route;

/// Everything that `routes.yaml` says, resolved: values that cannot be wrong.
#[derive(Clone, Debug)]
pub struct Config {
    /// `site:`; default: the host name.
    pub site: Arc<str>,
    /// `data_dir:`; default `./tidegate-data` beside the file.
    pub data_dir: PathBuf,
    /// `broker:` (R30: 127.0.0.1:1883, anonymous, without the section).
    pub broker: crate::broker::Config,
    /// `links:`.
    pub links: Vec<links::Config>,
    /// `routes:`.
    pub routes: Vec<Route>,
    /// `admin: { bind: .. }`.
    pub admin: Option<SocketAddr>,
}

// LOCAL STUB, never committed
#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct BuildError;
impl BuildError {
    pub fn exit_code(&self) -> u8 {
        70
    }
}
#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct RunError;
#[derive(Debug)]
pub struct Gateway;
impl Gateway {
    pub async fn build(_c: Config, _k: Arc<dyn crate::clock::Clock>) -> Result<Self, BuildError> {
        Err(BuildError)
    }
    pub async fn run(self, _t: tokio_util::sync::CancellationToken) -> Result<(), RunError> {
        Ok(())
    }
}
