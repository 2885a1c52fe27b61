//! `tidegate run`: the gateway, from its configuration to its ordered end.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Failure, Outcome};
use super::origin::File;
use super::out;
use super::signals::{self, Hangups, Signals};
use crate::clock;
use crate::gateway::{Config, Gateway, Loaded, Origin as _};
use crate::telemetry::logging;

/// `tidegate run`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// How log lines look on standard error: `text` or `json` (default: TIDEGATE_LOG_FORMAT, then text);
    /// what is logged is a filter in TIDEGATE_LOG, such as `info` or `tidegate::links=debug,warn`
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<logging::Format>,
    /// Stop when standard input closes: for a parent process that must not leave a gateway behind
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

/// Runs the gateway until a signal ends it: the first in order, a second at once.
pub(crate) fn run(args: &Args, file: &Path) -> Outcome {
    logging::init(args.log_format).map_err(|error| Failure::new(Exit::Usage, error))?;
    let origin = Arc::new(File::new(file));
    let unusable =
        |text: String| Failure::new(Exit::Config, anyhow::anyhow!("{} cannot be used\n{text}", file.display()));
    let Loaded { config, warnings } = origin.load().map_err(unusable)?;
    if !warnings.is_empty() {
        out::complain(warnings.trim_end());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("tidegate")
        .build()
        .map_err(|error| Failure::new(Exit::Io, anyhow::Error::new(error).context("cannot start threads")))?;
    let outcome = runtime.block_on(Box::pin(gateway(config, origin, args.until_stdin_closes)));
    // What still runs now was told to stop and did not, or the operator will not wait: everything acknowledged is on disk.
    runtime.shutdown_background();
    outcome
}

async fn gateway(config: Config, origin: Arc<File>, until_stdin_closes: bool) -> Outcome {
    let mut signals = Signals::new().map_err(|error| Failure::new(Exit::Io, error))?;
    let mut hangups = Hangups::new().map_err(|error| Failure::new(Exit::Io, error))?;
    let gateway = Gateway::build(config, Some(origin), clock::system()).await.map_err(|error| {
        let code = error.exit_code();
        Failure::with_code(code, anyhow::Error::new(error).context("cannot start"))
    })?;
    let stop = CancellationToken::new();
    if until_stdin_closes {
        stop_with_stdin(stop.clone()).map_err(|error| Failure::new(Exit::Io, error))?;
    }
    let reload = gateway.reload();
    let running = gateway.run(stop.clone());
    tokio::pin!(running);
    // Counted apart from `stop`, which a closed standard input cancels too: only a second *signal* means "at once".
    let mut signalled = false;
    loop {
        tokio::select! {
            ended = &mut running => {
                return ended.map(|()| Exit::Done).map_err(|error| Failure::with_code(error.exit_code(), error));
            }
            () = hangups.next() => {
                tracing::info!(signal = "SIGHUP", "reading routes.yaml and the files that it names again");
                reload.now();
            }
            name = signals.next() => {
                if signalled {
                    tracing::warn!(signal = name, "stopping at once");
                    let ended = anyhow::anyhow!("ended by a second {name}; what was acknowledged is on disk");
                    return Err(Failure::with_code(signals::exit_code(name), ended));
                }
                tracing::info!(signal = name, "stopping in order; a second signal stops at once");
                signalled = true;
                stop.cancel();
            }
        }
    }
}

/// A thread of its own: reading standard input cannot be cancelled, and a runtime would wait for it at its end.
fn stop_with_stdin(stop: CancellationToken) -> anyhow::Result<()> {
    let wait = move || {
        let mut bytes = [0; 64];
        while std::io::stdin().read(&mut bytes).is_ok_and(|read| read > 0) {}
        stop.cancel();
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(wait).context("cannot watch standard input")?;
    Ok(())
}
