//! Message ids (R11): site, 64 random bits drawn at each start, a counter. A receiver drops copies by them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An id that no two messages share, over all sites and restarts. Written `SITE-RUN-COUNTER`, RUN as 16 hex digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId {
    /// The accepting site.
    pub site: Arc<str>,
    /// 64 random bits of that gateway's start.
    pub run: u64,
    /// Counts from 1 within the run.
    pub counter: u64,
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}-{}", self.site, self.run, self.counter)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no message id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no message id: `SITE-RUN-COUNTER` is, with RUN as 16 hex digits")]
pub struct MessageIdError(pub String);

impl FromStr for MessageId {
    type Err = MessageIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || MessageIdError(text.to_owned());
        let mut parts = text.rsplitn(3, '-');
        let counter = parts.next().and_then(|part| part.parse().ok()).ok_or_else(bad)?;
        let run = parts.next().filter(|part| part.len() == 16).ok_or_else(bad)?;
        let run = u64::from_str_radix(run, 16).map_err(|_not_hex| bad())?;
        let site = parts.next().filter(|site| !site.is_empty()).ok_or_else(bad)?;
        Ok(Self { site: site.into(), run, counter })
    }
}

/// Gives out the ids of one run of one site.
#[derive(Debug)]
pub struct IdSource {
    site: Arc<str>,
    run: u64,
    next: AtomicU64,
}

impl IdSource {
    /// `run` is 64 random bits, drawn anew at each start.
    #[must_use]
    pub const fn new(site: Arc<str>, run: u64) -> Self {
        Self { site, run, next: AtomicU64::new(1) }
    }

    /// The next id.
    #[must_use]
    pub fn next(&self) -> MessageId {
        let counter = self.next.fetch_add(1, Ordering::Relaxed);
        MessageId { site: Arc::clone(&self.site), run: self.run, counter }
    }

    /// Whether this run gave the id out.
    #[must_use]
    pub fn is_mine(&self, id: &MessageId) -> bool {
        id.run == self.run && id.site == self.site
    }

    /// The site of all these ids.
    #[must_use]
    pub fn site(&self) -> &Arc<str> {
        &self.site
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_as_they_are_written_even_with_dashes_in_the_site() {
        let ids = IdSource::new("plant-7".into(), 0xAB);
        assert_eq!(ids.next().to_string(), "plant-7-00000000000000ab-1");
        let second = ids.next();
        assert_eq!(second.to_string().parse(), Ok(second));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "a", "a-b-1", "-00000000000000ab-1", "a-00000000000000ab-", "a-0000000000000zab-1"] {
            assert!(text.parse::<MessageId>().is_err(), "{text}");
        }
    }
}
