//! Which records of an unfinished QoS 2 exchange are in which logs already (R18, R25).
//!
//! The broker's store notes with each exchange how far the logs were durable that its message is about to be appended to; a link that subscribes
//! with QoS 2 notes it of all logs. The append comes after that is on disk, so the record, if there is one, lies behind that: after a kill only that stretch is read. The end of the logs would
//! not do: a kill takes back what is not durable, and what is then appended anew would lie before it. A log is known by
//! its own id, since by then its link may have another name (R34).

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};

use super::plan::LinkTarget;
use super::{Hub, Mark};
use crate::buffer::{Buffer, Lane, Lanes, Offset};
use crate::message::{Envelope, Message, MessageId, headers};
use crate::router::LinkId;

/// Records and bytes that are read at a time.
const READ_RECORDS: usize = 256;

/// See [`READ_RECORDS`].
const READ_BYTES: usize = 1 << 20;

/// Where the record of a message is to be looked for in the logs that it is about to be appended to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tails(Vec<Tail>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Tail {
    lane: Lane,
    end: Offset,
    /// The link's name then.
    link: LinkId,
    /// The log's id; earlier programs did not note it.
    log: Option<Box<str>>,
}

impl Tails {
    pub(super) fn note(&mut self, link: LinkId, lane: Lane, log: &Buffer) {
        self.0.push(Tail { lane, end: log.durable(), link, log: Some(log.id().into()) });
    }

    /// What was noted of them first holds: adds those logs alone that are not among these.
    pub fn add(&mut self, later: &Self) {
        let known: FxHashSet<_> = self.0.iter().map(|tail| tail.log.clone()).collect();
        self.0.extend(later.0.iter().filter(|tail| !known.contains(&tail.log)).cloned());
    }

    /// As text: a line each, lane, offset, link, log.
    #[must_use]
    pub fn encode(&self) -> String {
        let line = |Tail { lane, end, link, log }: &Tail| match log {
            Some(log) => format!("{} {} {link} {log}\n", lane.name(), end.0),
            None => format!("{} {} {link}\n", lane.name(), end.0),
        };
        self.0.iter().map(line).collect()
    }

    /// From what [`Tails::encode`] made. A line that is none is left out: then that log is not looked into, and its record is at
    /// worst appended twice.
    #[must_use]
    pub fn decode(text: &str) -> Self {
        let line = |line: &str| {
            let mut parts = line.split(' ');
            let lane = Lane::named(parts.next()?)?;
            let end = Offset(parts.next()?.parse().ok()?);
            Some(Tail { lane, end, link: LinkId::new(parts.next()?), log: parts.next().map(Into::into) })
        };
        Self(text.lines().filter_map(line).collect())
    }
}

/// What [`Hub::find`] found.
///
/// A record's ordinal tells it from others of its message only as long as the routes are the same, and between the append and now they may have
/// changed. So what counts is what the record says; among those that say the same, how many there are.
#[derive(Clone, Debug, Default)]
pub struct Logged(FxHashMap<Key, BTreeMap<u16, (Mark, Offset)>>);

/// Records that say the same: the id of their link's buffer, of which part of which message they are, and their [`likeness`].
type Key = (Box<str>, MessageId, Box<str>, u32);

impl Logged {
    /// Takes out those targets of a message whose records are in the logs. Answers the records: what becomes durable when.
    pub(super) fn take(
        &self,
        message: &Message,
        targets: &mut Vec<LinkTarget>,
        buffers: &FxHashMap<LinkId, Lanes>,
    ) -> Vec<(Mark, Offset)> {
        let mut taken = Vec::new();
        // Nothing was found as a rule.
        if self.0.is_empty() {
            return taken;
        }
        let mut like: FxHashMap<Key, usize> = FxHashMap::default();
        targets.retain(|target| {
            let made = target.message.as_deref().unwrap_or(message);
            let likeness = likeness(&target.destination, target.key.as_ref().map(|key| key.as_str()), &made.payload);
            let Some(lanes) = buffers.get(&target.link) else { return true };
            let key = (lanes.id().into(), message.id.clone(), headers::part(message).into(), likeness);
            let records = self.0.get(&key);
            let earlier = like.entry(key).or_default();
            let found = records.and_then(|records| records.values().nth(*earlier)).cloned();
            *earlier += 1;
            let is_wanted = found.is_none();
            taken.extend(found);
            is_wanted
        });
        taken
    }
}

/// A checksum of what a remote gets to see.
fn likeness(destination: &str, key: Option<&str>, payload: &[u8]) -> u32 {
    let parts = [destination.as_bytes(), b"\0", key.unwrap_or_default().as_bytes(), b"\0", payload];
    parts.into_iter().fold(0, crc32c::crc32c_append)
}

impl Hub {
    /// How far all logs are durable: what is offered from now on lies behind.
    #[must_use]
    pub fn tails(&self) -> Tails {
        let mut tails = Tails::default();
        for (link, lanes) in &self.targets.load().buffers {
            lanes.iter().for_each(|(lane, log)| tails.note(link.clone(), lane, log));
        }
        tails
    }

    /// Looks for the records of these messages in the logs, from where each may be. A log that cannot be read is said, and counts as
    /// one without them: twice is better than never.
    pub async fn find(&self, wanted: &[(MessageId, Tails)]) -> Logged {
        let ids: FxHashSet<&MessageId> = wanted.iter().map(|(id, _)| id).collect();
        let (mut logged, targets) = (Logged::default(), self.targets.load_full());
        let logs =
            || targets.buffers.iter().flat_map(|(link, lanes)| lanes.iter().map(move |(_, log)| (link, lanes, log)));
        let by_id: FxHashMap<_, _> = logs().map(|(link, lanes, log)| (log.id(), (link, lanes, log))).collect();
        let mut from: FxHashMap<&str, Offset> = FxHashMap::default();
        for Tail { lane, end, link, log } in wanted.iter().flat_map(|(_, tails)| &tails.0) {
            let by_name = || targets.buffers.get(link).map(|lanes| lanes.lane(*lane).id());
            let Some(log) = log.as_deref().map_or_else(by_name, Some) else { continue };
            let first = from.entry(log).or_insert(*end);
            *first = (*first).min(*end);
        }
        for (id, first) in from {
            let Some((link, lanes, buffer)) = by_id.get(id) else { continue };
            let mut history = buffer.history(first, Offset(u64::MAX));
            loop {
                let records = match history.next(READ_RECORDS, READ_BYTES).await {
                    Ok(records) if records.is_empty() => break,
                    Ok(records) => records,
                    Err(error) => {
                        tracing::warn!(link = %link, %error, "a log cannot be read for unfinished QoS 2 exchanges: what is in it may come twice");
                        break;
                    }
                };
                for record in records {
                    let Ok(envelope) = Envelope::decode(record.body) else { continue };
                    if ids.contains(&envelope.message.id) {
                        let part = headers::part(&envelope.message).into();
                        let payload = &envelope.message.payload;
                        let like = likeness(&envelope.destination, envelope.key.as_deref(), payload);
                        let records = logged.0.entry((lanes.id().into(), envelope.message.id, part, like)).or_default();
                        records.insert(envelope.ordinal, (buffer.mark(), record.offset));
                    }
                }
            }
        }
        logged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_read_back_as_they_were_written_and_leave_out_what_is_none() {
        let mut tails = Tails::default();
        let tail = |lane, end, link, log: Option<&str>| Tail {
            lane,
            end: Offset(end),
            link: LinkId::new(link),
            log: log.map(Into::into),
        };
        tails.0.push(tail(Lane::High, 7, "cloud", Some("1a2b3c4d")));
        tails.0.push(tail(Lane::Normal, u64::MAX, "lake", None));
        assert_eq!(tails.encode(), "high 7 cloud 1a2b3c4d\nnormal 18446744073709551615 lake\n");
        assert_eq!(Tails::decode(&tails.encode()), tails);
        assert_eq!(Tails::decode("middle 7 x\nhigh -1 x\nhigh\n\n"), Tails::default());
        assert_eq!(Tails::decode(""), Tails::default());
    }
}
