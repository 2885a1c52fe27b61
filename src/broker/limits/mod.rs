//! What a listener's clients, and a user's clients together, may take: connections, sessions, rates, sizes.
//!
//! - [`rate`]: a rate as arithmetic on time. PURE.
//! - [`usage`]: who holds how much now: counted, and given back when its holder is dropped.
//!
//! Here are the settings, and which of them are a client's own.

pub(super) mod rate;
pub(super) mod usage;

use std::sync::Arc;
use std::time::Duration;

use super::auth::acl::Glob;
use crate::units::{ByteSize, Rate};

/// What comes at once, by default, in the time that the rate gives it.
pub const BURST: Duration = Duration::from_secs(1);

/// What becomes of who sends faster than its rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OverRate {
    /// It is not read for as long as it is ahead: nothing is lost, TCP holds it back.
    #[default]
    Delay,
    /// MQTT 5 gets reason 0x97 for each message that is too many, MQTT 3.x is closed; QoS 0 is dropped, counted.
    Refuse,
    /// Its connection is ended (MQTT 5: reason 0x96).
    Disconnect,
}

/// How fast, and what then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// PUBLISH packets.
    pub messages: Option<Rate>,
    /// Bytes read from the client, packets of all kinds.
    pub bytes: Option<Rate>,
    /// So much of both may come at once, in the time that they take. Default [`BURST`].
    pub burst: Duration,
    /// Default: it is not read for a while.
    pub over: OverRate,
}

impl Rates {
    const UNLIMITED: Self = Self { messages: None, bytes: None, burst: BURST, over: OverRate::Delay };
}

impl Default for Rates {
    fn default() -> Self {
        Self::UNLIMITED
    }
}

/// What the clients of one listener may take. Rates and sizes are for each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerLimits {
    /// Connections at a time; others wait in the system's queue. Default: `connections_max` of the broker alone counts.
    pub connections: Option<usize>,
    /// Connections at a time from one address. Default: no limit.
    pub connections_per_address: Option<usize>,
    /// Connections from one address that are not let in yet. Default: a quarter of `handshakes_max`, but for this machine itself.
    pub handshakes_per_address: Option<usize>,
    /// New connections. Default: no limit.
    pub connection_rate: Option<Rate>,
    /// Default: no limit.
    pub rates: Rates,
    /// Default: `max_packet_size` of the broker.
    pub packet_bytes_max: Option<ByteSize>,
    /// Sessions that are kept, connected or not, of those that came in here last. Default: `sessions_max` of the broker alone counts.
    pub sessions: Option<usize>,
    /// Messages owed to each of them. Default: `session_messages_max` of the broker.
    pub session_messages_max: Option<u64>,
    /// Their bytes. Default: `session_bytes_max` of the broker.
    pub session_bytes_max: Option<ByteSize>,
}

impl ListenerLimits {
    /// None of its own.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self {
            connections: None,
            connections_per_address: None,
            handshakes_per_address: None,
            connection_rate: None,
            rates: Rates::UNLIMITED,
            packet_bytes_max: None,
            sessions: None,
            session_messages_max: None,
            session_bytes_max: None,
        }
    }
}

/// Whose limits they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// Users whose name fits.
    User(Glob),
    /// Users who are in this group.
    Group(Box<str>),
    /// Clients that gave no name.
    Anonymous,
}

/// What one user may take, over all of its connections together. The first rule that fits counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserLimits {
    /// Whose.
    pub whom: Whom,
    /// Connections at a time. Default: no limit.
    pub connections: Option<usize>,
    /// Sessions that are kept, connected or not. Default: no limit.
    pub sessions: Option<usize>,
    /// Default: no limit.
    pub rates: Rates,
    /// Default: that of the listener or the broker; the smallest counts.
    pub packet_bytes_max: Option<ByteSize>,
    /// Messages owed to each of its sessions. Default: that of the listener or the broker; of the two first the smallest counts.
    pub session_messages_max: Option<u64>,
    /// Their bytes. Default: likewise.
    pub session_bytes_max: Option<ByteSize>,
}

impl UserLimits {
    /// Nothing but for whom.
    #[must_use]
    pub fn of(whom: Whom) -> Self {
        Self {
            whom,
            connections: None,
            sessions: None,
            rates: Rates::default(),
            packet_bytes_max: None,
            session_messages_max: None,
            session_bytes_max: None,
        }
    }

    fn fits(&self, user: Option<&str>, groups: &[Arc<str>]) -> bool {
        match (&self.whom, user) {
            (Whom::User(names), Some(user)) => names.matches(user),
            (Whom::Group(group), Some(_)) => groups.iter().any(|other| **other == **group),
            (Whom::Anonymous, user) => user.is_none(),
            (Whom::User(_) | Whom::Group(_), None) => false,
        }
    }
}

/// The first rule that fits.
pub(super) fn rule_of(rules: &[Arc<UserLimits>], user: Option<&str>, groups: &[Arc<str>]) -> Option<Arc<UserLimits>> {
    rules.iter().find(|rule| rule.fits(user, groups)).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_fits_counts_and_who_gave_no_name_is_no_user() {
        let rule = |whom, connections| Arc::new(UserLimits { connections: Some(connections), ..UserLimits::of(whom) });
        let rules = [
            rule(Whom::Group("operators".into()), 1),
            rule(Whom::User(Glob::like("press-*")), 2),
            rule(Whom::Anonymous, 3),
            rule(Whom::User(Glob::like("*")), 4),
        ];
        let operators = ["operators".into()];
        for (user, groups, connections) in [
            (Some("anna"), &operators[..], Some(1)),
            (Some("press-1"), &operators, Some(1)),
            (Some("press-1"), &[], Some(2)),
            (None, &[], Some(3)),
            (Some("anna"), &[], Some(4)),
        ] {
            let rule = rule_of(&rules, user, groups);
            assert_eq!(rule.and_then(|rule| rule.connections), connections, "{user:?}");
        }
        assert!(rule_of(&rules[..2], None, &[]).is_none());
    }
}
