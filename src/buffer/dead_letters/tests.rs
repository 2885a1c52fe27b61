//! The log on a real folder.

use super::super::storage::Disk;
use super::*;

fn letter(offset: u64) -> DeadLetter {
    DeadLetter {
        offset: Offset(offset),
        time: WallMs(1_000 + offset),
        reason: "NOT_AUTHORIZED".to_owned(),
        attempts: 3,
        body: Bytes::from(vec![7; 21]),
    }
}

fn open(dir: &Path) -> (DeadLetters, Vec<String>) {
    DeadLetters::open(Arc::new(Disk), dir, 0).unwrap()
}

#[tokio::test]
async fn r15_a_letter_is_there_after_a_restart_and_never_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (letters, _) = open(dir.path());
    assert!(letters.is_empty());
    letters.put(letter(4)).await.unwrap();
    letters.put(letter(9)).await.unwrap();
    drop(letters);
    let (letters, notes) = open(dir.path());
    assert_eq!(notes, Vec::<String>::new());
    letters.put(letter(4)).await.unwrap();
    assert_eq!(letters.list().letters, [letter(4), letter(9)]);
    assert_eq!(letters.len(), 2);
}

/// The numbers of a log began anew, as after the loss of its files: neither letter is lost.
#[tokio::test]
async fn r15_a_letter_of_another_record_with_the_same_number_is_no_repetition() {
    let dir = tempfile::tempdir().unwrap();
    let (letters, _) = open(dir.path());
    letters.put(letter(0)).await.unwrap();
    letters.put(letter(1)).await.unwrap();
    let before = std::fs::read(dir.path().join("dead-letters/letters")).unwrap();
    drop(letters);
    let (letters, _) = open(dir.path());
    let other = |offset| DeadLetter { body: Bytes::from_static(b"another"), ..letter(offset) };
    letters.put(other(0)).await.unwrap();
    letters.put(other(1)).await.unwrap();
    assert_eq!(letters.list().letters, [other(0), other(1)]);
    assert_eq!(std::fs::read(dir.path().join("dead-letters/letters.1.kept")).unwrap(), before);
    assert!(!dir.path().join("dead-letters/letters.2.kept").exists(), "once is enough");
    drop(letters);
    assert_eq!(open(dir.path()).0.list().letters, [other(0), other(1)]);
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_the_sound_letters_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (letters, _) = open(dir.path());
    letters.put(letter(1)).await.unwrap();
    letters.put(letter(2)).await.unwrap();
    drop(letters);
    let path = dir.path().join("dead-letters/letters");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();
    let (letters, notes) = open(dir.path());
    assert_eq!(letters.list().letters, [letter(1)]);
    assert!(notes[0].contains("torn tail"), "{notes:?}");
    letters.put(letter(2)).await.unwrap();
    drop(letters);
    assert_eq!(open(dir.path()).0.len(), 2);
}

#[tokio::test]
async fn r15_a_full_dead_letter_log_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let (letters, _) = open(dir.path());
    letters.limit(100);
    letters.put(letter(1)).await.unwrap();
    assert_eq!(letters.put(letter(2)).await, Err(Refused::Full));
    assert_eq!(letters.len(), 1);
}

#[tokio::test]
async fn what_is_gone_gives_its_room_back_and_stays_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (letters, _) = open(dir.path());
    letters.limit(390);
    for offset in 0..4 {
        letters.put(letter(offset)).await.unwrap();
    }
    assert_eq!(letters.put(letter(4)).await, Err(Refused::Full));
    for (offset, fate) in [
        (0, Fate::Dropped { letter: Offset(0) }),
        (1, Fate::Sent { letter: Offset(1), offset: 9 }),
        (2, Fate::Dropped { letter: Offset(2) }),
    ] {
        letters.letters.lock().note(fate).unwrap();
        assert_eq!(letters.get(Offset(offset)), Ok(None));
    }
    letters.put(letter(4)).await.unwrap();
    let expect = |letters: &DeadLetters| {
        assert_eq!(letters.list().letters, [letter(3), letter(4)]);
        let index = &letters.letters.lock().index;
        assert_eq!((index.sent, index.dropped), (1, 2));
    };
    expect(&letters);
    assert!(std::fs::metadata(dir.path().join("dead-letters/letters")).unwrap().len() < 300);
    drop(letters);
    expect(&open(dir.path()).0);
}

#[tokio::test]
async fn a_damaged_row_hides_no_other_and_nothing_in_a_message_is_taken_for_a_row() {
    let dir = tempfile::tempdir().unwrap();
    let (letters, _) = open(dir.path());
    // What somebody who knows the format, but not the salt, would put into a message.
    let forged: Vec<u8> = (100..400).flat_map(|n| Row::Letter(letter(n)).encode(7)).collect();
    let evil = DeadLetter { reason: String::new(), body: forged.into(), ..letter(0) };
    letters.put(letter(1)).await.unwrap();
    letters.put(evil).await.unwrap();
    letters.put(letter(2)).await.unwrap();
    drop(letters);
    let path = dir.path().join("dead-letters/letters");
    let bytes = std::fs::read(&path).unwrap();
    let first = aligned(Row::Letter(letter(1)).encode(0).len());
    // Magic, length, salt, checksums, body.
    for at in [0, 4, 7, 8, 12, 16, 40, 90] {
        let mut hit = bytes.clone();
        hit[first + at] ^= 0x11;
        std::fs::write(&path, hit).unwrap();
        let (letters, notes) = open(dir.path());
        assert_eq!(letters.list().letters, [letter(1), letter(2)], "byte {at}");
        assert_eq!(notes.len(), 1, "byte {at}: {notes:?}");
    }
}

#[tokio::test]
async fn letters_outlive_the_meta_that_their_salt_is_from() {
    let dir = tempfile::tempdir().unwrap();
    let save = |secret| {
        let _gone = std::fs::remove_file(dir.path().join("meta"));
        let (mut meta, _) = super::super::slots::Slots::open(&Disk, &dir.path().join("meta")).unwrap();
        let identity = Identity { uuid: [1; 16], secret, epoch: 0, reserved: 0, clean: false, ahead: false };
        meta.save(&identity.encode()).and_then(|()| meta.sync()).unwrap();
    };
    save(5);
    let (letters, _) = open(dir.path());
    letters.put(letter(1)).await.unwrap();
    drop(letters);
    save(6);
    let (letters, notes) = open(dir.path());
    letters.put(letter(2)).await.unwrap();
    assert_eq!((letters.list().letters, notes), (vec![letter(1), letter(2)], vec![]));
    assert_eq!(read_all(&Disk, dir.path()).unwrap().letters.len(), 2);
    assert_eq!(look(&Disk, dir.path()).unwrap().damaged, []);
    drop(letters);
    assert_eq!(open(dir.path()).0.len(), 2);
}

#[tokio::test]
async fn one_damaged_letter_is_named_and_hides_no_other_in_use_and_on_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let (letters, _) = open(dir.path());
    let all: Vec<_> = (1..=3).map(letter).collect();
    for letter in &all {
        letters.put(letter.clone()).await.unwrap();
    }
    let path = dir.path().join("dead-letters/letters");
    let bytes = std::fs::read(&path).unwrap();
    let row = Row::Letter(letter(1)).encode(0).len();
    let size = HEADER_AND_FIXED + letter(1).reason.len() + letter(1).body.len();
    for at in 0..bytes.len() {
        let mut hit = bytes.clone();
        hit[at] ^= 0x11;
        // In place: the log has the file open.
        std::fs::write(&path, &hit).unwrap();
        // What is behind a row up to the next is never looked at.
        let lost = (at % row < size).then_some(at / row);
        let sound = all.iter().enumerate().filter(|(n, _)| lost != Some(*n));
        let left: Vec<_> = sound.map(|(_, letter)| letter.clone()).collect();
        let read = letters.list();
        assert_eq!(read.letters, left, "byte {at}");
        let named: Vec<_> = read.damaged.iter().filter_map(|damaged| Some(damaged.offset?.0)).collect();
        assert_eq!(named, lost.map(|n| all[n].offset.0).into_iter().collect::<Vec<_>>(), "byte {at}");
        let read = read_all(&Disk, dir.path()).unwrap();
        assert_eq!((read.letters, read.damaged.len()), (left, usize::from(lost.is_some())), "byte {at}");
    }
}

const HEADER_AND_FIXED: usize = 48;

#[tokio::test]
async fn a_log_that_is_written_anew_goes_on_without_a_damaged_letter_and_keeps_it_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (letters, _) = open(dir.path());
    letters.limit(390);
    for offset in 0..4 {
        letters.put(letter(offset)).await.unwrap();
    }
    let path = dir.path().join("dead-letters/letters");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[60] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(letters.list().damaged[0].offset, Some(Offset(0)));
    letters.letters.lock().note(Fate::Dropped { letter: Offset(1) }).unwrap();
    letters.put(letter(4)).await.unwrap();
    assert_eq!(letters.list(), ReadLetters { letters: vec![letter(2), letter(3), letter(4)], damaged: Vec::new() });
    let aside = std::fs::read(dir.path().join("dead-letters/letters.1.damaged")).unwrap();
    assert_eq!(aside[..bytes.len()], bytes);
    drop(letters);
    let (letters, notes) = open(dir.path());
    assert_eq!((letters.len(), notes), (3, Vec::new()));
}

#[test]
fn a_search_for_rows_in_damage_reads_little_more_than_there_is() {
    #[derive(Debug)]
    struct Counting(Vec<u8>, std::sync::atomic::AtomicU64);
    impl Handle for Counting {
        fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
            let from = usize::try_from(pos).map_err(io::Error::other)?;
            let bytes = self.0.get(from..).unwrap_or_default();
            let len = bytes.len().min(buf.len());
            buf[..len].copy_from_slice(&bytes[..len]);
            self.1.fetch_add(wide(len), std::sync::atomic::Ordering::Relaxed);
            Ok(len)
        }
        fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn set_len(&self, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn sync(&self) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn len(&self) -> io::Result<u64> {
            Ok(wide(self.0.len()))
        }
    }
    let sound = Row::Letter(letter(1)).encode(5);
    // Headers that check by themselves, of long rows that do not: each costs its length where the salt does not tell.
    let mut forged = Row::Letter(DeadLetter { body: vec![9; 900 << 10].into(), ..letter(2) }).encode(7);
    forged.truncate(24);
    let bytes: Vec<u8> = sound.iter().chain(std::iter::repeat_n(&forged, 40_000).flatten()).copied().collect();
    let len = wide(bytes.len());
    let file = Counting(bytes, Default::default());
    let mut found = 0;
    let scan = row::scan(&file, len, 5, |_, _, _| found += 1).unwrap();
    assert_eq!((found, scan.end, scan.damaged), (1, wide(sound.len()), vec![]));
    let read = file.1.into_inner();
    assert!(read <= 2 * len + (8 << 10), "{read} bytes of {len}");
}

mod in_a_buffer {
    use super::super::super::offline::audit;
    use super::super::super::{Admission, Buffer, Config, Ledger, Outcome, SyncMode, WhenFull};
    use super::*;
    use crate::clock;
    use crate::units::ByteSize;

    fn open(dir: &Path) -> Buffer {
        open_with(dir, SyncMode::Group)
    }

    fn open_with(dir: &Path, sync: SyncMode) -> Buffer {
        let config = Config {
            dir: dir.to_owned(),
            max_size: ByteSize(1 << 20),
            max_age: None,
            when_full: WhenFull::DropNewest,
            sync,
            min_free: Some(ByteSize(0)),
            compress: super::super::super::Compression::None,
            keep_delivered: None,
        };
        Buffer::open(config, 16, clock::system()).unwrap().0
    }

    /// Three records; the second is a dead letter, the others are delivered.
    async fn with_a_letter(dir: &Path) -> Buffer {
        let buffer = open(dir);
        for body in [b"one", b"two", b"six"] {
            let Ok(Admission::Granted(permit)) = buffer.admit(3).await else { panic!("no room") };
            let offset = buffer.append(permit, &[body], None);
            buffer.mark().passed(offset.0).await.unwrap();
        }
        let body = Bytes::from_static(b"two");
        buffer.dead_letters().put(DeadLetter { offset: Offset(1), body, ..letter(1) }).await.unwrap();
        buffer.settle(Offset(0), Outcome::Delivered);
        buffer.settle(Offset(1), Outcome::DeadLettered);
        buffer.settle(Offset(2), Outcome::Delivered);
        buffer
    }

    fn check(buffer: &Buffer, expected: Ledger) {
        assert_eq!(buffer.stats().ledger, expected);
        assert!(expected.balances());
        let audit = buffer.audit(false).unwrap();
        assert!(audit.ok, "{audit:?}");
    }

    const BACK: Ledger = Ledger {
        accepted: 3,
        delivered: 2,
        buffered: 1,
        dropped_when_full: 0,
        dropped_age: 0,
        dropped_damaged: 0,
        dropped_min_free: 0,
        expired: 0,
        dead_lettered: 0,
        confirmed_after_drop: 0,
        replayed: 0,
    };
    const DEAD: Ledger = Ledger { buffered: 0, dead_lettered: 1, ..BACK };

    #[tokio::test]
    async fn r07_a_letter_that_is_sent_again_returns_to_buffered() {
        let dir = tempfile::tempdir().unwrap();
        let buffer = with_a_letter(dir.path()).await;
        check(&buffer, DEAD);
        assert_eq!(buffer.send_letter(Offset(0)).await, Err(SendError::NotThere(0)));
        let offset = buffer.send_letter(Offset(1)).await.unwrap();
        check(&buffer, BACK);
        assert!(buffer.dead_letters().is_empty());
        let record = buffer.reader().next(9, 999).await.unwrap().remove(0);
        assert_eq!((record.offset, &record.body[..]), (offset, &b"two"[..]));
        buffer.close().await;
        assert!(audit(dir.path(), false).unwrap().ok);
        let buffer = open(dir.path());
        check(&buffer, BACK);
        // It may be refused once more, and dropped then.
        buffer.dead_letters().put(DeadLetter { offset, ..letter(1) }).await.unwrap();
        buffer.settle(offset, Outcome::DeadLettered);
        check(&buffer, DEAD);
        buffer.drop_letter(offset).await.unwrap();
        check(&buffer, DEAD);
        assert_eq!(buffer.dead_letters().dropped(), 1);
        buffer.close().await;
        let audit = audit(dir.path(), false).unwrap();
        assert_eq!((audit.ok, audit.dead_letters, audit.dead_letters_dropped), (true, 0, 1));
    }

    #[tokio::test]
    async fn r07_a_kill_while_a_letter_is_sent_again_loses_and_doubles_nothing() {
        // Before the record, behind it, and behind the mark that it is in the log.
        for stage in 0..3 {
            let dir = tempfile::tempdir().unwrap();
            let buffer = with_a_letter(dir.path()).await;
            buffer.is_settled(Offset(1)).await.unwrap();
            let note = |fate| buffer.dead_letters().letters.lock().note(fate).unwrap();
            note(Fate::Sending { letter: Offset(1), from: 3 });
            if stage > 0 {
                let Ok(Admission::Granted(permit)) = buffer.admit(3).await else { panic!("no room") };
                let offset = buffer.append(permit, &[b"two"], None);
                buffer.mark().passed(offset.0).await.unwrap();
            }
            if stage > 1 {
                note(Fate::Sent { letter: Offset(1), offset: 3 });
            }
            // As a kill leaves it: copied while it is open.
            let copy = tempfile::tempdir().unwrap();
            copy_all(dir.path(), copy.path());
            if stage != 1 {
                let audit = audit(copy.path(), false).unwrap();
                assert!(audit.ok, "stage {stage}: {audit:?}");
            }
            let again = open(copy.path());
            check(&again, if stage == 0 { DEAD } else { BACK });
            assert_eq!(again.dead_letters().len(), u64::from(stage == 0), "stage {stage}");
            again.close().await;
            let once_more = open(copy.path());
            check(&once_more, if stage == 0 { DEAD } else { BACK });
        }
    }

    #[tokio::test]
    async fn what_still_has_a_closed_log_writes_nothing_into_a_file_that_is_open_again() {
        let dir = tempfile::tempdir().unwrap();
        let stale = with_a_letter(dir.path()).await;
        stale.is_settled(Offset(1)).await.unwrap();
        stale.close().await;
        let buffer = open(dir.path());
        buffer.dead_letters().put(letter(7)).await.unwrap();
        let file = || std::fs::read(dir.path().join("dead-letters/letters")).unwrap();
        let before = file();
        let closed = SendError::Refused(Refused::Closed);
        assert_eq!(stale.drop_letter(Offset(1)).await, Err(closed.clone()));
        assert_eq!(stale.send_letter(Offset(1)).await, Err(closed));
        assert_eq!(stale.dead_letters().drop_letter(Offset(1)).await, Err(Refused::Closed));
        assert_eq!(stale.dead_letters().put(letter(8)).await, Err(Refused::Closed));
        assert!(file() == before, "another has the file");
        buffer.drop_letter(Offset(1)).await.unwrap();
        buffer.close().await;
        assert_eq!(open(dir.path()).dead_letters().list().letters, [letter(7)]);
    }

    #[tokio::test]
    async fn r07_a_close_waits_for_no_letter_that_is_sent_and_the_next_start_finishes_it() {
        let dir = tempfile::tempdir().unwrap();
        with_a_letter(dir.path()).await.close().await;
        let buffer = open_with(dir.path(), SyncMode::Spill(std::time::Duration::from_secs(3_600)));
        let close = async {
            while buffer.end() < Offset(4) {
                tokio::task::yield_now().await;
            }
            buffer.close().await;
        };
        let (sent, ()) = tokio::join!(buffer.send_letter(Offset(1)), close);
        assert_eq!(sent, Err(SendError::Refused(Refused::Closed)));
        let again = open(dir.path());
        check(&again, BACK);
        assert!(again.dead_letters().is_empty());
        assert_eq!(&again.reader().next(9, 999).await.unwrap().remove(0).body[..], b"two");
    }

    fn copy_all(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.path().is_dir() {
                std::fs::create_dir_all(&target).unwrap();
                copy_all(&entry.path(), &target);
            } else {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_full_buffer_keeps_its_letters_and_drops_nothing_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let buffer = with_a_letter(dir.path()).await;
        while let Admission::Granted(permit) = buffer.admit(8 << 10).await.unwrap() {
            let offset = buffer.append(permit, &[&[7; 8 << 10]], None);
            buffer.mark().passed(offset.0).await.unwrap();
        }
        let before = buffer.stats().ledger;
        let big = DeadLetter { offset: Offset(1), body: vec![7; 16 << 10].into(), ..letter(1) };
        buffer.dead_letters().append_row(&Row::Letter(big));
        assert_eq!(buffer.send_letter(Offset(1)).await, Err(SendError::Full(1)));
        assert_eq!(buffer.stats().ledger, before);
        assert_eq!(buffer.dead_letters().len(), 1);
    }
}
