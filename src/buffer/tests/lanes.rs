//! A link's lanes on the disk that fails: one quota for all, the lowest gives up first, and no lane loses what the others
//! do not take from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::FutureExt;

use super::super::state::Verdict;
use super::super::*;
use super::bench::{Bench, HandClock, WINDOW, config};
use super::disk::{Dice, SimDisk};
use crate::units::ByteSize;

const MAX_SIZE: u64 = 96 << 10;

/// One lane and its reference: a list of what was acknowledged and of what was delivered.
struct Own {
    lane: Lane,
    bench: Bench,
    bodies: BTreeMap<u64, Vec<u8>>,
    acknowledged: u64,
    delivered: BTreeSet<u64>,
}

/// All lanes of a link, driven by hand.
struct Link {
    disk: SimDisk,
    clock: Arc<HandClock>,
    when_full: WhenFull,
    lanes: Vec<Own>,
}

impl Link {
    fn new(when_full: WhenFull) -> Self {
        let (disk, clock) = (SimDisk::default(), HandClock::new());
        let mut link = Self { disk, clock, when_full, lanes: Vec::new() };
        for lane in Lane::ALL {
            let bench = link.bench(lane);
            let (bodies, delivered) = (BTreeMap::new(), BTreeSet::new());
            link.lanes.push(Own { lane, bench, bodies, acknowledged: 0, delivered });
        }
        link.share();
        link
    }

    fn bench(&self, lane: Lane) -> Bench {
        let dir = lane.folder(super::bench::dir());
        let own = Config { dir, max_size: ByteSize(MAX_SIZE), when_full: self.when_full, ..config() };
        Bench::open_lane(self.disk.clone(), Arc::clone(&self.clock), own, lanes::part_of(WINDOW, 3))
    }

    fn share(&self) {
        quota::share(self.lanes.iter().map(|own| (own.lane, Arc::clone(&own.bench.shared))), WINDOW);
    }

    fn turn(&mut self) {
        for own in &mut self.lanes {
            own.bench.turn();
            own.acknowledged = own.bench.durable();
        }
    }

    /// Offers until it is decided.
    fn put(&mut self, at: usize, body: &[u8]) -> Result<u64, Verdict> {
        for _ in 0..100 {
            match self.lanes[at].bench.put(body) {
                Err(Verdict::Wait) => self.turn(),
                Ok(offset) => {
                    self.lanes[at].bodies.insert(offset, body.to_vec());
                    return Ok(offset);
                }
                refused => return refused,
            }
        }
        Err(Verdict::Wait)
    }

    fn disk_bytes(&self) -> u64 {
        self.lanes.iter().map(|own| own.bench.shared.stats().disk_bytes).sum()
    }

    fn ledgers(&self) -> Vec<Ledger> {
        self.lanes.iter().map(|own| own.bench.ledger()).collect()
    }

    /// Takes the process down and starts it again.
    fn reopen(&mut self, clean: bool) {
        let lanes = std::mem::take(&mut self.lanes);
        if !clean {
            self.disk.kill();
        }
        for Own { lane, bench, mut bodies, acknowledged, delivered } in lanes {
            let bench = if clean { bench.close_and_reopen() } else { bench.reopen() };
            assert_eq!(bench.recovery.notes, Vec::<String>::new());
            let acknowledged = if clean { bench.durable() } else { acknowledged };
            let next = bench.durable();
            bodies.retain(|offset, _| *offset < next);
            self.lanes.push(Own { lane, bench, bodies, acknowledged, delivered });
        }
        self.share();
    }

    fn check(&mut self, seed: u64) {
        for own in &mut self.lanes {
            let records = own.bench.read_all();
            for record in &records {
                let expected = own.bodies.get(&record.offset.0).map(Vec::as_slice);
                assert_eq!(expected, Some(&record.body[..]), "seed {seed}, {:?}", own.lane);
            }
            let owed: BTreeSet<u64> = records.iter().map(|record| record.offset.0).collect();
            assert_eq!(owed.len(), records.len(), "seed {seed}: read twice");
            let acknowledged = own.bodies.range(..own.acknowledged).map(|(offset, _)| offset);
            let missing = acknowledged.filter(|at| !owed.contains(at) && !own.delivered.contains(at)).count();
            let ledger = own.bench.ledger();
            let dropped = ledger.dropped_when_full + ledger.dropped_min_free;
            assert!(missing as u64 <= dropped, "seed {seed}, {:?}: {missing} missing, {dropped} dropped", own.lane);
            assert_eq!(ledger.dropped_damaged, 0, "seed {seed}");
            own.delivered.retain(|at| !owed.contains(at));
        }
    }
}

fn run(seed: u64, when_full: WhenFull) {
    let mut dice = Dice(seed);
    let mut link = Link::new(when_full);
    for _ in 0..60 {
        let at = dice.roll(3) as usize;
        match dice.roll(10) {
            0..=5 => {
                let before = link.ledgers();
                for _ in 0..dice.roll(40) {
                    let mut body = dice.roll(u64::MAX).to_le_bytes().to_vec();
                    body.resize(8 + dice.roll(900) as usize, 1);
                    let _decided = link.put(at, &body);
                }
                link.turn();
                let after = link.ledgers();
                for (upper, own) in after.iter().enumerate() {
                    let dropped = own.dropped_when_full > before[upper].dropped_when_full;
                    assert!(!dropped || upper >= at, "seed {seed}: a higher lane gave way to a lower one");
                    let lower: u64 = after[upper + 1..].iter().map(|ledger| ledger.buffered).sum();
                    assert!(
                        !dropped || when_full != WhenFull::DropOldest || lower == 0,
                        "seed {seed}: dropped while lower lanes had {lower}"
                    );
                }
            }
            6..=7 => {
                let own = &mut link.lanes[at];
                for record in own.bench.read_all().into_iter().take(dice.roll(60) as usize) {
                    own.bench.settle([record.offset.0]);
                    own.delivered.insert(record.offset.0);
                }
                link.turn();
            }
            8 => {
                link.reopen(false);
                link.check(seed);
            }
            _ => {
                link.reopen(true);
                link.check(seed);
            }
        }
        assert!(link.disk_bytes() <= MAX_SIZE, "seed {seed}: {} bytes", link.disk_bytes());
    }
    link.check(seed);
}

#[test]
fn r14_random_runs_of_three_lanes_agree_with_a_list_for_each() {
    for seed in 0..40 {
        run(seed, WhenFull::DropOldest);
        run(seed, WhenFull::DropNewest);
        run(seed, WhenFull::Reject);
        run(seed, WhenFull::Block);
    }
}

/// What a sink with a window of [`WINDOW`] gets from a lane now, beside what it has in flight.
fn read_on(reader: &mut Reader, in_flight: usize) -> Vec<u64> {
    let read = reader.next(WINDOW - in_flight, 1 << 20).now_or_never();
    read.map_or_else(Vec::new, |read| read.unwrap().iter().map(|record| record.offset.0).collect())
}

#[test]
fn r09_a_kill_repeats_at_most_two_windows_of_a_link_however_many_lanes_it_has() {
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let mut link = Link::new(WhenFull::Reject);
        (0..3).for_each(|at| fill(&mut link, at, 60));
        let mut readers: Vec<Reader> = link.lanes.iter().map(|own| own.bench.reader()).collect();
        let mut in_flight: Vec<(usize, u64)> = Vec::new();
        // The writers wait for the disk, but for now and then.
        for step in 0..200 {
            let at = dice.roll(3) as usize;
            if in_flight.len() < WINDOW {
                in_flight.extend(read_on(&mut readers[at], in_flight.len()).into_iter().map(|offset| (at, offset)));
            }
            for _ in 0..dice.roll(in_flight.len() as u64 + 1) {
                let (lane, offset) = in_flight.remove(0);
                link.lanes[lane].bench.settle([offset]);
            }
            let unsaved: u64 = link.lanes.iter().map(|own| own.bench.shared.unsaved()).sum();
            assert!(unsaved as usize + in_flight.len() < 2 * WINDOW, "seed {seed}, step {step}: {unsaved} unsaved");
            if dice.roll(12) == 0 {
                link.turn();
                let unsaved: u64 = link.lanes.iter().map(|own| own.bench.shared.unsaved()).sum();
                assert!(unsaved < WINDOW as u64, "seed {seed}: saved where a part of the window was due");
            }
        }
        let cursors: Vec<u64> = readers.iter().map(|reader| reader.cursor().0).collect();
        drop(readers);
        link.reopen(false);
        let again = link.lanes.iter().zip(cursors).map(|(own, before)| before - own.bench.shared.stats().cursor.0);
        let repeated = again.sum::<u64>() as usize + in_flight.len();
        assert!(repeated <= 2 * WINDOW, "seed {seed}: {repeated} are sent again");
    }
}

#[test]
fn r09_a_lane_that_saves_lets_the_readers_of_the_others_go_on() {
    let mut link = Link::new(WhenFull::Reject);
    (0..2).for_each(|at| fill(&mut link, at, 60));
    let mut high = link.lanes[0].bench.reader();
    let mut normal = link.lanes[1].bench.reader();
    let read = read_on(&mut high, 0);
    assert_eq!(read.len(), WINDOW);
    link.lanes[0].bench.settle(read);
    {
        let mut waiting = Box::pin(normal.next(WINDOW, 1 << 20));
        assert!(waiting.as_mut().now_or_never().is_none(), "a window is unsaved in the high lane");
        link.lanes[0].bench.turn();
        assert!(waiting.now_or_never().is_some());
    }
    // A lane that has failed holds nobody up.
    link.lanes[0].bench.settle(read_on(&mut high, 0));
    assert_eq!(read_on(&mut normal, 0), Vec::<u64>::new());
    link.lanes[0].bench.shared.fail("for the test");
    assert!(!read_on(&mut normal, 0).is_empty());
}

fn fill(link: &mut Link, at: usize, count: usize) {
    for n in 0..count {
        link.put(at, &super::bench::body(n as u64)).unwrap();
    }
    link.turn();
}

#[test]
fn r04_on_a_full_disk_what_another_lane_has_delivered_goes_before_the_newest_is_dropped() {
    let mut link = Link::new(WhenFull::DropNewest);
    fill(&mut link, 2, 100);
    link.lanes[2].bench.settle(0..100);
    link.disk.capacity(Some(link.disk.used()));
    link.put(0, &super::bench::body(0)).unwrap();
    link.lanes[0].bench.log.commit();
    assert_eq!(link.lanes[0].bench.durable(), 0, "it waits for the low lane to give up what is delivered");
    link.turn();
    link.turn();
    let own = &link.lanes[0].bench;
    assert_eq!((own.durable(), own.ledger()), (1, Ledger { accepted: 1, buffered: 1, ..Ledger::default() }));
}

#[test]
fn r14_the_lowest_lane_is_dropped_first_and_only_as_far_as_needed() {
    let mut link = Link::new(WhenFull::DropOldest);
    fill(&mut link, 2, 400);
    fill(&mut link, 1, 200);
    let low = |link: &Link| link.lanes[2].bench.ledger();
    fill(&mut link, 0, 350);
    assert!((1..400).contains(&low(&link).dropped_when_full), "{:?}", low(&link));
    assert_eq!((link.ledgers()[0].dropped_when_full, link.ledgers()[1].dropped_when_full), (0, 0));
    fill(&mut link, 0, 400);
    assert_eq!((low(&link).buffered, link.ledgers()[0].dropped_when_full), (0, 0));
    assert!(link.ledgers()[1].dropped_when_full > 0);
}

#[test]
fn r14_a_low_record_is_itself_dropped_where_higher_lanes_fill_the_quota() {
    let mut link = Link::new(WhenFull::DropOldest);
    let mut body = super::bench::body(0);
    body.resize(2_000, b'x');
    while link.ledgers()[0].dropped_when_full == 0 {
        link.put(0, &body).unwrap();
        link.turn();
    }
    let high = link.ledgers()[0];
    // More than the segment that has just been given up.
    body.resize(13_000, b'x');
    assert_eq!(link.put(2, &body), Err(Verdict::DroppedNewest));
    assert_eq!(link.ledgers()[2], Ledger { accepted: 1, dropped_when_full: 1, ..Ledger::default() });
    assert_eq!(link.ledgers()[0], high, "the high lane keeps all it had");
}

#[tokio::test]
async fn r14_a_lane_exists_when_a_route_uses_it_or_its_folder_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let config = super::face::config(&dir.path().join("hq"));
    let names = |lanes: &Lanes| lanes.iter().map(|(lane, _)| lane.name()).collect::<Vec<_>>();
    let clock = crate::clock::system();
    let (lanes, _) = Lanes::open(&config, 16, &[], &clock).unwrap();
    assert_eq!(names(&lanes), ["normal"]);
    assert_eq!(Lane::found_in(&config.dir).len(), 1);
    lanes.close().await;
    drop(lanes);
    let (lanes, _) = Lanes::open(&config, 16, &[Lane::High], &clock).unwrap();
    let offset = super::face::put(lanes.lane(Lane::High), b"urgent").await;
    lanes.lane(Lane::High).mark().passed(offset.0).await.unwrap();
    super::face::put(lanes.lane(Lane::Normal), b"usual").await;
    let id = lanes.id().to_owned();
    lanes.close().await;
    drop(lanes);
    let (lanes, recoveries) = Lanes::open(&config, 16, &[], &clock).unwrap();
    assert_eq!((names(&lanes), lanes.id()), (vec!["high", "normal"], id.as_str()));
    assert_eq!(recoveries.iter().map(|(_, found)| found.buffered).collect::<Vec<_>>(), [1, 1]);
    assert!(recoveries.iter().all(|(_, found)| found.notes.is_empty()), "{recoveries:?}");
    assert_eq!((lanes.ledger().accepted, lanes.ledger().balances()), (2, true));
    assert_eq!(Lane::found_in(&config.dir).len(), 2);
    lanes.close().await;
}

#[tokio::test]
async fn r14_what_has_room_in_one_lane_and_waits_for_room_in_another_holds_no_seal_up() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { when_full: WhenFull::Block, max_size: ByteSize(1 << 20), ..super::face::config(dir.path()) };
    let (lanes, _) = Lanes::open(&config, 16, &[Lane::Low], &crate::clock::system()).unwrap();
    let Ok(Admission::Granted(permit)) = lanes.lane(Lane::Normal).admit(100).await else { panic!("no room") };
    let low = lanes.lane(Lane::Low);
    // It holds its room in the normal lane until this one has decided.
    let waits = async move {
        loop {
            match low.admit(60_000).await {
                Ok(Admission::Granted(permit)) => drop(low.append(permit, &[&[7; 60_000]], None)),
                Ok(Admission::DroppedNewest) => panic!("it blocks"),
                Err(refused) => break assert_eq!(refused, Refused::Closed),
            }
        }
        drop(permit);
    };
    let both = async { tokio::join!(waits, lanes.seal()) };
    tokio::time::timeout(Duration::from_secs(10), both).await.expect("the seal of one lane waits for the other");
    lanes.close().await;
}

#[tokio::test]
async fn r14_where_a_lane_does_not_open_the_others_are_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let config = super::face::config(&dir.path().join("hq"));
    let clock = crate::clock::system();
    let (lanes, _) = Lanes::open(&config, 16, &[Lane::High, Lane::Low], &clock).unwrap();
    lanes.close().await;
    drop(lanes);
    let meta = config.dir.join("low/meta");
    std::fs::remove_file(&meta).unwrap();
    std::fs::create_dir(&meta).unwrap();
    for _ in 0..20 {
        let error = Lanes::open(&config, 16, &[], &clock).unwrap_err();
        assert!(error.to_string().contains("low"), "{error}");
    }
    std::fs::remove_dir(&meta).unwrap();
    Lanes::open(&config, 16, &[], &clock).unwrap().0.close().await;
}
