//! `tidegate status`: what a running gateway is doing, asked through its admin socket.

mod render;

use std::path::Path;
use std::time::Duration;

use super::client;
use super::exit::{Exit, Failure, Outcome};
use super::{out, text};
use crate::clock;
use crate::telemetry::board::Status;

/// How often `--watch` asks.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// `tidegate status`.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Print the status as JSON
    #[arg(long)]
    json: bool,
    /// Ask again each second until interrupted; on a terminal the screen is redrawn
    #[arg(long)]
    watch: bool,
}

/// Runs the command for the gateway with this data folder.
pub(crate) fn status(args: &Args, data_dir: &Path) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Io, anyhow::Error::new(error).context("cannot start")))?;
    runtime.block_on(async {
        if args.watch {
            return watch(args, data_dir).await;
        }
        let status = ask(data_dir).await?;
        print(args, &status)?;
        Ok(verdict(&status))
    })
}

async fn watch(args: &Args, data_dir: &Path) -> Outcome {
    let mut redraw = out::Redraw::default();
    let mut beat = tokio::time::interval(WATCH_EVERY);
    loop {
        beat.tick().await;
        let status = ask(data_dir).await;
        if args.json || !out::is_terminal() {
            print(args, &status?)?;
            continue;
        }
        // A gateway that restarts is worth watching: the screen says so and goes on.
        let lines = match &status {
            Ok(status) => lines(status),
            Err(failure) => vec![failure.to_string()],
        };
        redraw.draw(&lines).map_err(|error| Failure::new(Exit::Io, error))?;
    }
}

async fn ask(data_dir: &Path) -> Result<Status, Failure> {
    client::status(data_dir).await.map_err(|error| Failure::new(error.exit(), error))
}

fn print(args: &Args, status: &Status) -> Result<(), Failure> {
    if args.json {
        let json = serde_json::to_string_pretty(status).map_err(|error| Failure::new(Exit::Bug, error))?;
        out::line(&json);
    } else {
        lines(status).iter().for_each(|line| out::line(line));
    }
    Ok(())
}

fn lines(status: &Status) -> Vec<String> {
    let width = if out::is_terminal() { out::width() } else { usize::MAX };
    let colours = out::colours();
    render::lines(status, clock::wall()).iter().map(|line| text::render(line, width, colours)).collect()
}

/// An unbalanced ledger, a gateway that is not ready, or one that is short of memory and lets no client in, is the answer "no": a probe
/// needs to look no further.
fn verdict(status: &Status) -> Exit {
    let is_well = status.ready && !status.memory.short && status.links.iter().all(|link| link.balanced);
    if is_well { Exit::Done } else { Exit::No }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::board::LinkStatus;

    #[test]
    fn a_gateway_that_is_not_there_is_69_with_a_sentence_that_helps() {
        let folder = tempfile::tempdir().unwrap();
        let args = Args { json: false, watch: false };
        let failure = status(&args, folder.path()).unwrap_err();
        assert_eq!(failure.code, 69);
        assert!(failure.to_string().starts_with("tidegate: no gateway is running: there is no "), "{failure}");
        drop(std::os::unix::net::UnixListener::bind(folder.path().join(client::SOCKET)).unwrap());
        let failure = status(&args, folder.path()).unwrap_err();
        assert_eq!(failure.code, 69);
        assert!(failure.to_string().contains("left over from one that was killed"), "{failure}");
    }

    #[test]
    fn an_unbalanced_ledger_or_a_gateway_that_is_not_ready_or_short_of_memory_is_a_no() {
        let link = LinkStatus { balanced: true, ..LinkStatus::default() };
        let mut status = Status { ready: true, links: vec![link], ..Status::default() };
        assert_eq!(verdict(&status), Exit::Done);
        status.ready = false;
        assert_eq!(verdict(&status), Exit::No);
        status.ready = true;
        status.links[0].balanced = false;
        assert_eq!(verdict(&status), Exit::No);
        status.links[0].balanced = true;
        status.memory.short = true;
        assert_eq!(verdict(&status), Exit::No, "no client is let in");
    }
}
