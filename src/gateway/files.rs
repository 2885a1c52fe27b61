//! Open files: what the system allows is raised to what the limits of clients need, as far as it may be (setrlimit(2)). A shell or a service
//! manager commonly allows 1,024 of some thousand more that may be asked for, and each connection is one.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

use crate::broker::Config;

/// Of links, segments that are read, listeners and the store.
const OTHERS: u64 = 1_024;

/// Makes room for as many connections as the limits of the broker let in, or says that there is none.
pub(super) fn allow(config: &Config) {
    let needed = needed(config);
    match raise(needed) {
        Ok(allowed) if allowed < needed => tracing::warn!(
            allowed,
            needed,
            "the system allows fewer open files than `broker.connections_max` and `handshakes_max` may need, and connections beyond them wait; raise the limit (`ulimit -Hn`, LimitNOFILE= of systemd), or lower those two"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the system does not say how many files may be open"),
    }
}

fn needed(config: &Config) -> rlim_t {
    let handshakes = config.handshakes_max.saturating_mul(config.listeners.len());
    u64::try_from(config.connections_max.saturating_add(handshakes)).unwrap_or(rlim_t::MAX).saturating_add(OTHERS)
}

/// To `needed`, or to what may be had of it: how many may be open now. It is never lowered.
fn raise(needed: rlim_t) -> nix::Result<rlim_t> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = needed.min(hard);
    if wanted <= soft {
        return Ok(soft);
    }
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connection_and_each_handshake_of_each_listener_is_a_file() {
        let config = Config { connections_max: 100, handshakes_max: 10, ..Config::default() };
        let listeners = config.listeners.len() as u64;
        assert_eq!(needed(&config), 100 + 10 * listeners + OTHERS);
        let most = Config { connections_max: usize::MAX, ..config };
        assert_eq!(needed(&most), rlim_t::MAX);
    }
}
