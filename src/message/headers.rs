//! The names under which a message's stamps travel (R35): MQTT 5 user properties, AMQP headers, Kafka headers.

use super::{Envelope, Message, MessageId, Properties};
use crate::clock::WallMs;

/// What all stamps begin with.
pub const PREFIX: &str = "tg-";
/// The message id.
pub const ID: &str = "tg-id";
/// The link's sequence: shows gaps to one who receives the whole link (R11).
pub const SEQ: &str = "tg-seq";
/// The site that accepted the message first.
pub const SITE: &str = "tg-site";
/// The publisher's MQTT client id.
pub const CLIENT: &str = "tg-client";
/// The publisher's user name.
pub const USER: &str = "tg-user";
/// Event time, milliseconds since the epoch.
pub const TIME: &str = "tg-time";
/// The clock that [`TIME`] comes from was not synchronised; its value is `1`.
pub const TIME_UNSYNC: &str = "tg-time-unsync";
/// The sites passed, comma-separated, oldest first, at most [`PATH_SITES_MAX`].
pub const PATH: &str = "tg-path";
/// How many gateways were passed.
pub const HOPS: &str = "tg-hops";
/// The replay that sends the message again; it stays on the message over all hops, so that nobody drops it as a copy (R12).
pub const REPLAY: &str = "tg-replay";

/// The record was backlog when the link came back, and newer ones may have gone before it (R13); its value is `1`.
pub const BACKFILL: &str = "tg-backfill";

/// How many bridges of HiveMQ the message has passed; theirs stop it at their limit.
pub const HMQ_HOPS: &str = "hmq-bridge-hop-count";

/// R12: a message that has passed this many sites goes no further.
pub const PATH_SITES_MAX: usize = 16;

/// What a link says of one sending, beside what the message itself says.
#[derive(Clone, Copy, Debug)]
pub struct Sending<'a> {
    /// The link's sequence (R11).
    pub seq: &'a str,
    /// See [`BACKFILL`].
    pub backfill: bool,
}

/// The stamps of an envelope as it leaves `here` on a link.
#[must_use]
pub fn stamps(envelope: &Envelope, here: &str, sending: Sending<'_>) -> Vec<(&'static str, String)> {
    let message = &envelope.message;
    let id = format!("{}{}{}", message.id, part(message), own_part(envelope, here));
    let mut path = message.origin.path.iter().map(|site| &**site).collect::<Vec<_>>();
    path.push(here);
    let mut out = vec![(ID, id), (SEQ, sending.seq.to_owned()), (SITE, message.origin.site.to_string())];
    out.push((TIME, message.time.to_string()));
    if message.time_unsync {
        out.push((TIME_UNSYNC, "1".to_owned()));
    }
    out.push((PATH, path.join(",")));
    out.push((HOPS, message.origin.hops.saturating_add(1).to_string()));
    if sending.backfill {
        out.push((BACKFILL, "1".to_owned()));
    }
    if let Some(client_id) = &message.origin.client_id {
        out.push((CLIENT, client_id.to_string()));
    }
    if let Some(user) = &message.origin.user {
        out.push((USER, user.to_string()));
    }
    if let Some(id) = replay(message) {
        out.push((REPLAY, id.to_owned()));
    }
    out
}

/// Which part of its message this is, where a route here makes several of one (R11): `.2`, behind the id. What another gateway makes of a
/// message on its way names its site too (`.2@ship`), so that it is not taken for what the first one made.
fn own_part(envelope: &Envelope, here: &str) -> String {
    let is_first = envelope.message.origin.path.is_empty();
    match envelope.ordinal {
        0 => String::new(),
        ordinal if is_first => format!(".{ordinal}"),
        ordinal => format!(".{ordinal}@{here}"),
    }
}

/// Which part of its message it was when it came: what stands behind the id in its [`ID`]; empty as a rule.
#[must_use]
pub fn part(message: &Message) -> &str {
    let stamp = message.properties.user.iter().rev().find(|(name, _)| **name == *ID);
    let split = stamp.and_then(|(_, id)| split_id(id)).filter(|(id, _)| *id == message.id);
    split.map_or("", |(_, part)| part)
}

/// The replay that the message comes from, here or at an earlier gateway.
#[must_use]
pub fn replay(message: &Message) -> Option<&str> {
    message.properties.user.iter().find(|(name, _)| **name == *REPLAY).map(|(_, id)| &**id)
}

/// Marks a message as sent again by this replay.
pub fn mark_replay(message: &mut Message, id: &str) {
    message.properties.user.retain(|(name, _)| **name != *REPLAY);
    message.properties.user.push((REPLAY.into(), id.into()));
}

/// What [`HMQ_HOPS`] says, where the message has it.
#[must_use]
pub fn hmq_hops(message: &Message) -> Option<u32> {
    let count = message.properties.user.iter().find(|(name, _)| **name == *HMQ_HOPS);
    count.and_then(|(_, count)| count.parse().ok())
}

/// A message that a bridge of HiveMQ counts has passed one more. One that none has counted stays as it is: with a count that we begin, their bridges,
/// whose limit is 1 by default, would not take it any further.
pub fn count_hmq_hop(properties: &mut Properties) {
    for (_, count) in properties.user.iter_mut().filter(|(name, _)| **name == *HMQ_HOPS) {
        if let Ok(hops) = count.parse::<u32>() {
            *count = hops.saturating_add(1).to_string().into();
        }
    }
}

/// User properties without any stamps of an earlier hop: what a link sends on beside its own stamps.
pub fn unstamped(properties: &Properties) -> impl Iterator<Item = (&str, &str)> {
    properties.user.iter().map(|(name, value)| (&**name, &**value)).filter(|(name, _)| !name.starts_with(PREFIX))
}

/// Takes over the stamps that another gateway left in the user properties, where they read well; others are left
/// as plain properties. The message keeps its id, so that copies are known over any number of hops.
pub fn adopt(message: &mut Message) {
    let properties = std::mem::take(&mut message.properties.user);
    for (name, value) in &properties {
        match &**name {
            ID => adopt_id(message, value),
            SITE => message.origin.site = (&**value).into(),
            CLIENT => message.origin.client_id = Some((&**value).into()),
            USER => message.origin.user = Some((&**value).into()),
            TIME => adopt_time(message, value, properties.iter().any(|(name, _)| **name == *TIME_UNSYNC)),
            PATH => message.origin.path = value.split(',').filter(|site| !site.is_empty()).map(Into::into).collect(),
            HOPS => message.origin.hops = value.parse().unwrap_or(message.origin.hops),
            _ => {}
        }
    }
    message.properties.user = properties;
}

/// How far a time is to be trusted is known where it was taken.
fn adopt_time(message: &mut Message, value: &str, unsync: bool) {
    if let Ok(time) = value.parse() {
        (message.time, message.time_unsync) = (WallMs(time), unsync);
    }
}

/// A part behind the id (`.2`) is the copy's own, not of the id.
fn adopt_id(message: &mut Message, value: &str) {
    if let Some((id, _)) = split_id(value) {
        message.id = id;
    }
}

/// The id, and the part that stands behind it with its dot. A site may have dots too.
fn split_id(text: &str) -> Option<(MessageId, &str)> {
    let dots = text.match_indices('.').map(|(at, _)| at).chain([text.len()]);
    dots.filter_map(|at| text.split_at_checked(at)).find_map(|(id, part)| Some((id.parse().ok()?, part)))
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::message;
    use super::*;

    const LIVE: Sending<'_> = Sending { seq: "b1-0-7", backfill: false };

    #[test]
    fn r13_a_backfilled_record_says_so_on_this_link_alone() {
        let mut envelope = Envelope {
            destination: "a".into(),
            key: None,
            ordinal: 0,
            failure: None,
            batch: None,
            message: message("a", b""),
        };
        let backfilled = stamps(&envelope, "ship", Sending { backfill: true, ..LIVE });
        assert!(backfilled.contains(&(BACKFILL, "1".to_owned())), "{backfilled:?}");
        envelope.message.properties.user =
            backfilled.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        assert!(!stamps(&envelope, "ship", LIVE).iter().any(|(name, _)| *name == BACKFILL));
        assert_eq!(unstamped(&envelope.message.properties).count(), 0);
    }

    #[test]
    fn r11_the_id_survives_a_hop_and_the_path_grows() {
        let mut sent = message("a/b", b"x");
        sent.origin.path = vec!["mine".into()];
        let envelope = Envelope {
            destination: "a/b".into(),
            key: None,
            ordinal: 0,
            failure: None,
            batch: None,
            message: sent.clone(),
        };
        let mut received = message("a/b", b"x");
        received.properties.user =
            stamps(&envelope, "ship", LIVE).into_iter().map(|(n, v)| (n.into(), v.into())).collect();
        adopt(&mut received);
        assert_eq!(received.id, sent.id);
        assert_eq!(received.origin.path, vec!["mine".into(), Box::<str>::from("ship")]);
        assert_eq!(received.origin.hops, 1);
        assert_eq!(received.time, sent.time);
    }

    #[test]
    fn r35_a_time_that_was_not_synchronised_says_so_on_every_hop() {
        let sent = Message { time_unsync: true, ..message("a/b", b"x") };
        let envelope =
            Envelope { destination: "a/b".into(), key: None, ordinal: 0, failure: None, batch: None, message: sent };
        let stamps = stamps(&envelope, "ship", LIVE);
        assert!(stamps.contains(&(TIME_UNSYNC, "1".to_owned())), "{stamps:?}");
        let mut received = message("a/b", b"x");
        received.properties.user = stamps.into_iter().map(|(n, v)| (n.into(), v.into())).collect();
        adopt(&mut received);
        assert!(received.time_unsync);
        received.properties.user.retain(|(name, _)| **name != *TIME_UNSYNC);
        adopt(&mut received);
        assert!(!received.time_unsync, "of a clock that was right, by a gateway whose own is not");
    }

    #[test]
    fn r12_a_replay_is_marked_with_the_id_that_it_had_and_stays_marked_over_hops() {
        let mut sent = message("a/b", b"x");
        mark_replay(&mut sent, "r1");
        mark_replay(&mut sent, "r2");
        for site in ["ship", "shore"] {
            let envelope = Envelope {
                destination: "a/b".into(),
                key: None,
                ordinal: 0,
                failure: None,
                batch: None,
                message: sent.clone(),
            };
            let marks: Vec<_> = stamps(&envelope, site, LIVE);
            let ids: Vec<_> = marks.iter().filter(|(name, _)| [ID, REPLAY].contains(name)).cloned().collect();
            assert_eq!(ids, [(ID, message("a/b", b"x").id.to_string()), (REPLAY, "r2".to_owned())]);
            assert_eq!(unstamped(&sent.properties).count(), 0, "once");
            let mut received = message("a/b", b"x");
            received.properties.user = marks.into_iter().map(|(n, v)| (n.into(), v.into())).collect();
            adopt(&mut received);
            sent = received;
        }
    }

    #[test]
    fn r11_parts_are_told_apart_over_any_number_of_hops() {
        let hop = |message: &Message, ordinal, here: &str| {
            let message = message.clone();
            let envelope =
                Envelope { destination: "a".into(), key: None, ordinal, failure: None, batch: None, message };
            let mut received = super::super::tests_support::message("a", b"");
            received.properties.user =
                stamps(&envelope, here, LIVE).into_iter().map(|(name, value)| (name.into(), value.into())).collect();
            adopt(&mut received);
            received
        };
        let mut sent = message("a", b"");
        sent.id.site = "plant.7".into();
        let part = |message: &Message| part(message).to_owned();
        let (first, second) = (hop(&sent, 0, "plant.7"), hop(&sent, 1, "plant.7"));
        assert_eq!([part(&sent), part(&first), part(&second)], ["", "", ".1"]);
        assert_eq!((&first.id, &second.id), (&sent.id, &sent.id));
        let (third, fourth) = (hop(&first, 1, "ship.2"), hop(&second, 1, "ship.2"));
        assert_eq!([part(&third), part(&fourth)], [".1@ship.2", ".1.1@ship.2"]);
        let fifth = hop(&fourth, 0, "shore");
        assert_eq!((part(&fifth).as_str(), &fifth.id), (".1.1@ship.2", &sent.id));
        sent.properties.user = vec![(ID.into(), "other-00000000000000ab-1.5".into())];
        assert_eq!(part(&sent), "", "of another id");
    }

    #[test]
    fn a_count_of_hivemq_s_bridges_goes_on_and_none_is_begun() {
        let mut passed = message("a", b"");
        let property = |name: &str, value: &str| (Box::<str>::from(name), Box::<str>::from(value));
        passed.properties.user = vec![property("a", "1"), property(HMQ_HOPS, "1")];
        assert_eq!(hmq_hops(&passed), Some(1));
        count_hmq_hop(&mut passed.properties);
        assert_eq!(passed.properties.user, [property("a", "1"), property(HMQ_HOPS, "2")]);
        let mut other = message("a", b"");
        count_hmq_hop(&mut other.properties);
        assert_eq!((hmq_hops(&other), other.properties.user.len()), (None, 0));
        other.properties.user = vec![property(HMQ_HOPS, "many")];
        count_hmq_hop(&mut other.properties);
        assert_eq!(other.properties.user, [property(HMQ_HOPS, "many")]);
    }

    #[test]
    fn stamps_that_do_not_read_are_left_alone() {
        let mut received = message("a", b"");
        let before = received.clone();
        received.properties.user = vec![(ID.into(), "nonsense".into()), (TIME.into(), "soon".into())];
        adopt(&mut received);
        assert_eq!((received.id, received.time), (before.id, before.time));
    }
}
