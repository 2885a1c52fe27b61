//! What the log does not do: a sync for each publisher, a read for a link that keeps up, a look at the whole of a backlog.

use super::bench::{Bench, body, config};
use crate::buffer::Config;
use crate::buffer::tail::Tail;
use crate::units::ByteSize;

fn large() -> Config {
    Config { max_size: ByteSize(64 << 20), ..config() }
}

#[test]
fn publishers_that_wait_share_a_sync() {
    let mut bench = Bench::new(large());
    bench.put_all(0, 1);
    drop(bench.disk.calls());
    for n in 1..=500 {
        bench.put(&body(n)).unwrap();
    }
    bench.log.commit();
    assert_eq!(bench.durable(), 501);
    let calls = bench.disk.calls();
    let of = |what| calls.iter().filter(|call| call.starts_with(what)).count();
    assert_eq!((of("write"), of("sync")), (1, 1), "{calls:?}");
}

#[test]
fn a_link_that_keeps_up_reads_nothing_from_disk() {
    let mut bench = Bench::new(large());
    let mut reader = bench.reader();
    let _so_far = bench.disk.bytes_read();
    for n in 0..2_000 {
        bench.put(&body(n)).unwrap();
        bench.turn();
        let records = futures_util::FutureExt::now_or_never(reader.read(10, 1 << 20)).unwrap().unwrap();
        assert_eq!(records.iter().map(|record| record.offset.0).collect::<Vec<_>>(), [n]);
        bench.settle([n]);
    }
    assert_eq!(bench.disk.bytes_read(), 0);
}

/// Appends so many records of 4 KiB that nobody takes.
fn backlog(records: u64) -> Bench {
    let mut bench = Bench::new(large());
    for n in 0..records {
        bench.put_patiently(&[7; 4096]).unwrap();
        if n % 16 == 0 {
            bench.turn();
        }
    }
    bench.turn();
    bench
}

#[test]
fn a_backlog_is_not_in_memory() {
    let held = |records| backlog(records).shared.state.lock().tail.bytes();
    let (some, more) = (held(2_000), held(8_000));
    assert!(some <= Tail::BYTES_MAX && more <= Tail::BYTES_MAX, "{some}, then {more}");
    assert!(some > Tail::BYTES_MAX / 2, "{some}: so much was to be seen");
}

#[test]
fn opening_a_backlog_reads_little_of_it() {
    let read = |records| {
        let bench = backlog(records);
        let _so_far = bench.disk.bytes_read();
        let bench = bench.close_and_reopen();
        (bench.disk.bytes_read(), bench.disk.segments().len() as u64, bench.shared.stats().next.0)
    };
    for records in [2_000, 8_000] {
        let (bytes, segments, next) = read(records);
        assert_eq!(next, records);
        assert!(bytes <= segments * 16_384, "{bytes} bytes of {segments} segments and {} bytes", records * 4096);
    }
}
