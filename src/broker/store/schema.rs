//! The file: its tables, its settings, and what happens when it is none.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode};

use super::StoreError;

/// The format, in SQLite's `user_version`.
const FORMAT: i64 = 7;

/// From format 1, which knew of what is owed neither the shared subscription nor the size, and of an exchange not where the logs ended.
const FROM_1: &str = "
ALTER TABLE owed ADD COLUMN share TEXT;
ALTER TABLE owed ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
UPDATE owed SET bytes = length(body) + length(topic);
ALTER TABLE inbound ADD COLUMN tails TEXT;
";

/// From format 2, which knew nothing of copies.
const FROM_2: &str = "
CREATE TABLE copies (
    site TEXT NOT NULL,
    run TEXT NOT NULL,
    part TEXT NOT NULL,
    page INTEGER NOT NULL,
    high INTEGER NOT NULL,
    bits BLOB NOT NULL,
    PRIMARY KEY (site, run, part, page)
) WITHOUT ROWID;
";

/// From format 3, which did not know where a session came in.
const FROM_3: &str = "
ALTER TABLE session ADD COLUMN listener TEXT;
";

/// From format 4, which knew nothing of samples.
const FROM_4: &str = "
CREATE TABLE held (route TEXT NOT NULL, topic TEXT NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (route, topic));
";

/// From format 5, which kept one message of a route and topic: what was on its way into a log had no row any more once another had come.
const FROM_5: &str = "
ALTER TABLE held RENAME TO held_before;
CREATE TABLE held (
    route TEXT NOT NULL, topic TEXT NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (route, topic, id)
);
INSERT INTO held SELECT route, topic, id, body FROM held_before;
DROP TABLE held_before;
";

/// From format 6, where each row had a body of its own: one message for ten thousand sessions was written ten thousand times. A body that
/// several rows share goes with the last of them; its number is that of the first.
const FROM_6: &str = "
CREATE TABLE body (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
ALTER TABLE owed ADD COLUMN shared INTEGER;
CREATE INDEX owed_by_body ON owed (shared) WHERE shared IS NOT NULL;
CREATE TRIGGER owed_gone AFTER DELETE ON owed WHEN OLD.shared IS NOT NULL BEGIN
    DELETE FROM body WHERE id = OLD.shared AND NOT EXISTS (SELECT 1 FROM owed WHERE shared = OLD.shared);
END;
";

/// But for what the steps from [`FROM_2`] on add.
const TABLES: &str = "
CREATE TABLE session (
    id INTEGER PRIMARY KEY,
    client TEXT NOT NULL,
    version INTEGER NOT NULL,
    kept INTEGER NOT NULL,
    expiry_s INTEGER NOT NULL,
    ended_ms INTEGER,
    ended_up INTEGER,
    ended_boot INTEGER,
    user TEXT,
    will BLOB,
    will_delay_s INTEGER NOT NULL
);
CREATE TABLE subscription (
    session INTEGER NOT NULL,
    filter TEXT NOT NULL,
    options INTEGER NOT NULL,
    subscription_id INTEGER,
    PRIMARY KEY (session, filter)
) WITHOUT ROWID;
CREATE TABLE retained (topic TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE owed (
    seq INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    qos INTEGER NOT NULL,
    retain INTEGER NOT NULL,
    ids BLOB NOT NULL,
    packet_id INTEGER,
    received INTEGER NOT NULL DEFAULT 0,
    topic TEXT NOT NULL,
    body BLOB NOT NULL,
    share TEXT,
    bytes INTEGER NOT NULL
);
CREATE INDEX owed_by_session ON owed (session, seq);
CREATE TABLE inbound (
    session INTEGER NOT NULL,
    packet_id INTEGER NOT NULL,
    finished INTEGER NOT NULL,
    body BLOB NOT NULL,
    tails TEXT,
    PRIMARY KEY (session, packet_id)
) WITHOUT ROWID;
";

/// `auto_vacuum` has to come first: nothing changes it once the file has a page. The log of a large commit is cut back to what it
/// has as a rule, 4 MiB.
const SETTINGS: &str = "
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA cache_size = -4096;
PRAGMA temp_store = MEMORY;
PRAGMA journal_size_limit = 4194304;
";

/// Opens or makes the store in `dir`.
pub(super) fn open(dir: &Path) -> Result<Connection, StoreError> {
    let path = dir.join("broker.db");
    match prepare(&path) {
        Err(StoreError::Open { source, .. }) if is_damage(&source) => {
            move_aside(&path, &source);
            prepare(&path)
        }
        other => other,
    }
}

/// Leaves one file behind rather than a file and its log. What fails here is made good at the next start.
pub(super) fn finish(connection: &Connection) {
    if let Err(error) = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_row| Ok(())) {
        tracing::warn!(%error, "the broker's store could not be checkpointed at its end");
    }
}

/// Gives up to `pages` free pages back to the disk, all above `kept`. Answers whether there are more.
pub(super) fn give_back(connection: &Connection, kept: Kept, pages: i64) -> rusqlite::Result<bool> {
    let ask = |name| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
    let (free, all) = (ask("freelist_count")?, ask("page_count")?);
    let surplus = match kept {
        Kept::Nothing => free,
        Kept::ForReuse => free - (all / 4).max(REUSED_PAGES),
    };
    if surplus <= 0 {
        return Ok(false);
    }
    let now = surplus.min(pages);
    // A step frees a page: all of them have to be taken.
    let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({now})"))?;
    let mut steps = statement.query([])?;
    while steps.next()?.is_some() {}
    Ok(surplus > now)
}

/// Writes the log into the file, which is then as short as its pages are few.
pub(super) fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_row| Ok(()))
}

/// Which free pages stay in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// So many as are soon used again: a quarter of the file, at least [`REUSED_PAGES`].
    ForReuse,
    /// None: the disk needs them.
    Nothing,
}

/// See [`Kept::ForReuse`]: 4 MiB.
const REUSED_PAGES: i64 = 1_024;

fn prepare(path: &Path) -> Result<Connection, StoreError> {
    let fail = |source| StoreError::Open { path: path.to_owned(), source };
    let connection = Connection::open(path).map_err(fail)?;
    connection.execute_batch(SETTINGS).map_err(fail)?;
    connection.set_prepared_statement_cache_capacity(32);
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(fail)?;
    let steps = match found {
        0 => vec![TABLES, FROM_2, FROM_3, FROM_4, FROM_5, FROM_6],
        1 => vec![FROM_1, FROM_2, FROM_3, FROM_4, FROM_5, FROM_6],
        2 => vec![FROM_2, FROM_3, FROM_4, FROM_5, FROM_6],
        3 => vec![FROM_3, FROM_4, FROM_5, FROM_6],
        4 => vec![FROM_4, FROM_5, FROM_6],
        5 => vec![FROM_5, FROM_6],
        6 => vec![FROM_6],
        FORMAT => Vec::new(),
        found => return Err(StoreError::Newer { path: path.to_owned(), found, known: FORMAT }),
    };
    if !steps.is_empty() {
        let steps = steps.concat();
        connection.execute_batch(&format!("BEGIN; {steps} PRAGMA user_version = {FORMAT}; COMMIT;")).map_err(fail)?;
    }
    if (1..FORMAT).contains(&found) {
        tracing::info!(path = %path.display(), from = found, to = FORMAT, "the broker's store is upgraded; earlier programs cannot read it any more");
    }
    Ok(connection)
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
}

/// A damaged file is kept for a person to look at, and a new one is begun: the gateway must run.
fn move_aside(path: &Path, why: &rusqlite::Error) {
    let aside = (0..).map(|n| path.with_extension(format!("db.damaged-{n}"))).find(|aside| !aside.exists());
    let Some(aside) = aside else { return };
    tracing::error!(
        error = %why, from = %path.display(), to = %aside.display(),
        "the broker's store is damaged: it is moved aside and an empty one begun; sessions, retained messages and what was owed to sessions are lost"
    );
    for suffix in ["", "-wal", "-shm"] {
        let (from, to) = (with_suffix(path, suffix), with_suffix(&aside, suffix));
        if from.exists()
            && let Err(error) = std::fs::rename(&from, &to)
        {
            tracing::error!(%error, from = %from.display(), "the damaged store could not be moved aside");
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
