//! The decoders of what lies on disk, and the broker from a client's bytes to their effects, on the corpora of `fuzz/` and on seeded
//! mutations of them: no panic, no endless loop, no more memory than a few times the bytes. `TIDEGATE_FUZZ_RUNS` raises how many
//! mutations of each file are tried.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that panics has failed, which is its purpose"
)]

use std::fs;
use std::path::{Path, PathBuf};

use std::sync::Arc;

use bytes::Bytes;
use peak_alloc::PeakAlloc;
use tidegate::broker::fuzzing::Found;
use tidegate::buffer::fuzzing;
use tidegate::clock;
use tidegate::hub::Hub;
use tidegate::message::{Envelope, IdSource};
use tidegate::router::Table;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Mutations of each file.
const RUNS: usize = 1_500;

/// What is fuzzed.
struct Target {
    /// Of its corpus.
    name: &'static str,
    /// Whether the bytes were understood.
    run: fn(&[u8]) -> bool,
    /// One mutation in so many of [`RUNS`] is tried.
    share: usize,
    /// Memory whatever the bytes, in bytes.
    base: usize,
}

const fn decoder(name: &'static str, run: fn(&[u8]) -> bool) -> Target {
    Target { name, run, share: 1, base: 64 << 10 }
}

const TARGETS: [Target; 6] = [
    decoder("segment", |data| fuzzing::segment(data).items > 0),
    decoder("slots", |data| fuzzing::slots(data).parts > 0),
    decoder("letters", |data| fuzzing::letters(data).parts > 0),
    decoder("message", message),
    // A broker, its store and a runtime for each run: milliseconds, and what they hold by themselves.
    Target { name: "sessions", run: sessions, share: 15, base: 256 << 10 },
    // The same, and a WebSocket's buffers for each client.
    Target { name: "fronts", run: fronts, share: 60, base: 512 << 10 },
];

fn sessions(data: &[u8]) -> bool {
    served(data, tidegate::broker::fuzzing::serve)
}

fn fronts(data: &[u8]) -> bool {
    served(data, tidegate::broker::fuzzing::serve_behind)
}

type Serve = fn(&Path, Arc<Hub>, Arc<dyn clock::Clock>, &[u8]) -> std::io::Result<Found>;

/// A broker of its own for the clients of each run.
fn served(data: &[u8], serve: Serve) -> bool {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let clock = clock::system();
    let ids = IdSource::new("fuzz".into(), 1);
    let hub = Arc::new(Hub::new(ids, Table::default(), Vec::new(), Arc::clone(&clock)));
    let found = serve(dir.path(), hub, clock, data).unwrap_or_else(|error| panic!("{error}"));
    found.deliveries > 0
}

fn message(data: &[u8]) -> bool {
    let Ok(envelope) = Envelope::decode(Bytes::copy_from_slice(data)) else { return false };
    let head = envelope.head();
    let written = [head, envelope.message.encode()].concat();
    assert_eq!(Envelope::decode(written.into()).ok(), Some(envelope), "it is written as it was read");
    true
}

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Runs a target; its memory stays in proportion.
fn bounded(target: &Target, bytes: &[u8], case: &str) -> bool {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let understood = (target.run)(bytes);
    let used = MEMORY.peak_usage().saturating_sub(before);
    let most = 64 * bytes.len() + target.base;
    assert!(used <= most, "{case}: {used} bytes of memory for {} of input", bytes.len());
    understood
}

/// Splitmix64: one seed is one mutation.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides.max(1) as u64) as usize
    }
}

fn mutated(bytes: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=dice.roll(6) {
        let len = bytes.len();
        if len == 0 {
            break;
        }
        let (at, other) = (dice.roll(len), dice.roll(len));
        match dice.roll(7) {
            0 => bytes[at] ^= 1 << dice.roll(8),
            1 => bytes[at] = dice.roll(256) as u8,
            2 => bytes.truncate(at),
            3 => bytes.extend_from_within(at..),
            4 => bytes[at.min(other)..at.max(other)].fill(0),
            5 => bytes.insert(at, dice.roll(256) as u8),
            // A length that is none.
            _ => {
                let number = [u32::MAX, 1 << 31, 1 << 30, len as u32, 0][dice.roll(5)].to_le_bytes();
                let at = at / 4 * 4;
                let to = len.min(at + 4);
                bytes[at..to].copy_from_slice(&number[..to - at]);
            }
        }
    }
    bytes
}

// One test, so that nothing else uses memory meanwhile.
#[test]
fn no_bytes_make_a_decoder_panic_hang_or_take_much_memory() {
    let runs = std::env::var("TIDEGATE_FUZZ_RUNS").map_or(RUNS, |text| text.parse().unwrap());
    for target in TARGETS {
        let files = corpus(target.name);
        assert!(files.iter().any(|(path, _)| path.file_name().unwrap().to_string_lossy().starts_with("good-")));
        for (path, bytes) in files {
            let name = path.file_name().unwrap().to_string_lossy();
            let understood = bounded(&target, &bytes, &name);
            assert!(understood || !name.starts_with("good-"), "{}: {name} is not understood", target.name);
            for seed in 0..runs / target.share {
                let mutated = mutated(&bytes, &mut Dice(seed as u64));
                bounded(&target, &mutated, &format!("{}: {name}, mutation {seed}", target.name));
            }
        }
    }
}
