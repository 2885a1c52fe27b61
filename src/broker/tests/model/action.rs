//! What clients do: the words of the plans, of the reference and of the clients that really do it.

use crate::message::Qos;
use crate::wire::{RetainHandling, Version};

pub(super) type Name = &'static str;

/// A message, as it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Post {
    pub(super) from: Name,
    /// Its payload: another one for each, but empty where it clears what is retained.
    pub(super) text: String,
    pub(super) topic: &'static str,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    pub(super) expiry_s: Option<u64>,
    /// When that is, by the clock of the reference, which sets it.
    pub(super) expires_s: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LastWord {
    pub(super) post: Post,
    pub(super) delay_s: u64,
}

/// What a CONNECT asks for, and gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) version: Version,
    pub(super) clean: bool,
    pub(super) expiry_s: u64,
    pub(super) window: usize,
    pub(super) will: Option<LastWord>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sub {
    pub(super) qos: Qos,
    pub(super) no_local: bool,
    pub(super) as_published: bool,
    pub(super) handling: RetainHandling,
    pub(super) id: Option<u32>,
}

/// What a client had open, and sends again when its session is still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Again {
    Publish(u16, Post),
    Release(u16),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Takes over if the client is connected.
    Connect(Name, Terms),
    Again(Name, Vec<Again>),
    /// The socket is closed, and nothing said.
    Drop(Name),
    Disconnect {
        who: Name,
        with_will: bool,
        expiry_s: Option<u64>,
    },
    Subscribe(Name, &'static str, Sub),
    Unsubscribe(Name, &'static str),
    Publish(Name, u16, Post),
    /// PUBREL.
    Release(Name, u16),
    /// PUBACK or PUBREC for the oldest so many that are not acknowledged.
    Ack(Name, usize),
    /// PUBCOMP for the oldest so many.
    Complete(Name, usize),
    /// Time passes, in seconds.
    Pass(u64),
    /// The client's socket is closed right after it has sent this.
    Cut(Box<Self>),
    /// SIGKILL, and a start on what the disk held; it falls into this.
    Crash(Option<Box<Self>>),
}

impl Action {
    /// Whose it is.
    pub(super) fn who(&self) -> Name {
        match self {
            Self::Connect(who, _)
            | Self::Again(who, _)
            | Self::Drop(who)
            | Self::Disconnect { who, .. }
            | Self::Subscribe(who, ..)
            | Self::Unsubscribe(who, _)
            | Self::Publish(who, ..)
            | Self::Release(who, _)
            | Self::Ack(who, _)
            | Self::Complete(who, _) => who,
            Self::Cut(cut) => cut.who(),
            Self::Pass(_) | Self::Crash(_) => "",
        }
    }
}
