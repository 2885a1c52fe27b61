//! What the built-in broker does beside Mosquitto and beside what sockets can do at all, in one run on one machine:
//! `cargo bench --bench broker`. `docs/performance.md` says how to read it; its tables are what this program prints.
//!
//! Contenders, each a process of its own, pinned to the first processor: the **raw relay** ([`relay`], the bound for sockets
//! here), Mosquitto from the path, FlashMQ where the variable `FLASHMQ` names its binary, and Tidegate. The load generator
//! ([`load`]) is pinned to the last processor. For each row of [`rows::ROWS`] the contenders take turns (A B C A B C) and the
//! median of each figure is printed, with the median of the ratios within a round: a machine that is busy with something
//! else spoils single rounds, and not the figure. Deliveries are counted, and what is missing is said.
//!
//! Arguments behind `--`:
//! - `row=NAME` only the rows whose name contains NAME; `idle` and `start` are rows too;
//! - `rounds=N` (default 3), `seconds=S` of a round (default 0.8);
//! - `durable`: a second Tidegate takes part, with a route from every message to a link that is not there: what is published
//!   is acknowledged when it is synced to that link's buffer;
//! - `cores=2`: the brokers are not pinned;
//! - `calls`: system calls a message, by `strace -c -f` in a short run more;
//! - `beside=PATH`: another build of Tidegate takes part, to see what a change has brought;
//! - `only=NAME[,NAME]`: only these contenders; `dir=PATH`: where buffers are written (default: in `target`).

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a program that prints figures"
)]
#![expect(clippy::cast_precision_loss, reason = "ratios")]

mod contender;
mod load;
mod net;
mod packets;
mod relay;
mod report;
mod rows;

use std::path::PathBuf;
use std::time::Duration;

use self::contender::{Contender, Kind, Processors};
use self::load::{Job, Told};
use self::report::{Column, Line};
use self::rows::{ROWS, Row};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    net::raise_file_limit();
    match args.first().map(String::as_str) {
        Some("relay") => relay::run(args[1].parse().unwrap()),
        Some("load") => load::run(&Job::from_args(&args[1..])),
        Some("idle") => load::hold_idle(args[1].parse().unwrap(), args[2].parse().unwrap()),
        _ => Bench::from_args(&args).run(),
    }
}

/// What was asked for.
struct Bench {
    wanted: Option<String>,
    rounds: usize,
    round: Duration,
    kinds: Vec<Kind>,
    processors: Processors,
    counts_calls: bool,
    dir: PathBuf,
}

impl Bench {
    fn from_args(args: &[String]) -> Self {
        let value = |name: &str| args.iter().find_map(|arg| arg.strip_prefix(name)?.strip_prefix('='));
        let has = |name: &str| args.iter().any(|arg| arg == name);
        let only: Option<Vec<&str>> = value("only").map(|names| names.split(',').collect());
        let kinds = Kind::all().into_iter().filter(|kind| {
            let is_wanted = *kind != Kind::Durable || has("durable");
            is_wanted && kind.is_here() && only.as_ref().is_none_or(|only| only.contains(&kind.name()))
        });
        Self {
            wanted: value("row").map(str::to_owned),
            rounds: value("rounds").map_or(3, |rounds| rounds.parse().unwrap()),
            round: Duration::from_secs_f64(value("seconds").map_or(0.8, |seconds| seconds.parse().unwrap())),
            kinds: kinds.collect(),
            processors: Processors::of_this_process(value("cores") == Some("2")),
            counts_calls: has("calls"),
            dir: value("dir").unwrap_or(env!("CARGO_TARGET_TMPDIR")).into(),
        }
    }

    fn run(&self) {
        println!("{}", self.processors);
        println!("256 B of payload, MQTT 3.1.1, median of {} rounds of {:?}\n", self.rounds, self.round);
        let dir = tempfile::tempdir_in(&self.dir).unwrap();
        let start = |kind: &Kind| Contender::start(*kind, dir.path(), &self.processors);
        let contenders: Vec<_> = self.kinds.iter().map(start).collect();
        let mut lines = Vec::new();
        for row in ROWS.iter().filter(|row| self.wants(row.name)) {
            let line = self.throughput(row, &contenders);
            println!("{}", line.plain(&self.kinds));
            lines.push(line);
        }
        let mut tables = vec![report::rates(&self.kinds, &lines)];
        if self.counts_calls {
            tables.push(report::calls(&self.kinds, &lines));
        }
        if self.kinds.contains(&Kind::Durable) && self.kinds.contains(&Kind::Tidegate) {
            tables.push(report::durable(&self.kinds, &lines, contender::syncs_a_second(dir.path())));
        }
        if self.wants("latency") {
            tables.push(self.latency(&contenders));
        }
        drop(contenders);
        if self.wants("idle") {
            tables.push(self.idle(dir.path()));
        }
        if self.wants("start") {
            tables.push(self.start_up(dir.path()));
        }
        tables.iter().filter(|table| !table.is_empty()).for_each(|table| println!("\n{table}"));
    }

    fn wants(&self, name: &str) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| name.contains(wanted.as_str()))
    }

    /// All rounds of one row.
    fn throughput(&self, row: &'static Row, contenders: &[Contender]) -> Line {
        let mut columns: Vec<Column> = contenders.iter().map(|_| Column::default()).collect();
        for _ in 0..self.rounds {
            for (contender, column) in contenders.iter().zip(&mut columns) {
                column.rounds.push(self.load(contender, row, None));
            }
        }
        if self.counts_calls {
            for (contender, column) in contenders.iter().zip(&mut columns) {
                column.calls = contender.calls_while(|| self.load(contender, row, None).total);
            }
        }
        Line { row, columns }
    }

    /// One run of the generator. `pace`: messages a second, as told, and not as many as are taken.
    fn load(&self, contender: &Contender, row: &Row, pace: Option<f64>) -> Told {
        let job = Job { port: contender.port, pid: contender.pid(), row: row.name.to_owned(), round: self.round, pace };
        self.processors.on_last(|| job.run_as_process())
    }

    /// How long a message is under way at half of what Mosquitto can do at most: best of the rounds.
    fn latency(&self, contenders: &[Contender]) -> String {
        let row = rows::named("QoS 1 one to one");
        let mosquitto = contenders.iter().find(|contender| contender.kind == Kind::Mosquitto);
        // Its rate here in November 2026, where it does not take part.
        let most = mosquitto.map_or(34_000.0, |mosquitto| {
            report::median((0..self.rounds).map(|_| self.load(mosquitto, row, None).rate).collect())
        });
        let mut columns: Vec<Column> = contenders.iter().map(|_| Column::default()).collect();
        for _ in 0..self.rounds.max(5) {
            for (contender, column) in contenders.iter().zip(&mut columns) {
                column.rounds.push(self.load(contender, row, Some(most / 2.0)));
            }
        }
        report::latency(&self.kinds, &columns, most / 2.0)
    }

    /// Memory of connections that do nothing.
    fn idle(&self, dir: &std::path::Path) -> String {
        let mut lines = Vec::new();
        for kind in self.kinds.iter().filter(|kind| kind.is_broker()) {
            let figures = [5_000, 10_000].map(|count| {
                // What earlier connections have left behind would be taken for less.
                let contender = Contender::start(*kind, dir, &self.processors);
                let before = contender.resident_bytes();
                let held = self.processors.on_last(|| load::Held::start(contender.port, count));
                let after = contender.resident_bytes();
                drop(held);
                after.saturating_sub(before) as f64 / count as f64
            });
            lines.push((*kind, figures));
        }
        report::idle(&lines)
    }

    /// From the start of the process to the first CONNACK, and its memory a second later.
    fn start_up(&self, dir: &std::path::Path) -> String {
        let mut lines = Vec::new();
        for kind in self.kinds.iter().filter(|kind| kind.is_broker()) {
            let starts = (0..self.rounds).map(|_| {
                let contender = Contender::start(*kind, dir, &self.processors);
                std::thread::sleep(Duration::from_secs(1));
                (contender.started_in.as_secs_f64() * 1e3, contender.resident_bytes() as f64)
            });
            let (times, sizes): (Vec<f64>, Vec<f64>) = starts.unzip();
            lines.push((*kind, report::median(times), report::median(sizes)));
        }
        report::start_up(&lines)
    }
}
