//! What the operator's tools ask of a running gateway, over its admin socket.

use serde::Deserialize;
use serde_json::Value;

use super::Shared;
use super::shown::Letter;
use crate::admin::CommandError;
use crate::buffer::offline::AuditReport;
use crate::buffer::{Buffer, DeadLetter, Offset, SendError};

/// Bytes of a payload in a list.
pub(super) const PAYLOAD_IN_LIST: usize = 128;
/// Bytes of a payload where one letter is shown.
pub(super) const PAYLOAD_SHOWN: usize = 64 << 10;

/// `audit`.
#[derive(Debug, Deserialize)]
struct AuditArguments {
    link: Option<String>,
    accept: bool,
}

/// `dead-letters`.
#[derive(Debug, Deserialize)]
struct LettersArguments {
    link: String,
    /// `list`, `show`, `send` or `drop`.
    verb: String,
    /// `None`: all.
    ids: Option<Vec<u64>>,
}

impl Shared {
    pub(super) async fn obey(&self, name: &str, arguments: Value) -> Result<Value, CommandError> {
        match name {
            "audit" => self.audit(read(arguments)?).await,
            "dead-letters" => self.letters(read(arguments)?).await,
            _ if name.starts_with("replay-") => self.obey_replay(name, arguments).await,
            _ => Err(CommandError::Unknown(name.to_owned())),
        }
    }

    /// Each buffer with the name of its link, those of links that are no more included.
    fn buffers(&self) -> impl Iterator<Item = (&str, &Buffer)> {
        let links = self.links.iter().filter_map(|link| Some((link.config.id.as_str(), link.buffer.as_ref()?)));
        links.chain(self.orphans.iter().map(|orphan| (orphan.name.as_str(), &orphan.buffer)))
    }

    fn buffer(&self, link: &str) -> Result<Buffer, CommandError> {
        let found = self.buffers().find(|(name, _)| *name == link).map(|(_, buffer)| buffer.clone());
        found.ok_or_else(|| {
            let known: Vec<_> = self.buffers().map(|(name, _)| name).collect();
            CommandError::NotThere(format!("there is no link `{link}` with a buffer; there are: {}", known.join(", ")))
        })
    }

    async fn audit(&self, arguments: AuditArguments) -> Result<Value, CommandError> {
        let buffers: Vec<Buffer> = match &arguments.link {
            Some(link) => vec![self.buffer(link)?],
            None => self.buffers().map(|(_, buffer)| buffer.clone()).collect(),
        };
        let accept = arguments.accept;
        let audits = blocking(move || buffers.iter().map(|buffer| buffer.audit(accept)).collect()).await?;
        let audits: std::io::Result<Vec<_>> = audits;
        let audits = audits.map_err(|error| CommandError::Failed(error.to_string()))?;
        answer(&AuditReport::of(audits))
    }

    async fn letters(&self, arguments: LettersArguments) -> Result<Value, CommandError> {
        let LettersArguments { link, verb, ids } = arguments;
        let buffer = self.buffer(&link)?;
        match verb.as_str() {
            "list" | "show" => {
                let found = blocking(move || read_letters(&buffer, ids)).await??;
                let most = if verb == "list" { PAYLOAD_IN_LIST } else { PAYLOAD_SHOWN };
                answer(&found.iter().map(|letter| Letter::of(letter, most)).collect::<Vec<_>>())
            }
            "send" if self.orphans.iter().any(|orphan| orphan.name == link) => Err(CommandError::Refused(format!(
                "link `{link}` is orphaned: routes.yaml has no such link, so nothing of it is sent"
            ))),
            "send" | "drop" => {
                let done = settle_letters(&buffer, verb == "send", ids).await;
                done.map_err(|error| match error {
                    SendError::NotThere(_) => CommandError::NotThere(error.to_string()),
                    SendError::NotSettled(_) | SendError::Full(_) => CommandError::Refused(error.to_string()),
                    SendError::Refused(_) => CommandError::Failed(error.to_string()),
                })
                .and_then(|done| answer(&done))
            }
            _ => Err(CommandError::Unknown(format!("dead-letters {verb}"))),
        }
    }
}

fn read_letters(buffer: &Buffer, ids: Option<Vec<u64>>) -> Result<Vec<DeadLetter>, CommandError> {
    let letters = buffer.dead_letters();
    let ids = ids.map_or_else(|| letters.offsets(), |ids| ids.into_iter().map(Offset).collect());
    let read = ids.into_iter().map(|id| match letters.get(id) {
        Ok(Some(letter)) => Ok(letter),
        Ok(None) => Err(CommandError::NotThere(SendError::NotThere(id.0).to_string())),
        Err(error) => Err(CommandError::Failed(error.to_string())),
    });
    read.collect()
}

/// Sends or drops letters, oldest first. Answers, for each, its id, and the new one of what was sent. The first that cannot be
/// done ends it: those before it are done.
pub(super) async fn settle_letters(
    buffer: &Buffer,
    send: bool,
    ids: Option<Vec<u64>>,
) -> Result<Vec<(u64, Option<u64>)>, SendError> {
    let ids = ids.unwrap_or_else(|| buffer.dead_letters().offsets().iter().map(|id| id.0).collect());
    let mut done = Vec::new();
    for id in ids {
        let new = if send {
            Some(buffer.send_letter(Offset(id)).await?.0)
        } else {
            buffer.drop_letter(Offset(id)).await?;
            None
        };
        done.push((id, new));
    }
    Ok(done)
}

fn read<T: for<'a> Deserialize<'a>>(arguments: Value) -> Result<T, CommandError> {
    serde_json::from_value(arguments).map_err(|error| CommandError::NotThere(format!("not understood: {error}")))
}

fn answer<T: serde::Serialize>(value: &T) -> Result<Value, CommandError> {
    serde_json::to_value(value).map_err(|error| CommandError::Failed(error.to_string()))
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> Result<T, CommandError> {
    tokio::task::spawn_blocking(act).await.map_err(|error| CommandError::Failed(error.to_string()))
}
