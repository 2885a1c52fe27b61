//! What links and the hub rely on.

use std::path::Path;
use std::time::Duration;

use super::super::*;
use crate::clock;
use crate::units::ByteSize;

pub(super) fn config(dir: &Path) -> Config {
    Config {
        dir: dir.to_owned(),
        max_size: ByteSize(64 << 20),
        max_age: None,
        when_full: WhenFull::DropOldest,
        sync: SyncMode::Group,
        min_free: Some(ByteSize(0)),
        compress: Compression::None,
        keep_delivered: None,
    }
}

fn open(config: &Config) -> (Buffer, Recovery) {
    Buffer::open(config.clone(), 16, clock::system()).unwrap()
}

pub(super) async fn put(buffer: &Buffer, body: &[u8]) -> Offset {
    match buffer.admit(body.len()).await.unwrap() {
        Admission::Granted(permit) => buffer.append(permit, &[body], None),
        Admission::DroppedNewest => panic!("dropped"),
    }
}

async fn put_durably(buffer: &Buffer, from: u64, to: u64) {
    for n in from..to {
        let offset = put(buffer, format!("record {n}").as_bytes()).await;
        buffer.mark().passed(offset.0).await.unwrap();
    }
}

async fn read(reader: &mut Reader, count: usize) -> Vec<Record> {
    let mut records = Vec::new();
    while records.len() < count {
        records.extend(reader.next(count - records.len(), 1 << 20).await.unwrap());
    }
    records
}

#[tokio::test]
async fn what_is_appended_is_durable_and_read_back_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (buffer, recovery) = open(&config(dir.path()));
    assert_eq!(recovery, Recovery::default());
    let permit = match buffer.admit(6).await.unwrap() {
        Admission::Granted(permit) => permit,
        Admission::DroppedNewest => unreachable!(),
    };
    let first = buffer.append(permit, &[b"abc", b"def"], Some(WallMs(5)));
    buffer.mark().passed(first.0).await.unwrap();
    put_durably(&buffer, 1, 10).await;
    let records = read(&mut buffer.reader(), 10).await;
    assert_eq!((&records[0].body[..], records[0].expires), (&b"abcdef"[..], Some(WallMs(5))));
    assert_eq!(&records[9].body[..], b"record 9");
    assert_eq!(records.iter().map(|r| r.offset.0).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    buffer.close().await;
}

#[tokio::test]
async fn r07_cursor_and_ledger_are_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (buffer, _) = open(&config(dir.path()));
    put_durably(&buffer, 0, 20).await;
    let id = buffer.id().to_owned();
    for offset in [1, 0, 2, 3, 5, 4, 7] {
        let outcome = if offset == 3 { Outcome::DeadLettered } else { Outcome::Delivered };
        buffer.settle(Offset(offset), outcome);
    }
    assert_eq!(buffer.stats().cursor, Offset(6));
    buffer.close().await;
    drop(buffer);
    let (buffer, recovery) = open(&config(dir.path()));
    assert_eq!(recovery, Recovery { buffered: 14, ..Recovery::default() });
    assert_eq!(buffer.id(), id);
    let ledger = buffer.stats().ledger;
    assert_eq!(ledger, Ledger { accepted: 20, delivered: 5, dead_lettered: 1, buffered: 14, ..Ledger::default() });
    assert!(ledger.balances());
    put_durably(&buffer, 20, 22).await;
    let records = read(&mut buffer.reader(), 16).await;
    assert_eq!(records.iter().map(|r| r.offset.0).collect::<Vec<_>>(), (6..22).collect::<Vec<_>>());
    assert_eq!(&records[15].body[..], b"record 21");
    buffer.close().await;
}

#[tokio::test]
async fn a_second_open_on_a_folder_is_refused_with_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let (buffer, _) = open(&config(dir.path()));
    let error = Buffer::open(config(dir.path()), 16, clock::system()).unwrap_err();
    assert!(error.to_string().contains("another gateway uses the same data folder"), "{error}");
    buffer.close().await;
    drop(open(&config(dir.path())));
}

#[tokio::test]
async fn a_backlog_of_many_segments_is_read_from_disk_and_deleted_as_it_is_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let small = Config { max_size: ByteSize(8 << 20), ..config(dir.path()) };
    let (buffer, _) = open(&small);
    let body = vec![9; 20_000];
    for _ in 0..300 {
        put(&buffer, &body).await;
    }
    buffer.mark().passed(299).await.unwrap();
    buffer.close().await;
    drop(buffer);
    let (buffer, recovery) = open(&small);
    assert_eq!(recovery, Recovery { buffered: 300, ..Recovery::default() });
    let before = buffer.stats();
    assert!(before.disk_bytes > 6_000_000, "{before:?}");
    assert_eq!(before.depth_bytes / 300, 20_000);
    let mut reader = buffer.reader();
    let records = read(&mut reader, 250).await;
    for record in &records {
        buffer.settle(record.offset, Outcome::Delivered);
    }
    reader.seek(Offset(100));
    assert_eq!(reader.next(1, 1).await.unwrap()[0].offset, Offset(250), "never below the cursor");
    buffer.close().await;
    let after = buffer.stats();
    assert!(after.disk_bytes < 3_000_000, "{after:?}");
    assert!(after.ledger.balances());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_appending_tasks_and_a_reader_agree() {
    let dir = tempfile::tempdir().unwrap();
    let (buffer, _) = open(&config(dir.path()));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..4_u64 {
        let buffer = buffer.clone();
        tasks.spawn(async move {
            for n in 0..500_u64 {
                let offset = put(&buffer, &[task.to_le_bytes(), n.to_le_bytes()].concat()).await;
                if n % 50 == 0 {
                    buffer.mark().passed(offset.0).await.unwrap();
                }
            }
        });
    }
    let mut reader = buffer.reader();
    let mut seen = [0_u64; 4];
    let mut expected = 0;
    while expected < 2_000 {
        for record in reader.next(64, 1 << 16).await.unwrap() {
            assert_eq!(record.offset.0, expected);
            expected += 1;
            let task = usize::from(record.body[0]);
            assert_eq!(u64::from_le_bytes(record.body[8..].try_into().unwrap()), seen[task]);
            seen[task] += 1;
            buffer.settle(record.offset, Outcome::Delivered);
        }
    }
    tasks.join_all().await;
    buffer.close().await;
    assert_eq!(buffer.stats().ledger, Ledger { accepted: 2_000, delivered: 2_000, ..Ledger::default() });
    assert_eq!(buffer.admit(1).await.unwrap_err(), Refused::Closed);
    assert_eq!(reader.next(1, 1).await, Err(Refused::Closed));
}

#[tokio::test]
async fn r06_a_blocked_offer_goes_on_when_space_is_freed_and_can_be_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let small = Config { max_size: ByteSize(64 << 10), when_full: WhenFull::Block, ..config(dir.path()) };
    let (buffer, _) = open(&small);
    let body = [1; 4_000];
    let mut taken = 0;
    while let Ok(offset) = tokio::time::timeout(Duration::from_millis(200), put(&buffer, &body)).await {
        buffer.mark().passed(offset.0).await.unwrap();
        taken += 1;
    }
    let waiting = put(&buffer, &body);
    let deliver = async {
        let records = read(&mut buffer.reader(), taken).await;
        for record in records {
            buffer.settle(record.offset, Outcome::Delivered);
        }
    };
    let (offset, ()) = tokio::join!(waiting, deliver);
    assert_eq!(offset, Offset(u64::try_from(taken).unwrap()), "the offer that was given up took no number");
    buffer.close().await;
    assert!(buffer.stats().ledger.balances());
}

#[tokio::test]
async fn a_reader_that_is_dropped_in_the_middle_of_a_wait_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (buffer, _) = open(&config(dir.path()));
    put_durably(&buffer, 0, 300).await;
    buffer.close().await;
    drop(buffer);
    let (buffer, _) = open(&config(dir.path()));
    let mut reader = buffer.reader();
    let mut seen = Vec::new();
    while seen.len() < 300 {
        // Polled once and dropped, time and again, while a thread reads for it.
        if let Some(records) = futures_util::FutureExt::now_or_never(reader.next(7, 1 << 20)) {
            seen.extend(records.unwrap().iter().map(|record| record.offset.0));
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(seen, (0..300).collect::<Vec<_>>());
    buffer.close().await;
}

#[tokio::test]
async fn r01_a_confirmation_acknowledges_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (buffer, _) = open(&Config { sync: SyncMode::Spill(Duration::from_secs(3_600)), ..config(dir.path()) });
    let mut reader = buffer.reader();
    for n in 0..200 {
        let offset = put(&buffer, b"record").await;
        assert_eq!((offset, buffer.mark().decided(n)), (Offset(n), None), "neither confirmed nor written");
        assert_eq!(read(&mut reader, 1).await[0].offset, offset);
        buffer.settle(offset, Outcome::Delivered);
        buffer.mark().passed(n).await.unwrap();
    }
    let segments = || {
        std::fs::read_dir(dir.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "seg"))
    };
    assert_eq!(segments().count(), 0);
    let waiting = put(&buffer, b"not confirmed").await;
    buffer.hurry();
    buffer.mark().passed(waiting.0).await.unwrap();
    assert_eq!(segments().count(), 1, "a stop waits for no remote");
    buffer.close().await;
    drop((buffer, reader));
    let (buffer, recovery) = open(&config(dir.path()));
    assert_eq!(recovery, Recovery { buffered: 1, ..Recovery::default() });
    assert_eq!(buffer.stats().ledger, Ledger { accepted: 201, delivered: 200, buffered: 1, ..Ledger::default() });
    buffer.close().await;
}

#[tokio::test]
async fn r01_what_nobody_confirms_is_acknowledged_when_it_is_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (buffer, _) = open(&Config { sync: SyncMode::Spill(Duration::from_millis(50)), ..config(dir.path()) });
    let offset = put(&buffer, b"record").await;
    buffer.mark().passed(offset.0).await.unwrap();
    assert!(buffer.stats().disk_bytes > 6);
    assert_eq!(read(&mut buffer.reader(), 1).await[0].offset, offset);
    buffer.close().await;
}

#[test]
fn it_works_without_a_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let (buffer, _) = open(&config(dir.path()));
    futures_util::FutureExt::now_or_never(put(&buffer, b"x")).unwrap();
    let mark = buffer.mark();
    std::thread::scope(|scope| {
        scope.spawn(move || futures_block(mark.passed(0)).unwrap());
    });
    let records = futures_block(async { buffer.reader().next(1, 1).await }).unwrap();
    assert_eq!(&records[0].body[..], b"x");
    futures_block(buffer.close());
}

fn futures_block<F: Future>(future: F) -> F::Output {
    use std::task::{Context, Poll, Wake, Waker};
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park_timeout(Duration::from_secs(5)),
        }
    }
}
