//! Which messages came round, and go no further (R12).

use std::sync::Arc;

use crate::message::{Message, headers};

/// Why a message goes no further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Looped {
    #[error("it has passed this site before: `tg-path` names `{0}`")]
    Back(Arc<str>),
    #[error("it has passed {0} gateways or bridges (`tg-path`, `hmq-bridge-hop-count`), and goes no further than {max}", max = headers::PATH_SITES_MAX)]
    Far(usize),
}

/// What stops `message` at the gateway of this site.
pub(super) fn looped(message: &Message, site: &Arc<str>) -> Option<Looped> {
    let path = &message.origin.path;
    if path.iter().any(|passed| **passed == **site) {
        return Some(Looped::Back(Arc::clone(site)));
    }
    let bridges = usize::try_from(headers::hmq_hops(message).unwrap_or(0)).unwrap_or(usize::MAX);
    let hops = path.len().max(bridges);
    (hops >= headers::PATH_SITES_MAX).then_some(Looped::Far(hops))
}
