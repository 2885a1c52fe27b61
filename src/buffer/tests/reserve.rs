//! What a full disk must not stop: dead letters (R4). The cursor's slots are written out when they are made (`faults`).

use std::sync::Arc;

use super::super::*;
use super::bench::{HandClock, WINDOW, body, config, dir};
use super::disk::{Dice, SimDisk};
use crate::clock::Clock;

const RESERVE: u64 = 4_096;

fn letter(offset: u64) -> DeadLetter {
    let reason = "NOT_AUTHORIZED".to_owned();
    DeadLetter { offset: Offset(offset), time: WallMs(1_000), reason, attempts: 1, body: body(offset).into() }
}

fn open(disk: &SimDisk) -> (DeadLetters, Vec<String>) {
    DeadLetters::open(Arc::new(disk.clone()), dir(), RESERVE).unwrap()
}

fn file() -> PathBuf {
    dir().join("dead-letters/letters")
}

/// Puts letters from `from` on until there is no room; answers the first that did not go in.
async fn put_until_full(letters: &DeadLetters, from: u64) -> u64 {
    for n in from..1_000 {
        match letters.put(letter(n)).await {
            Ok(()) => {}
            Err(Refused::Full) => return n,
            Err(refused) => panic!("{refused}"),
        }
    }
    panic!("never full");
}

#[tokio::test]
async fn r04_on_a_full_disk_a_refused_record_becomes_a_dead_letter_and_the_link_goes_on() {
    let disk = SimDisk::default();
    let clock: Arc<dyn Clock> = HandClock::new();
    let open = || Buffer::open_as("test", Arc::new(disk.clone()), &config(), WINDOW, Arc::clone(&clock)).unwrap();
    let (buffer, _) = open();
    for n in 0..10 {
        let Ok(Admission::Granted(permit)) = buffer.admit(100).await else { panic!("no room") };
        let offset = buffer.append(permit, &[&body(n)], None);
        buffer.mark().passed(offset.0).await.unwrap();
    }
    disk.capacity(Some(disk.used()));
    for n in 0..10 {
        let refused = [3, 4, 8].contains(&n);
        if refused {
            buffer.dead_letters().put(letter(n)).await.unwrap();
        }
        buffer.settle(Offset(n), if refused { Outcome::DeadLettered } else { Outcome::Delivered });
    }
    buffer.close().await;
    drop(buffer);
    let (buffer, _) = open();
    assert_eq!(buffer.dead_letters().list().letters, [letter(3), letter(4), letter(8)]);
    assert_eq!(
        buffer.stats().ledger,
        Ledger { accepted: 10, delivered: 7, dead_lettered: 3, ..Ledger::default() },
        "the cursor has passed them"
    );
    buffer.close().await;
}

#[tokio::test]
async fn r04_the_reserve_is_used_up_without_loss_and_filled_up_again() {
    let disk = SimDisk::default();
    let (letters, _) = open(&disk);
    assert_eq!(disk.len(&file()), RESERVE, "before the first letter");
    letters.put(letter(0)).await.unwrap();
    disk.capacity(Some(disk.used()));
    let taken = put_until_full(&letters, 1).await;
    let row = 168;
    assert!((RESERVE / row / 2..=RESERVE / row + 1).contains(&taken), "{taken}");
    assert!(disk.len(&file()) <= RESERVE + row, "no more than was there");
    // What the operator does about it works, and is small.
    while letters.drop_letter(Offset(0)).await == Err(Refused::Full) {
        disk.capacity(Some(disk.used() + 48));
    }
    disk.kill();
    let (letters, notes) = open(&disk);
    assert_eq!((letters.list().letters, notes), ((1..taken).map(letter).collect(), vec![]));
    assert_eq!(letters.put(letter(taken)).await, Err(Refused::Full));
    disk.capacity(None);
    letters.put(letter(taken)).await.unwrap();
    disk.capacity(Some(disk.used()));
    let more = put_until_full(&letters, taken + 1).await - taken;
    assert!(more >= RESERVE / row / 2, "{more}");
}

#[tokio::test]
async fn r04_a_power_cut_loses_no_letter_that_was_stored_in_the_reserve() {
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let disk = SimDisk::default();
        let mut stored = 0;
        for _life in 0..4 {
            let (letters, _) = open(&disk);
            assert_eq!(letters.len(), stored, "seed {seed}");
            disk.capacity((dice.roll(2) == 0).then(|| disk.used() + dice.roll(500)));
            for _ in 0..dice.roll(40) {
                match letters.put(letter(stored)).await {
                    Ok(()) => stored += 1,
                    Err(refused) => assert_eq!(refused, Refused::Full, "seed {seed}"),
                }
            }
            assert_eq!(letters.list().letters, (0..stored).map(letter).collect::<Vec<_>>(), "seed {seed}");
            disk.cut_power(&mut dice);
        }
    }
}

#[tokio::test]
async fn a_log_that_cannot_have_its_reserve_opens_and_says_so() {
    let disk = SimDisk::default();
    disk.capacity(Some(100));
    let (letters, _) = open(&disk);
    assert_eq!(letters.put(letter(0)).await, Err(Refused::Full));
    disk.capacity(None);
    letters.put(letter(0)).await.unwrap();
    assert!(disk.len(&file()) >= RESERVE);
}
