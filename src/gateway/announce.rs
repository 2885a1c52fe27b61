//! `$SYS/tidegate/`: what the gateway says of itself to plain MQTT clients, above all the state of each link, retained and
//! changed at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Link, Shared};
use crate::router::LinkId;
use crate::telemetry::metrics::state_name;

/// A buffer that fails tells nobody by itself; it is looked at this often.
const LOOK: Duration = Duration::from_secs(1);

/// Publishes until `stop`.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    shared.broker.announce("$SYS/tidegate/version", env!("CARGO_PKG_VERSION")).await;
    shared.broker.announce("$SYS/tidegate/site", shared.site.to_string()).await;
    let mut said: BTreeMap<LinkId, &'static str> = BTreeMap::new();
    loop {
        let parts = shared.parts();
        for link in &parts.links {
            let state = state_name(link.status(shared.clock.moment()).state);
            if said.insert(link.config.id.clone(), state) != Some(state) {
                shared.broker.announce(&topic(&link.config.id), state).await;
            }
        }
        // Of a link that a reload took out nothing stays retained.
        let gone = |id: &LinkId| parts.links.iter().all(|link| link.config.id != *id);
        for id in said.keys().filter(|id| gone(id)).cloned().collect::<Vec<_>>() {
            said.remove(&id);
            shared.broker.announce(&topic(&id), "").await;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.links_changed.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

fn topic(link: &LinkId) -> String {
    format!("$SYS/tidegate/links/{link}/state")
}

impl Link {
    /// Has changes of its state noticed at once.
    pub(super) fn report_to(&self, notify: &Arc<tokio::sync::Notify>) {
        for half in [&self.sink, &self.source].into_iter().flatten() {
            half.report_to(Arc::clone(notify));
        }
    }
}
