//! What is to be done with a message: which local topics, which links. Pure.
//!
//! A route may lead to the built-in broker, and what is published there is matched against the routes that begin at the
//! broker, as a client's publish would be. That chain is followed at most [`CHAIN_MAX`] times, takes each local topic
//! once, and never leads back to the link that the message came from: what a remote sent us is not echoed to it.

use super::Source;
use crate::message::Message;
use crate::router::{Arrival, Endpoint, LinkId, Table};
use crate::topic::TopicName;

/// Routes behind routes that are followed for one message. More than two levels are hard to follow for people too; a cycle
/// of templates that grow (`{rest}/x`) ends here.
const CHAIN_MAX: usize = 8;

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Topics to deliver to the broker's subscribers: for a client's publish its own topic first.
    pub(super) local_topics: Vec<TopicName>,
    /// Records to append.
    pub(super) links: Vec<LinkTarget>,
}

/// One record for one link.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LinkTarget {
    pub(super) link: LinkId,
    pub(super) destination: String,
    pub(super) key: Option<String>,
    /// Counts the records that one message makes for one link.
    pub(super) ordinal: u16,
}

/// Follows the routes for `message` from `source`.
pub(super) fn plan(table: &Table, source: &Source, message: &Message) -> Plan {
    let mut plan = Plan::default();
    if source.from == Endpoint::Broker {
        plan.local_topics.push(message.topic.clone());
    }
    let first = Arrival { from: &source.from, channel: source.channel.as_deref(), topic: message.topic.as_str() };
    let mut topics = follow(table, first, source, false, &mut plan);
    for _ in 0..CHAIN_MAX {
        let mut next = Vec::new();
        for topic in topics {
            let arrival = Arrival { from: &Endpoint::Broker, channel: None, topic: topic.as_str() };
            next.extend(follow(table, arrival, source, true, &mut plan));
        }
        if next.is_empty() {
            break;
        }
        topics = next;
    }
    plan
}

/// Applies the routes that match one arrival; answers the local topics that were new.
fn follow(table: &Table, arrival: Arrival<'_>, source: &Source, chained: bool, plan: &mut Plan) -> Vec<TopicName> {
    let mut new_topics = Vec::new();
    for decision in table.route(arrival) {
        match decision.target {
            Endpoint::Broker => match TopicName::new(&decision.destination) {
                Ok(topic) if plan.local_topics.contains(&topic) => {}
                Ok(topic) => {
                    plan.local_topics.push(topic.clone());
                    new_topics.push(topic);
                }
                // A capture of a valid topic in a checked template can only become too long.
                Err(error) => {
                    tracing::warn!(route = %decision.route, topic = decision.destination, %error, "not delivered locally")
                }
            },
            Endpoint::Link(link) if chained && source.from == Endpoint::Link(link.clone()) => {}
            Endpoint::Link(link) => {
                let earlier = plan.links.iter().filter(|target| target.link == link).count();
                let ordinal = u16::try_from(earlier).unwrap_or(u16::MAX);
                plan.links.push(LinkTarget { link, destination: decision.destination, key: decision.key, ordinal });
            }
        }
    }
    new_topics
}
