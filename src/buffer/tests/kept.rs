//! `keep_delivered`: what is settled stays for its time, and is the first to go where space is needed.

use std::time::Duration;

use super::super::*;
use super::bench::{Bench, body, config};

const HOUR: Duration = Duration::from_secs(3_600);

fn keeping(age: Option<Duration>, size: Option<u64>) -> Config {
    Config { keep_delivered: Some(Keep { age, size: size.map(ByteSize) }), ..config() }
}

/// Writes `[from, to)` and delivers it.
fn deliver(bench: &mut Bench, from: u64, to: u64) {
    for n in from..to {
        bench.put_patiently(&body(n)).unwrap();
        bench.turn();
        bench.settle([n]);
    }
    bench.turn();
}

/// The first record that is still on disk.
fn first(bench: &Bench) -> u64 {
    bench.shared.state.lock().segments.front().map_or(0, |segment| segment.base)
}

#[test]
fn delivered_segments_stay_for_their_age_and_then_go() {
    let mut bench = Bench::new(keeping(Some(HOUR), None));
    deliver(&mut bench, 0, 100);
    bench.clock.pass(HOUR / 2);
    deliver(&mut bench, 100, 200);
    assert_eq!(first(&bench), 0, "nothing goes before its time");
    let stats = bench.shared.stats();
    assert_eq!(stats.ledger, Ledger { accepted: 200, delivered: 200, ..Ledger::default() }, "delivered is delivered");
    assert!(stats.kept_bytes > 20_000, "{stats:?}");
    let mut bench = bench.kill_and_reopen();
    bench.settle(0..200);
    bench.turn();
    assert_eq!(first(&bench), 0, "a restart changes nothing");
    bench.clock.pass(HOUR / 2 + Duration::from_secs(1));
    bench.turn();
    let left = first(&bench);
    assert!((70..=100).contains(&left), "the first half is too old: {left}");
    bench.clock.pass(HOUR);
    bench.turn();
    assert_eq!(bench.disk.segments().len(), 0);
}

#[test]
fn a_slow_links_segment_is_closed_in_time_to_go() {
    let mut bench = Bench::new(keeping(Some(HOUR), None));
    deliver(&mut bench, 0, 3);
    bench.clock.pass(HOUR / 7);
    bench.turn();
    assert_eq!(bench.disk.segments().len(), 1);
    bench.clock.pass(HOUR);
    bench.turn();
    assert_eq!(bench.disk.segments().len(), 0);
    assert!(bench.log.next_look().is_none_or(|look| look <= HOUR), "{:?}", bench.log.next_look());
}

#[test]
fn the_log_wakes_for_the_age_of_what_it_keeps_although_nothing_happens() {
    let mut bench = Bench::new(keeping(Some(HOUR), None));
    deliver(&mut bench, 0, 3);
    bench.clock.pass(Duration::from_secs(5));
    bench.turn();
    assert_eq!(bench.log.next_look(), Some(Duration::from_secs(60)));
}

#[test]
fn delivered_segments_stay_up_to_their_size() {
    let mut bench = Bench::new(keeping(None, Some(20_000)));
    deliver(&mut bench, 0, 300);
    let kept = bench.shared.stats().kept_bytes;
    assert!((12_000..=20_000).contains(&kept), "{kept}");
    assert!(first(&bench) > 100);
    bench.clock.pass(HOUR * 1_000);
    bench.turn();
    assert_eq!(bench.shared.stats().kept_bytes, kept, "age is no matter");
}

#[test]
fn r02_delivered_records_go_before_any_that_are_owed() {
    let mut bench = Bench::new(keeping(Some(HOUR), None));
    deliver(&mut bench, 0, 200);
    for n in 200..400 {
        bench.put_patiently(&body(n)).unwrap();
        bench.turn();
        assert!(bench.shared.stats().disk_bytes <= 64 << 10, "max_size holds");
    }
    assert!(first(&bench) > 0, "room was made");
    let ledger = bench.ledger();
    assert_eq!(ledger, Ledger { accepted: 400, delivered: 200, buffered: 200, ..Ledger::default() }, "nothing dropped");
    for n in 400..2_000 {
        bench.put_patiently(&body(n)).unwrap();
        bench.turn();
    }
    assert!(first(&bench) >= 200);
    assert!(bench.ledger().dropped_when_full > 0, "only then does `when_full` decide");
}

#[test]
fn r04_at_min_free_delivered_segments_go_first() {
    let mut bench = Bench::new(Config { min_free: Some(ByteSize(100_000)), ..keeping(Some(HOUR), None) });
    deliver(&mut bench, 0, 200);
    bench.put_all(200, 220);
    bench.turn();
    let used = bench.disk.used();
    bench.disk.capacity(Some(used + 100_000 - 5_000));
    bench.clock.pass(Duration::from_secs(1));
    for _ in 0..6 {
        bench.turn();
    }
    let left = first(&bench);
    assert!(left > 0 && left < 200, "as many as it takes: {left}");
    bench.put_patiently(&body(220)).unwrap();
    let ledger = bench.ledger();
    assert_eq!((ledger.dropped_min_free, ledger.buffered), (0, 21), "{ledger:?}");
}

#[test]
fn r08_a_step_of_the_clock_takes_nothing_that_is_kept() {
    let mut bench = Bench::new(keeping(Some(HOUR), None));
    deliver(&mut bench, 0, 200);
    bench.clock.step_wall(1_000 * 3_600_000);
    bench.turn();
    assert_eq!(first(&bench), 0);
}

#[test]
fn without_it_what_is_delivered_goes_at_once() {
    let mut bench = Bench::new(config());
    deliver(&mut bench, 0, 200);
    assert!(bench.disk.segments().len() <= 1);
    assert_eq!(bench.shared.stats().kept_bytes, 0);
}
