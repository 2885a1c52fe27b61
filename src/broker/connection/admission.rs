//! Whether there is room for a client: by the limits of its listener when it arrives, by those of its user once that is known.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::super::limits::usage::{Arrival, UserHeld, Verdict, Why};
use super::super::limits::{self, UserLimits};
use super::End;
use crate::broker::Broker;
use crate::broker::places::Place;
use crate::broker::registry::Claim;
use crate::broker::transport::Peer;
use crate::units::ByteSize;
use crate::wire::ReasonCode;

/// What a connection holds of the limits of its listener and its user, until it ends.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    arrival: Option<Arrival>,
    connection: Option<UserHeld>,
    place: Option<Place>,
}

impl Holdings {
    pub(super) const fn new(arrival: Arrival, connection: Option<UserHeld>, place: Place) -> Self {
        Self { arrival: Some(arrival), connection, place: Some(place) }
    }

    /// It is no client any more, and is only told its last: another may come in its place. What it is told holds one of the places for
    /// that; where there is none left, it keeps its own so long.
    pub(super) fn leave(&mut self) -> Option<OwnedSemaphorePermit> {
        (self.arrival, self.connection) = (None, None);
        self.place.as_mut().and_then(Place::leave)
    }
}

impl Why {
    /// What the client is told.
    pub(super) const fn words(self) -> (ReasonCode, &'static str) {
        match self {
            Self::Address => (ReasonCode::QuotaExceeded, "there are too many connections from this address"),
            Self::Rate => (ReasonCode::ConnectionRateExceeded, "connections come too fast; try again later"),
        }
    }
}

impl Broker {
    /// Why all clients, or those of one listener, are ended.
    pub(super) fn farewell(&self) -> End {
        if self.is_stopping() {
            End::Told(ReasonCode::ServerShuttingDown, "the gateway is stopping".into())
        } else {
            End::Told(ReasonCode::AdministrativeAction, "its listener is gone, or another now".into())
        }
    }

    /// A connection has come. `None`: it is closed, too many that are to be told why are here already.
    pub(super) fn arrive(&self, peer: &Peer) -> Option<Arrival> {
        let own = &peer.listener.limits;
        if own.connections_per_address.is_none() && own.connection_rate.is_none() {
            return Some(Arrival::welcome());
        }
        // A listener lies where it lies for as long as clients of it are there.
        let listener = Arc::as_ptr(&peer.listener).addr();
        let arrivals = Arc::clone(self.arrivals.lock().entry(listener).or_default());
        let arrival = arrivals.arrive(own, peer.address.map(|address| address.ip()), self.clock.now());
        match arrival.verdict {
            Verdict::Welcome => {}
            Verdict::Told(why) => self.board.limited(why.name()),
            Verdict::Closed(why) => {
                self.board.limited(why.name());
                tracing::debug!(address = %peer, limit = why.name(), "a connection is closed at once");
                return None;
            }
        }
        Some(arrival)
    }

    /// Finds the limits of a client's user and takes what it is about to hold of them. `Err`: in words, what it has too many of.
    pub(super) fn take_up(&self, claim: &mut Claim) -> Result<Option<UserHeld>, String> {
        let user = claim.terms.user.clone();
        let user = user.as_ref();
        let rule: Option<Arc<UserLimits>> = {
            let groups = self.auth.load().groups_of(&claim.granted);
            limits::rule_of(&self.config.load().limits, user.map(|user| &**user), &groups)
        };
        let own = self.session_of(&claim.name, user);
        // It takes the place of the connection, or the session, that it has under this client id.
        let connections = rule.as_ref().and_then(|rule| rule.connections).filter(|_| !own.is_connected);
        let sessions = rule.as_ref().and_then(|rule| rule.sessions).filter(|_| !own.is_kept);
        let too_many = |limit: &'static str, what: &str, most: Option<usize>| {
            self.board.limited(limit);
            let whose =
                user.map_or_else(|| "anonymous clients have".to_owned(), |user| format!("the user `{user}` has"));
            format!("{whose} {} {what} already", most.unwrap_or_default())
        };
        let held = self.users.connection(user, connections);
        let held = held.ok_or_else(|| too_many("user_connections", "connections", connections))?;
        if claim.terms.kept {
            let session = self.users.session(user, sessions);
            let session = session.ok_or_else(|| too_many("user_sessions", "sessions that are kept", sessions))?;
            *claim.held.get_mut() = Some(session);
        }
        claim.limits = rule;
        Ok(Some(held))
    }

    /// The largest packet that a client may send: the smallest of all limits for it.
    pub(super) fn packet_bytes_max(&self, peer: &Peer, limits: Option<&UserLimits>) -> ByteSize {
        let others = [peer.listener.limits.packet_bytes_max, limits.and_then(|limits| limits.packet_bytes_max)];
        others.into_iter().flatten().fold(self.config.load().max_packet_size, ByteSize::min)
    }
}
