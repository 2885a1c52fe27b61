//! The buffer's tests: its public face on a real folder (`face`), and its core over a disk that fails in every way that
//! we know of (`disk` is that disk; `bench` drives the core by hand, without the writer thread).

#![expect(
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    reason = "small numbers, and matches that panic on anything else"
)]

mod bench;
mod carry;
mod compress;
mod direct;
mod disk;
mod effort;
mod face;
mod faults;
mod history;
mod holes;
mod kept;
mod lanes;
mod limits;
mod matrix;
mod model;
mod offline;
mod reserve;
mod skips;
mod spill;
mod spill_model;
mod streams;
