//! Servers as child processes, and what the system says of them.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tidegate::clock;

/// A server that does not answer by then has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A child process; it ends with this, and with the program.
pub(super) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// What it says goes to the file `log`.
    pub(super) fn start(mut command: Command, log: &Path) -> Self {
        let output = OpenOptions::new().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        Self { child: command.spawn().unwrap(), log: log.to_owned() }
    }

    /// `tests/peers/NAME/start.sh DIR ARGUMENTS`, which becomes the server.
    pub(super) fn peer(name: &str, dir: &Path, arguments: &[String]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(name).join("start.sh");
        Self::start(bound(&script, |command| command.arg(dir).args(arguments)), &dir.join("server.log"))
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns when `is_ready` answers true.
    pub(super) fn await_ready(&mut self, is_ready: impl Fn(&str) -> bool) {
        let began = clock::now();
        while !is_ready(&self.log()) {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it ended ({status}); tests/run.sh installs what the servers need:\n{}", self.log());
            }
            assert!(began.elapsed() < PATIENCE, "it does not start:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGTERM; returns when it is gone.
    pub(super) fn terminate(&mut self) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A program that the kernel ends should this one end first.
pub(super) fn bound(program: &Path, arguments: impl FnOnce(&mut Command) -> &mut Command) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    arguments(&mut command);
    command
}

pub(super) fn accepts(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// A port on which nothing listens, never given twice, below those that the kernel gives to outgoing connections.
pub(super) fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = rand::random_range(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && GIVEN.lock().unwrap().insert(port) {
            return port;
        }
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

/// Whether so long has passed without a change of what is told.
pub(super) struct Stuck {
    last: u64,
    since: Instant,
}

impl Stuck {
    pub(super) fn new() -> Self {
        Self { last: 0, since: clock::now() }
    }

    pub(super) fn is_stuck(&mut self, now: u64, patience: Duration) -> bool {
        if now != self.last {
            (self.last, self.since) = (now, clock::now());
        }
        self.since.elapsed() > patience
    }
}
