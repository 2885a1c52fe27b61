//! What a link carries beside what the same client library carries without a gateway, and beside what others offer for the
//! same work, in one run on one machine: `cargo bench --bench links`. `docs/performance.md` says how to read it; its tables are
//! what this program prints.
//!
//! The program starts real servers itself, by the scripts in `tests/peers`: RabbitMQ, Kafka, Mosquitto. For each row of
//! [`rows::ROWS`] the contenders take turns (A B C A B C):
//! - **direct**: a program that does nothing but publish by the client library that our link uses, confirmed, with the link's window;
//! - **Tidegate**: MQTT publishers at QoS 1, the built-in broker, a durable buffer (`sync: group`), the link;
//! - the **other** way to do the same: RabbitMQ's MQTT plugin and a shovel, or Mosquitto's bridge.
//!
//! *End to end*: publishers publish while the link sends, and keep so many messages under way that nobody idles. *Drain*: the messages are in the
//! buffer when the gateway starts and finds the remote. The rate is what the far server has, looked at every two milliseconds, from
//! the tenth part of the messages to the last. After each round every message is read back there: what is missing or came twice is said.
//!
//! Arguments behind `--`:
//! - `row=NAME` only the rows whose name contains NAME; `only=NAME[,NAME]` only these contenders: `direct`, `tidegate`, `other`;
//! - `rounds=N` (default 3); `messages=N` of a round, in all rows; `backlog=N` of a round, in the rows that drain;
//! - `stamped`: a direct publisher more, whose messages have headers as our link's (RabbitMQ, Kafka): what these cost the server;
//! - `beside=PATH`: another build of Tidegate takes part, to see what a change has brought;
//! - `dir=PATH`: where buffers and the servers' data are written (default: in `target`); `log`: keeps what the gateway logs.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a program that prints figures"
)]
#![expect(clippy::cast_precision_loss, reason = "ratios")]

mod edge;
mod far;
mod load;
#[path = "../broker/net.rs"]
#[expect(dead_code, reason = "the broker's bench needs all of it")]
mod net;
#[path = "../broker/packets.rs"]
#[expect(dead_code, reason = "the broker's bench needs all of it")]
mod packets;
mod process;
mod report;
mod rows;
mod watch;

use std::path::{Path, PathBuf};

use self::edge::{Edge, Program};
use self::far::{Far, Kind};
use self::load::Load;
use self::report::Line;
use self::rows::{ROWS, Row, Way};
use self::watch::{Progress, Told};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    Bench::from_args(&args).run();
}

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    Direct,
    /// The same with headers as our link's.
    Stamped,
    Other,
    /// Another build of Tidegate, that `beside=` names.
    Beside,
    Tidegate,
}

impl Contender {
    const ALL: [Self; 5] = [Self::Direct, Self::Stamped, Self::Other, Self::Beside, Self::Tidegate];

    /// What `only=` names.
    const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Stamped => "stamped",
            Self::Other => "other",
            Self::Beside => "beside",
            Self::Tidegate => "tidegate",
        }
    }
}

/// What was asked for.
struct Bench {
    wanted: Option<String>,
    contenders: Vec<Contender>,
    rounds: usize,
    messages: Option<u64>,
    backlog: Option<u64>,
    beside: Option<PathBuf>,
    dir: PathBuf,
    keeps_log: bool,
}

impl Bench {
    fn from_args(args: &[String]) -> Self {
        let value = |name: &str| args.iter().find_map(|arg| arg.strip_prefix(name)?.strip_prefix('='));
        let only: Option<Vec<&str>> = value("only").map(|names| names.split(',').collect());
        let beside = value("beside").map(PathBuf::from);
        let contenders = Contender::ALL.into_iter().filter(|contender| {
            let is_here = match contender {
                Contender::Beside => beside.is_some(),
                Contender::Stamped => args.iter().any(|arg| arg == "stamped"),
                Contender::Direct | Contender::Other | Contender::Tidegate => true,
            };
            is_here && only.as_ref().is_none_or(|only| only.contains(&contender.name()))
        });
        Self {
            wanted: value("row").map(str::to_owned),
            contenders: contenders.collect(),
            rounds: value("rounds").map_or(3, |rounds| rounds.parse().unwrap()),
            messages: value("messages").map(|messages| messages.parse().unwrap()),
            backlog: value("backlog").map(|messages| messages.parse().unwrap()),
            beside,
            dir: value("dir").unwrap_or(env!("CARGO_TARGET_TMPDIR")).into(),
            keeps_log: args.iter().any(|arg| arg == "log"),
        }
    }

    fn run(&self) {
        let dir = tempfile::tempdir_in(&self.dir).unwrap();
        println!("{} processors, 256 B of payload, {} rounds\n", processors(), self.rounds);
        let mut lines = Vec::new();
        for kind in Kind::ALL {
            let rows: Vec<&Row> = ROWS.iter().filter(|row| row.far == kind && self.wants(row)).collect();
            if rows.is_empty() {
                continue;
            }
            let mut far = Far::start(kind, dir.path());
            for row in rows {
                let line = self.row(row, &mut far, dir.path());
                println!("{}", line.plain());
                lines.push(line);
            }
        }
        println!("\n{}", report::table(&lines));
    }

    fn wants(&self, row: &Row) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| row.name.contains(wanted.as_str()))
    }

    fn row(&self, row: &'static Row, far: &mut Far, dir: &Path) -> Line {
        let backlog = self.backlog.filter(|_| row.way == Way::Drain);
        let load = Load { messages: backlog.or(self.messages).unwrap_or(row.messages), open_max: row.open_max };
        let takes_part = |contender: &Contender| match contender {
            Contender::Other => row.of_other.is_some(),
            Contender::Stamped => row.far != Kind::Mosquitto,
            Contender::Direct | Contender::Beside | Contender::Tidegate => true,
        };
        let contenders: Vec<Contender> = self.contenders.iter().copied().filter(takes_part).collect();
        let mut line = Line::new(row, load.messages, &contenders);
        // It takes long to start: one for all rounds.
        let shared = (contenders.contains(&Contender::Other) && row.far == Kind::RabbitMq)
            .then(|| Edge::plugin_and_shovel(far.port, dir));
        for _ in 0..self.rounds {
            for contender in &contenders {
                far.begin();
                let told = match contender {
                    Contender::Direct => direct(far, load, false),
                    Contender::Stamped => direct(far, load, true),
                    Contender::Other => match &shared {
                        Some(edge) => end_to_end(far, edge, load),
                        None => {
                            let edge = Edge::bridge(far.port, dir);
                            let told = end_to_end(far, &edge, load);
                            edge.end();
                            told
                        }
                    },
                    Contender::Tidegate => self.gateway(Path::new(edge::OURS), row, far, load, dir),
                    Contender::Beside => self.gateway(self.beside.as_deref().unwrap(), row, far, load, dir),
                };
                let count = far.count(load.messages);
                line.add(*contender, told, count);
            }
        }
        line
    }

    fn gateway(&self, program: &Path, row: &Row, far: &mut Far, load: Load, dir: &Path) -> Told {
        let program = Program { path: program, log: self.keeps_log.then(|| self.dir.join("links-gateway.log")) };
        match row.way {
            Way::EndToEnd => {
                let edge = Edge::gateway(&program, &far.link(), dir);
                let told = end_to_end(far, &edge, load);
                edge.end();
                told
            }
            Way::Drain => {
                let nowhere = Edge::gateway(&program, &far.link_to_nowhere(), dir);
                load.publish(nowhere.port, &Progress::unbounded());
                let edge = nowhere.start_again(&program, &far.link());
                let told = watch::until_all(far, load.messages, Some(edge.pid()), &Progress::default());
                edge.end();
                told
            }
        }
    }
}

/// The client library alone.
fn direct(far: &mut Far, load: Load, stamped: bool) -> Told {
    let publishing = far.direct(load.messages, stamped);
    let told = watch::until_all(far, load.messages, None, &Progress::default());
    publishing.join().unwrap();
    told
}

/// Publishers at an edge that carries to the far server meanwhile.
fn end_to_end(far: &mut Far, edge: &Edge, load: Load) -> Told {
    let progress = Progress::default();
    std::thread::scope(|scope| {
        scope.spawn(|| load.publish(edge.port, &progress));
        watch::until_all(far, load.messages, Some(edge.pid()), &progress)
    })
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}
