//! Who holds how much now. What is held is given back when its holder is dropped, however that comes.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::rate::Level;

/// Counts by key. Keys are chosen by clients, so the map keeps std's keyed hash.
#[derive(Debug)]
struct Counts<K>(Mutex<HashMap<K, usize>>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq + Clone> Counts<K> {
    /// `None`: it holds `most` already.
    fn take(self: &Arc<Self>, key: K, most: Option<usize>) -> Option<Held<K>> {
        let mut counts = self.0.lock();
        let count = counts.entry(key.clone()).or_default();
        if most.is_some_and(|most| *count >= most) {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Held { of: Arc::clone(self), key })
    }

    #[cfg(test)]
    fn count(&self, key: &K) -> usize {
        self.0.lock().get(key).copied().unwrap_or(0)
    }
}

/// One of what is counted.
#[derive(Debug)]
pub(in crate::broker) struct Held<K: Hash + Eq> {
    of: Arc<Counts<K>>,
    key: K,
}

impl<K: Hash + Eq> Held<K> {
    /// Whose it is.
    pub(in crate::broker) const fn key(&self) -> &K {
        &self.key
    }
}

impl<K: Hash + Eq> Drop for Held<K> {
    fn drop(&mut self) {
        let mut counts = self.of.0.lock();
        if let Some(count) = counts.get_mut(&self.key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

/// A user's connection or session; anonymous clients count as one user without a name.
pub(in crate::broker) type UserHeld = Held<Option<Arc<str>>>;

/// How far the messages and bytes of one client or user are ahead of their rates.
#[derive(Debug, Default)]
pub(in crate::broker) struct Levels {
    pub(in crate::broker) messages: Mutex<Level>,
    pub(in crate::broker) bytes: Mutex<Level>,
}

/// What the users hold.
#[derive(Debug, Default)]
pub(in crate::broker) struct Users {
    connections: Arc<Counts<Option<Arc<str>>>>,
    sessions: Arc<Counts<Option<Arc<str>>>>,
    levels: Mutex<HashMap<Option<Arc<str>>, Arc<Levels>>>,
}

impl Users {
    /// One more connection of a user, unless it has `most` already.
    pub(in crate::broker) fn connection(&self, user: Option<&Arc<str>>, most: Option<usize>) -> Option<UserHeld> {
        self.connections.take(user.cloned(), most)
    }

    /// One more kept session of a user, unless it has `most` already.
    pub(in crate::broker) fn session(&self, user: Option<&Arc<str>>, most: Option<usize>) -> Option<UserHeld> {
        self.sessions.take(user.cloned(), most)
    }

    /// The rates' levels that all connections of a user share.
    pub(in crate::broker) fn levels(&self, user: Option<&Arc<str>>) -> Arc<Levels> {
        Arc::clone(self.levels.lock().entry(user.cloned()).or_default())
    }

    /// Forgets the levels of who is not connected and not ahead any more: who comes back before has what it left.
    pub(in crate::broker) fn forget_idle(&self, now: Instant) {
        self.levels.lock().retain(|_, levels| {
            Arc::strong_count(levels) > 1 || !levels.messages.lock().is_spent(now) || !levels.bytes.lock().is_spent(now)
        });
    }
}

/// What is counted as one address: whoever has one IPv6 address has all of its /64.
pub(in crate::broker) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
    }
}

/// Connections from one address that are refused in words at a time; more are closed at once.
const TOLD_MAX: usize = 8;

/// What the clients of one listener hold.
#[derive(Debug, Default)]
pub(in crate::broker) struct Arrivals {
    addresses: Arc<Counts<IpAddr>>,
    told: Arc<Counts<IpAddr>>,
    new: Mutex<Level>,
}

/// A connection that has come.
#[derive(Debug)]
pub(in crate::broker) struct Arrival {
    pub(in crate::broker) verdict: Verdict,
    /// What it holds while it is there.
    _held: Option<Held<IpAddr>>,
}

/// What becomes of a connection that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::broker) enum Verdict {
    /// It is served.
    Welcome,
    /// It gets a CONNACK that says why not.
    Told(Why),
    /// It is closed: too many that are to be told are here already.
    Closed(Why),
}

impl Arrival {
    /// One that nothing limits.
    pub(in crate::broker) const fn welcome() -> Self {
        Self { verdict: Verdict::Welcome, _held: None }
    }
}

/// Why a connection is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::broker) enum Why {
    /// See [`super::ListenerLimits::connections_per_address`].
    Address,
    /// See [`super::ListenerLimits::connection_rate`].
    Rate,
}

impl Why {
    /// It is counted under this name.
    pub(in crate::broker) const fn name(self) -> &'static str {
        match self {
            Self::Address => "connections_per_address",
            Self::Rate => "connection_rate",
        }
    }
}

impl Arrivals {
    /// A connection from `address` has come; `None`: one without an address (a Unix socket).
    pub(in crate::broker) fn arrive(
        &self,
        limits: &super::ListenerLimits,
        address: Option<IpAddr>,
        now: Instant,
    ) -> Arrival {
        let address = address.map(network);
        let is_slow = limits.connection_rate.is_none_or(|rate| self.new.lock().admit(rate, 1, super::BURST, now));
        if !is_slow {
            return self.refuse(Why::Rate, address);
        }
        let (Some(most), Some(address)) = (limits.connections_per_address, address) else { return Arrival::welcome() };
        match self.addresses.take(address, Some(most)) {
            Some(held) => Arrival { verdict: Verdict::Welcome, _held: Some(held) },
            None => self.refuse(Why::Address, Some(address)),
        }
    }

    fn refuse(&self, why: Why, address: Option<IpAddr>) -> Arrival {
        let Some(address) = address else { return Arrival { verdict: Verdict::Told(why), _held: None } };
        let held = self.told.take(address, Some(TOLD_MAX));
        let verdict = if held.is_some() { Verdict::Told(why) } else { Verdict::Closed(why) };
        Arrival { verdict, _held: held }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::super::ListenerLimits;
    use super::*;
    use crate::units::Rate;

    #[test]
    fn what_is_held_counts_until_it_is_dropped_and_leaves_nothing_behind() {
        let users = Users::default();
        let anna: Arc<str> = "anna".into();
        let first = users.connection(Some(&anna), Some(2)).unwrap();
        let _second = users.connection(Some(&anna), Some(2)).unwrap();
        assert!(users.connection(Some(&anna), Some(2)).is_none());
        assert!(users.connection(None, Some(2)).is_some() && users.session(Some(&anna), Some(1)).is_some());
        drop(first);
        assert!(users.connection(Some(&anna), Some(2)).is_some());
        assert_eq!(users.connections.count(&Some(anna)), 1);
        assert_eq!((users.connections.0.lock().len(), users.sessions.0.lock().len()), (1, 0));
    }

    #[test]
    fn levels_are_shared_and_outlive_a_reconnect_until_they_are_spent() {
        let (users, now, rate) = (Users::default(), crate::clock::now(), Rate::parse_count("1/s").unwrap());
        let levels = users.levels(None);
        users.levels(None).messages.lock().spend(rate, 10, now);
        drop(levels);
        users.forget_idle(now);
        assert_eq!(users.levels(None).messages.lock().wait(Duration::ZERO, now), Some(Duration::from_secs(10)));
        users.forget_idle(now + Duration::from_secs(10));
        assert!(users.levels.lock().is_empty());
    }

    #[test]
    fn connections_of_one_address_and_new_ones_are_bounded_and_few_are_told() {
        let (arrivals, now) = (Arrivals::default(), crate::clock::now());
        let limits = ListenerLimits { connections_per_address: Some(2), ..ListenerLimits::unlimited() };
        let address = |last| Some(IpAddr::from(Ipv4Addr::new(10, 0, 0, last)));
        let arrive = |from| arrivals.arrive(&limits, from, now);
        let (first, second) = (arrive(address(1)), arrive(Some("::ffff:10.0.0.1".parse().unwrap())));
        assert_eq!((first.verdict, second.verdict), (Verdict::Welcome, Verdict::Welcome));
        let told: Vec<_> = (0..TOLD_MAX).map(|_| arrive(address(1))).collect();
        assert!(told.iter().all(|arrival| arrival.verdict == Verdict::Told(Why::Address)));
        assert_eq!(arrive(address(1)).verdict, Verdict::Closed(Why::Address));
        assert_eq!(arrive(address(2)).verdict, Verdict::Welcome);
        assert_eq!(arrive(None).verdict, Verdict::Welcome);
        let six = |text: &str| arrive(Some(text.parse().unwrap()));
        let _held = [six("2001:db8::1"), six("2001:db8::2:1")];
        assert_eq!(six("2001:db8::3").verdict, Verdict::Told(Why::Address), "of the same /64");
        assert_eq!(six("2001:db8:0:1::1").verdict, Verdict::Welcome);
        drop(second);
        assert_eq!(arrive(address(1)).verdict, Verdict::Welcome);
        drop(told);
        let limits = ListenerLimits { connection_rate: Rate::parse_count("3/s").ok(), ..limits };
        let arrived: Vec<_> = (0..4).map(|n| arrivals.arrive(&limits, address(n + 10), now)).collect();
        assert_eq!((arrived[2].verdict, arrived[3].verdict), (Verdict::Welcome, Verdict::Told(Why::Rate)));
        let later = now + Duration::from_millis(334);
        assert_eq!(arrivals.arrive(&limits, address(20), later).verdict, Verdict::Welcome);
    }
}
