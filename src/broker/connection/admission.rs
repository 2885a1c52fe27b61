//! Whether there is room for a client: by the limits of its listener when it arrives, by those of its user once that is known.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::super::limits::usage::{Arrival, TooMany, UserHeld, Verdict, Why};
use super::super::limits::{self, UserLimits};
use super::End;
use crate::broker::Broker;
use crate::broker::places::Place;
use crate::broker::registry::Claim;
use crate::broker::transport::Peer;
use crate::hub::OfferError;
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
            Self::Handshakes => (ReasonCode::ServerBusy, "too many connections from this address are not let in yet"),
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
        // A listener lies where it lies for as long as clients of it are there.
        let listener = Arc::as_ptr(&peer.listener).addr();
        let arrivals = Arc::clone(self.arrivals.lock().entry(listener).or_default());
        let (address, most) = (peer.address.map(|address| address.ip()), self.config.load().handshakes_max);
        let arrival = arrivals.arrive(own, address, most, self.clock.now());
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

    /// Finds the limits of a client's user and takes what it is about to hold of them, and of what all may have together. `Err`: in words,
    /// what there is too much of.
    pub(super) fn take_up(&self, claim: &mut Claim, peer: &Peer) -> Result<Option<UserHeld>, String> {
        let user = claim.terms.user.clone();
        let user = user.as_ref();
        let rule: Option<Arc<UserLimits>> = {
            let groups = self.auth.load().groups_of(&claim.granted);
            limits::rule_of(&self.config.load().limits, user.map(|user| &**user), &groups)
        };
        let own = self.session_of(&claim.name, user, &peer.listener);
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
            // One that is there already is gone on with, or gives its place to this one.
            let is_new = !own.is_there;
            if is_new && !self.store.has_room() {
                self.board.refused("store_full");
                return Err(OfferError::StoreFull.to_string());
            }
            let all = Some(self.config.load().sessions_max).filter(|_| is_new);
            let session = self.users.session(user, sessions, all).map_err(|of| match of {
                TooMany::Own => too_many("user_sessions", "sessions that are kept", sessions),
                TooMany::All => {
                    self.board.limited("sessions_max");
                    "as many sessions are kept as may be (`broker.sessions_max`)".to_owned()
                }
            })?;
            *claim.held.get_mut() = Some(session);
            let here = peer.listener.limits.sessions.filter(|_| !own.is_at_listener);
            let kept_at = self.users.session_at(&peer.listener, here).ok_or_else(|| {
                self.board.limited("listener_sessions");
                "this listener keeps as many sessions as it may (`limits.sessions`)".to_owned()
            })?;
            *claim.kept_at.get_mut() = Some(kept_at);
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
