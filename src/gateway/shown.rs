//! Messages as the operator's tools show them: the parts of an envelope by name, and as much of the payload as a person
//! looks at.

use serde::{Deserialize, Serialize};

use crate::broker::RetainedTopic;
use crate::buffer::{DamagedLetter, DeadLetter, Lane, ReadLetters, Record};
use crate::message::Envelope;

/// A message that a buffer holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownMessage {
    /// `tg-id`: the same on all links and in every resend.
    pub id: String,
    /// The topic that it was published to.
    pub topic: String,
    /// What the route made of its `to`.
    pub destination: String,
    /// The Kafka key, where the route names one.
    pub key: Option<String>,
    /// As published.
    pub qos: u8,
    /// As published.
    pub retain: bool,
    /// Event time (wall ms).
    pub time_ms: u64,
    /// Who accepted it first.
    pub site: String,
    /// Its publisher.
    pub client_id: Option<String>,
    /// Its content type.
    pub content_type: Option<String>,
    /// User properties.
    pub properties: Vec<(String, String)>,
    /// Bytes of its payload.
    pub payload_bytes: u64,
    /// `text` or `hex`.
    pub payload_as: String,
    /// The payload, or its first bytes.
    pub payload: String,
    /// There is more of it.
    pub payload_is_cut: bool,
    /// The record holds no message that this version reads: why.
    pub error: Option<String>,
}

impl ShownMessage {
    /// Of a record's body, with at most `payload_max` bytes of payload.
    #[must_use]
    pub fn of(body: &bytes::Bytes, payload_max: usize) -> Self {
        let Envelope { destination, key, failure, message, .. } = match Envelope::decode(body.clone()) {
            Ok(envelope) => envelope,
            Err(error) => {
                let (payload_as, payload, payload_is_cut) = show(body, payload_max);
                let error = Some(error.to_string());
                return Self { payload_as, payload, payload_is_cut, error, ..Self::default() };
            }
        };
        let (payload_as, payload, payload_is_cut) = show(&message.payload, payload_max);
        let own = |(name, value): (Box<str>, Box<str>)| (name.into_string(), value.into_string());
        Self {
            id: message.id.to_string(),
            topic: message.topic.to_string(),
            destination: destination.into_string(),
            // Of what a route could not make the key is another thing.
            key: key.filter(|_| failure.is_none()).map(String::from),
            qos: message.qos.bits(),
            retain: message.retain,
            time_ms: message.time.0,
            site: message.origin.site.to_string(),
            client_id: message.origin.client_id.map(|id| id.to_string()),
            content_type: message.properties.content_type.map(String::from),
            properties: message.properties.user.into_iter().map(own).collect(),
            payload_bytes: u64::try_from(message.payload.len()).unwrap_or(u64::MAX),
            payload_as,
            payload,
            payload_is_cut,
            error: None,
        }
    }
}

/// As text where it is readable text, else as hexadecimal digits.
fn show(bytes: &[u8], most: usize) -> (String, String, bool) {
    let cut = bytes.len() > most;
    let readable = |text: &&str| text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\r' | '\t'));
    if let Some(text) = std::str::from_utf8(bytes).ok().filter(readable) {
        let end = (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        return ("text".to_owned(), text.get(..end).unwrap_or_default().to_owned(), cut);
    }
    let shown = bytes.get(..most).unwrap_or(bytes);
    ("hex".to_owned(), shown.iter().map(|byte| format!("{byte:02x}")).collect(), cut)
}

/// A dead letter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    /// The lane of its record, which counts its own offsets.
    pub lane: String,
    /// The offset of its record: its name in commands.
    pub id: u64,
    /// When it was refused (wall ms).
    pub time_ms: u64,
    /// In the remote's words.
    pub reason: String,
    /// How often it was put on its way since the gateway's start; 0: it cannot be sent at all.
    pub attempts: u32,
    /// Its message.
    pub message: ShownMessage,
}

impl Letter {
    /// With at most `payload_max` bytes of payload.
    #[must_use]
    pub fn of(lane: Lane, letter: &DeadLetter, payload_max: usize) -> Self {
        Self {
            lane: lane.name().to_owned(),
            id: letter.offset.0,
            time_ms: letter.time.0,
            reason: letter.reason.clone(),
            attempts: letter.attempts,
            message: ShownMessage::of(&letter.body, payload_max),
        }
    }
}

/// A dead letter that does not read back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadLetter {
    /// Its lane.
    pub lane: String,
    /// Its id there; `None`: that is damaged too.
    pub id: Option<u64>,
    /// In words.
    pub text: String,
}

/// Dead letters, as far as they read back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LetterList {
    /// Oldest first, lane by lane.
    pub letters: Vec<Letter>,
    /// The others.
    pub damaged: Vec<UnreadLetter>,
}

impl LetterList {
    /// Adds those of a lane, with at most `payload_max` bytes of payload.
    pub(super) fn add(&mut self, lane: Lane, read: &ReadLetters, payload_max: usize) {
        self.letters.extend(read.letters.iter().map(|letter| Letter::of(lane, letter, payload_max)));
        let unread = |damaged: &DamagedLetter| {
            let id = damaged.offset.map(|offset| offset.0);
            UnreadLetter { lane: lane.name().to_owned(), id, text: damaged.text.clone() }
        };
        self.damaged.extend(read.damaged.iter().map(unread));
    }
}

/// What was done with a dead letter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettledLetter {
    /// Its lane.
    pub lane: String,
    /// Its id there.
    pub id: u64,
    /// Its new offset in that lane, where it was sent again.
    pub offset: Option<u64>,
    /// Why it could not be sent: it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What is retained, or how much of it was dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetainedList {
    /// In the order of topics.
    pub topics: Vec<RetainedTopic>,
    /// How many are no more.
    pub dropped: u64,
}

/// A record of a buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownRecord {
    /// Its lane, where the link has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<String>,
    /// Its place in the link's sequence.
    pub offset: u64,
    /// When it was appended (wall ms).
    pub appended_ms: u64,
    /// When it expires (wall ms).
    pub expires_ms: Option<u64>,
    /// Its message.
    pub message: ShownMessage,
}

impl ShownRecord {
    /// With at most `payload_max` bytes of payload.
    #[must_use]
    pub fn of(record: &Record, payload_max: usize) -> Self {
        Self {
            lane: None,
            offset: record.offset.0,
            appended_ms: record.appended.0,
            expires_ms: record.expires.map(|at| at.0),
            message: ShownMessage::of(&record.body, payload_max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::tests_support::message;

    #[test]
    fn a_payload_is_text_where_it_can_be_read_and_is_cut_between_characters() {
        for (bytes, most, shown) in [
            (&b"81.5"[..], 9, ("text", "81.5", false)),
            ("Gr\u{fc}\u{df}e".as_bytes(), 3, ("text", "Gr", true)),
            (b"\0\xff", 9, ("hex", "00ff", false)),
            (b"\x1b[2J", 2, ("hex", "1b5b", true)),
        ] {
            let (how, text, cut) = show(bytes, most);
            assert_eq!((how.as_str(), text.as_str(), cut), shown);
        }
    }

    #[test]
    fn a_record_that_is_no_message_says_so() {
        let sent = message("a/b", b"x");
        let body = [Envelope::encode_head("x.y", None, 0), sent.encode()].concat();
        let shown = ShownMessage::of(&body.into(), 10);
        assert_eq!((&*shown.topic, &*shown.destination, &*shown.payload, shown.error), ("a/b", "x.y", "x", None));
        assert!(ShownMessage::of(&bytes::Bytes::from_static(b"\x01\0"), 10).error.is_some());
    }
}
