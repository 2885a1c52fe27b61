//! The log without its thread.

use futures_util::FutureExt;

use super::super::*;
use super::face::config;
use crate::clock;
use crate::units::ByteSize;

#[test]
fn what_is_committed_is_durable_and_a_drop_is_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, recovery) = Direct::open(&config(dir.path()), 16, clock::system()).unwrap();
    assert_eq!(recovery, Recovery::default());
    for n in 0..10_u8 {
        assert_eq!(log.append(&[&[n], b"x"], None), Ok(Some(Offset(u64::from(n)))));
    }
    assert_eq!(log.commit(), Ok(Offset(10)));
    log.append(&[b"never committed"], None).unwrap();
    drop(log);
    let (buffer, recovery) = Buffer::open(config(dir.path()), 16, clock::system()).unwrap();
    assert_eq!(recovery.buffered, 10);
    let records = buffer.reader().next(16, 1 << 20).now_or_never().unwrap().unwrap();
    assert_eq!(records.iter().map(|record| record.body[0]).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    buffer.close().now_or_never();
}

#[test]
fn an_offer_that_would_wait_commits_first_and_is_refused_where_that_frees_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let small = Config { max_size: ByteSize(64 << 10), when_full: WhenFull::Block, ..config(dir.path()) };
    let (mut log, _) = Direct::open(&small, 16, clock::system()).unwrap();
    let mut taken = 0;
    while log.append(&[&[1; 4_000]], None).is_ok() {
        taken += 1;
    }
    assert_eq!(log.append(&[&[1; 4_000]], None), Err(Refused::Full));
    log.close();
    let (buffer, recovery) = Buffer::open(small, 16, clock::system()).unwrap();
    assert_eq!((recovery.buffered, recovery.torn_bytes), (taken, 0));
    assert!(taken > 10, "{taken}");
    drop(buffer);
}
