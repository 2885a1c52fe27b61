//! Patterns on topics: MQTT filters in which a level may have a name.

use std::fmt;

use super::syntax::{LEVELS_MAX, Problem, SyntaxError, is_capture_name};
use crate::topic::{TOPIC_BYTES_MAX, TopicError};

/// A topic pattern with `+`, `#`, `{name}` and `{rest}` captures.
///
/// `{name}` is a `+` with a name; a final `#` captures what it stands for as `{rest}`. It matches what the MQTT filter
/// [`Pattern::filter`] matches, a topic that begins with `$` only by a literal first level.
#[derive(Clone, PartialEq, Eq)]
pub struct Pattern {
    text: Box<str>,
    pub(super) levels: Box<[Level]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Exact(Box<str>),
    /// `+`, or `{name}`.
    One(Option<Box<str>>),
    /// A final `#`.
    Rest,
}

/// What a pattern took out of one topic: found when it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Captures<'a> {
    /// The whole topic.
    pub(super) topic: &'a str,
    /// One that matches it.
    pattern: Option<&'a Pattern>,
}

impl Pattern {
    /// Reads `factory/{line}/+/telemetry/#`.
    ///
    /// # Errors
    /// The first mistake, with its place in `text`.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        check_whole(text)?;
        let mut levels = Vec::new();
        let mut start = 0;
        for level in text.split('/') {
            let end = start + level.len();
            let parsed = parse_level(level, end == text.len()).map_err(|problem| {
                let span = start..end;
                SyntaxError::new(span, problem)
            })?;
            if let Level::One(Some(name)) = &parsed
                && levels.iter().any(|earlier| matches!(earlier, Level::One(Some(other)) if other == name))
            {
                return Err(SyntaxError::new(start..end, Problem::CaptureTwice(name.to_string())));
            }
            levels.push(parsed);
            start = end + 1;
        }
        Ok(Self { text: text.into(), levels: levels.into() })
    }

    /// As written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The MQTT filter that matches the same topics: what a source subscribes to.
    #[must_use]
    pub fn filter(&self) -> String {
        let mut filter = String::with_capacity(self.text.len());
        for (at, level) in self.levels.iter().enumerate() {
            if at > 0 {
                filter.push('/');
            }
            filter.push_str(match level {
                Level::Exact(text) => text,
                Level::One(_) => "+",
                Level::Rest => "#",
            });
        }
        filter
    }

    /// The names that a template may use with this pattern, `rest` and `topic` included.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let of_level = |level| match level {
            &Level::One(Some(ref name)) => Some(&**name),
            Level::Rest => Some("rest"),
            Level::Exact(_) | Level::One(None) => None,
        };
        self.levels.iter().filter_map(of_level).chain(["topic"])
    }

    /// The levels that are spelled out.
    pub fn literals(&self) -> impl Iterator<Item = &str> {
        self.levels.iter().filter_map(|level| match level {
            Level::Exact(text) => Some(&**text),
            Level::One(_) | Level::Rest => None,
        })
    }

    /// The levels that are spelled out before the first that is not.
    #[must_use]
    pub fn stem(&self) -> Vec<&str> {
        let spelled = self.levels.iter().map_while(|level| match level {
            Level::Exact(text) => Some(&**text),
            Level::One(_) | Level::Rest => None,
        });
        spelled.collect()
    }

    /// How many levels it looks at.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.levels.len()
    }

    /// Whether it matches every topic that `other` matches.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let dollar = |level: Option<&Level>| matches!(level, Some(Level::Exact(text)) if text.starts_with('$'));
        if dollar(other.levels.first()) && !dollar(self.levels.first()) {
            return false;
        }
        let mut theirs = other.levels.iter();
        for level in &self.levels {
            match (level, theirs.next()) {
                (Level::Rest, _) => return true,
                (Level::One(_), Some(Level::One(_) | Level::Exact(_))) => {}
                (Level::Exact(text), Some(Level::Exact(wanted))) if text == wanted => {}
                (Level::One(_) | Level::Exact(_), _) => return false,
            }
        }
        theirs.next().is_none()
    }

    /// Whether some topic is matched by both.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        let dollar = |level: Option<&Level>| matches!(level, Some(Level::Exact(text)) if text.starts_with('$'));
        let wild = |level: Option<&Level>| !matches!(level, Some(Level::Exact(_)));
        let (ours, theirs) = (self.levels.first(), other.levels.first());
        if (dollar(ours) && wild(theirs)) || (dollar(theirs) && wild(ours)) {
            return false;
        }
        let (mut ours, mut theirs) = (self.levels.iter(), other.levels.iter());
        loop {
            match (ours.next(), theirs.next()) {
                (Some(Level::Rest), _) | (_, Some(Level::Rest)) | (None, None) => return true,
                (Some(Level::Exact(a)), Some(Level::Exact(b))) if a != b => return false,
                (Some(_), Some(_)) => {}
                (None, Some(_)) | (Some(_), None) => return false,
            }
        }
    }

    /// Whether it matches `topic`.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        if topic.starts_with('$') && !matches!(self.levels.first(), Some(Level::Exact(_))) {
            return false;
        }
        let mut left = topic.split('/');
        for level in &self.levels {
            if *level == Level::Rest {
                return true;
            }
            match (level, left.next()) {
                (_, None) => return false,
                (Level::Exact(wanted), Some(found)) if **wanted != *found => return false,
                (Level::Exact(_) | Level::One(_) | Level::Rest, Some(_)) => {}
            }
        }
        left.next().is_none()
    }

    /// What is captured of `topic`; `None` if it does not match.
    #[must_use]
    pub fn captures<'a>(&'a self, topic: &'a str) -> Option<Captures<'a>> {
        self.matches(topic).then_some(Captures { topic, pattern: Some(self) })
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.text)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<'a> Captures<'a> {
    /// Nothing but the topic: what a route without a pattern captures.
    #[must_use]
    pub fn of(topic: &'a str) -> Self {
        Self { topic, pattern: None }
    }

    /// The text captured as `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&'a str> {
        if name == "topic" {
            return Some(self.topic);
        }
        let is_it = |level: &Level| match level {
            Level::One(Some(own)) => **own == *name,
            Level::Rest => name == "rest",
            Level::Exact(_) | Level::One(None) => false,
        };
        let levels = &self.pattern?.levels;
        let at = levels.iter().position(is_it)?;
        match levels.get(at)? {
            // `a/#` matches `a` too: then nothing is left.
            Level::Rest => Some(self.topic.splitn(at + 1, '/').nth(at).unwrap_or_default()),
            Level::Exact(_) | Level::One(_) => self.topic.split('/').nth(at),
        }
    }

    /// Whether a final `#` stands for no level at all: `a/#` of `a`. Of `a/` it stands for one, which is empty.
    #[must_use]
    pub fn has_no_rest(&self) -> bool {
        let rest = self.pattern.and_then(|pattern| Some((pattern.levels.len() - 1, pattern.levels.last()?)));
        rest.is_some_and(|(at, last)| *last == Level::Rest && self.topic.split('/').nth(at).is_none())
    }

    /// The captures with their names, but for the topic.
    pub fn all(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let names = self.pattern.into_iter().flat_map(Pattern::names).filter(|name| *name != "topic");
        names.filter_map(|name| Some((name, self.get(name)?)))
    }
}

fn check_whole(text: &str) -> Result<(), SyntaxError> {
    if text.is_empty() {
        return Err(SyntaxError::new(0..0, TopicError::Empty));
    }
    if text.len() > TOPIC_BYTES_MAX {
        return Err(SyntaxError::new(0..text.len(), TopicError::TooLong));
    }
    if text.split('/').nth(LEVELS_MAX).is_some() {
        return Err(SyntaxError::new(0..text.len(), Problem::TooDeep));
    }
    text.find('\0').map_or(Ok(()), |at| Err(SyntaxError::new(at..at + 1, TopicError::Nul)))
}

fn parse_level(level: &str, last: bool) -> Result<Level, Problem> {
    match level {
        "+" => Ok(Level::One(None)),
        "#" if last => Ok(Level::Rest),
        _ if level.contains('#') => Err(TopicError::HashNotLast.into()),
        _ if level.contains('+') => Err(TopicError::PlusNotAlone.into()),
        _ => match (level.find('{'), level.find('}')) {
            (None, None) => Ok(Level::Exact(level.into())),
            (Some(open), Some(close)) if open < close => capture_level(level, open, close),
            _ => Err(Problem::Brace),
        },
    }
}

/// A level with braces: right only if it is `{name}` and nothing else.
fn capture_level(level: &str, open: usize, close: usize) -> Result<Level, Problem> {
    let name = level.get(open + 1..close).unwrap_or_default();
    if name.contains('{') {
        Err(Problem::Brace)
    } else if !is_capture_name(name) {
        Err(Problem::CaptureName(name.to_owned()))
    } else if open > 0 || close + 1 < level.len() {
        Err(Problem::CaptureNotAlone(name.to_owned()))
    } else {
        match name {
            "rest" => Err(Problem::RestInPattern),
            "topic" => Err(Problem::TopicInPattern),
            _ => Ok(Level::One(Some(name.into()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn captures_are_named_levels_and_the_rest() {
        let pattern = Pattern::parse("factory/{line}/+/{machine}/#").unwrap();
        let captures = pattern.captures("factory/a/x/press-7/temp/c").unwrap();
        assert_eq!(captures.get("line"), Some("a"));
        assert_eq!(captures.get("machine"), Some("press-7"));
        assert_eq!(captures.get("rest"), Some("temp/c"));
        assert_eq!(captures.get("topic"), Some("factory/a/x/press-7/temp/c"));
        assert_eq!(captures.get("plant"), None);
        assert_eq!(pattern.filter(), "factory/+/+/+/#");
        assert_eq!(pattern.names().collect::<Vec<_>>(), ["line", "machine", "rest", "topic"]);
        assert_eq!(pattern.captures("factory/a/x/press-7").unwrap().get("rest"), Some(""));
    }

    #[test]
    fn mistakes_in_patterns_carry_their_place() {
        use Problem as P;
        for (text, span, problem) in [
            ("", 0..0, P::Topic(TopicError::Empty)),
            ("a/#/b", 2..3, P::Topic(TopicError::HashNotLast)),
            ("a/b#", 2..4, P::Topic(TopicError::HashNotLast)),
            ("a/b+/c", 2..4, P::Topic(TopicError::PlusNotAlone)),
            ("a\0", 1..2, P::Topic(TopicError::Nul)),
            ("a/x{b}", 2..6, P::CaptureNotAlone("b".into())),
            ("a/{b}x", 2..6, P::CaptureNotAlone("b".into())),
            ("a/{}", 2..4, P::CaptureName(String::new())),
            ("a/{1b}", 2..6, P::CaptureName("1b".into())),
            ("é/{a}/{a}", 7..10, P::CaptureTwice("a".into())),
            ("a/{rest}", 2..8, P::RestInPattern),
            ("{topic}", 0..7, P::TopicInPattern),
            ("a/{b", 2..4, P::Brace),
            ("a/b}/c", 2..4, P::Brace),
            ("a/{{b}}", 2..7, P::Brace),
        ] {
            assert_eq!(Pattern::parse(text).unwrap_err(), SyntaxError { span, problem }, "{text:?}");
        }
    }

    #[test]
    fn a_pattern_is_not_deeper_than_a_small_stack_can_walk() {
        assert!(Pattern::parse(&"a/".repeat(LEVELS_MAX - 1)).is_ok());
        assert_eq!(Pattern::parse(&"a/".repeat(LEVELS_MAX)).unwrap_err().problem, Problem::TooDeep);
    }

    #[test]
    fn wildcards_do_not_match_dollar_topics() {
        for (pattern, matches) in [("#", false), ("+/x", false), ("{a}/x", false), ("$SYS/#", true), ("$SYS/{a}", true)]
        {
            assert_eq!(Pattern::parse(pattern).unwrap().captures("$SYS/x").is_some(), matches, "{pattern}");
        }
    }

    proptest! {
        #[test]
        fn a_covering_pattern_matches_all_that_the_covered_one_matches(
            wide in "\\$?(([ab]|\\+)/){0,2}([ab]|\\+|#)",
            narrow in "\\$?(([ab]|\\+)/){0,2}([ab]|\\+|#)",
            topic in "\\$?[ab/]{1,5}",
        ) {
            if let (Ok(wide), Ok(narrow)) = (Pattern::parse(&wide), Pattern::parse(&narrow))
                && wide.covers(&narrow) && narrow.captures(&topic).is_some()
            {
                prop_assert!(wide.captures(&topic).is_some(), "{} covers {} but misses {}", wide, narrow, topic);
            }
        }

        #[test]
        fn patterns_meet_where_a_topic_matches_both(
            one in "\\$?(([ab]|\\+)/){0,2}([ab]|\\+|#)",
            other in "\\$?(([ab]|\\+)/){0,2}([ab]|\\+|#)",
        ) {
            if let (Ok(one), Ok(other)) = (Pattern::parse(&one), Pattern::parse(&other)) {
                // Every topic of up to four levels over an alphabet with one letter more than the patterns have.
                let mut topics = vec![String::new()];
                for _ in 0..4 {
                    let longer = topics.iter().flat_map(|topic| ["a", "b", "c"].map(|level| format!("{topic}{level}/")));
                    topics.extend(longer.collect::<Vec<_>>());
                }
                let topics = topics.iter().filter_map(|topic| topic.strip_suffix('/'));
                let topics = topics.flat_map(|topic| [topic.to_owned(), format!("${topic}")]);
                let found = topics.into_iter().any(|topic| one.matches(&topic) && other.matches(&topic));
                prop_assert_eq!(one.meets(&other), found, "{} and {}", one, other);
            }
        }

        #[test]
        fn patterns_match_what_their_filter_matches(
            pattern in "\\$?(([ab]|\\+|\\{x\\}|)/){0,3}([ab]|\\+|\\{y\\}|#)",
            topic in "\\$?[ab/]{1,7}",
        ) {
            // `$+` and a second `{x}` are not patterns.
            if let Ok(pattern) = Pattern::parse(&pattern) {
                let expected = crate::topic::matches(&pattern.filter(), &topic);
                prop_assert_eq!(pattern.captures(&topic).is_some(), expected, "{} on {}", pattern, topic);
            }
        }
    }
}
