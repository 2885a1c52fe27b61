//! Operations to SQL, all that is staged in one transaction.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::load::{SessionRow, SubscriptionRow};
use super::{Op, OweOp, SessionId, codec};
use crate::hub::{HeldRow, KeptChanges, KeptPage, OriginKey};

/// A body of so many bytes is written once for all rows that have it; a smaller one costs less in each row than its place in an index.
const SHARED_BYTES_MIN: usize = 512;

/// Applies all of `ops` or nothing.
pub(super) fn commit(connection: &mut Connection, ops: &[Op]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let mut dropped = Vec::new();
    let mut shared = None;
    for (at, op) in ops.iter().enumerate() {
        if let Op::DropOldest(session, bytes, report) = op {
            dropped.push((report, *bytes, drop_oldest(&transaction, *session, *bytes)?));
        } else if let Op::Owe(row) = op {
            let mut id = row.of.map(|of| body_of(&transaction, of)).transpose()?.flatten();
            if id.is_none() {
                shared = shared_body(&transaction, shared, row, ops.get(at + 1..).unwrap_or_default())?;
                id = shared.map(|(_, id)| id);
            }
            owe(&transaction, row, id)?;
        } else {
            apply(&transaction, op)?;
        }
    }
    transaction.commit()?;
    for (report, asked, (rows, bytes)) in dropped {
        report.report(asked, rows, bytes);
    }
    Ok(())
}

/// The body that `row` shares with the one before it, or, written now, with the next; and its number.
fn shared_body<'a>(
    transaction: &Transaction<'_>,
    before: Option<(&'a Bytes, u64)>,
    row: &'a OweOp,
    later: &[Op],
) -> rusqlite::Result<Option<(&'a Bytes, u64)>> {
    if row.body.len() < SHARED_BYTES_MIN {
        return Ok(None);
    }
    // It has gone again where all rows before had to make room.
    let is_there = "SELECT 1 FROM body WHERE id = ?1";
    if let Some(same) = before.filter(|(body, _)| is_same(body, &row.body))
        && transaction.prepare_cached(is_there)?.exists([number(same.1)])?
    {
        return Ok(Some(same));
    }
    let next = later.iter().find_map(|op| if let Op::Owe(row) = op { Some(&row.body) } else { None });
    if !next.is_some_and(|next| is_same(next, &row.body)) {
        return Ok(None);
    }
    let sql = "INSERT INTO body (id, body) VALUES (?1, ?2)";
    transaction.prepare_cached(sql)?.execute(params![number(row.seq), &*row.body])?;
    Ok(Some((&row.body, row.seq)))
}

/// The number of the body that a row shares with others.
fn body_of(transaction: &Transaction<'_>, row: u64) -> rusqlite::Result<Option<u64>> {
    let sql = "SELECT shared FROM owed WHERE seq = ?1 AND shared IS NOT NULL";
    let id = transaction.prepare_cached(sql)?.query_row([number(row)], |row| row.get::<_, i64>(0)).optional()?;
    Ok(id.map(i64::unsigned_abs))
}

/// The same bytes in memory: of one message.
pub(super) fn is_same(one: &Bytes, other: &Bytes) -> bool {
    one.as_ptr() == other.as_ptr() && one.len() == other.len()
}

/// Drops the oldest rows without a packet id: one, and as many as make `bytes`. Answers how many, and what they counted for.
fn drop_oldest(transaction: &Transaction<'_>, session: SessionId, bytes: u64) -> rusqlite::Result<(u64, u64)> {
    let mut oldest = transaction.prepare_cached(
        "DELETE FROM owed WHERE seq =
         (SELECT seq FROM owed WHERE session = ?1 AND packet_id IS NULL ORDER BY seq LIMIT 1) RETURNING bytes",
    )?;
    let (mut rows, mut freed) = (0, 0);
    while rows == 0 || freed < bytes {
        let one = oldest.query_row([number(session.0)], |row| row.get::<_, i64>(0)).optional()?;
        let Some(one) = one else { break };
        rows += 1;
        freed += one.unsigned_abs();
    }
    Ok((rows, freed))
}

const UNHOLD: &str = "DELETE FROM held WHERE route = ?1 AND topic = ?2 AND id = ?3";

fn apply(transaction: &Transaction<'_>, op: &Op) -> rusqlite::Result<()> {
    let run = |sql: &str, params: &[&dyn rusqlite::ToSql]| -> rusqlite::Result<()> {
        transaction.prepare_cached(sql)?.execute(params).map(drop)
    };
    match op {
        Op::Session(row) => session(transaction, row),
        Op::SessionGone(id) => session_gone(transaction, *id),
        Op::Subscribe(id, row) => subscribe(transaction, *id, row),
        Op::Unsubscribe(id, filter) => {
            run("DELETE FROM subscription WHERE session = ?1 AND filter = ?2", &[&number(id.0), filter])
        }
        Op::Retain(topic, body) => {
            run("INSERT OR REPLACE INTO retained (topic, body) VALUES (?1, ?2)", &[topic, &&**body])
        }
        Op::Unretain(topic) => run("DELETE FROM retained WHERE topic = ?1", &[topic]),
        Op::Owe(row) => owe(transaction, row, None),
        Op::Assign(seq, packet_id) => run("UPDATE owed SET packet_id = ?2 WHERE seq = ?1", &[&number(*seq), packet_id]),
        Op::Received(seq) => run("UPDATE owed SET received = 1 WHERE seq = ?1", &[&number(*seq)]),
        Op::Settle(seq) => run("DELETE FROM owed WHERE seq = ?1", &[&number(*seq)]),
        Op::DropOldest(id, bytes, _) => drop_oldest(transaction, *id, *bytes).map(drop),
        Op::Inbound(id, packet_id, body, tails) => run(
            "INSERT OR REPLACE INTO inbound (session, packet_id, finished, body, tails) VALUES (?1, ?2, 0, ?3, ?4)",
            &[&number(id.0), packet_id, &&**body, tails],
        ),
        // The message is only needed while links may lack it.
        Op::InboundFinished(id, packet_id) => run(
            "UPDATE inbound SET finished = 1, body = x'', tails = NULL WHERE session = ?1 AND packet_id = ?2",
            &[&number(id.0), packet_id],
        ),
        Op::InboundGone(id, packet_id) => {
            run("DELETE FROM inbound WHERE session = ?1 AND packet_id = ?2", &[&number(id.0), packet_id])
        }
        Op::Copies(changes) => copies(transaction, changes),
        Op::Hold(row, gave_way) => {
            let HeldRow { route, topic, id, body } = &**row;
            if let Some(gave_way) = gave_way {
                run(UNHOLD, &[route, topic, gave_way])?;
            }
            let sql = "INSERT OR REPLACE INTO held (route, topic, id, body) VALUES (?1, ?2, ?3, ?4)";
            run(sql, &[route, topic, id, &&*codec::seal(body)])
        }
        Op::Unhold(route, topic, id) => run(UNHOLD, &[route, topic, id]),
    }
}

fn copies(transaction: &Transaction<'_>, changes: &KeptChanges) -> rusqlite::Result<()> {
    let sql = "DELETE FROM copies WHERE site = ?1 AND run = ?2 AND part = ?3";
    for OriginKey { site, run, part } in &changes.forgotten {
        transaction.prepare_cached(sql)?.execute(params![site, run_text(*run), part])?;
    }
    let sql = "INSERT OR REPLACE INTO copies (site, run, part, page, high, bits) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    for KeptPage { origin: OriginKey { site, run, part }, page, high, bits } in &changes.pages {
        let bits = codec::seal(bits);
        transaction.prepare_cached(sql)?.execute(params![site, run_text(*run), part, page, number(*high), &*bits])?;
    }
    Ok(())
}

/// It uses all of its 64 bits, for which SQLite's integers are too small.
fn run_text(run: u64) -> String {
    format!("{run:016x}")
}

fn session(transaction: &Transaction<'_>, row: &SessionRow) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO session
               (id, client, version, kept, expiry_s, ended_ms, user, will, will_delay_s, ended_up, ended_boot, listener)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
    let will = row.will.as_ref().map(|will| super::encode_body(will));
    transaction.prepare_cached(sql)?.execute(params![
        number(row.id.0),
        row.client,
        row.version,
        row.kept,
        row.expiry_s,
        row.ended.map(|at| number(at.wall.0)),
        row.user,
        will.as_deref(),
        row.will_delay_s,
        row.ended.map(|at| number(at.packed())),
        row.ended.map(|at| at.boot),
        row.listener,
    ])?;
    Ok(())
}

fn session_gone(transaction: &Transaction<'_>, id: SessionId) -> rusqlite::Result<()> {
    for sql in [
        "DELETE FROM session WHERE id = ?1",
        "DELETE FROM subscription WHERE session = ?1",
        "DELETE FROM owed WHERE session = ?1",
        "DELETE FROM inbound WHERE session = ?1",
    ] {
        transaction.prepare_cached(sql)?.execute([number(id.0)])?;
    }
    Ok(())
}

fn subscribe(transaction: &Transaction<'_>, id: SessionId, row: &SubscriptionRow) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO subscription (session, filter, options, subscription_id) VALUES (?1, ?2, ?3, ?4)";
    transaction.prepare_cached(sql)?.execute(params![number(id.0), row.filter, row.options, row.subscription_id])?;
    Ok(())
}

/// `shared`: the number of its body, where that is not its own.
fn owe(transaction: &Transaction<'_>, row: &OweOp, shared: Option<u64>) -> rusqlite::Result<()> {
    let ids: Vec<u8> = row.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let own: &[u8] = if shared.is_some() { &[] } else { &row.body };
    let sql =
        "INSERT OR REPLACE INTO owed (seq, session, qos, retain, ids, packet_id, share, bytes, topic, body, shared)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
    transaction.prepare_cached(sql)?.execute(params![
        number(row.seq),
        number(row.session.0),
        row.qos.bits(),
        row.retain,
        ids,
        row.packet_id,
        row.share,
        number(row.bytes),
        row.topic,
        own,
        shared.map(number),
    ])?;
    Ok(())
}

/// SQLite's integers are signed; none of our numbers comes near the limit.
pub(super) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
