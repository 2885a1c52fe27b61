//! Who holds how much now. What is held is given back when its holder is dropped, however that comes.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::rate::Level;
use crate::broker::Listener;

/// Counts by key, and in all. Keys are chosen by clients, so the map keeps std's keyed hash.
#[derive(Debug)]
struct Counts<K>(Mutex<Tally<K>>);

/// See [`Counts`].
#[derive(Debug)]
struct Tally<K> {
    by_key: HashMap<K, usize>,
    all: usize,
}

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), all: 0 }
    }
}

/// Of what there are too many already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::broker) enum TooMany {
    /// Of this one's.
    Own,
    /// Of all together.
    All,
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq + Clone> Counts<K> {
    /// `None`: it holds `most` already.
    fn take(self: &Arc<Self>, key: K, most: Option<usize>) -> Option<Held<K>> {
        self.take_of_all(key, most, None).ok()
    }

    /// One more, unless it holds `most` already, or all together hold `all`.
    fn take_of_all(self: &Arc<Self>, key: K, most: Option<usize>, all: Option<usize>) -> Result<Held<K>, TooMany> {
        let mut counts = self.0.lock();
        let count = counts.by_key.get(&key).copied().unwrap_or(0);
        if most.is_some_and(|most| count >= most) {
            return Err(TooMany::Own);
        }
        if all.is_some_and(|all| counts.all >= all) {
            return Err(TooMany::All);
        }
        counts.by_key.insert(key.clone(), count + 1);
        counts.all += 1;
        drop(counts);
        Ok(Held { of: Arc::clone(self), key })
    }

    #[cfg(test)]
    fn count(&self, key: &K) -> usize {
        self.0.lock().by_key.get(key).copied().unwrap_or(0)
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
        counts.all = counts.all.saturating_sub(1);
        if let Some(count) = counts.by_key.get_mut(&self.key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.by_key.remove(&self.key);
            }
        }
    }
}

/// A user's connection or session; anonymous clients count as one user without a name.
pub(in crate::broker) type UserHeld = Held<Option<Arc<str>>>;

/// Where a kept session came in last, as one of that listener's sessions.
#[derive(Debug)]
pub(in crate::broker) struct KeptAt {
    /// With the limits that count for it.
    pub(in crate::broker) listener: Arc<Listener>,
    held: Held<Arc<str>>,
}

impl KeptAt {
    /// The listener, as `bind` has it.
    pub(in crate::broker) const fn name(&self) -> &Arc<str> {
        self.held.key()
    }
}

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
    /// By the listener.
    kept_at: Arc<Counts<Arc<str>>>,
    levels: Mutex<HashMap<Option<Arc<str>>, Arc<Levels>>>,
}

impl Users {
    /// One more connection of a user, unless it has `most` already.
    pub(in crate::broker) fn connection(&self, user: Option<&Arc<str>>, most: Option<usize>) -> Option<UserHeld> {
        self.connections.take(user.cloned(), most)
    }

    /// One more kept session of a user, unless it has `most` already, or there are `all`.
    pub(in crate::broker) fn session(
        &self,
        user: Option<&Arc<str>>,
        most: Option<usize>,
        all: Option<usize>,
    ) -> Result<UserHeld, TooMany> {
        self.sessions.take_of_all(user.cloned(), most, all)
    }

    /// One more kept session of those that came in at a listener, unless there are `most` already.
    pub(in crate::broker) fn session_at(&self, listener: &Arc<Listener>, most: Option<usize>) -> Option<KeptAt> {
        let held = self.kept_at.take(listener.bind.to_string().into(), most)?;
        Some(KeptAt { listener: Arc::clone(listener), held })
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
    /// Those that are not let in yet.
    unfinished: Arc<Counts<IpAddr>>,
    told: Arc<Counts<IpAddr>>,
    new: Mutex<Level>,
}

/// A connection that has come.
#[derive(Debug)]
pub(in crate::broker) struct Arrival {
    pub(in crate::broker) verdict: Verdict,
    /// What it holds while it is there.
    _held: Option<Held<IpAddr>>,
    /// What it holds until it is let in.
    unfinished: Option<Box<Held<IpAddr>>>,
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
    /// It is let in: another may be under way in its place.
    pub(in crate::broker) fn enter(&mut self) {
        self.unfinished = None;
    }
}

/// Why a connection is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::broker) enum Why {
    /// See [`super::ListenerLimits::connections_per_address`].
    Address,
    /// See [`super::ListenerLimits::connection_rate`].
    Rate,
    /// See [`super::ListenerLimits::handshakes_per_address`].
    Handshakes,
}

impl Why {
    /// It is counted under this name.
    pub(in crate::broker) const fn name(self) -> &'static str {
        match self {
            Self::Address => "connections_per_address",
            Self::Rate => "connection_rate",
            Self::Handshakes => "handshakes_per_address",
        }
    }
}

impl Arrivals {
    /// A connection from `address` has come; `None`: one without an address (a Unix socket). `handshakes_max`: of all addresses.
    pub(in crate::broker) fn arrive(
        &self,
        limits: &super::ListenerLimits,
        address: Option<IpAddr>,
        handshakes_max: usize,
        now: Instant,
    ) -> Arrival {
        let address = address.map(network);
        let is_slow = limits.connection_rate.is_none_or(|rate| self.new.lock().admit(rate, 1, super::BURST, now));
        if !is_slow {
            return self.refuse(Why::Rate, address);
        }
        let welcome = |held, unfinished| Arrival { verdict: Verdict::Welcome, _held: held, unfinished };
        let Some(address) = address else { return welcome(None, None) };
        let Some(unfinished) = self.unfinished.take(address, handshakes_of(limits, address, handshakes_max)) else {
            return self.refuse(Why::Handshakes, Some(address));
        };
        let unfinished = Some(Box::new(unfinished));
        match limits.connections_per_address.map(|most| self.addresses.take(address, Some(most))) {
            None => welcome(None, unfinished),
            Some(Some(held)) => welcome(Some(held), unfinished),
            Some(None) => self.refuse(Why::Address, Some(address)),
        }
    }

    fn refuse(&self, why: Why, address: Option<IpAddr>) -> Arrival {
        let Some(address) = address else {
            return Arrival { verdict: Verdict::Told(why), _held: None, unfinished: None };
        };
        let held = self.told.take(address, Some(TOLD_MAX));
        let verdict = if held.is_some() { Verdict::Told(why) } else { Verdict::Closed(why) };
        Arrival { verdict, _held: held, unfinished: None }
    }
}

/// How many connections from one address may be under way. Where nothing is said it is a quarter of all, but for this machine itself:
/// a proxy here brings everybody's.
fn handshakes_of(limits: &super::ListenerLimits, address: IpAddr, handshakes_max: usize) -> Option<usize> {
    let share = Some((handshakes_max / 4).max(1)).filter(|_| !address.is_loopback());
    limits.handshakes_per_address.or(share)
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
        assert!(users.connection(None, Some(2)).is_some() && users.session(Some(&anna), Some(1), Some(1)).is_ok());
        drop(first);
        assert!(users.connection(Some(&anna), Some(2)).is_some());
        assert_eq!(users.connections.count(&Some(anna)), 1);
        assert_eq!((users.connections.0.lock().by_key.len(), users.sessions.0.lock().by_key.len()), (1, 0));
        let ben = users.session(None, Some(1), Some(1)).unwrap();
        assert_eq!(users.session(None, Some(1), Some(1)).unwrap_err(), TooMany::Own);
        assert_eq!(users.session(Some(&"ben".into()), Some(1), Some(1)).unwrap_err(), TooMany::All);
        drop(ben);
        assert_eq!(users.sessions.0.lock().all, 0);
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
        let arrive = |from| arrivals.arrive(&limits, from, 400, now);
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
        let arrived: Vec<_> = (0..4).map(|n| arrivals.arrive(&limits, address(n + 10), 400, now)).collect();
        assert_eq!((arrived[2].verdict, arrived[3].verdict), (Verdict::Welcome, Verdict::Told(Why::Rate)));
        let later = now + Duration::from_millis(334);
        assert_eq!(arrivals.arrive(&limits, address(20), 400, later).verdict, Verdict::Welcome);
    }

    #[test]
    fn one_address_may_have_a_quarter_of_the_connections_that_are_under_way_and_this_machine_all() {
        let (arrivals, now) = (Arrivals::default(), crate::clock::now());
        let (limits, address) = (ListenerLimits::unlimited(), |last| Some(IpAddr::from(Ipv4Addr::new(10, 0, 0, last))));
        let arrive = |limits: &ListenerLimits, from| arrivals.arrive(limits, from, 8, now);
        let mut two = [arrive(&limits, address(1)), arrive(&limits, address(1))];
        let third = arrive(&limits, address(1));
        assert_eq!((two[1].verdict, third.verdict), (Verdict::Welcome, Verdict::Told(Why::Handshakes)));
        assert_eq!(arrive(&limits, address(2)).verdict, Verdict::Welcome);
        two[0].enter();
        assert_eq!(arrive(&limits, address(1)).verdict, Verdict::Welcome, "who is let in makes room");
        let own: Vec<_> = (0..20).map(|_| arrive(&limits, Some(Ipv4Addr::LOCALHOST.into())).verdict).collect();
        assert!(own.iter().all(|verdict| *verdict == Verdict::Welcome));
        let strict = ListenerLimits { handshakes_per_address: Some(1), ..limits };
        let _one = arrive(&strict, Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(arrive(&strict, Some(Ipv4Addr::LOCALHOST.into())).verdict, Verdict::Told(Why::Handshakes));
        drop((two, third));
    }
}
