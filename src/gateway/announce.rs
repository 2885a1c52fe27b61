//! `$SYS/tidegate/`: what the gateway says of itself to plain MQTT clients, above all the state of each link, retained and
//! changed at once.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Link, Shared};
use crate::telemetry::metrics::state_name;

/// A buffer that fails tells nobody by itself; it is looked at this often.
const LOOK: Duration = Duration::from_secs(1);

/// Publishes until `stop`.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    shared.broker.announce("$SYS/tidegate/version", env!("CARGO_PKG_VERSION")).await;
    shared.broker.announce("$SYS/tidegate/site", shared.site.to_string()).await;
    let mut said: Vec<Option<&'static str>> = vec![None; shared.links.len()];
    loop {
        for (link, said) in shared.links.iter().zip(&mut said) {
            let state = state_name(link.status(shared.clock.moment()).state);
            if said.replace(state) != Some(state) {
                let topic = format!("$SYS/tidegate/links/{}/state", link.config.id);
                shared.broker.announce(&topic, state).await;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.links_changed.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

impl Link {
    /// Has changes of its state noticed at once.
    pub(super) fn report_to(&self, notify: &Arc<tokio::sync::Notify>) {
        for half in [&self.sink, &self.source].into_iter().flatten() {
            half.report_to(Arc::clone(notify));
        }
    }
}
