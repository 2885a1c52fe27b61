//! Topic names and topic filters (MQTT 5.0 section 4.7), as types that cannot be wrong.
//!
//! This module knows nothing of routes, captures or subscriptions: `router` and `broker::index` build on it.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// The longest topic in bytes: it travels behind a 16-bit length (MQTT-1.5.4).
pub const TOPIC_BYTES_MAX: usize = 65_535;

/// Levels of a topic or filter of the built-in broker at most: each costs a node in a tree. The number is Mosquitto's.
pub const LEVELS_MAX: usize = 200;

/// Where the gateway's own values are: nobody else publishes there.
pub const OWN: &str = "$SYS/";

/// Whether a topic or filter has more than [`LEVELS_MAX`] levels.
#[must_use]
pub fn is_too_deep(text: &str) -> bool {
    text.len() >= LEVELS_MAX && text.bytes().filter(|byte| *byte == b'/').count() >= LEVELS_MAX
}

/// A topic that a message is published to: not empty, no wildcard, no NUL.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(Arc<str>);

/// A topic pattern that a subscriber asks for: `+` for one level, a final `#` for all that follow.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicFilter(Arc<str>);

/// Why a text is no topic name or filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// MQTT-4.7.3-1.
    #[error("a topic has at least one character")]
    Empty,
    /// MQTT-1.5.4.
    #[error("a topic has at most 65535 bytes")]
    TooLong,
    /// MQTT-4.7.3-2.
    #[error("a topic holds no NUL character")]
    Nul,
    /// MQTT-4.7.1-1.
    #[error("`+` and `#` belong to filters, not to the topic of a message")]
    WildcardInName,
    /// MQTT-4.7.1-2.
    #[error("`#` stands alone as the last level: `a/#`")]
    HashNotLast,
    /// MQTT-4.7.1-3.
    #[error("`+` stands for a whole level: `a/+/b`")]
    PlusNotAlone,
}

impl TopicName {
    /// Checks and keeps `text`.
    ///
    /// # Errors
    /// What is wrong with it, by the statement of the specification that it breaks.
    pub fn new(text: &str) -> Result<Self, TopicError> {
        check_common(text)?;
        if text.contains(['+', '#']) {
            return Err(TopicError::WildcardInName);
        }
        Ok(Self(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether only the gateway itself speaks on it.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.0.starts_with(OWN)
    }
}

impl TopicFilter {
    /// Checks and keeps `text`.
    ///
    /// # Errors
    /// What is wrong with it, by the statement of the specification that it breaks.
    pub fn new(text: &str) -> Result<Self, TopicError> {
        check_common(text)?;
        let mut levels = text.split('/').peekable();
        while let Some(level) = levels.next() {
            match level {
                "#" if levels.peek().is_some() => return Err(TopicError::HashNotLast),
                "#" | "+" => {}
                _ if level.contains('#') => return Err(TopicError::HashNotLast),
                _ if level.contains('+') => return Err(TopicError::PlusNotAlone),
                _ => {}
            }
        }
        Ok(Self(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a message on `topic` is for this filter. A leading wildcard does not match a topic that begins
    /// with `$` (MQTT-4.7.2-1).
    #[must_use]
    pub fn matches(&self, topic: &TopicName) -> bool {
        matches(self.as_str(), topic.as_str())
    }

    /// Whether every topic of `other` is one of this filter's too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        if is_apart(self.as_str(), other.as_str()) {
            return false;
        }
        let mut levels = other.as_str().split('/');
        for wide in self.as_str().split('/') {
            match (wide, levels.next()) {
                ("#", _) => return true,
                ("+", Some(level)) if level != "#" => {}
                (wide, Some(level)) if wide == level => {}
                _ => return false,
            }
        }
        levels.next().is_none()
    }

    /// Whether some topic is one of both filters'.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        if is_apart(self.as_str(), other.as_str()) {
            return false;
        }
        let (mut own, mut others) = (self.as_str().split('/'), other.as_str().split('/'));
        loop {
            match (own.next(), others.next()) {
                (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
                (Some(a), Some(b)) if a == b || a == "+" || b == "+" => {}
                _ => return false,
            }
        }
    }
}

/// One begins with `$`, and the other with a wildcard, which does not match it.
fn is_apart(a: &str, b: &str) -> bool {
    let wild = |text: &str| text.starts_with(['+', '#']);
    (a.starts_with('$') && wild(b)) || (b.starts_with('$') && wild(a))
}

/// [`TopicFilter::matches`] on plain text: the naive reference that the indexes are tested against.
#[must_use]
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        match (wanted, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (wanted, Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

fn check_common(text: &str) -> Result<(), TopicError> {
    if text.is_empty() {
        Err(TopicError::Empty)
    } else if text.len() > TOPIC_BYTES_MAX {
        Err(TopicError::TooLong)
    } else if text.contains('\0') {
        Err(TopicError::Nul)
    } else {
        Ok(())
    }
}

macro_rules! text_type {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}
text_type!(TopicName);
text_type!(TopicFilter);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_the_specification_says() {
        for (filter, topic, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/#", "sport", true),
            ("#", "a/b", true),
            ("+/tennis/#", "sport/tennis", true),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+", "/finance", false),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("#", "$SYS/uptime", false),
            ("+/monitor/Clients", "$SYS/monitor/Clients", false),
            ("$SYS/#", "$SYS/uptime", true),
            ("a/b", "a/b/c", false),
            ("a/b/c", "a/b", false),
        ] {
            let filter = TopicFilter::new(filter).unwrap();
            assert_eq!(filter.matches(&TopicName::new(topic).unwrap()), expected, "{filter} against {topic}");
        }
    }

    #[test]
    fn what_filters_cover_and_share_is_what_their_topics_say() {
        let levels = ["a", "b", "+", "#", "$x", ""];
        let mut texts = vec![String::new()];
        for _ in 0..3 {
            let longer = texts.iter().flat_map(|text| levels.map(|level| format!("{text}/{level}")));
            texts = texts.iter().cloned().chain(longer).collect();
        }
        texts.sort_unstable();
        texts.dedup();
        let texts = || texts.iter().filter_map(|text| text.strip_prefix('/'));
        let filters: Vec<_> = texts().filter_map(|text| TopicFilter::new(text).ok()).collect();
        let topics: Vec<_> = texts().filter_map(|text| TopicName::new(text).ok()).collect();
        let matched: Vec<Vec<bool>> =
            filters.iter().map(|filter| topics.iter().map(|topic| filter.matches(topic)).collect()).collect();
        for (a, of_a) in filters.iter().zip(&matched) {
            for (b, of_b) in filters.iter().zip(&matched) {
                // `/#` stands for the empty level alone too, which is no topic.
                let empty = matches(a.as_str(), "") && matches(b.as_str(), "");
                let shared = empty || of_a.iter().zip(of_b).any(|(a, b)| *a && *b);
                assert_eq!(a.overlaps(b), shared, "{a} and {b}");
                assert!(!a.covers(b) || of_a.iter().zip(of_b).all(|(a, b)| *a || !*b), "{a} covers {b}");
            }
        }
        for (wide, filter, expected) in [
            ("secret/#", "secret", true),
            ("secret/#", "secret/a/+", true),
            ("secret/#", "#", false),
            ("secret/#", "+/a", false),
            ("secret/+", "secret/+", true),
            ("secret/+", "secret/#", false),
            ("#", "$SYS/a", false),
            ("a", "a/b", false),
        ] {
            let parse = |text| TopicFilter::new(text).unwrap();
            assert_eq!(parse(wide).covers(&parse(filter)), expected, "{wide} {filter}");
        }
    }

    #[test]
    fn bad_filters_and_names_are_refused_with_their_reason() {
        for (text, error) in [
            ("", TopicError::Empty),
            ("sport/tennis#", TopicError::HashNotLast),
            ("sport/#/ranking", TopicError::HashNotLast),
            ("sport+", TopicError::PlusNotAlone),
            ("a\0", TopicError::Nul),
        ] {
            assert_eq!(TopicFilter::new(text).unwrap_err(), error, "{text:?}");
        }
        assert_eq!(TopicName::new("a/+").unwrap_err(), TopicError::WildcardInName);
        assert_eq!(TopicName::new(&"x".repeat(65_536)).unwrap_err(), TopicError::TooLong);
    }
}
