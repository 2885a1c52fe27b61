//! One site: a whole gateway as a child process of this same binary, with its own configuration, port and data folder.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::cli::client;
use crate::clock;
use crate::telemetry::board::Status;

/// How long a gateway may take to come up. It takes some 50 ms; a busy machine gets two hundred times that.
const READY_WITHIN: Duration = Duration::from_secs(15);
/// How long an ordered stop may take before the child is killed.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// How often the admin socket is asked whether the gateway is ready.
const ASK_EVERY: Duration = Duration::from_millis(25);
/// Lines of a failed gateway's log that are shown.
const LOG_LINES: usize = 12;

/// A gateway that can be started, killed and started again on the same folder.
#[derive(Debug)]
pub(crate) struct Site {
    name: &'static str,
    dir: PathBuf,
    child: Option<Child>,
}

impl Site {
    /// Makes the site's folder below `root` and writes its `routes.yaml`.
    pub(crate) fn new(root: &Path, name: &'static str, routes_yaml: &str) -> anyhow::Result<Self> {
        let dir = root.join(name);
        let file = dir.join("routes.yaml");
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        std::fs::write(&file, routes_yaml).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Self { name, dir, child: None })
    }

    /// Where its state lies.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Starts it and waits until it is ready.
    pub(crate) async fn start(&mut self) -> anyhow::Result<()> {
        self.child = Some(self.spawn()?);
        let deadline = clock::now() + READY_WITHIN;
        loop {
            if let Some(status) = self.exited()? {
                bail!("the {} gateway ended at once ({status}); its log ends:\n{}", self.name, self.log_tail());
            }
            match client::status(&self.data_dir()).await {
                Ok(status) if status.ready && Some(status.pid) == self.pid() => return Ok(()),
                _ if clock::now() > deadline => {
                    bail!("the {} gateway did not become ready; its log ends:\n{}", self.name, self.log_tail());
                }
                _ => tokio::time::sleep(ASK_EVERY).await,
            }
        }
    }

    /// SIGKILL: no chance to tidy up. Returns when the process is gone.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { bail!("the {} gateway is not running", self.name) };
        child.start_kill().with_context(|| format!("cannot kill the {} gateway", self.name))?;
        let status = child.wait().await?;
        if status.signal() != Some(Signal::SIGKILL as i32) {
            bail!("the {} gateway had ended by itself ({status}); its log ends:\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// SIGTERM, and SIGKILL for one that does not listen.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            kill(Pid::from_raw(pid), Signal::SIGTERM)
                .with_context(|| format!("cannot stop the {} gateway", self.name))?;
        }
        match tokio::time::timeout(STOP_WITHIN, child.wait()).await {
            Ok(status) if status.as_ref().is_ok_and(ExitStatus::success) => Ok(()),
            Ok(status) => bail!("the {} gateway ended with {}; its log ends:\n{}", self.name, status?, self.log_tail()),
            Err(_) => {
                child.kill().await?;
                bail!("the {} gateway did not stop within {} s", self.name, STOP_WITHIN.as_secs())
            }
        }
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let log_file = self.log_file();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log_file)
            .with_context(|| format!("cannot write {}", log_file.display()))?;
        Command::new(program)
            .args(["run", "--until-stdin-closes", "--config"])
            .arg(self.dir.join("routes.yaml"))
            // Its standard input is a pipe from us: it ends with us, however we end.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for the demo, which then stops its gateways itself.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start the {} gateway", self.name))
    }

    fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    fn exited(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(match &mut self.child {
            Some(child) => child.try_wait()?,
            None => None,
        })
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("log.txt")
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
        tail.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    }
}

/// The status of the gateway with this data folder, while there is one.
pub(crate) async fn status(data_dir: &Path) -> Option<Status> {
    client::status(data_dir).await.ok()
}

/// Below those that systems give to outgoing connections: one of them could take the port while its gateway is killed.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// A free port on the loopback: bound and given back. The gateway that gets it is started at once.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    for _ in 0..100 {
        let port = rand::random_range(PORTS);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between {} and {}", PORTS.start, PORTS.end)
}

/// What the edge's route makes of `factory/#`.
pub(crate) const ARRIVING: &str = "from-edge/#";

/// The edge's configuration: everything under `factory/` goes to the cloud.
pub(crate) fn edge_routes(port: u16, line: u16) -> String {
    format!(
        "\
# The edge of `tidegate demo`: machines publish here, the link carries it to the cloud.
site: edge
data_dir: data
broker:
  listeners:
    - {{ bind: \"127.0.0.1:{port}\", anonymous: true }}
links:
  cloud:
    mqtt: {{ url: \"mqtt://127.0.0.1:{line}\", version: 5, qos: 1 }}
    retry: {{ min: 100ms, max: 1s }}
    stall_after: 2s
    in_flight: 256
routes:
  - name: telemetry
    from: broker/factory/#
    to: cloud/from-edge/{{rest}}
"
    )
}

/// The cloud's configuration: a plain broker.
pub(crate) fn cloud_routes(port: u16) -> String {
    format!(
        "\
# The cloud of `tidegate demo`: a plain broker.
site: cloud
data_dir: data
broker:
  listeners:
    - {{ bind: \"127.0.0.1:{port}\", anonymous: true }}
"
    )
}
