//! Who may publish and read what (R31). Rules are compiled once for each client into [`Rights`], its own topic filters;
//! after that a check is a few comparisons of text, and [`Verdicts`] remembers them by topic.
//!
//! Two ways to ask rules share this form: those of `routes.yaml`, where the first rule that is for a client decides, and
//! those of a Mosquitto `acl_file`, where all of them are asked in turn. In each rule deny goes before allow. What no rule
//! allows is not allowed. PURE.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::topic::{TopicError, TopicFilter, TopicName};

/// Verdicts that one client keeps: a machine sees a few topics, and what falls out is only decided again.
const VERDICTS_MAX: usize = 32;

/// A longer topic is decided each time: a client with many of them would take memory.
const VERDICT_BYTES_MAX: usize = 256;

/// All rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    rules: Vec<Rule>,
    asks: Asks,
}

/// Which of the rules that are for a client are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// The first alone (R31).
    First,
    /// Each in turn, until one denies or allows the topic (Mosquitto).
    All,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whom it is for.
    pub who: Who,
    /// What they may publish, and what not; wills too.
    pub publish: Grants,
    /// What they may read, and what not.
    pub subscribe: Grants,
}

/// Topics that are allowed and denied; deny goes first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// What is allowed.
    pub allow: Vec<Pattern>,
    /// What is not, though it may be in `allow`.
    pub deny: Vec<Pattern>,
}

/// Whom a rule is for: all that is named has to match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// By user.
    pub user: Whom,
    /// By client id.
    pub client: Option<Glob>,
    /// By a group that the user is in.
    pub group: Option<Arc<str>>,
}

/// Users that a rule is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// Those whose name matches; never an anonymous client.
    Named(Glob),
    /// Clients without a user.
    Anonymous,
    /// Every client.
    Everyone,
}

/// A name, or a name with `*` for any run of characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Glob {
    /// This name.
    Exactly(Box<str>),
    /// `*` stands for anything, nothing included.
    Like(Box<str>),
}

/// A topic filter in which the client's own id and user may stand.
#[derive(Clone, PartialEq, Eq)]
pub struct Pattern {
    levels: Vec<Vec<Piece>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    ClientId,
    User,
}

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It is no topic filter.
    #[error("{0}")]
    Topic(#[from] TopicError),
    /// `{machine}`.
    #[error("`{0}` is not known here: only `{{client_id}}` and `{{user}}` are")]
    Unknown(String),
}

/// A client, as rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// `None`: anonymous.
    pub user: Option<&'a str>,
    /// Its client id.
    pub client_id: &'a str,
    /// The groups that its user is in.
    pub groups: &'a [Arc<str>],
}

/// What one client may do: the rules that are for it, with its own names filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    publish: Allowed,
    read: Allowed,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Allowed {
    stages: Vec<Stage>,
    /// Every topic that does not begin with `$`: nothing has to be compared.
    all: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Stage {
    deny: Vec<TopicFilter>,
    allow: Vec<TopicFilter>,
}

/// What was decided of topics, for one client and one right.
#[derive(Debug, Default)]
pub struct Verdicts {
    last: Option<(TopicName, bool)>,
    /// Keys are chosen by clients, so the map keeps std's keyed hash.
    known: HashMap<TopicName, bool>,
}

impl Acl {
    /// With its rules in their order.
    #[must_use]
    pub const fn new(rules: Vec<Rule>, asks: Asks) -> Self {
        Self { rules, asks }
    }

    /// What `subject` may do.
    #[must_use]
    pub fn rights(&self, subject: Subject<'_>) -> Rights {
        let most = match self.asks {
            Asks::First => 1,
            Asks::All => self.rules.len(),
        };
        let rules: Vec<&Rule> = self.rules.iter().filter(|rule| rule.who.is(subject)).take(most).collect();
        let allowed = |of: fn(&Rule) -> &Grants| Allowed::new(rules.iter().map(|rule| of(rule).stage(subject)));
        Rights { publish: allowed(|rule| &rule.publish), read: allowed(|rule| &rule.subscribe) }
    }

    /// Whether some rule is for `subject`.
    #[must_use]
    pub fn names(&self, subject: Subject<'_>) -> bool {
        self.rules.iter().any(|rule| rule.who.is(subject))
    }

    /// What its rules take in memory, about.
    pub(in crate::broker) fn bytes(&self) -> usize {
        let of_piece = |piece: &Piece| size_of::<Piece>() + piece.text().map_or(0, str::len);
        let of_level = |level: &Vec<Piece>| size_of::<Vec<Piece>>() + level.iter().map(of_piece).sum::<usize>();
        let of_pattern = |pattern: &Pattern| size_of::<Pattern>() + pattern.levels.iter().map(of_level).sum::<usize>();
        let of_grants = |grants: &Grants| grants.allow.iter().chain(&grants.deny).map(of_pattern).sum::<usize>();
        let of_rule = |rule: &Rule| size_of::<Rule>() + of_grants(&rule.publish) + of_grants(&rule.subscribe);
        self.rules.iter().map(of_rule).sum()
    }

    /// Whether some rule may be for anonymous clients.
    #[must_use]
    pub fn names_anonymous(&self) -> bool {
        self.rules.iter().any(|rule| !matches!(rule.who.user, Whom::Named(_)))
    }
}

impl Who {
    fn is(&self, subject: Subject<'_>) -> bool {
        let by_user = match (&self.user, subject.user) {
            (Whom::Everyone, _) | (Whom::Anonymous, None) => true,
            (Whom::Named(glob), Some(user)) => glob.matches(user),
            (Whom::Named(_), None) | (Whom::Anonymous, Some(_)) => false,
        };
        by_user
            && self.client.as_ref().is_none_or(|glob| glob.matches(subject.client_id))
            && self.group.as_ref().is_none_or(|group| subject.groups.contains(group))
    }
}

impl Glob {
    /// `*` in `text` stands for any run of characters.
    #[must_use]
    pub fn like(text: &str) -> Self {
        if text.contains('*') { Self::Like(text.into()) } else { Self::Exactly(text.into()) }
    }

    /// Whether `name` is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let like = match self {
            Self::Exactly(exactly) => return **exactly == *name,
            Self::Like(like) => like,
        };
        let mut parts = like.split('*');
        let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some((_, behind)) = rest.split_once(part) else { return false };
            rest = behind;
        }
        rest.ends_with(last)
    }
}

impl Grants {
    fn stage(&self, subject: Subject<'_>) -> Stage {
        Stage {
            deny: self.deny.iter().flat_map(|pattern| pattern.denied_to(subject)).collect(),
            allow: self.allow.iter().filter_map(|pattern| pattern.allowed_to(subject)).collect(),
        }
    }
}

impl Pattern {
    /// A topic filter with `{client_id}` and `{user}`, anywhere in a level.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let pattern = Self::with_names(text, "{client_id}", "{user}")?;
        for piece in pattern.levels.iter().flatten() {
            if let Piece::Text(text) = piece
                && let Some((_, behind)) = text.split_once('{')
            {
                let name = behind.split_once('}').map_or(behind, |(name, _)| name);
                return Err(PatternError::Unknown(format!("{{{name}}}")));
            }
        }
        Ok(pattern)
    }

    /// A topic filter with Mosquitto's `%c` and `%u`.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn parse_mosquitto(text: &str) -> Result<Self, PatternError> {
        Self::with_names(text, "%c", "%u")
    }

    /// A topic filter in which nothing is filled in.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn plain(text: &str) -> Result<Self, PatternError> {
        TopicFilter::new(text)?;
        Ok(Self { levels: text.split('/').map(|level| vec![Piece::Text(level.into())]).collect() })
    }

    fn with_names(text: &str, client_id: &str, user: &str) -> Result<Self, PatternError> {
        // What is filled in is part of a level: any letter stands for it.
        TopicFilter::new(&text.replace(client_id, "x").replace(user, "x"))?;
        let levels = text.split('/').map(|level| pieces(level, client_id, user)).collect();
        Ok(Self { levels })
    }

    /// `None`: a name that is needed is not there, or would make more of the pattern than one level.
    fn allowed_to(&self, subject: Subject<'_>) -> Option<TopicFilter> {
        if !self.levels.iter().flatten().all(|piece| piece.is_safe(subject)) {
            return None;
        }
        let text = self.filled(subject)?;
        let begins_filled = self.levels.first().and_then(|level| level.first()).is_some_and(Piece::is_name);
        if begins_filled && text.starts_with('$') {
            return None;
        }
        TopicFilter::new(&text).ok()
    }

    /// A name that cannot be filled in denies more, not less: the text as it is, and any level in its place.
    fn denied_to(&self, subject: Subject<'_>) -> Vec<TopicFilter> {
        let mut denied = Vec::new();
        let is_safe = |piece: &Piece| piece.is_safe(subject);
        let exact = self.filled(subject).filter(|_| {
            let names = self.levels.iter().flatten().filter(|piece| piece.is_name());
            names.filter_map(|piece| piece.fill(subject)).all(|name| !name.contains(['+', '#']))
        });
        denied.extend(exact.and_then(|text| TopicFilter::new(&text).ok()));
        if !self.levels.iter().flatten().all(is_safe) {
            let level = |level: &Vec<Piece>| {
                if level.iter().all(is_safe) {
                    level.iter().filter_map(|piece| piece.fill(subject)).collect()
                } else {
                    "+".to_owned()
                }
            };
            let wide = self.levels.iter().map(level).collect::<Vec<String>>().join("/");
            denied.extend(TopicFilter::new(&wide).ok());
        }
        denied
    }

    fn filled(&self, subject: Subject<'_>) -> Option<String> {
        let level = |level: &Vec<Piece>| level.iter().map(|piece| piece.fill(subject)).collect::<Option<String>>();
        Some(self.levels.iter().map(level).collect::<Option<Vec<_>>>()?.join("/"))
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Subject { user: Some("{user}"), client_id: "{client_id}", groups: &[] };
        fmt::Debug::fmt(&self.filled(named).unwrap_or_default(), f)
    }
}

impl Piece {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::ClientId | Self::User => None,
        }
    }

    const fn is_name(&self) -> bool {
        !matches!(self, Self::Text(_))
    }

    /// Whether what is filled in means itself.
    fn is_safe(&self, subject: Subject<'_>) -> bool {
        !self.is_name() || self.fill(subject).is_some_and(is_one_level)
    }

    fn fill<'a>(&'a self, subject: Subject<'a>) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            Self::ClientId => Some(subject.client_id),
            Self::User => subject.user,
        }
    }
}

/// Whether a name can stand within one level of a filter and mean itself.
fn is_one_level(name: &str) -> bool {
    !name.is_empty() && !name.contains(['+', '#', '/'])
}

fn pieces(level: &str, client_id: &str, user: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (n, part) in level.split(client_id).enumerate() {
        if n > 0 {
            pieces.push(Piece::ClientId);
        }
        for (n, text) in part.split(user).enumerate() {
            if n > 0 {
                pieces.push(Piece::User);
            }
            if !text.is_empty() {
                pieces.push(Piece::Text(text.into()));
            }
        }
    }
    pieces
}

impl Rights {
    /// Whether it may publish to `topic`.
    #[must_use]
    pub fn may_publish(&self, topic: &TopicName) -> bool {
        self.publish.includes(topic)
    }

    /// The same, remembered in `verdicts`.
    #[must_use]
    pub fn may_publish_to(&self, topic: &TopicName, verdicts: &mut Verdicts) -> bool {
        self.publish.includes_quickly(topic, verdicts)
    }

    /// Whether it may have what is on `topic`.
    #[must_use]
    pub fn may_read(&self, topic: &TopicName) -> bool {
        self.read.includes(topic)
    }

    /// The same, remembered in `verdicts`.
    #[must_use]
    pub fn may_read_from(&self, topic: &TopicName, verdicts: &mut Verdicts) -> bool {
        self.read.includes_quickly(topic, verdicts)
    }

    /// Whether it may ask for `filter`: some of what that brings may be for it. Each delivery is checked by itself.
    #[must_use]
    pub fn may_subscribe(&self, filter: &TopicFilter) -> bool {
        for stage in &self.read.stages {
            if stage.deny.iter().any(|denied| denied.covers(filter)) {
                return false;
            }
            if stage.allow.iter().any(|allowed| allowed.overlaps(filter)) {
                return true;
            }
        }
        false
    }
}

impl Allowed {
    fn new(stages: impl Iterator<Item = Stage>) -> Self {
        let stages: Vec<Stage> = stages.filter(|stage| !(stage.deny.is_empty() && stage.allow.is_empty())).collect();
        let all = stages
            .first()
            .is_some_and(|first| first.deny.is_empty() && first.allow.iter().any(|filter| filter.as_str() == "#"));
        Self { stages, all }
    }

    fn includes(&self, topic: &TopicName) -> bool {
        for stage in &self.stages {
            if stage.deny.iter().any(|filter| filter.matches(topic)) {
                return false;
            }
            if stage.allow.iter().any(|filter| filter.matches(topic)) {
                return true;
            }
        }
        false
    }

    fn includes_quickly(&self, topic: &TopicName, verdicts: &mut Verdicts) -> bool {
        (self.all && !topic.as_str().starts_with('$')) || verdicts.of(topic, |topic| self.includes(topic))
    }
}

impl Verdicts {
    /// What was decided of `topic`, or is now.
    fn of(&mut self, topic: &TopicName, decide: impl FnOnce(&TopicName) -> bool) -> bool {
        if topic.as_str().len() > VERDICT_BYTES_MAX {
            return decide(topic);
        }
        if let Some((last, verdict)) = &self.last
            && last == topic
        {
            return *verdict;
        }
        let verdict = match self.known.get(topic) {
            Some(verdict) => *verdict,
            None => {
                if self.known.len() >= VERDICTS_MAX {
                    self.known.clear();
                }
                let verdict = decide(topic);
                self.known.insert(topic.clone(), verdict);
                verdict
            }
        };
        self.last = Some((topic.clone(), verdict));
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_on_long_topics_are_not_held_r36() {
        let grants = |allow: &[&str]| Grants {
            allow: allow.iter().map(|text| Pattern::parse(text).unwrap()).collect(),
            deny: Vec::new(),
        };
        let who = Who { user: Whom::Everyone, client: None, group: None };
        let rule = Rule { who, publish: grants(&["yes/#"]), subscribe: grants(&[]) };
        let subject = Subject { user: None, client_id: "c", groups: &[] };
        let rights = Acl::new(vec![rule], Asks::First).rights(subject);
        let mut verdicts = Verdicts::default();
        for n in 0..VERDICTS_MAX * 4 {
            for len in [1, VERDICT_BYTES_MAX - 10, 60_000] {
                let name = "x".repeat(len);
                let topic = |first| TopicName::new(&format!("{first}/{n}{name}")).unwrap();
                assert!(rights.may_publish_to(&topic("yes"), &mut verdicts));
                assert!(!rights.may_publish_to(&topic("no"), &mut verdicts));
            }
        }
        let topics = verdicts.known.keys().chain(verdicts.last.as_ref().map(|(topic, _)| topic));
        let held: usize = topics.map(|topic| topic.as_str().len()).sum();
        assert!(held > VERDICT_BYTES_MAX && held <= (VERDICTS_MAX + 1) * VERDICT_BYTES_MAX, "{held}");
    }
}
