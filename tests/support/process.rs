//! Child processes, ports and folders that do not outlive the tests, however these end.
//!
//! Each child gets SIGKILL from the kernel when the thread that spawned it ends. So all are spawned by one thread that ends with the
//! process. Folders lie under one that a small watcher removes once the tests' end of its pipe is closed.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{LazyLock, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait::until;

/// A child process; dropped, it is killed and waited for.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
    name: String,
}

impl Process {
    /// Starts a program; what it says goes to the end of the file `log`.
    pub(crate) fn start<A: AsRef<OsStr>>(program: &Path, arguments: &[A], log: &Path) -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
        let output = OpenOptions::new().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let child = spawn(command);
        Self { child, log: log.to_owned(), name }
    }

    /// What it has said so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it still runs.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// SIGKILL; returns when it is gone.
    pub(crate) fn kill_9(mut self) {
        self.end();
    }

    /// How it ended, by itself or by an earlier signal.
    pub(crate) async fn exit(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        until(&what, limit, async || self.ended().ok_or_else(|| "it runs".to_owned())).await
    }

    fn end(&mut self) {
        // Both fail only where it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines.iter().skip(lines.len().saturating_sub(60)).copied().collect::<Vec<_>>().join("\n");
            eprintln!("---- the last lines of {} ({}):\n{tail}\n----", self.name, self.log.display());
        }
    }
}

type Order = (Command, SyncSender<io::Result<Child>>);

/// Spawns on the thread that lives as long as the process.
fn spawn(command: Command) -> Child {
    static SPAWNER: LazyLock<SyncSender<Order>> = LazyLock::new(|| {
        let (orders, inbox) = sync_channel::<Order>(0);
        let work = move || {
            for (mut command, answer) in inbox {
                drop(answer.send(command.spawn()));
            }
        };
        thread::Builder::new().name("spawner".into()).spawn(work).unwrap();
        orders
    });
    let program = command.get_program().display().to_string();
    let (answer, answered) = sync_channel(1);
    SPAWNER.send((command, answer)).unwrap();
    let spawned: io::Result<Child> = answered.recv().unwrap();
    spawned.unwrap_or_else(|error| panic!("cannot start {program}: {error}"))
}

/// A port on which nothing listens, never given twice, and below the range from which the kernel takes ports for outgoing
/// connections: so it is still free when a server that was killed comes back to it.
pub(crate) fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = rand::random_range(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && GIVEN.lock().unwrap().insert(port) {
            return port;
        }
    }
}

/// A folder of its own for one server or gateway; dropped, it is removed.
#[derive(Debug)]
pub(crate) struct Room(PathBuf);

impl Room {
    pub(crate) fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = house().join(format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // The watcher removes what is still being written to.
        drop(fs::remove_dir_all(&self.0));
    }
}

/// The folder of all rooms. Short, because a Unix socket's path may have no more than 107 bytes.
fn house() -> &'static Path {
    static HOUSE: OnceLock<PathBuf> = OnceLock::new();
    HOUSE.get_or_init(|| {
        let house = tempfile::Builder::new().prefix("tidegate-").tempdir().unwrap().keep();
        watch(&house);
        house
    })
}

/// Removes the folder when this process has ended: then the watcher's standard input does. In a session of its own, it outlives a
/// Ctrl-C at the terminal; the brokers get a moment to die.
fn watch(house: &Path) {
    let script =
        "cat >/dev/null; for _ in 1 2 3 4 5; do rm -rf -- \"$0\" 2>/dev/null; [ -e \"$0\" ] || exit; sleep 1; done";
    let mut command = Command::new("setsid");
    command.args(["sh", "-c", script]).arg(house);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = spawn(command);
    // Its standard input stays open for as long as this process lives.
    std::mem::forget(child);
}

/// Says in a file that `tests/run.sh` shows at its end, and on standard error, that a test did not run.
pub(crate) fn did_not_run(why: &str) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("{test}: did not run: {why}");
    if let Some(list) = std::env::var_os("TIDEGATE_TESTS_LEFT_OUT") {
        let mut list: File = OpenOptions::new().create(true).append(true).open(list).unwrap();
        io::Write::write_all(&mut list, format!("{test}: {why}\n").as_bytes()).unwrap();
    }
}
