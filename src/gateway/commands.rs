//! What the operator's tools ask of a running gateway, over its admin socket.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::Shared;
use super::shown::{LetterList, RetainedList, SettledLetter};
use crate::admin::CommandError;
use crate::broker::DropError;
use crate::buffer::offline::AuditReport;
use crate::buffer::{Buffer, DamagedLetter, Lane, Lanes, Offset, ReadLetters, Refused, SendError};

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

/// `retained`.
#[derive(Debug, Deserialize)]
struct RetainedArguments {
    /// `list` or `drop`.
    verb: String,
    filter: String,
}

impl Shared {
    pub(super) async fn obey(self: &Arc<Self>, name: &str, arguments: Value) -> Result<Value, CommandError> {
        match name {
            "audit" => self.audit(read(arguments)?).await,
            "reload" => answer(&self.reload("`tidegate reload`").await),
            "dead-letters" => self.letters(read(arguments)?).await,
            "retained" => self.retained(read(arguments)?).await,
            _ if name.starts_with("replay-") => self.obey_replay(name, arguments).await,
            _ => Err(CommandError::Unknown(name.to_owned())),
        }
    }

    /// The lanes of each link with its name, those of links that are no more included.
    fn buffers(&self) -> Vec<(String, Lanes)> {
        let parts = self.parts();
        let links = parts.links.iter().filter_map(|link| Some((link.config.id.to_string(), link.lanes.clone()?)));
        let orphans = parts.orphans.iter().filter_map(|orphan| Some((orphan.name.clone(), orphan.lanes.clone().ok()?)));
        links.chain(orphans).collect()
    }

    /// The logs that `LINK`, all its lanes, or `LINK/LANE` names.
    fn logs(&self, named: &str) -> Result<Vec<(Lane, Buffer)>, CommandError> {
        let (link, lane) = Lane::split(named);
        let buffers = self.buffers();
        let lanes = buffers.iter().find(|(name, _)| *name == link).map(|(_, lanes)| all_of(lanes));
        let mut logs = lanes.unwrap_or_default();
        logs.retain(|(own, _)| lane.is_none_or(|lane| lane == *own));
        if !logs.is_empty() {
            return Ok(logs);
        }
        Err({
            let link = named;
            let known: Vec<_> = buffers.iter().map(|(name, _)| name.as_str()).collect();
            CommandError::NotThere(format!("there is no link `{link}` with a buffer; there are: {}", known.join(", ")))
        })
    }

    async fn audit(&self, arguments: AuditArguments) -> Result<Value, CommandError> {
        let buffers: Vec<(Lane, Buffer)> = match &arguments.link {
            Some(link) => self.logs(link)?,
            None => self.buffers().iter().flat_map(|(_, lanes)| all_of(lanes)).collect(),
        };
        let accept = arguments.accept;
        let audits = blocking(move || buffers.iter().map(|(_, buffer)| buffer.audit(accept)).collect()).await?;
        let audits: std::io::Result<Vec<_>> = audits;
        let audits = audits.map_err(|error| CommandError::Failed(error.to_string()))?;
        answer(&AuditReport::of(audits))
    }

    async fn retained(&self, arguments: RetainedArguments) -> Result<Value, CommandError> {
        let RetainedArguments { verb, filter } = arguments;
        match verb.as_str() {
            "list" => {
                let broker = Arc::clone(&self.broker);
                let topics = blocking(move || broker.retained_on(&filter)).await?;
                let topics = topics.map_err(|error| CommandError::Refused(error.to_string()))?;
                answer(&RetainedList { topics, dropped: 0 })
            }
            "drop" => {
                let dropped = self.broker.drop_retained(&filter).await.map_err(|error| match error {
                    DropError::Filter(_) => CommandError::Refused(error.to_string()),
                    DropError::Store(_) => CommandError::Failed(error.to_string()),
                })?;
                answer(&RetainedList { topics: Vec::new(), dropped })
            }
            _ => Err(CommandError::Unknown(format!("retained {verb}"))),
        }
    }

    async fn letters(&self, arguments: LettersArguments) -> Result<Value, CommandError> {
        let LettersArguments { link, verb, ids } = arguments;
        let mut logs = self.logs(&link)?;
        if let (Some(ids), 2..) = (&ids, logs.len()) {
            let has_all = |buffer: &Buffer| {
                let held = buffer.dead_letters().offsets();
                ids.iter().all(|id| held.contains(&Offset(*id)))
            };
            let mut holders = logs.extract_if(.., |(_, buffer)| has_all(buffer)).collect::<Vec<_>>();
            let Some(only) = holders.pop().filter(|_| holders.is_empty()) else {
                let all = self.logs(&link)?;
                return Err(CommandError::Refused(each_counts(&link, all.iter().map(|(lane, _)| *lane))));
            };
            logs = vec![only];
        }
        match verb.as_str() {
            "list" | "show" => {
                let most = if verb == "list" { PAYLOAD_IN_LIST } else { PAYLOAD_SHOWN };
                answer(&blocking(move || read_letters(&logs, ids.as_deref(), most)).await??)
            }
            "send" if self.parts().orphans.iter().any(|orphan| orphan.name == Lane::split(&link).0) => {
                Err(CommandError::Refused(format!(
                    "link `{link}` is orphaned: routes.yaml has no such link, so nothing of it is sent; `renamed_from: {link}` on a link takes it over"
                )))
            }
            "send" | "drop" => {
                let done = settle_letters(&logs, verb == "send", ids).await;
                done.map_err(|error| not_settled(&error)).and_then(|done| answer(&done))
            }
            _ => Err(CommandError::Unknown(format!("dead-letters {verb}"))),
        }
    }
}

/// In the order of [`crate::buffer::offline`]: the normal lane first.
fn all_of(lanes: &Lanes) -> Vec<(Lane, Buffer)> {
    let mut all: Vec<_> = lanes.iter().map(|(lane, buffer)| (lane, buffer.clone())).collect();
    all.sort_by_key(|(lane, _)| lane.number());
    all
}

/// What is wrong where one lane has to be named.
pub(super) fn each_counts(link: &str, lanes: impl Iterator<Item = Lane>) -> String {
    let names: Vec<_> = lanes.map(|lane| format!("{link}/{}", lane.name())).collect();
    format!("link `{link}` has several lanes, each a log with its own offsets: name one of {}", names.join(", "))
}

/// Where letters are named by `ids`, `logs` has one lane.
fn read_letters(logs: &[(Lane, Buffer)], ids: Option<&[u64]>, most: usize) -> Result<LetterList, CommandError> {
    let mut list = LetterList::default();
    for (lane, buffer) in logs {
        let letters = buffer.dead_letters();
        let Some(ids) = ids else {
            list.add(*lane, &letters.list(), most);
            continue;
        };
        let mut read = ReadLetters::default();
        for id in ids.iter().copied().map(Offset) {
            match letters.get(id) {
                Ok(Some(letter)) => read.letters.push(letter),
                Ok(None) => return Err(CommandError::NotThere(SendError::NotThere(id.0).to_string())),
                Err(error) => read.damaged.push(DamagedLetter { offset: Some(id), text: error.to_string() }),
            }
        }
        list.add(*lane, &read, most);
    }
    Ok(list)
}

/// Sends or drops letters of these lanes, oldest first. Answers, for each, its id, and the new one of what was sent. The first that cannot be
/// done ends it: those before it are done. Of all letters those that do not read back are passed over, each with why.
pub(super) async fn settle_letters(
    logs: &[(Lane, Buffer)],
    send: bool,
    ids: Option<Vec<u64>>,
) -> Result<Vec<SettledLetter>, SendError> {
    let mut done = Vec::new();
    for (lane, buffer) in logs {
        let all = || buffer.dead_letters().offsets().iter().map(|id| id.0).collect();
        for id in ids.clone().unwrap_or_else(all) {
            let settled = if send {
                buffer.send_letter(Offset(id)).await.map(|offset| Some(offset.0))
            } else {
                buffer.drop_letter(Offset(id)).await.map(|()| None)
            };
            let (offset, error) = match settled {
                Ok(offset) => (offset, None),
                Err(error @ SendError::Damaged(..)) if ids.is_none() => (None, Some(error.to_string())),
                Err(error) => return Err(error),
            };
            done.push(SettledLetter { lane: lane.name().to_owned(), id, offset, error });
        }
    }
    Ok(done)
}

/// Why a letter is where it was, for the operator.
fn not_settled(error: &SendError) -> CommandError {
    match error {
        SendError::NotThere(_) => CommandError::NotThere(error.to_string()),
        SendError::NotSettled(_) | SendError::Full(_) => CommandError::Refused(error.to_string()),
        SendError::Refused(Refused::Closed) => CommandError::Refused(
            "the buffer is being closed, for a reload or the gateway's end: those before are done; try again"
                .to_owned(),
        ),
        SendError::Refused(Refused::Full | Refused::Failed(_)) | SendError::Damaged(..) => {
            CommandError::Failed(error.to_string())
        }
    }
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

#[cfg(test)]
mod tests {
    use super::super::build::keeping;
    use super::*;
    use crate::buffer::Outcome;
    use crate::clock;

    /// Refused by its remote, and not settled yet.
    async fn with_letters(dir: &std::path::Path, letters: u64) -> Lanes {
        let (lanes, _) = Lanes::open(&keeping(dir), 16, &[], &clock::system()).unwrap();
        let buffer = lanes.lane(Lane::Normal);
        for _ in 0..letters {
            let Ok(crate::buffer::Admission::Granted(permit)) = buffer.admit(1).await else { panic!() };
            let offset = buffer.append(permit, &[b"x"], None);
            buffer.mark().passed(offset.0).await.unwrap();
            let moment = clock::system().moment().wall;
            let reason = "no queue takes it".into();
            let letter = crate::buffer::DeadLetter { offset, time: moment, attempts: 1, reason, body: "x".into() };
            buffer.dead_letters().put(letter).await.unwrap();
            buffer.settle(offset, Outcome::DeadLettered);
        }
        lanes
    }

    #[tokio::test]
    async fn r34_letters_that_are_sent_while_a_reload_closes_their_buffer_are_refused_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let lanes = with_letters(dir.path(), 3).await;
        let logs = all_of(&lanes);
        // The reload has its turn while the letters are being sent.
        let closing = async {
            lanes.seal().await;
            lanes.close().await;
        };
        let (sent, ()) = tokio::join!(settle_letters(&logs, true, None), closing);
        let error = sent.unwrap_err();
        assert_eq!(error, SendError::Refused(Refused::Closed));
        let CommandError::Refused(said) = not_settled(&error) else { panic!("{error:?}") };
        assert!(said.contains("a reload") && said.contains("try again"), "{said}");
        let (after, _) = Lanes::open(&keeping(dir.path()), 16, &[], &clock::system()).unwrap();
        let left = after.lane(Lane::Normal).dead_letters().len();
        let again = settle_letters(&all_of(&after), true, None).await.unwrap();
        assert_eq!(again.len() as u64, left);
        assert_eq!((after.ledger().buffered, after.ledger().dead_lettered), (3, 0));
    }
}
