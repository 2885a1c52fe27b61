//! The gateway as its users run it: the real program, a configuration file, a data folder, signals.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use tidegate::telemetry::board::{LinkState, LinkStatus, Status};
use tokio::net::UnixStream;

use super::http;
use super::process::{Process, Room, free_port};
use super::wait::{PATIENCE, until, until_true};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_tidegate");

/// A gateway, at site `edge` unless it is told otherwise, with the built-in broker on a port of its own.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) port: u16,
    site: &'static str,
    /// Ends before its folder goes.
    process: Option<Process>,
    room: Room,
    data: PathBuf,
    /// Where strace notes its calls.
    trace: Option<PathBuf>,
}

impl Gateway {
    /// Starts with `rest` (links and routes) as its configuration; returns when it is ready.
    pub(crate) async fn start(rest: &str) -> Self {
        let room = Room::new("gw");
        let data = room.file("data");
        Self::start_in(room, data, rest, None).await
    }

    /// The same at another site: a message that has passed `edge` would end there.
    pub(crate) async fn start_site(site: &'static str, rest: &str) -> Self {
        let room = Room::new(site);
        let data = room.file("data");
        Self { port: 0, site, room, data, process: None, trace: None }.begin(rest).await
    }

    /// The same on a port that others know already.
    pub(crate) async fn start_site_on(site: &'static str, port: u16, rest: &str) -> Self {
        let room = Room::new(site);
        let data = room.file("data");
        let mut gateway = Self { port, site, room, data, process: None, trace: None };
        gateway.configure(rest);
        gateway.start_again().await;
        gateway
    }

    /// The same under strace; with the file that has its calls. `None` where strace cannot be had or may not trace.
    pub(crate) async fn start_traced(rest: &str) -> Option<(Self, PathBuf)> {
        let room = Room::new("gw");
        let (data, trace) = (room.file("data"), room.file("trace"));
        // Detached, strace says nothing of a failure with its exit code.
        let mut probe = std::process::Command::new("strace");
        probe.args(["-D", "-qq", "-o"]).arg(&trace).arg("true").stderr(std::process::Stdio::null());
        probe.status().ok()?;
        let traced = || fs::metadata(&trace).is_ok_and(|file| file.len() > 0);
        tokio::time::timeout(Duration::from_secs(5), until_true("strace traces", PATIENCE, traced)).await.ok()?;
        fs::remove_file(&trace).unwrap();
        Some((Self::start_in(room, data, rest, Some(trace.clone())).await, trace))
    }

    /// The same on a data folder elsewhere.
    pub(crate) async fn start_at(data: &Path, rest: &str) -> Self {
        Self::start_in(Room::new("gw"), data.to_owned(), rest, None).await
    }

    async fn start_in(room: Room, data: PathBuf, rest: &str, trace: Option<PathBuf>) -> Self {
        Self { port: 0, site: "edge", room, data, process: None, trace }.begin(rest).await
    }

    async fn begin(mut self, rest: &str) -> Self {
        // Between the look for a free port and its use, somebody else may take it.
        for _ in 0..5 {
            self.port = free_port();
            self.configure(rest);
            self.launch();
            if self.ready().await.is_ok() {
                return self;
            }
            let log = self.log();
            assert!(log.contains("in use"), "the gateway did not start:\n{log}");
            fs::remove_file(self.room.file("log")).unwrap();
        }
        panic!("no free port in five tries");
    }

    /// Writes the configuration; for the next start.
    pub(crate) fn configure(&self, rest: &str) {
        fs::write(self.config(), configuration(self.site, &self.data, self.port, rest)).unwrap();
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.room.file("routes.yaml")
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// What it has logged, over all its starts.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.room.file("log")).unwrap_or_default()
    }

    /// SIGKILL; returns when it is gone.
    pub(crate) fn kill_9(&mut self) {
        self.process.take().expect("it runs").kill_9();
    }

    /// Starts it again on the same folder and port; returns when it is ready.
    pub(crate) async fn start_again(&mut self) {
        assert!(self.process.is_none(), "it has ended");
        self.launch();
        if let Err(ended) = self.ready().await {
            panic!("the gateway did not start again ({ended}):\n{}", self.log());
        }
    }

    /// SIGTERM; returns how it ended.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("it runs");
        process.signal(Signal::SIGTERM);
        process.exit(PATIENCE).await
    }

    /// SIGTERM, while it runs on.
    pub(crate) fn ask_to_end(&self) {
        self.process.as_ref().expect("it runs").signal(Signal::SIGTERM);
    }

    /// SIGHUP: it reads its files again.
    pub(crate) fn hang_up(&self) {
        self.process.as_ref().expect("it runs").signal(Signal::SIGHUP);
    }

    /// `tidegate reload`: its exit code, and what it answers, or why not.
    pub(crate) async fn reload(&self) -> (i32, String) {
        let config = self.config();
        let ended = run(&["reload", "-c", config.to_str().unwrap()]).await;
        let said = if ended.status.success() { ended.stdout } else { ended.stderr };
        (ended.status.code().unwrap(), String::from_utf8(said).unwrap())
    }

    /// The same with `rest` as its file, which is taken.
    pub(crate) async fn reload_to(&self, rest: &str) -> String {
        self.configure(rest);
        let (code, said) = self.reload().await;
        assert_eq!(code, 0, "{said}\n{rest}\n{}", self.log());
        said
    }

    fn launch(&mut self) {
        let (log, config) = (self.room.file("log"), self.config());
        let run = ["run".as_ref(), "-c".as_ref(), config.as_os_str()];
        let Some(trace) = &self.trace else {
            self.process = Some(Process::start(Path::new(PROGRAM), &run, &log));
            return;
        };
        // As its grandchild strace leaves the program the process that is waited for and signalled.
        let calls =
            "trace=mkdir,mkdirat,openat,unlink,unlinkat,pwrite64,pwritev,fsync,fdatasync,sendto,sendmsg,write,writev";
        let strace = ["-D", "-f", "-yy", "-x", "-s", "600", "-e", calls, "-o"].map(OsStr::new);
        let arguments = [&strace, &[trace.as_os_str(), PROGRAM.as_ref()][..], &run].concat();
        self.process = Some(Process::start(Path::new("strace"), &arguments, &log));
    }

    /// Starts it again and kills it as soon as it has said something.
    pub(crate) async fn kill_9_while_starting(&mut self) {
        let before = self.log().len();
        self.launch();
        until_true("it says something", PATIENCE, || self.log().len() > before).await;
        self.kill_9();
    }

    /// `Err`: it has ended instead.
    async fn ready(&mut self) -> Result<(), ExitStatus> {
        let socket = self.data.join("admin.sock");
        let process = self.process.as_mut().expect("it was launched");
        let pid = process.pid();
        until("the gateway is ready", PATIENCE, async || {
            if let Some(status) = process.ended() {
                return Ok(Err(status));
            }
            match ask(&socket).await {
                Ok(status) if status.ready && status.pid == pid => Ok(Ok(())),
                Ok(status) => Err(format!("phase {}, ready {}", status.phase, status.ready)),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// What `tidegate status --json` shows.
    pub(crate) async fn status(&self) -> Status {
        let socket = self.data.join("admin.sock");
        until("the gateway tells its status", PATIENCE, async || ask(&socket).await).await
    }

    /// Returns the first status that `wanted` accepts.
    pub(crate) async fn wait_for(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let socket = self.data.join("admin.sock");
        until(what, PATIENCE, async || {
            let status = ask(&socket).await?;
            if wanted(&status) { Ok(status) } else { Err(serde_json::to_string(&status).unwrap()) }
        })
        .await
    }

    /// Returns the first status of a link that `wanted` accepts.
    pub(crate) async fn wait_for_link(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&LinkStatus) -> bool,
    ) -> LinkStatus {
        let status = self.wait_for(&format!("{name}: {what}"), |status| wanted(link(status, name))).await;
        link(&status, name).clone()
    }

    /// Returns when a link is in this state.
    pub(crate) async fn wait_for_state(&self, name: &str, state: LinkState) -> LinkStatus {
        self.wait_for_link(name, &format!("{state:?}"), |link| link.state == state).await
    }

    /// Returns when a link's buffer is empty, with its ledger balanced.
    pub(crate) async fn wait_until_drained(&self, name: &str) -> LinkStatus {
        let link = self.wait_for_link(name, "drained", |link| link.depth == 0).await;
        assert!(link.balanced, "{name}: the ledger does not balance: {:?}", link.ledger);
        link
    }
}

/// A link by its name.
pub(crate) fn link<'a>(status: &'a Status, name: &str) -> &'a LinkStatus {
    let found = status.links.iter().find(|link| link.name == name);
    found.unwrap_or_else(|| panic!("no link {name} in {status:?}"))
}

/// A configuration: what all tests share, then `rest`.
pub(crate) fn configuration(site: &str, data: &Path, port: u16, rest: &str) -> String {
    let data = data.display();
    format!(
        "site: {site}\ndata_dir: {data}\nbroker:\n  listeners:\n    - {{ bind: \"127.0.0.1:{port}\", anonymous: true }}\n{rest}"
    )
}

/// The status that a gateway tells on its socket.
pub(crate) async fn ask(socket: &Path) -> Result<Status, String> {
    const LIMIT: Duration = Duration::from_secs(5);
    let asking = async {
        let stream = UnixStream::connect(socket).await.map_err(|error| format!("{}: {error}", socket.display()))?;
        let (code, body) = http::request(stream, "GET", "/v1/status", "").await.map_err(|error| error.to_string())?;
        if code != 200 {
            return Err(format!("code {code}: {body}"));
        }
        serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))
    };
    tokio::time::timeout(LIMIT, asking).await.unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}")))
}

/// A command of the program, run to its end.
pub(crate) async fn run(arguments: &[&str]) -> std::process::Output {
    let command = tokio::process::Command::new(PROGRAM).args(arguments).kill_on_drop(true).output();
    tokio::time::timeout(PATIENCE, command).await.expect("the command ends").unwrap()
}
