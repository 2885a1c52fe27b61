//! `tidegate demo`: the promise, shown live with nothing but this binary.
//!
//! Two sites, each a whole gateway in a process of its own: an edge whose four machines publish at QoS 1, and a cloud whose
//! broker receives over a real MQTT link. Between them a proxy plays the line. It is cut and mended; then it goes dead, and
//! the edge's gateway is killed and started again before it comes back. Every message is counted outside the gateways: by
//! the machines that made it and by the receiver at the cloud. `tally` says what the figures mean.
//!
//! Whatever ends the demo ends its gateways too: they are killed when their handles are dropped, and they end by
//! themselves when the pipe from us closes.

mod machines;
mod proxy;
mod receiver;
mod screen;
mod site;
mod story;
mod tally;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::exit::{Exit, Failure, Outcome};
use super::{out, signals};

/// How many machines there are.
const MACHINES: usize = 4;

/// `tidegate demo`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// How many messages a second the four machines make together, 4 to 20000
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u32).range(4..=20_000))]
    messages_per_second: u32,
    /// Keep both sites' folders (routes.yaml, log, data) below DIR
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Runs the demo.
pub(crate) fn demo(args: &Args) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Io, anyhow::Error::new(error).context("cannot start threads")))?;
    let folder = Folder::new(args.keep.as_deref()).map_err(|error| Failure::new(Exit::Io, error))?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            report = Box::pin(story::play(folder.path(), args.messages_per_second)) => {
                report.map_err(|error| Failure::new(Exit::No, error))
            }
            signal = signals::next() => Err(match signal {
                Ok(name) => {
                    let ended = anyhow::anyhow!("ended by {name} before its end; both gateways are stopped");
                    Failure::with_code(signals::exit_code(name), ended)
                }
                Err(error) => Failure::new(Exit::Io, error),
            }),
        }
    });
    let report = outcome?;
    out::line("");
    out::line("Counted by the machines and by the receiver, outside both gateways:");
    for line in report.lines() {
        out::line(&line);
    }
    if !report.drained {
        out::complain("tidegate: the backlog did not drain in time");
    }
    if let Some(kept) = &args.keep {
        out::complain(&format!("both sites' folders are below {}", kept.display()));
    }
    Ok(if report.kept() { Exit::Done } else { Exit::No })
}

/// Where the two sites live; gone with the demo unless it is to be kept.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    remove: bool,
}

impl Folder {
    fn new(keep: Option<&Path>) -> anyhow::Result<Self> {
        let remove = keep.is_none();
        let path = match keep {
            Some(path) => std::path::absolute(path).with_context(|| format!("cannot use {}", path.display()))?,
            None => std::env::temp_dir().join(format!("tidegate-demo-{}", std::process::id())),
        };
        for site in ["edge", "cloud"] {
            let site = path.join(site);
            anyhow::ensure!(!site.exists(), "{} exists already: --keep wants a folder without it", site.display());
        }
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path, remove })
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.remove {
            return;
        }
        // A gateway that was killed a moment ago may still be making a file.
        for _ in 0..20 {
            match std::fs::remove_dir_all(&self.path) {
                Ok(()) => return,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        out::complain(&format!("tidegate: could not remove {}", self.path.display()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_goes_with_the_demo_unless_it_is_to_be_kept() {
        let root = tempfile::tempdir().unwrap();
        let keep = root.path().join("demo");
        drop(Folder::new(Some(&keep)).unwrap());
        assert!(keep.exists());
        let temporary = Folder::new(None).unwrap();
        let path = temporary.path().to_owned();
        assert!(path.exists());
        drop(temporary);
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_with_an_earlier_demo_is_not_mixed_with_this_one() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("edge")).unwrap();
        let error = Folder::new(Some(root.path())).unwrap_err();
        assert!(error.to_string().contains("exists already"), "{error}");
    }
}
