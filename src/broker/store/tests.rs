//! The store across crashes: it is reopened while the first one was never closed, or over damage.

use std::time::Duration;

use bytes::Bytes;
use rusqlite::Connection;

use super::*;
use crate::message::tests_support::message;

const SESSION: SessionId = SessionId(7);

fn row(id: SessionId) -> SessionRow {
    SessionRow {
        id,
        client: "press-1".into(),
        version: 5,
        kept: true,
        expiry_s: 60,
        ended: None,
        user: Some("anna".into()),
        will: Some(Arc::new(message("will/topic", b"gone"))),
        will_delay_s: 3,
        listener: Some("127.0.0.1:1883".into()),
    }
}

fn owe(store: &Store, packet_id: Option<u16>) -> u64 {
    store
        .stage(|unit| {
            let seq = unit.next_seq();
            unit.push(Op::Owe(OweOp {
                seq,
                session: SESSION,
                qos: Qos::ExactlyOnce,
                retain: true,
                ids: vec![3, 70_000],
                packet_id,
                share: None,
                bytes: 100,
                topic: "a/b".into(),
                body: encode_body(&message("a/b", b"x")),
                of: None,
            }));
            seq
        })
        .0
}

async fn commit(store: &Store) {
    let position = store.stage_one(Op::Settle(u64::MAX));
    tokio::time::timeout(Duration::from_secs(10), store.mark().passed(position)).await.unwrap().unwrap();
}

/// A crash: the file as it is now, without the order of a close. Copied, so that the first store's end changes nothing.
fn crash(from: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

#[tokio::test]
async fn r1_what_was_committed_is_there_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let (store, loaded) = Store::open(dir.path()).unwrap();
    assert!(loaded.sessions.is_empty());
    let subscription = SubscriptionRow { filter: "a/#".into(), options: 0x0E, subscription_id: Some(9) };
    store.stage(|unit| {
        unit.push(Op::Session(Box::new(row(SESSION))));
        unit.push(Op::Subscribe(SESSION, subscription.clone()));
        unit.push(Op::Retain("r/t".into(), encode_body(&message("r/t", b"kept"))));
        unit.push(Op::Inbound(SESSION, 1, encode_body(&message("in", b"1")), String::new()));
        unit.push(Op::Inbound(SESSION, 2, encode_body(&message("in", b"2")), "low 5 cloud\n".into()));
        unit.push(Op::InboundFinished(SESSION, 1));
    });
    let (first, second) = (owe(&store, Some(5)), owe(&store, None));
    store.stage_one(Op::Received(first));
    commit(&store).await;

    let copy = crash(dir.path());
    let (store, loaded) = Store::open(copy.path()).unwrap();
    assert_eq!(loaded.sessions, [row(SESSION)]);
    assert_eq!(loaded.subscriptions, [(SESSION, subscription)]);
    assert_eq!(loaded.retained.len(), 1);
    assert_eq!(loaded.owed, [(SESSION, 2, 200)]);
    assert_eq!((loaded.last_seq, loaded.damaged), (second, 0));
    let finished = loaded.inbound.iter().map(|row| (row.packet_id, row.unfinished.is_none())).collect::<Vec<_>>();
    assert_eq!(finished, [(1, true), (2, false)]);
    let tails = loaded.inbound.iter().map(|row| row.tails.encode()).collect::<Vec<_>>();
    assert_eq!(tails, ["", "low 5 cloud\n"], "of a finished one nobody asks");
    let page = store.in_flight(SESSION).await.unwrap();
    assert_eq!(page.rows.len(), 1);
    assert_eq!((page.rows[0].seq, page.rows[0].packet_id, page.rows[0].received), (first, Some(5), true));
    assert_eq!((page.rows[0].retain, page.rows[0].ids.clone()), (true, vec![3, 70_000]));
    let page = store.waiting(SESSION, 0, 10).await.unwrap();
    assert_eq!((page.rows[0].seq, page.last, page.more), (second, Some(second), false));
    assert_eq!(page.rows[0].message.payload, &b"x"[..]);
}

#[tokio::test]
async fn a_read_sees_everything_that_was_staged_before_it_and_pages_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let seqs = (0..25).map(|_| owe(&store, None)).collect::<Vec<_>>();
    let mut read = Vec::new();
    let mut after = 0;
    loop {
        let page = store.waiting(SESSION, after, 10).await.unwrap();
        after = page.last.unwrap_or(after);
        read.extend(page.rows.iter().map(|row| row.seq));
        if !page.more {
            break;
        }
    }
    assert_eq!(read, seqs);
    let board = Arc::<BrokerBoard>::default();
    let dropped = Arc::new(Dropped::new(Arc::clone(&board)));
    store.stage_one(Op::DropOldest(SESSION, 0, Arc::clone(&dropped)));
    let page = store.waiting(SESSION, 0, 100).await.unwrap();
    assert_eq!(page.rows[0].seq, seqs[1]);
    store.stage_one(Op::DropOldest(SESSION, 250, Arc::clone(&dropped)));
    let page = store.waiting(SESSION, 0, 100).await.unwrap();
    assert_eq!(page.rows[0].seq, seqs[4], "a row is dropped whole");
    store.stage_one(Op::DropOldest(SESSION, u64::MAX, Arc::clone(&dropped)));
    assert!(store.waiting(SESSION, 0, 100).await.unwrap().rows.is_empty());
    let done = dropped.take();
    assert_eq!((done.asks, done.rows, done.bytes), (3, 25, 2_500));
    assert_eq!(board.snapshot().dropped["session_full"], 25);
}

/// One message of 100 kB for each of `sessions`, in one unit.
fn owe_all(store: &Store, sessions: std::ops::Range<u64>) -> Vec<u64> {
    let body = encode_body(&message("a/b", &[7; 100_000]));
    let owe_one = |unit: &mut Unit<'_>, session| {
        let (seq, ids, topic, body) = (unit.next_seq(), Vec::new(), "a/b".into(), body.clone());
        let (session, qos, retain, packet_id, share, bytes) =
            (SessionId(session), Qos::AtLeastOnce, false, None, None, 100_000);
        unit.push(Op::Owe(OweOp { seq, session, qos, retain, ids, packet_id, share, bytes, topic, body, of: None }));
        seq
    };
    store.stage(|unit| sessions.map(|session| owe_one(unit, session)).collect()).0
}

fn count_of(dir: &Path, what: &str) -> i64 {
    let connection = Connection::open(dir.join("broker.db")).unwrap();
    connection.query_row(&format!("SELECT {what}"), [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn a_message_for_many_sessions_is_stored_once_until_the_last_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let seqs = owe_all(&store, 0..1_000);
    assert!(store.has_room(), "100 MB are owed, and 100 kB wait");
    commit(&store).await;
    let bytes = count_of(dir.path(), "sum(length(body)) FROM (SELECT body FROM owed UNION ALL SELECT body FROM body)");
    assert!(bytes < 101_000, "{bytes} bytes of bodies");
    let written = std::fs::metadata(dir.path().join("broker.db-wal")).unwrap().len();
    assert!(written < 2 << 20, "{written} bytes were written");
    // All have it, also after a crash, however many others had it before.
    store.stage(|unit| seqs[..998].iter().for_each(|seq| unit.push(Op::Settle(*seq))));
    store.stage_one(Op::SessionGone(SessionId(998)));
    commit(&store).await;
    let copy = crash(dir.path());
    let (after, loaded) = Store::open(copy.path()).unwrap();
    assert_eq!((loaded.owed, loaded.damaged), (vec![(SessionId(999), 1, 100_000)], 0));
    let page = after.waiting(SessionId(999), 0, 10).await.unwrap();
    assert_eq!((page.rows[0].seq, &page.rows[0].message.payload[..]), (seqs[999], &[7; 100_000][..]));
    assert_eq!(count_of(dir.path(), "count(*) FROM body"), 1);
    let dropped = Arc::new(Dropped::new(Arc::default()));
    store.stage_one(Op::DropOldest(SessionId(999), 0, dropped));
    commit(&store).await;
    assert_eq!(count_of(dir.path(), "count(*) FROM body"), 0);
    // What is for one is its own, and so is what is left when all others have made room at once.
    owe_all(&store, 0..1);
    store.stage(|unit| {
        let body = encode_body(&message("a/b", &[7; 1_000]));
        for n in 0..3 {
            let (seq, ids, topic, body) = (unit.next_seq(), Vec::new(), "a/b".into(), body.clone());
            let (session, qos, retain, packet_id, share, bytes) = (SESSION, Qos::AtLeastOnce, false, None, None, 1_000);
            unit.push(Op::Owe(OweOp {
                seq,
                session,
                qos,
                retain,
                ids,
                packet_id,
                share,
                bytes,
                topic,
                body,
                of: None,
            }));
            if n < 2 {
                unit.push(Op::Settle(seq));
            }
        }
    });
    let page = store.waiting(SESSION, 0, 10).await.unwrap();
    assert_eq!((page.rows.len(), &page.rows[0].message.payload[..]), (1, &[7; 1_000][..]));
    assert_eq!(count_of(dir.path(), "count(*) FROM body"), 0);
}

#[tokio::test]
async fn what_is_owed_by_one_message_has_room_as_a_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    // Nothing commits meanwhile: the lock is held.
    store.stage(|unit| {
        assert!(unit.has_room_for(STAGED_OPS_MAX + 1), "it would never have room");
        unit.push(Op::Settle(u64::MAX));
        assert!(unit.has_room_for(STAGED_OPS_MAX - 1) && !unit.has_room_for(STAGED_OPS_MAX));
    });
}

#[tokio::test]
async fn a_session_that_is_gone_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    store.stage_one(Op::Session(Box::new(row(SESSION))));
    store.stage_one(Op::Inbound(SESSION, 2, encode_body(&message("in", b"2")), String::new()));
    owe(&store, None);
    store.stage_one(Op::SessionGone(SESSION));
    store.close();
    let (_store, loaded) = Store::open(dir.path()).unwrap();
    assert!(loaded.sessions.is_empty() && loaded.inbound.is_empty() && loaded.owed.is_empty());
}

#[tokio::test]
async fn one_corrupt_row_does_not_stop_the_start_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    store.stage_one(Op::Session(Box::new(row(SESSION))));
    for topic in ["r/1", "r/2", "r/3"] {
        store.stage_one(Op::Retain(topic.into(), encode_body(&message(topic, b"kept"))));
    }
    let (bad, good) = (owe(&store, None), owe(&store, None));
    store.close();
    let connection = Connection::open(dir.path().join("broker.db")).unwrap();
    connection.execute("UPDATE retained SET body = x'0102030405' WHERE topic = 'r/2'", []).unwrap();
    connection.execute("UPDATE owed SET body = substr(body, 1, 20) WHERE seq = ?1", [apply::number(bad)]).unwrap();
    drop(connection);

    let (store, loaded) = Store::open(dir.path()).unwrap();
    assert_eq!((loaded.sessions.len(), loaded.retained.len(), loaded.damaged), (1, 2, 1));
    let page = store.waiting(SESSION, 0, 10).await.unwrap();
    assert_eq!(page.rows.iter().map(|row| row.seq).collect::<Vec<_>>(), [good]);
    assert_eq!((page.last, page.damaged), (Some(good), vec![(bad, 100)]));
}

#[tokio::test]
async fn a_file_that_is_no_database_is_moved_aside_and_the_broker_starts() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("broker.db"), vec![0; 8_192]).unwrap();
    std::fs::write(dir.path().join("broker.db"), b"\xFF".repeat(8_192)).unwrap();
    let (store, loaded) = Store::open(dir.path()).unwrap();
    assert!(loaded.sessions.is_empty());
    assert!(dir.path().join("broker.db.damaged-0").exists());
    commit(&store).await;
}

#[tokio::test]
async fn r36_a_newer_format_is_refused_with_a_clear_word() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    store.close();
    let connection = Connection::open(dir.path().join("broker.db")).unwrap();
    connection.execute_batch("PRAGMA user_version = 9").unwrap();
    drop(connection);
    let error = Store::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("format 9") && error.contains("newer program"), "{error}");
}

/// The tables as the programs of format 1 made them.
const FORMAT_1: &str = "
CREATE TABLE session (
    id INTEGER PRIMARY KEY, client TEXT NOT NULL, version INTEGER NOT NULL, kept INTEGER NOT NULL, expiry_s INTEGER NOT NULL,
    ended_ms INTEGER, ended_up INTEGER, ended_boot INTEGER, user TEXT, will BLOB, will_delay_s INTEGER NOT NULL
);
CREATE TABLE subscription (
    session INTEGER NOT NULL, filter TEXT NOT NULL, options INTEGER NOT NULL, subscription_id INTEGER, PRIMARY KEY (session, filter)
) WITHOUT ROWID;
CREATE TABLE retained (topic TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE owed (
    seq INTEGER PRIMARY KEY, session INTEGER NOT NULL, qos INTEGER NOT NULL, retain INTEGER NOT NULL, ids BLOB NOT NULL,
    packet_id INTEGER, received INTEGER NOT NULL DEFAULT 0, topic TEXT NOT NULL, body BLOB NOT NULL
);
CREATE INDEX owed_by_session ON owed (session, seq);
CREATE TABLE inbound (
    session INTEGER NOT NULL, packet_id INTEGER NOT NULL, finished INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (session, packet_id)
) WITHOUT ROWID;
PRAGMA user_version = 1;
INSERT INTO session VALUES (7, 'press-1', 5, 1, 60, NULL, NULL, NULL, 'anna', NULL, 3);
INSERT INTO subscription VALUES (7, 'a/#', 14, 9);
";

#[tokio::test]
async fn r36_a_store_of_format_1_is_upgraded_and_keeps_all_that_was_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broker.db");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch(FORMAT_1).unwrap();
    let body = encode_body(&message("a/b", b"x"));
    connection.execute("INSERT INTO retained VALUES ('r/t', ?1)", [&body[..]]).unwrap();
    for (seq, packet_id, received) in [(1, Some(5), 1), (2, None, 0)] {
        let row = rusqlite::params![seq, packet_id, received, &body[..]];
        connection.execute("INSERT INTO owed VALUES (?1, 7, 2, 1, x'', ?2, ?3, 'a/b', ?4)", row).unwrap();
    }
    for (packet_id, finished) in [(1, 1), (2, 0)] {
        let row = rusqlite::params![packet_id, finished, &body[..]];
        connection.execute("INSERT INTO inbound VALUES (7, ?1, ?2, ?3)", row).unwrap();
    }
    drop(connection);

    // Twice: the second time it is what the first made of it.
    for _ in 0..2 {
        let (store, loaded) = Store::open(dir.path()).unwrap();
        assert_eq!(loaded.sessions, [SessionRow { will: None, listener: None, ..row(SESSION) }]);
        let subscription = SubscriptionRow { filter: "a/#".into(), options: 0x0E, subscription_id: Some(9) };
        assert_eq!(loaded.subscriptions, [(SESSION, subscription)]);
        assert_eq!((loaded.retained.len(), loaded.last_seq, loaded.damaged), (1, 2, 0));
        let size = (body.len() + "a/b".len()) as u64;
        assert_eq!(loaded.owed, [(SESSION, 2, 2 * size)], "what it counts for was not known to format 1");
        let inbound = loaded.inbound.iter().map(|row| (row.packet_id, row.unfinished.is_none(), row.tails.encode()));
        assert_eq!(inbound.collect::<Vec<_>>(), [(1, true, String::new()), (2, false, String::new())]);
        let page = store.in_flight(SESSION).await.unwrap();
        assert_eq!((page.rows[0].seq, page.rows[0].packet_id, page.rows[0].received), (1, Some(5), true));
        let page = store.waiting(SESSION, 0, 10).await.unwrap();
        assert_eq!((page.rows.len(), page.rows[0].seq, page.rows[0].share.clone()), (1, 2, None));
        assert_eq!(page.rows[0].message.payload, &b"x"[..]);
        store.close();
    }
    let format = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
    let found = Connection::open(&path).unwrap().query_row("PRAGMA user_version", [], format).unwrap();
    assert_eq!(found, 7);
}

#[test]
fn a_folder_that_does_not_exist_is_an_error_that_names_it() {
    let error = Store::open(Path::new("/nonexistent/tidegate")).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/tidegate"), "{error}");
}

#[tokio::test]
async fn a_commit_that_fails_twice_fails_the_mark_and_whoever_waits() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    commit(&store).await;
    let other = Connection::open(dir.path().join("broker.db")).unwrap();
    other.execute_batch("DROP TABLE retained").unwrap();
    let position = store.stage_one(Op::Retain("a".into(), encode_body(&message("a", b"x"))));
    assert!(store.mark().passed(position).await.is_err());
    assert!(store.has_failed());
    let later = store.stage_one(Op::Settle(1));
    assert!(store.mark().passed(later).await.is_err());
}

#[test]
fn r28_a_held_message_is_kept_until_just_that_one_has_gone_or_given_way() {
    use crate::hub::HeldRow;
    let dir = tempfile::tempdir().unwrap();
    let row = |topic: &str, id: &str| HeldRow {
        route: "r".into(),
        topic: topic.into(),
        id: id.to_owned(),
        body: Bytes::copy_from_slice(id.as_bytes()),
    };
    let (store, _) = Store::open(dir.path()).unwrap();
    for (topic, id, gave_way) in
        [("a", "1", None), ("a", "2", None), ("b", "3", None), ("c", "9", None), ("c", "4", Some("9"))]
    {
        store.stage_one(Op::Hold(Box::new(row(topic, id)), gave_way.map(str::to_owned)));
    }
    store.stage_one(Op::Unhold("r".into(), "b".into(), "3".to_owned()));
    store.close();
    let connection = Connection::open(dir.path().join("broker.db")).unwrap();
    let (store, loaded) = Store::open(dir.path()).unwrap();
    assert_eq!((loaded.held, loaded.damaged), (vec![row("a", "1"), row("a", "2"), row("c", "4")], 0));
    store.close();
    connection.execute("UPDATE held SET body = x'00' WHERE topic = 'a'", []).unwrap();
    drop(connection);
    let (store, loaded) = Store::open(dir.path()).unwrap();
    assert_eq!((loaded.held, loaded.damaged), (vec![row("c", "4")], 2), "one row does not stop it");
    store.close();
}

#[test]
fn r12_what_is_known_of_copies_is_kept_and_forgotten() {
    use crate::hub::{KeptChanges, KeptPage, OriginKey};
    let dir = tempfile::tempdir().unwrap();
    let origin = |run| OriginKey { site: "ship".into(), run, part: ".1".into() };
    let page = |run, page, high| KeptPage { origin: origin(run), page, high, bits: vec![7; 512] };
    let (store, _) = Store::open(dir.path()).unwrap();
    let pages = vec![page(u64::MAX, 0, 5), page(u64::MAX, 15, 9), page(2, 0, 1)];
    store.stage_one(Op::Copies(Box::new(KeptChanges { forgotten: Vec::new(), pages })));
    let pages = vec![page(u64::MAX, 0, 6)];
    store.stage_one(Op::Copies(Box::new(KeptChanges { forgotten: vec![origin(2)], pages })));
    store.close();
    let connection = Connection::open(dir.path().join("broker.db")).unwrap();
    let (store, loaded) = Store::open(dir.path()).unwrap();
    assert_eq!((loaded.copies, loaded.damaged), (vec![page(u64::MAX, 0, 6), page(u64::MAX, 15, 9)], 0));
    store.close();
    connection.execute("UPDATE copies SET bits = x'00' WHERE page = 0", []).unwrap();
    drop(connection);
    let (store, loaded) = Store::open(dir.path()).unwrap();
    assert_eq!((loaded.copies, loaded.damaged), (vec![page(u64::MAX, 15, 9)], 1), "one row does not stop it");
    store.close();
}
