//! What the buffer costs beside what the machine can do at all, measured in the same run: `cargo bench --bench buffer`.
//!
//! Each figure stands beside the limit that it is measured against: a bare file's `write` + `fdatasync` at the same batch
//! size, a plain read of the same bytes. Rounds of both alternate and the median of their ratios is printed, so that a
//! machine that is busy with something else spoils single rounds and not the figure. No test asks for a time; this
//! program only prints. `docs/performance.md` says how to read it.
//!
//! Arguments behind `--`: `quick` (short rounds), `appends=256` (only these, of that batch), `backlog=10GiB` (size of the log that is opened; default 1GiB), `dir=PATH` (the
//! disk to measure; default: that of `target`).

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a program that prints figures"
)]
#![expect(clippy::cast_precision_loss, reason = "ratios")]

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tidegate::buffer::{Admission, Buffer, Compression, Config, Direct, Outcome, SyncMode, WhenFull};
use tidegate::clock;
use tidegate::hub::Receipt;
use tidegate::units::ByteSize;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// As the product has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Payload bytes of a record.
const PAYLOAD: usize = 256;
/// Messages that a client has unacknowledged, in the column of windows: about what clients have by default (Paho, Mosquitto: 20).
const WINDOW: usize = 16;
/// Where a bare file is begun anew, as segments are.
const FILE_BYTES: u64 = 64 << 20;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [command, dir] = args.as_slice()
        && command == "open"
    {
        return open_and_tell(Path::new(dir));
    }
    let quick = args.iter().any(|arg| arg == "quick");
    let backlog = args.iter().find_map(|arg| arg.strip_prefix("backlog=")).unwrap_or("1GiB");
    let backlog = ByteSize::parse(backlog).unwrap();
    let place = args.iter().find_map(|arg| arg.strip_prefix("dir=")).unwrap_or(env!("CARGO_TARGET_TMPDIR"));
    let dir = tempfile::tempdir_in(place).unwrap();
    let bench = Bench {
        dir: dir.path().to_owned(),
        runtime: Runtime::new().unwrap(),
        round: Duration::from_millis(if quick { 100 } else { 400 }),
        rounds: if quick { 3 } else { 9 },
    };
    println!("payload {PAYLOAD} B, median of {} rounds of {:?}", bench.rounds, bench.round);
    let only = args.iter().find_map(|arg| arg.strip_prefix("appends=")).map(|batch| batch.parse().unwrap());
    bench.appends(only);
    if only.is_some() {
        return;
    }
    bench.lone_publisher();
    bench.amplification();
    bench.flash(quick);
    bench.reading();
    bench.opening(backlog);
}

struct Bench {
    dir: PathBuf,
    runtime: Runtime,
    round: Duration,
    rounds: usize,
}

impl Bench {
    fn config(&self, name: &str) -> Config {
        Config {
            dir: self.dir.join(name),
            max_size: ByteSize(1 << 40),
            max_age: None,
            when_full: WhenFull::DropOldest,
            sync: SyncMode::Group,
            min_free: Some(ByteSize(0)),
            compress: Compression::None,
            keep_delivered: None,
        }
    }

    fn remove(&self, name: &str) {
        std::fs::remove_dir_all(self.dir.join(name)).unwrap();
    }

    /// Durable records a second, one sync a batch: a bare file, the log driven by one thread, and the whole buffer with
    /// as many publishers as the batch has records, each waiting for its receipt before it publishes again; and the same records in
    /// flight from clients that have [`WINDOW`] of them unacknowledged.
    fn appends(&self, only: Option<usize>) {
        println!("\nappends, one sync a batch (records/s)");
        println!(
            "{:>8} {:>12} {:>12} {:>12} {:>12} {:>10} {:>10} {:>10}",
            "batch", "bare file", "log", "buffer", "windows", "log/bare", "buf/bare", "win/bare"
        );
        let all = [(1, 0.5), (16, 0.8), (256, 0.8), (4096, 0.4)];
        for (batch, target) in all.into_iter().filter(|(batch, _)| only.is_none_or(|only| only == *batch)) {
            let mut bare = Bare::new(&self.dir, batch);
            let (mut log, _) = Direct::open(&self.config("log"), 1024, clock::system()).unwrap();
            // As the gateway opens it: within the runtime that its publishers run on.
            let runtime = self.runtime.enter();
            let (buffer, _) = Buffer::open(self.config("buffer"), 1024, clock::system()).unwrap();
            drop(runtime);
            let mut rates = Rates::default();
            for _ in 0..self.rounds {
                rates.push([
                    rate(self.round, || bare.append()),
                    rate(self.round, || append_to_log(&mut log, batch)),
                    self.publish(&buffer, batch, 1),
                    self.publish(&buffer, batch.div_ceil(WINDOW), WINDOW.min(batch)),
                ]);
            }
            let [bare, direct, whole, windows] = rates.medians();
            println!(
                "{batch:>8} {bare:>12.0} {direct:>12.0} {whole:>12.0} {windows:>12.0} {:>10} {:>10} {:>10.2}",
                against(rates.ratio(1, 0), 0.8),
                against(rates.ratio(2, 0), target),
                rates.ratio(3, 0)
            );
            self.runtime.block_on(buffer.close());
            drop((log, buffer));
            self.remove("bare");
            self.remove("log");
            self.remove("buffer");
        }
    }

    /// One round of so many publishers, each a task that has `window` messages unacknowledged; answers records a second.
    fn publish(&self, buffer: &Buffer, publishers: usize, window: usize) -> f64 {
        let stop = Arc::new(AtomicBool::new(false));
        let first = buffer.stats().next.0;
        let began = clock::now();
        self.runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for _ in 0..publishers {
                tasks.spawn(publish_until(buffer.clone(), window, Arc::clone(&stop)));
            }
            tokio::time::sleep(self.round).await;
            stop.store(true, Ordering::Relaxed);
            tasks.join_all().await;
        });
        per_second(buffer.stats().next.0 - first, began)
    }

    /// How long a lone publisher waits, beside a lone write and sync.
    fn lone_publisher(&self) {
        let (buffer, _) = Buffer::open(self.config("lone"), 1024, clock::system()).unwrap();
        let mut bare = Bare::new(&self.dir, 1);
        let (mut alone, mut through) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds * 100 {
            let began = clock::now();
            bare.append();
            alone.push(began.elapsed().as_secs_f64() * 1e6);
            let began = clock::now();
            self.runtime.block_on(publish(&buffer));
            through.push(began.elapsed().as_secs_f64() * 1e6);
        }
        println!(
            "\na lone publisher's wait: {:.0} us; a bare write and sync: {:.0} us",
            median(through),
            median(alone)
        );
        self.runtime.block_on(buffer.close());
        self.remove("bare");
        self.remove("lone");
    }

    /// Bytes that reach the block device, by payload bytes.
    fn amplification(&self) {
        println!("\nwrite amplification (bytes written by this process / payload; in brackets: by the whole device)");
        for batch in [16, 256, 4096] {
            let (mut log, _) = Direct::open(&self.config("log"), 1024, clock::system()).unwrap();
            append_to_log(&mut log, batch);
            let (before, device) = (written_by_us(), written_to_device(&self.dir));
            let batches = (16 << 20) / (batch * PAYLOAD);
            for _ in 0..batches {
                append_to_log(&mut log, batch);
            }
            let payload = (batches * batch * PAYLOAD) as f64;
            let ours = (written_by_us() - before) as f64 / payload;
            let whole = (written_to_device(&self.dir) - device) as f64 / payload;
            let target = if batch == 256 { " (target: at most 1.25)" } else { "" };
            println!("{batch:>8} {ours:>8.2} [{whole:.2}]{target}");
            drop(log);
            self.remove("log");
        }
    }

    /// Bytes written for each delivered message of a link that keeps up, with `sync: group` and `sync: spill`: messages
    /// at a steady pace, each acknowledged before the next, a remote that confirms at once.
    fn flash(&self, quick: bool) {
        println!("\nbytes written to disk for each delivered message (in brackets: by the whole device)");
        println!("{:>12} {:>18} {:>18}", "messages/s", "sync: group", "sync: spill");
        let seconds = if quick { 1 } else { 10 };
        for pace in [10, 1000] {
            let [group, spill] = [SyncMode::Group, SyncMode::Spill(Duration::from_secs(2))].map(|sync| {
                let config = Config { sync, ..self.config("flash") };
                let (buffer, _) = Buffer::open(config, 1024, clock::system()).unwrap();
                let (before, device) = (written_by_us(), written_to_device(&self.dir));
                self.runtime.block_on(deliver(&buffer, pace, seconds));
                self.runtime.block_on(buffer.close());
                let delivered = buffer.stats().ledger.delivered as f64;
                let ours = (written_by_us() - before) as f64 / delivered;
                let whole = (written_to_device(&self.dir) - device) as f64 / delivered;
                drop(buffer);
                self.remove("flash");
                format!("{ours:.0} [{whole:.0}]")
            });
            println!("{pace:>12} {group:>18} {spill:>18}");
        }
    }

    /// A backlog from page cache, beside a plain read of the same files.
    fn reading(&self) {
        const RECORDS: u64 = 1_000_000;
        let config = self.config("read");
        self.fill(&config, RECORDS);
        let mut rates = Rates::default();
        for _ in 0..self.rounds.min(5) {
            let began = clock::now();
            let bytes = read_plainly(&config.dir);
            let plain = per_second(RECORDS, began);
            assert!(bytes > RECORDS * PAYLOAD as u64);
            let (buffer, _) = Buffer::open(config.clone(), 1024, clock::system()).unwrap();
            let began = clock::now();
            self.runtime.block_on(async {
                let mut reader = buffer.reader();
                let mut left = RECORDS;
                while left > 0 {
                    left -= reader.next(1024, 1 << 20).await.unwrap().len() as u64;
                }
            });
            rates.push([plain, per_second(RECORDS, began)]);
            self.runtime.block_on(buffer.close());
        }
        let [plain, ours] = rates.medians();
        println!("\nreading a backlog of {RECORDS} records from page cache: {ours:.0} records/s (target: 1000000)");
        println!("a plain read of the same files: {plain:.0} records/s; ratio {:.2}", rates.ratio(1, 0));
        self.remove("read");
    }

    /// Not synced while it is filled; the files are the same.
    fn fill(&self, config: &Config, records: u64) {
        let config = Config { sync: SyncMode::Never, ..config.clone() };
        let (mut log, _) = Direct::open(&config, 1024, clock::system()).unwrap();
        let body = [7; PAYLOAD];
        for n in 0..records {
            log.append(&[&body], None).unwrap();
            if n % 4096 == 4095 {
                log.commit().unwrap();
            }
        }
        log.commit().unwrap();
    }

    /// Time and memory of opening a backlog, each in a process of its own: after a kill, and after a clean end.
    fn opening(&self, size: ByteSize) {
        let records = size.0 / PAYLOAD as u64;
        let config = self.config("backlog");
        let began = clock::now();
        self.fill(&config, records);
        println!("\nopening {size} of payload, {records} records (written in {:.1?})", began.elapsed());
        let empty = self.config("empty");
        for (name, config) in
            [("empty", &empty), ("after a kill", &config), ("after a clean end", &config), ("empty again", &empty)]
        {
            let program = std::env::current_exe().unwrap();
            let told = std::process::Command::new(program).arg("open").arg(&config.dir).output().unwrap();
            println!("{name:>20}: {}", String::from_utf8_lossy(&told.stdout).trim_end());
        }
        println!("{:>20}  under 200 ms, RSS at most 32 MiB above the empty one's", "target:");
    }
}

/// The child's part of [`Bench::opening`].
fn open_and_tell(dir: &Path) {
    let config = Config {
        dir: dir.to_owned(),
        max_size: ByteSize(1 << 40),
        max_age: None,
        when_full: WhenFull::DropOldest,
        sync: SyncMode::Group,
        min_free: Some(ByteSize(0)),
        compress: Compression::None,
        keep_delivered: None,
    };
    let runtime = Runtime::new().unwrap();
    let began = clock::now();
    let (buffer, recovery) = Buffer::open(config, 1024, clock::system()).unwrap();
    let took = began.elapsed();
    println!("{:.1} ms, RSS {:.1} MiB, {} records", took.as_secs_f64() * 1e3, resident_mib(), recovery.buffered);
    runtime.block_on(buffer.close());
}

/// Pages that this process has in memory.
fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

/// What a connection does: reads on while it has less than `window` messages unacknowledged, and acknowledges in order.
async fn publish_until(buffer: Buffer, window: usize, stop: Arc<AtomicBool>) {
    let mut unacknowledged = VecDeque::with_capacity(window);
    while !stop.load(Ordering::Relaxed) {
        while unacknowledged.len() < window {
            unacknowledged.push_back(offer(&buffer).await);
        }
        unacknowledged.pop_front().unwrap().settled().await.unwrap();
        while unacknowledged.front().is_some_and(|receipt| receipt.decided().is_some()) {
            unacknowledged.pop_front();
        }
    }
}

/// What a connection does with a message: asks for room, appends; its publisher is acknowledged when the receipt is settled.
async fn offer(buffer: &Buffer) -> Receipt {
    let body = [7; PAYLOAD];
    let Ok(Admission::Granted(permit)) = buffer.admit(PAYLOAD).await else { panic!("no room") };
    let offset = buffer.append(permit, &[&body], None);
    let mut receipt = Receipt::default();
    receipt.add(buffer.mark(), offset.0);
    receipt
}

/// A message whose publisher waits for the acknowledgement.
async fn publish(buffer: &Buffer) {
    offer(buffer).await.settled().await.unwrap();
}

/// Publishes at a steady pace, and confirms what comes out.
async fn deliver(buffer: &Buffer, pace: u32, seconds: u32) {
    let messages = u64::from(pace * seconds);
    let remote = async {
        let mut reader = buffer.reader();
        let mut left = messages;
        while left > 0 {
            for record in reader.next(64, 1 << 20).await.unwrap() {
                buffer.settle(record.offset, Outcome::Delivered);
                left -= 1;
            }
        }
    };
    let publisher = async {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / pace);
        for _ in 0..messages {
            ticks.tick().await;
            publish(buffer).await;
        }
    };
    tokio::join!(remote, publisher);
}

fn append_to_log(log: &mut Direct, batch: usize) -> u64 {
    let body = [7; PAYLOAD];
    for _ in 0..batch {
        log.append(&[&body], None).unwrap();
    }
    log.commit().unwrap();
    batch as u64
}

/// A file without a format: what the machine can do at all.
struct Bare {
    dir: PathBuf,
    file: Option<File>,
    files: u32,
    pos: u64,
    bytes: Vec<u8>,
    batch: u64,
}

impl Bare {
    fn new(dir: &Path, batch: usize) -> Self {
        Self {
            dir: dir.join("bare"),
            file: None,
            files: 0,
            pos: 0,
            bytes: vec![7; batch * PAYLOAD],
            batch: batch as u64,
        }
    }

    fn append(&mut self) -> u64 {
        if self.pos + self.bytes.len() as u64 > FILE_BYTES {
            self.file = None;
        }
        if self.file.is_none() {
            // None is deleted before the end, as the log's segments are not: else its pages would be warm and the log's new.
            self.files += 1;
            std::fs::create_dir_all(&self.dir).unwrap();
            let path = self.dir.join(self.files.to_string());
            self.file = Some(OpenOptions::new().write(true).create_new(true).open(path).unwrap());
            self.pos = 0;
        }
        let file = self.file.as_ref().unwrap();
        file.write_all_at(&self.bytes, self.pos).unwrap();
        file.sync_data().unwrap();
        self.pos += self.bytes.len() as u64;
        self.batch
    }
}

/// Does `step` for a while; each answers how many records it was. Records a second.
fn rate(round: Duration, mut step: impl FnMut() -> u64) -> f64 {
    let began = clock::now();
    let mut records = 0;
    while began.elapsed() < round {
        records += step();
    }
    per_second(records, began)
}

fn per_second(records: u64, began: Instant) -> f64 {
    records as f64 / began.elapsed().as_secs_f64()
}

fn read_plainly(dir: &Path) -> u64 {
    let mut chunk = vec![0; 1 << 20];
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "seg") {
            let file = File::open(path).unwrap();
            let mut pos = 0;
            loop {
                let got = file.read_at(&mut chunk, pos).unwrap() as u64;
                if got == 0 {
                    break;
                }
                pos += got;
            }
            bytes += pos;
        }
    }
    bytes
}

/// Bytes that this process has had the kernel send to a block device.
fn written_by_us() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap().parse().unwrap()
}

/// Bytes that everybody has written to the device that `dir` is on, the file system's journal included.
fn written_to_device(dir: &Path) -> u64 {
    let device = std::fs::metadata(dir).unwrap().dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).unwrap_or_default();
    stat.split_whitespace().nth(6).map_or(0, |sectors| sectors.parse::<u64>().unwrap() * 512)
}

/// Rates of the rounds, one column a contender.
struct Rates<const N: usize>(Vec<[f64; N]>);

impl<const N: usize> Default for Rates<N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<const N: usize> Rates<N> {
    fn push(&mut self, round: [f64; N]) {
        self.0.push(round);
    }

    fn medians(&self) -> [f64; N] {
        std::array::from_fn(|column| median(self.0.iter().map(|round| round[column]).collect()))
    }

    /// The median of what the rounds make of `one` by `other`.
    fn ratio(&self, one: usize, other: usize) -> f64 {
        median(self.0.iter().map(|round| round[one] / round[other]).collect())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A ratio and its target.
fn against(ratio: f64, target: f64) -> String {
    format!("{ratio:.2}/{target}")
}
