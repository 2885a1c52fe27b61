//! The processes that are measured, and what the system says of them.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tidegate::clock;

use super::load::wait_for_connack;

/// Which processors do what.
pub(super) struct Processors {
    all: CpuSet,
    brokers: CpuSet,
    generator: CpuSet,
    description: String,
}

impl Processors {
    /// Brokers get the first that this process may use, or with `is_shared` all of them; the generator the last.
    pub(super) fn of_this_process(is_shared: bool) -> Self {
        let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let usable: Vec<usize> = (0..CpuSet::count()).filter(|n| all.is_set(*n).unwrap()).collect();
        let (first, last) = (usable[0], usable[usable.len() - 1]);
        let only = |n| {
            let mut set = CpuSet::new();
            set.set(n).unwrap();
            set
        };
        let description = if is_shared {
            format!("brokers on all {} processors, generator on {last}", usable.len())
        } else {
            format!("brokers on processor {first}, generator on {last}, of {}", usable.len())
        };
        Self { all, brokers: if is_shared { all } else { only(first) }, generator: only(last), description }
    }

    /// Does `work` as the generator, and with it what it starts.
    pub(super) fn on_last<T>(&self, work: impl FnOnce() -> T) -> T {
        self.on(&self.generator, work)
    }

    fn on<T>(&self, set: &CpuSet, work: impl FnOnce() -> T) -> T {
        sched_setaffinity(Pid::from_raw(0), set).unwrap();
        let done = work();
        sched_setaffinity(Pid::from_raw(0), &self.all).unwrap();
        done
    }
}

impl fmt::Display for Processors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Relay,
    Mosquitto,
    FlashMq,
    Tidegate,
    /// Tidegate with a route that matches everything.
    Durable,
    /// Another build of Tidegate, that `beside=` names.
    Beside,
}

impl Kind {
    pub(super) fn all() -> Vec<Self> {
        vec![Self::Relay, Self::Mosquitto, Self::FlashMq, Self::Beside, Self::Tidegate, Self::Durable]
    }

    /// What `only=` names.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Mosquitto => "mosquitto",
            Self::FlashMq => "flashmq",
            Self::Tidegate => "tidegate",
            Self::Durable => "durable",
            Self::Beside => "beside",
        }
    }

    /// The head of its column.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Relay => "raw relay",
            Self::Mosquitto => "Mosquitto",
            Self::FlashMq => "FlashMQ",
            Self::Tidegate => "Tidegate",
            Self::Durable => "Tidegate, durable route",
            Self::Beside => "the other build",
        }
    }

    pub(super) const fn is_broker(self) -> bool {
        !matches!(self, Self::Relay)
    }

    /// Whether this machine has it.
    pub(super) fn is_here(self) -> bool {
        match self {
            Self::FlashMq => std::env::var_os("FLASHMQ").is_some(),
            Self::Mosquitto => {
                let is_here = Command::new(program_of_mosquitto()).arg("-h").output().is_ok();
                if !is_here {
                    println!("Mosquitto does not take part: apt-get install mosquitto");
                }
                is_here
            }
            Self::Beside => beside().is_some(),
            Self::Relay | Self::Tidegate | Self::Durable => true,
        }
    }

    fn command(self, dir: &Path, port: u16) -> Command {
        let config = dir.join("config");
        let (mut command, text) = match self {
            Self::Relay => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args(["relay", &port.to_string()]);
                return command;
            }
            Self::Mosquitto => {
                let mut command = Command::new(program_of_mosquitto());
                command.arg("-c").arg(&config);
                let text = format!("listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n");
                (command, text + "log_type none\nmax_connections -1\n")
            }
            Self::FlashMq => {
                let mut command = Command::new(std::env::var_os("FLASHMQ").unwrap());
                command.arg("--config-file").arg(&config);
                let text = "allow_anonymous true\nthread_count 1\nlog_file /dev/null\nlisten {\n  protocol mqtt\n";
                (command, format!("{text}  inet_protocol ip4\n  inet4_bind_address 127.0.0.1\n  port {port}\n}}\n"))
            }
            Self::Tidegate | Self::Durable | Self::Beside => {
                let ours = env!("CARGO_BIN_EXE_tidegate").to_owned();
                let program = if self == Self::Beside { beside().unwrap_or(ours) } else { ours };
                let mut command = Command::new(program);
                command.args(["run", "--config"]).arg(&config).env("TIDEGATE_LOG", "error");
                (command, routes(self, dir, port))
            }
        };
        std::fs::write(&config, text).unwrap();
        command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

/// The path behind `beside=`.
fn beside() -> Option<String> {
    std::env::args().find_map(|arg| arg.strip_prefix("beside=").map(str::to_owned))
}

fn program_of_mosquitto() -> PathBuf {
    let in_sbin = PathBuf::from("/usr/sbin/mosquitto");
    if in_sbin.exists() { in_sbin } else { "mosquitto".into() }
}

/// The link of [`Kind::Durable`] is never there: what is measured is the way of the acknowledgement. The log's size bounds the disk.
fn routes(kind: Kind, dir: &Path, port: u16) -> String {
    let data = dir.join("data");
    let mut text = format!("site: bench\ndata_dir: {data:?}\nbroker:\n  connections_max: 20000\n");
    text += &format!("  listeners: [ {{ bind: \"127.0.0.1:{port}\", anonymous: true }} ]\n");
    if kind == Kind::Durable {
        let nowhere = free_port();
        text += &format!("links:\n  nowhere:\n    mqtt: {{ url: \"mqtt://127.0.0.1:{nowhere}\" }}\n");
        text += "    buffer: { max_size: 2GiB, min_free: 64MiB, when_full: drop_oldest }\n";
        text += "routes:\n  - { from: \"broker/bench/#\", to: \"nowhere/bench/{rest}\" }\n";
    }
    text
}

/// A process that takes clients.
pub(super) struct Contender {
    pub(super) kind: Kind,
    pub(super) port: u16,
    /// From its start to its first CONNACK.
    pub(super) started_in: Duration,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Contender {
    pub(super) fn start(kind: Kind, dir: &Path, processors: &Processors) -> Self {
        let dir = tempfile::tempdir_in(dir).unwrap();
        let port = free_port();
        let mut command = kind.command(dir.path(), port);
        let began = clock::now();
        let child = processors.on(&processors.brokers, || command.spawn().unwrap());
        wait_for_connack(port);
        Self { kind, port, started_in: began.elapsed(), child, _dir: dir }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Pages that it has in memory.
    pub(super) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1_024
    }

    /// System calls for each of the messages that `work` counts, by strace; `None`: it is not here, or may not.
    pub(super) fn calls_while(&self, work: impl FnOnce() -> f64) -> Option<f64> {
        let output = tempfile::NamedTempFile::new().unwrap();
        let mut strace = Command::new("strace")
            .args(["-c", "-f", "-p", &self.pid().to_string(), "-o"])
            .arg(output.path())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        // It says `attached` when it is.
        BufReader::new(strace.stderr.take()?).read_line(&mut String::new()).ok()?;
        let messages = work();
        kill(Pid::from_raw(i32::try_from(strace.id()).unwrap()), Signal::SIGINT).ok()?;
        strace.wait().ok()?;
        let summary = std::fs::read_to_string(output.path()).ok()?;
        let total = summary.lines().find(|line| line.trim_end().ends_with(" total"))?;
        let calls: f64 = total.split_whitespace().nth(3)?.parse().ok()?;
        Some(calls / messages)
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// User and system time that a process has had.
pub(super) fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in brackets may hold blanks; utime and stime are the 12th and 13th field behind it.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    // USER_HZ, which is 100 on every Linux, whatever the kernel itself ticks at.
    ticks as f64 / 100.0
}

/// How often the disk that `dir` is on can sync a page more of a file, in half a second.
pub(super) fn syncs_a_second(dir: &Path) -> f64 {
    let path = dir.join("syncs");
    let mut file = OpenOptions::new().create_new(true).append(true).open(&path).unwrap();
    let began = clock::now();
    let mut syncs = 0;
    while began.elapsed() < Duration::from_millis(500) {
        file.write_all(&[7; 512]).unwrap();
        file.sync_data().unwrap();
        syncs += 1;
    }
    std::fs::remove_file(path).unwrap();
    f64::from(syncs) / since(began)
}

fn since(began: Instant) -> f64 {
    began.elapsed().as_secs_f64()
}

/// A port that nobody had a moment ago, never the same twice.
fn free_port() -> u16 {
    static TAKEN: std::sync::Mutex<BTreeSet<u16>> = std::sync::Mutex::new(BTreeSet::new());
    loop {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        if TAKEN.lock().unwrap().insert(port) {
            return port;
        }
    }
}
