//! SIGINT and SIGTERM.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both signals that ask a process to end.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From now on the two no longer end the process by themselves.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let watch = |kind| signal(kind).context("cannot watch for signals");
        Ok(Self { interrupt: watch(SignalKind::interrupt())?, terminate: watch(SignalKind::terminate())? })
    }

    /// The next one's name. Cancel safe.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            Some(()) = self.interrupt.recv() => "SIGINT",
            Some(()) = self.terminate.recv() => "SIGTERM",
            else => std::future::pending().await,
        }
    }
}

/// SIGHUP: what a daemon takes as "read your files again".
#[derive(Debug)]
pub(crate) struct Hangups(Signal);

impl Hangups {
    /// From now on it no longer ends the process by itself.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self(signal(SignalKind::hangup()).context("cannot watch for signals")?))
    }

    /// Returns at the next one. Cancel safe.
    pub(crate) async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// The first signal of a command that needs only one.
pub(crate) async fn next() -> anyhow::Result<&'static str> {
    Ok(Signals::new()?.next().await)
}

/// The exit code of a command that a signal ended before its answer: 128 and the signal's number, as shells have it.
pub(crate) fn exit_code(name: &str) -> u8 {
    if name == "SIGINT" { 130 } else { 143 }
}
