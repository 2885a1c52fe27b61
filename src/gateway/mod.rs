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
