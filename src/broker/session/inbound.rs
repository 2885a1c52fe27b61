//! QoS 2 exchanges that the client began (R18). An id is in the set from its PUBLISH to its PUBREL; a PUBLISH whose id is
//! in the set is never delivered again.
//!
//! A message is delivered locally first, and to the links' logs after the store's commit. Between the two the exchange
//! is *unfinished*: if the connection goes there, the PUBLISH that comes again finishes it at the links only.

use std::collections::HashMap;
use std::sync::Arc;

use crate::message::Message;

/// The set. Keys are chosen by clients, so the map keeps std's keyed hash.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    exchanges: HashMap<u16, Exchange>,
}

#[derive(Debug, Default)]
struct Exchange {
    /// An offer to the hub, or its receipt, is under way in a connection.
    under_way: bool,
    /// Delivered locally; the store's position of that, where it was stored.
    delivered: Option<Option<u64>>,
    /// What the links may lack.
    message: Option<Arc<Message>>,
    finished: bool,
}

/// What a PUBLISH with an id means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// To be offered.
    New,
    /// Durable everywhere already: PUBREC again, nothing else.
    Finished,
    /// Being offered by this very connection: its PUBREC comes.
    UnderWay,
    /// Delivered locally, but a connection went before it was durable everywhere: to be offered again, under this
    /// message's id; the local half is not repeated.
    Interrupted(Arc<Message>),
}

impl Inbound {
    /// Takes up what the store kept: `unfinished` holds the message if links may lack it.
    pub(crate) fn restore(&mut self, id: u16, unfinished: Option<Arc<Message>>) {
        let finished = unfinished.is_none();
        let exchange = Exchange { under_way: false, delivered: Some(None), message: unfinished, finished };
        self.exchanges.insert(id, exchange);
    }

    /// A PUBLISH came.
    pub(crate) fn handle_publish(&mut self, id: u16) -> Arrived {
        let exchange = self.exchanges.entry(id).or_default();
        if exchange.finished {
            return Arrived::Finished;
        }
        if std::mem::replace(&mut exchange.under_way, true) {
            return Arrived::UnderWay;
        }
        match &exchange.message {
            Some(message) if exchange.delivered.is_some() => Arrived::Interrupted(Arc::clone(message)),
            _ => Arrived::New,
        }
    }

    /// Whether the local half of `id` is done; then the store's position of it, if it has one.
    pub(crate) fn delivered(&self, id: u16) -> Option<Option<u64>> {
        self.exchanges.get(&id).and_then(|exchange| exchange.delivered)
    }

    /// The local half of `id` is done.
    pub(crate) fn handle_delivered(&mut self, id: u16, message: Arc<Message>, position: Option<u64>) {
        let exchange = self.exchanges.entry(id).or_default();
        exchange.delivered = Some(position);
        exchange.message = Some(message);
    }

    /// It is durable everywhere: PUBREC goes.
    pub(crate) fn handle_durable(&mut self, id: u16) {
        if let Some(exchange) = self.exchanges.get_mut(&id) {
            *exchange = Exchange { finished: true, ..Exchange::default() };
        }
    }

    /// PUBREL came, or the exchange ended with an error: the id is free. Whether it was in the set.
    pub(crate) fn handle_end(&mut self, id: u16) -> bool {
        self.exchanges.remove(&id).is_some()
    }

    /// The connection is gone with what it had under way. What was not delivered anywhere is forgotten.
    pub(crate) fn handle_disconnect(&mut self) {
        self.exchanges.retain(|_, exchange| {
            exchange.under_way = false;
            exchange.finished || exchange.delivered.is_some()
        });
    }

    /// Whether an id is in the set.
    pub(crate) fn knows(&self, id: u16) -> bool {
        self.exchanges.contains_key(&id)
    }

    /// What links may lack, and no connection is about to give them.
    pub(crate) fn unfinished(&self) -> Vec<(u16, Arc<Message>)> {
        let open = self.exchanges.iter().filter(|(_, exchange)| !exchange.finished && !exchange.under_way);
        open.filter_map(|(id, exchange)| exchange.message.clone().map(|message| (*id, message))).collect()
    }

    /// Whether `id` is one of [`Inbound::unfinished`], with this very message.
    pub(crate) fn is_interrupted(&self, id: u16, message: &Arc<Message>) -> bool {
        self.is_unfinished(id, message) && self.exchanges.get(&id).is_some_and(|exchange| !exchange.under_way)
    }

    /// Whether links may lack this very message of `id`, though a connection may be about to give it to them.
    pub(crate) fn is_unfinished(&self, id: u16, message: &Arc<Message>) -> bool {
        self.exchanges.get(&id).is_some_and(|exchange| {
            !exchange.finished && exchange.message.as_ref().is_some_and(|held| Arc::ptr_eq(held, message))
        })
    }

    /// How many ids are in the set.
    pub(crate) fn len(&self) -> usize {
        self.exchanges.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::tests_support::message;

    #[test]
    fn r18_a_replayed_qos_2_publish_is_not_delivered_twice() {
        let mut inbound = Inbound::default();
        assert_eq!(inbound.handle_publish(7), Arrived::New);
        assert_eq!(inbound.handle_publish(7), Arrived::UnderWay);
        inbound.handle_delivered(7, Arc::new(message("a", b"x")), None);
        inbound.handle_durable(7);
        assert_eq!(inbound.handle_publish(7), Arrived::Finished);
        assert!(inbound.handle_end(7));
        assert_eq!(inbound.handle_publish(7), Arrived::New);
    }

    #[test]
    fn r18_an_interrupted_exchange_goes_on_under_the_id_of_its_message() {
        let mut inbound = Inbound::default();
        let sent = Arc::new(message("a", b"x"));
        assert_eq!(inbound.handle_publish(7), Arrived::New);
        inbound.handle_delivered(7, Arc::clone(&sent), Some(3));
        inbound.handle_disconnect();
        assert_eq!(inbound.delivered(7), Some(Some(3)));
        assert!(inbound.is_interrupted(7, &sent) && !inbound.is_interrupted(7, &Arc::new(message("a", b"x"))));
        assert_eq!(inbound.handle_publish(7), Arrived::Interrupted(Arc::clone(&sent)));
        assert!(!inbound.is_interrupted(7, &sent), "a connection has it");
        assert!(inbound.is_unfinished(7, &sent));
    }

    #[test]
    fn what_was_delivered_nowhere_is_new_when_it_comes_again() {
        let mut inbound = Inbound::default();
        inbound.handle_publish(7);
        inbound.handle_disconnect();
        assert_eq!(inbound.len(), 0);
        assert_eq!(inbound.handle_publish(7), Arrived::New);
    }

    #[test]
    fn r18_a_restart_keeps_finished_and_unfinished_exchanges_apart() {
        let mut inbound = Inbound::default();
        let sent = Arc::new(message("a", b"x"));
        inbound.restore(1, None);
        inbound.restore(2, Some(Arc::clone(&sent)));
        assert_eq!(inbound.handle_publish(1), Arrived::Finished);
        assert_eq!(inbound.handle_publish(2), Arrived::Interrupted(sent));
        assert!(inbound.handle_end(1));
        assert!(!inbound.handle_end(1));
    }
}
