//! What the operator's tools share: on the files where no gateway runs, through the admin socket where one does.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::client;
use super::exit::{Exit, Failure};
use super::out;
use crate::gateway::offline::{Locked, ToolError};

impl From<ToolError> for Failure {
    fn from(error: ToolError) -> Self {
        Self::with_code(error.exit_code(), error)
    }
}

/// The data folder, locked; `None`: a gateway runs, and is to be asked.
pub(crate) fn lock(data_dir: &Path) -> Result<Option<Locked>, Failure> {
    Ok(Locked::take(data_dir)?)
}

/// For a tool that only works on files that nobody uses.
pub(crate) fn lock_or_refuse(data_dir: &Path, what: &str) -> Result<Locked, Failure> {
    lock(data_dir)?.ok_or_else(|| {
        let dir = data_dir.display();
        let error = anyhow::anyhow!("a gateway uses {dir}: stop it first, then {what}, then start it again");
        Failure::new(Exit::Unavailable, error)
    })
}

/// Asks the running gateway.
pub(crate) async fn ask<T: for<'a> serde::Deserialize<'a>>(
    data_dir: &Path,
    name: &str,
    arguments: &Value,
) -> Result<T, Failure> {
    let answer = client::command(data_dir, name, arguments).await;
    let answer = answer.map_err(|error| Failure::new(error.exit(), error))?;
    serde_json::from_value(answer).map_err(|error| {
        let text = format!("the gateway gave an answer that this version does not understand: {error}");
        Failure::new(Exit::Io, anyhow::anyhow!(text))
    })
}

/// Runs something that waits.
pub(crate) fn block_on<T>(act: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Io, anyhow::Error::new(error).context("cannot start")))?;
    runtime.block_on(act)
}

/// Prints as JSON.
pub(crate) fn print_json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(value).map_err(|error| Failure::new(Exit::Bug, error))?;
    out::line(&json);
    Ok(())
}

/// A remote's or a machine's words on one line: they must not steer the terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
