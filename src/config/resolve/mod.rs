//! From what is written to what is meant: walks the raw tree once, reports every mistake, and fills the plain `Config`
//! structs of all parts with values that cannot be wrong.
//!
//! PURE but for what the caller passes in as [`Env`]: variables, files and the size of the disk.

mod auth;
mod batch;
mod broker;
mod buffer;
mod change;
mod drain;
mod gate;
mod identity;
mod limits;
mod link;
mod listener;
mod loops;
mod mqtt;
mod queues;
mod rate;
mod remote;
mod route;
mod secrets;
mod shadows;
mod sparkplug;
mod suite;
mod value;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use link::Draft;
pub(super) use secrets::filled;
pub(super) use value::beside;
pub(super) use value::listed;
use value::{Item, Section};

pub(super) use route::Draught;
pub(super) use suite::suite;

use super::diagnostic::Mistakes;
use super::keys;
use super::raw::{Entry, Node, Value};
use super::sites::{Sketch, Sketched};
use super::source::Place;
use crate::broker::Bind;
use crate::config::Env;
use crate::gateway::{Config, Outline, ReloadWhen};
use crate::telemetry::memory;
use crate::units::ByteSize;

/// Long enough for any host name's first label; short enough to stand in each message.
const SITE_BYTES_MAX: usize = 64;

/// `max_memory` where nobody can tell how much there is.
const MEMORY_UNKNOWN: ByteSize = ByteSize(256 << 20);

/// The walk's state: what it may ask, and what it has found.
#[derive(Debug)]
struct Resolver<'e> {
    env: &'e Env,
    mistakes: Mistakes,
    /// Not where `links` is no section, or a file of the folder could not be read: then every address would look wrong.
    links_are_known: bool,
    /// Not where an address of a route tells no link: it may be any.
    addresses_are_known: bool,
    /// Keys of sections whose own keys stand beside them, which has been reported.
    hollow: Vec<Place>,
    /// Secrets that were not looked up.
    unread: usize,
    /// What other sites' files are compared with; there once all has been looked at.
    sketch: Option<Sketch>,
}

impl<'e> Resolver<'e> {
    const fn new(env: &'e Env, mistakes: Mistakes) -> Self {
        let hollow = Vec::new();
        Self { env, mistakes, links_are_known: true, addresses_are_known: true, hollow, unread: 0, sketch: None }
    }
}

/// What one file, or folder of files, says. The configuration may be used only if no mistake is an error, and never if
/// secrets were not looked up.
///
/// `is_whole`: no file of the folder is missing, of which the others may speak.
pub(super) fn resolve(root: &Node, is_whole: bool, env: &Env, mistakes: Mistakes) -> Resolved {
    let mut resolver = Resolver::new(env, mistakes);
    (resolver.links_are_known, resolver.addresses_are_known) = (is_whole, is_whole);
    let config = resolver.gateway(root);
    Resolved { config, mistakes: resolver.mistakes, sketch: resolver.sketch }
}

/// What [`resolve`] answers.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) config: Option<Config>,
    pub(super) mistakes: Mistakes,
    pub(super) sketch: Option<Sketch>,
}

/// The data folder alone, whatever else is wrong; `None` where the file does not tell, nor all others of its folder.
pub(super) fn data_dir(root: &Node, is_whole: bool, env: &Env) -> Option<PathBuf> {
    let mut resolver = Resolver::new(env, Mistakes::default());
    let entry = top_entry(root);
    let top = resolver.section(&entry.item(), &keys::TOP);
    match top.get("data_dir") {
        Some(given) => resolver.path(Some(given)),
        None if top.is_wrong || !is_whole => None,
        None => Some(default_data_dir(&root.place)),
    }
}

/// The root has no key; what is missing in it is shown at its beginning.
fn top_entry(root: &Node) -> Entry {
    Entry { key: "the file".to_owned(), place: root.place.clone(), value: root.clone() }
}

pub(super) fn default_data_dir(root: &Place) -> PathBuf {
    beside(root, Path::new("tidegate-data"))
}

impl Resolver<'_> {
    fn gateway(&mut self, root: &Node) -> Option<Config> {
        let entry = top_entry(root);
        if matches!(root.value, Value::Scalar(_) | Value::List(_)) {
            let wrong = format!("the file needs keys with a `:` behind them, not {}", root.describe());
            let hint = "at its left margin `site:`, `data_dir:`, `broker:`, `links:` and `routes:` can stand";
            self.mistakes.error(&root.place, wrong, hint.to_owned());
            return None;
        }
        let top = self.section(&entry.item(), &keys::TOP);
        if root.is_empty() && self.links_are_known {
            let wrong = "nothing stands here: the gateway would be a broker on 127.0.0.1:1883 that routes nothing";
            self.mistakes.warning(&root.place, wrong, "files to start from are in routes/".to_owned());
        }
        let site = self.site(&top);
        let data_dir = self.data_dir(&top, &root.place);
        let choices = [("manual", ReloadWhen::Asked), ("watch", ReloadWhen::Changed)];
        let reload = self.choice(top.get("reload"), &choices).unwrap_or_default();
        let max_memory = self.max_memory(&top);
        let broker = self.broker(top.get("broker"), max_memory);
        let admin = self.admin(top.get("admin"), &broker.listeners);
        let mut links = self.links(top.get("links"), &data_dir);
        let routes = self.routes(top.get("routes"), &mut links);
        self.check_loops(&routes);
        self.check_shadows(&routes);
        self.check_room(&links, broker.max_packet_size);
        self.check_disk(&links, &data_dir);
        self.check_channels(&links);
        self.check_read_streams(&links);
        self.check_shares(&links);
        self.check_transactions(&links);
        self.check_new_names(&site, &links);
        self.check_drain(&routes, &links);
        self.check_sparkplug(&routes, &links);
        self.check_unused(&links);
        let given = top.get("site");
        let sketched =
            |draft: &Draft<'_>| Some(Sketched { place: draft.place.clone(), config: draft.known()?.clone() });
        self.sketch = Some(Sketch {
            path: root.place.source.path.clone(),
            site: given.as_ref().map(|_| Arc::clone(&site)),
            place: given.map_or_else(|| root.place.clone(), |item| item.place().clone()),
            listeners: broker.listeners.clone(),
            links: links.iter().filter_map(sketched).collect(),
            routes: routes.iter().filter(|route| route.is_right).cloned().collect(),
            is_whole: self.addresses_are_known && routes.iter().all(|route| route.is_right),
        });
        let links: Option<Vec<_>> = links.into_iter().map(|link| link.config).collect();
        let routes = routes.into_iter().map(|route| route.route).collect();
        let outline = Outline::default();
        Some(Config { site, data_dir, reload, broker, links: links?, routes, admin, max_memory, outline })
    }

    fn site(&mut self, top: &Section<'_>) -> Arc<str> {
        let Some(text) = self.text(top.get("site")) else {
            return self.env.host_name.as_str().into();
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if text.value.len() > SITE_BYTES_MAX || !text.value.chars().all(plain) {
            let wrong =
                format!("`{}` cannot name a site: up to {SITE_BYTES_MAX} letters, digits, `-`, `_`, `.`", text.shown());
            let hint = "it stands in the id of each message and in default client ids";
            self.mistakes.error(text.place(), wrong, hint.to_owned());
        }
        text.value.as_str().into()
    }

    fn data_dir(&mut self, top: &Section<'_>, root: &Place) -> PathBuf {
        self.path(top.get("data_dir")).unwrap_or_else(|| default_data_dir(root))
    }

    /// R36: a quarter of the machine's, where nothing is said.
    fn max_memory(&mut self, top: &Section<'_>) -> ByteSize {
        let default = self.env.memory_bytes.map_or(MEMORY_UNKNOWN, |all| ByteSize(all / 4)).max(memory::LEAST);
        let Some(item) = top.get("max_memory") else { return default };
        let place = item.place().clone();
        let Some(given) = self.size(Some(item), memory::LEAST..=ByteSize(1 << 50)) else { return default };
        if let Some(all) = self.env.memory_bytes.filter(|all| given.0 > *all) {
            let wrong =
                format!("`max_memory` is {given}, and there are {} of memory: it will never be reached", ByteSize(all));
            self.mistakes.warning(&place, wrong, format!("without the key it is {default}"));
        }
        given
    }

    fn admin(&mut self, item: Option<Item<'_>>, listeners: &[crate::broker::Listener]) -> Option<SocketAddr> {
        let section = self.section(&item?, &keys::ADMIN);
        let Some(bind) = section.get("bind") else {
            if section.is_wrong {
                return None;
            }
            self.mistakes.error(&section.place, "`admin` needs `bind`", "such as `bind: 127.0.0.1:9090`".to_owned());
            return None;
        };
        let addr = self.socket_addr(Some(bind.clone()))?;
        let (own, v6_only) = (Bind::Tcp(addr), self.env.v6_only);
        if let Some(first) = listeners.iter().find(|listener| listener.bind.collides(&own, v6_only)) {
            self.bound_twice(&bind, &own, &first.bind, "a listener of the broker");
        }
        if !addr.ip().is_loopback() {
            let wrong = format!("whoever reaches {addr} can read the state and the metrics: there is no login");
            self.mistakes.warning(bind.place(), wrong, "bind it to 127.0.0.1".to_owned());
        }
        Some(addr)
    }
}
