//! SQL to rows. What does not read back is skipped and counted, never fatal.

use std::sync::Arc;

use rusqlite::{Connection, Row};

use super::apply::number;
use super::{Page, SessionId, codec};
use crate::clock::{Moment, WallMs};
use crate::hub::{HeldRow, KeptPage, OriginKey, Tails};
use crate::message::{Message, Qos};
use crate::topic::TopicName;

/// A session's own row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SessionRow {
    /// Its number.
    pub(crate) id: SessionId,
    /// The client id.
    pub(crate) client: Arc<str>,
    /// Protocol level: 3, 4 or 5.
    pub(crate) version: u8,
    /// Whether anything but the will outlives the connection.
    pub(crate) kept: bool,
    /// Seconds; `u32::MAX`: never.
    pub(crate) expiry_s: u32,
    /// When its connection ended; `None`: it is connected (or was at a SIGKILL).
    pub(crate) ended: Option<Moment>,
    /// User name.
    pub(crate) user: Option<Arc<str>>,
    /// What to publish when the client is lost.
    pub(crate) will: Option<Arc<Message>>,
    /// How long after.
    pub(crate) will_delay_s: u32,
    /// Where a kept one came in last, as `bind` has it.
    pub(crate) listener: Option<Arc<str>>,
}

/// A subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SubscriptionRow {
    /// As the client wrote it, `$share/..` included.
    pub(crate) filter: Arc<str>,
    /// The options byte of MQTT 5.0 section 3.8.3.1.
    pub(crate) options: u8,
    /// Subscription Identifier.
    pub(crate) subscription_id: Option<u32>,
}

/// A message owed to a session.
#[derive(Clone, Debug)]
pub(crate) struct OwedRow {
    /// The row's number.
    pub(crate) seq: u64,
    /// To deliver with.
    pub(crate) qos: Qos,
    /// To deliver with.
    pub(crate) retain: bool,
    /// Subscription identifiers.
    pub(crate) ids: Vec<u32>,
    /// If it was sent or is about to be.
    pub(crate) packet_id: Option<u16>,
    /// Whether its PUBREC has come.
    pub(crate) received: bool,
    /// The shared subscription that brought it, as its client wrote it.
    pub(crate) share: Option<Arc<str>>,
    /// To deliver on.
    pub(crate) topic: TopicName,
    /// The message.
    pub(crate) message: Arc<Message>,
}

/// An inbound QoS 2 exchange.
#[derive(Clone, Debug)]
pub(crate) struct InboundRow {
    /// Whose.
    pub(crate) session: SessionId,
    /// Which.
    pub(crate) packet_id: u16,
    /// The message, while links may lack it; `None` when finished.
    pub(crate) unfinished: Option<Arc<Message>>,
    /// Where the logs ended when it was delivered.
    pub(crate) tails: Tails,
}

/// What the broker reads at start.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// All sessions.
    pub(crate) sessions: Vec<SessionRow>,
    /// Their subscriptions.
    pub(crate) subscriptions: Vec<(SessionId, SubscriptionRow)>,
    /// All retained messages.
    pub(crate) retained: Vec<(Arc<str>, Arc<Message>)>,
    /// All open inbound exchanges.
    pub(crate) inbound: Vec<InboundRow>,
    /// What is known of messages that have come (R12).
    pub(crate) copies: Vec<KeptPage>,
    /// What samples held, in the order in which it came.
    pub(crate) held: Vec<HeldRow>,
    /// How many messages each session is owed, and what they count for in bytes.
    pub(crate) owed: Vec<(SessionId, u64, u64)>,
    /// The highest row number in use.
    pub(crate) last_seq: u64,
    /// Rows that did not read back.
    pub(crate) damaged: u64,
}

/// Reads everything but what sessions are owed.
pub(super) fn all(connection: &Connection) -> Loaded {
    let mut damaged = 0;
    let mut loaded = Loaded {
        sessions: rows(
            connection,
            "SELECT id, client, version, kept, expiry_s, ended_ms, user, will, will_delay_s, ended_up, ended_boot, listener
             FROM session ORDER BY id",
            &mut damaged,
            session,
        ),
        subscriptions: rows(
            connection,
            "SELECT session, filter, options, subscription_id FROM subscription",
            &mut damaged,
            subscription,
        ),
        retained: rows(connection, "SELECT topic, body FROM retained", &mut damaged, |row| {
            Ok((text(row, 0)?, body(row, 1)?))
        }),
        inbound: rows(
            connection,
            "SELECT session, packet_id, finished, body, tails FROM inbound ORDER BY session, packet_id",
            &mut damaged,
            inbound,
        ),
        held: rows(connection, "SELECT route, topic, id, body FROM held ORDER BY rowid", &mut damaged, held),
        copies: rows(connection, "SELECT site, run, part, page, high, bits FROM copies", &mut damaged, copies),
        owed: rows(
            connection,
            "SELECT session, count(*), sum(bytes) FROM owed GROUP BY session",
            &mut damaged,
            |row| Ok((SessionId(unsigned(row, 0)?), unsigned(row, 1)?, unsigned(row, 2)?)),
        ),
        last_seq: 0,
        damaged: 0,
    };
    let last = rows(connection, "SELECT max(seq) FROM owed", &mut 0, |row| unsigned(row, 0));
    loaded.last_seq = last.first().copied().unwrap_or(0);
    loaded.damaged = damaged;
    if damaged > 0 {
        tracing::error!(rows = damaged, "rows of the broker's store are damaged and were skipped");
    }
    loaded
}

/// Bytes of the rows that are read at a time, but for the last of them: as many lie in memory for each session that reads.
pub(in crate::broker) const PAGE_BYTES_MAX: u64 = 1 << 20;

/// What a session has in flight, oldest first.
pub(super) fn in_flight(connection: &Connection, id: SessionId) -> rusqlite::Result<Page> {
    let which = "session = ?1 AND packet_id IS NOT NULL ORDER BY seq LIMIT ?2";
    // What may be in flight is bounded where it is put in flight.
    page(connection, which, &[&number(id.0), &i64::from(u16::MAX)], usize::MAX, u64::MAX)
}

/// What waits for a packet id, oldest first.
pub(super) fn waiting(connection: &Connection, id: SessionId, after: u64, count: usize) -> rusqlite::Result<Page> {
    let which = "session = ?1 AND seq > ?2 AND packet_id IS NULL ORDER BY seq LIMIT ?3";
    let limit = i64::try_from(count).unwrap_or(i64::MAX);
    page(connection, which, &[&number(id.0), &number(after), &limit], count, PAGE_BYTES_MAX)
}

/// What another member of a shared subscription may get when this session ends, oldest first: not what was sent with QoS 2, or is about to
/// be (MQTT-4.8.2-5).
pub(super) fn shared(connection: &Connection, id: SessionId, count: usize) -> rusqlite::Result<Page> {
    let which = "session = ?1 AND share IS NOT NULL AND (packet_id IS NULL OR qos = 1) ORDER BY seq LIMIT ?2";
    let limit = i64::try_from(count).unwrap_or(i64::MAX);
    page(connection, which, &[&number(id.0), &limit], count, PAGE_BYTES_MAX)
}

/// At most `count` rows, and none behind the one that brings them to `bytes_max`.
fn page(
    connection: &Connection,
    which: &str,
    params: &[&dyn rusqlite::ToSql],
    count: usize,
    bytes_max: u64,
) -> rusqlite::Result<Page> {
    let mut page = Page::default();
    let (mut seen, mut bytes) = (0, 0);
    let mut statement = connection.prepare_cached(&format!(
        "SELECT seq, qos, retain, ids, packet_id, received, topic,
         coalesce((SELECT body.body FROM body WHERE body.id = owed.shared), owed.body), share, bytes
         FROM owed WHERE {which}"
    ))?;
    let mut rows = statement.query(params)?;
    while let Some(row) = rows.next()? {
        seen += 1;
        let seq = unsigned(row, 0)?;
        page.last = Some(seq);
        bytes += unsigned(row, 9).unwrap_or(0);
        match owed(row) {
            Ok(row) => page.rows.push(row),
            Err(_damaged) => page.damaged.push((seq, unsigned(row, 9).unwrap_or(0))),
        }
        if bytes >= bytes_max {
            page.more = true;
            break;
        }
    }
    page.more |= seen >= count;
    if !page.damaged.is_empty() {
        tracing::error!(rows = page.damaged.len(), "messages owed to a session are damaged and were skipped");
    }
    Ok(page)
}

/// All rows that read back. A statement that fails altogether counts as one damaged row.
fn rows<T>(
    connection: &Connection,
    sql: &str,
    damaged: &mut u64,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> Vec<T> {
    let mut good = Vec::new();
    let mut walk = || -> rusqlite::Result<()> {
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            match read(row) {
                Ok(value) => good.push(value),
                Err(_skipped) => *damaged += 1,
            }
        }
        Ok(())
    };
    if let Err(error) = walk() {
        tracing::error!(%error, "a table of the broker's store cannot be read to its end");
        *damaged += 1;
    }
    good
}

fn session(row: &Row<'_>) -> rusqlite::Result<SessionRow> {
    let will = match row.get_ref(7)?.as_blob_or_null().map_err(bad)? {
        Some(bytes) => Some(Arc::new(codec::open(bytes).ok_or(rusqlite::Error::InvalidQuery)?)),
        None => None,
    };
    Ok(SessionRow {
        id: SessionId(unsigned(row, 0)?),
        client: text(row, 1)?,
        version: row.get(2)?,
        kept: row.get(3)?,
        expiry_s: row.get(4)?,
        ended: ended(row)?,
        user: row.get::<_, Option<String>>(6)?.map(Into::into),
        will,
        will_delay_s: row.get(8)?,
        listener: row.get::<_, Option<String>>(11)?.map(Into::into),
    })
}

fn ended(row: &Row<'_>) -> rusqlite::Result<Option<Moment>> {
    let (wall, up): (Option<i64>, Option<i64>) = (row.get(5)?, row.get(9)?);
    let boot = row.get::<_, Option<u32>>(10)?.unwrap_or(0);
    let moment = |wall: i64| Moment::unpacked(WallMs(wall.unsigned_abs()), up.unwrap_or(0).unsigned_abs(), boot);
    Ok(wall.map(moment))
}

fn subscription(row: &Row<'_>) -> rusqlite::Result<(SessionId, SubscriptionRow)> {
    let id = SessionId(unsigned(row, 0)?);
    Ok((id, SubscriptionRow { filter: text(row, 1)?, options: row.get(2)?, subscription_id: row.get(3)? }))
}

fn inbound(row: &Row<'_>) -> rusqlite::Result<InboundRow> {
    let unfinished = if row.get::<_, bool>(2)? { None } else { Some(body(row, 3)?) };
    let tails = row.get_ref(4)?.as_str_or_null().map_err(bad)?.map(Tails::decode).unwrap_or_default();
    Ok(InboundRow { session: SessionId(unsigned(row, 0)?), packet_id: row.get(1)?, unfinished, tails })
}

fn copies(row: &Row<'_>) -> rusqlite::Result<KeptPage> {
    let run = u64::from_str_radix(&text(row, 1)?, 16).map_err(|_no_number| rusqlite::Error::InvalidQuery)?;
    let origin = OriginKey { site: text(row, 0)?, run, part: (&*text(row, 2)?).into() };
    let bits = codec::unseal(row.get_ref(5)?.as_blob().map_err(bad)?).ok_or(rusqlite::Error::InvalidQuery)?;
    Ok(KeptPage { origin, page: row.get(3)?, high: unsigned(row, 4)?, bits: bits.into() })
}

fn held(row: &Row<'_>) -> rusqlite::Result<HeldRow> {
    let body = codec::unseal(row.get_ref(3)?.as_blob().map_err(bad)?).ok_or(rusqlite::Error::InvalidQuery)?;
    Ok(HeldRow { route: text(row, 0)?, topic: text(row, 1)?, id: row.get(2)?, body })
}

fn owed(row: &Row<'_>) -> rusqlite::Result<OwedRow> {
    let ids = row.get_ref(3)?.as_blob().map_err(bad)?;
    Ok(OwedRow {
        seq: unsigned(row, 0)?,
        qos: Qos::from_bits(row.get(1)?).ok_or(rusqlite::Error::InvalidQuery)?,
        retain: row.get(2)?,
        ids: ids.as_chunks().0.iter().map(|id| u32::from_le_bytes(*id)).collect(),
        packet_id: row.get(4)?,
        received: row.get(5)?,
        share: row.get_ref(8)?.as_str_or_null().map_err(bad)?.map(Into::into),
        topic: TopicName::new(row.get_ref(6)?.as_str().map_err(bad)?)
            .map_err(|_no_topic| rusqlite::Error::InvalidQuery)?,
        message: body(row, 7)?,
    })
}

fn body(row: &Row<'_>, at: usize) -> rusqlite::Result<Arc<Message>> {
    let bytes = row.get_ref(at)?.as_blob().map_err(bad)?;
    codec::open(bytes).map(Arc::new).ok_or(rusqlite::Error::InvalidQuery)
}

fn text(row: &Row<'_>, at: usize) -> rusqlite::Result<Arc<str>> {
    Ok(row.get_ref(at)?.as_str().map_err(bad)?.into())
}

fn unsigned(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(at)?;
    u64::try_from(value).map_err(|_negative| rusqlite::Error::InvalidQuery)
}

/// Which damage it is does not matter to those who skip it.
fn bad(_kind: rusqlite::types::FromSqlError) -> rusqlite::Error {
    rusqlite::Error::InvalidQuery
}
