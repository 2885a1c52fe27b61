//! `$share/NAME/FILTER` (MQTT 5.0 section 4.8.2): one message goes to one of all who subscribed under the same name and
//! filter. The syntax is understood in every version, as Mosquitto does.

use std::fmt;
use std::sync::Arc;

use crate::topic::{LEVELS_MAX, TopicError, TopicFilter, is_too_deep};

/// What makes a group: those who name both share their messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// ShareName.
    pub name: Arc<str>,
    /// The topics that are shared.
    pub filter: TopicFilter,
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "$share/{}/{}", self.name, self.filter)
    }
}

/// A filter as a client wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All messages, for this client.
    Own(TopicFilter),
    /// Its share of them.
    Shared(Share),
}

/// Why a filter is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// It is no filter.
    #[error("{0}")]
    Topic(#[from] TopicError),
    /// MQTT-4.8.2-1 and -2.
    #[error("a shared subscription is `$share/NAME/FILTER`, and NAME holds no `+` or `#`")]
    Share,
    /// See [`LEVELS_MAX`].
    #[error("a filter has at most {LEVELS_MAX} levels")]
    TooDeep,
}

impl Wanted {
    /// Reads what a client wrote.
    ///
    /// # Errors
    /// [`FilterError`].
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        if is_too_deep(text) {
            return Err(FilterError::TooDeep);
        }
        let Some(rest) = text.strip_prefix("$share/") else { return Ok(Self::Own(TopicFilter::new(text)?)) };
        let (name, filter) = rest.split_once('/').ok_or(FilterError::Share)?;
        if name.is_empty() || name.contains(['+', '#']) {
            return Err(FilterError::Share);
        }
        Ok(Self::Shared(Share { name: name.into(), filter: TopicFilter::new(filter)? }))
    }

    /// The topics that it asks for.
    #[must_use]
    pub const fn filter(&self) -> &TopicFilter {
        match self {
            Self::Own(filter) => filter,
            Self::Shared(share) => &share.filter,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_filters_are_told_from_others_and_checked() {
        let shared = |name: &str, filter: &str| {
            Ok(Wanted::Shared(Share { name: name.into(), filter: TopicFilter::new(filter).unwrap() }))
        };
        let own = |filter: &str| Ok(Wanted::Own(TopicFilter::new(filter).unwrap()));
        for (text, wanted) in [
            ("a/#", own("a/#")),
            ("$share", own("$share")),
            ("$shared/g/a", own("$shared/g/a")),
            ("$share/g/a/#", shared("g", "a/#")),
            ("$share/g//", shared("g", "/")),
            ("$share/g", Err(FilterError::Share)),
            ("$share/g/", Err(FilterError::Topic(TopicError::Empty))),
            ("$share//a", Err(FilterError::Share)),
            ("$share/+/a", Err(FilterError::Share)),
            ("$share/a#/a", Err(FilterError::Share)),
            ("$share/g/a#", Err(FilterError::Topic(TopicError::HashNotLast))),
        ] {
            assert_eq!(Wanted::parse(text), wanted, "{text}");
            if let Ok(Wanted::Shared(share)) = wanted {
                assert_eq!(share.to_string(), text);
            }
        }
    }

    #[test]
    fn filters_have_200_levels_at_most() {
        assert!(Wanted::parse(&"/".repeat(199)).is_ok());
        assert_eq!(Wanted::parse(&"/".repeat(200)), Err(FilterError::TooDeep));
        assert!(Wanted::parse(&"x".repeat(60_000)).is_ok());
    }
}
