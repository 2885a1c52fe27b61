//! What a remote knows of a log by its own account (R26).

use super::super::streams::Streams;
use crate::buffer::{self, Admission, Lane, Lanes, Offset, Outcome, Place};
use crate::links::{Confirmed, Drain};

async fn lanes(dir: &std::path::Path, records: usize) -> Lanes {
    let config = buffer::Config {
        dir: dir.to_owned(),
        max_size: crate::units::ByteSize(1 << 20),
        max_age: None,
        when_full: buffer::WhenFull::Reject,
        sync: buffer::SyncMode::Group,
        min_free: Some(crate::units::ByteSize(0)),
        compress: buffer::Compression::None,
        keep_delivered: None,
    };
    let (lanes, _) = Lanes::open(&config, 64, &[], &crate::clock::system()).unwrap();
    let buffer = lanes.lane(Lane::Normal);
    for _ in 0..records {
        let Admission::Granted(permit) = buffer.admit(1).await.unwrap() else { panic!("there is room") };
        buffer.append(permit, &[b"x"], None);
    }
    lanes
}

fn said(below: u64, expired: Option<u64>) -> [Confirmed; 1] {
    [Confirmed { below: Place { lane: Lane::Normal, offset: Offset(below) }, witness: 0, expired }]
}

#[tokio::test]
async fn r26_what_had_lapsed_before_a_kill_is_no_delivery_by_the_remotes_account() {
    let dir = tempfile::tempdir().unwrap();
    let lanes = lanes(dir.path(), 10).await;
    let buffer = lanes.lane(Lane::Normal);
    // The saved cursor knows of one that lapsed, and of two deliveries; the remote of three that lapsed among the first eight.
    for (offset, outcome) in [(0, Outcome::Delivered), (1, Outcome::Expired), (2, Outcome::Delivered)] {
        buffer.settle(Offset(offset), outcome);
    }
    let streams = Streams::new(&lanes, Drain::Fifo);
    streams.settle_below(&said(8, Some(3))).await.unwrap();
    let ledger = buffer.stats().ledger;
    assert_eq!((ledger.expired, ledger.delivered, ledger.buffered), (3, 5, 2), "{ledger:?}");
    // A second time changes nothing, nor does what lies behind.
    streams.settle_below(&said(8, Some(3))).await.unwrap();
    buffer.settle(Offset(9), Outcome::Expired);
    streams.settle_below(&said(9, Some(3))).await.unwrap();
    let ledger = buffer.stats().ledger;
    assert_eq!((ledger.expired, ledger.delivered, ledger.buffered), (4, 6, 0), "{ledger:?}");
}

#[tokio::test]
async fn r26_an_account_of_an_earlier_program_says_nothing_of_what_lapsed() {
    let dir = tempfile::tempdir().unwrap();
    let lanes = lanes(dir.path(), 3).await;
    Streams::new(&lanes, Drain::Fifo).settle_below(&said(3, None)).await.unwrap();
    assert_eq!(lanes.lane(Lane::Normal).stats().ledger.delivered, 3);
}

#[tokio::test]
async fn r26_how_many_had_lapsed_before_a_record_is_the_same_at_each_look() {
    let dir = tempfile::tempdir().unwrap();
    let lanes = lanes(dir.path(), 8).await;
    let mut streams = Streams::new(&lanes, Drain::Fifo);
    streams.begin(4);
    assert_eq!(streams.expired_before(0, Offset(1)), 0);
    for lapsed in [2, 3, 5] {
        streams.has_expired(0, Offset(lapsed));
    }
    assert_eq!(streams.expired_before(0, Offset(6)), 3);
    // Sent again from the first on.
    streams.begin(4);
    assert_eq!([0, 4, 6].map(|at| streams.expired_before(0, Offset(at))), [0, 2, 3]);
    // The cursor has passed some of them.
    for delivered in [0, 1, 4] {
        lanes.lane(Lane::Normal).settle(Offset(delivered), Outcome::Delivered);
    }
    streams.begin(4);
    streams.has_expired(0, Offset(6));
    assert_eq!(streams.expired_before(0, Offset(7)), 4);
}
