//! What can be wrong with an address, a pattern or a template, and where in its text.

use std::ops::Range;

use crate::topic::TopicError;

/// Levels of a pattern. The table is as deep as its longest pattern and is walked recursively, by threads with small
/// stacks; nobody writes a tenth of this.
pub(super) const LEVELS_MAX: usize = 128;

/// A mistake in an address, with the bytes of its text that are to blame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct SyntaxError {
    /// Byte range within the text that was parsed. Never beyond its end; may be empty.
    pub span: Range<usize>,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No `/`.
    #[error("an address names a link and what it means there: `broker/FILTER`, `LINK/TOPIC`")]
    NoSlash,
    /// Nothing before the first `/`.
    #[error("an address begins with `broker` or the name of a link")]
    NoName,
    /// Nothing behind the first `/`.
    #[error("nothing stands behind `{0}/`")]
    NothingBehind(String),
    /// Not a topic or filter.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// More levels than [`LEVELS_MAX`].
    #[error("a pattern has at most {LEVELS_MAX} levels")]
    TooDeep,
    /// `a{name}`.
    #[error("`{{{0}}}` stands for a whole level: `a/{{{0}}}/b`")]
    CaptureNotAlone(String),
    /// `{a-b}`, `{}`.
    #[error("`{{{0}}}` is no name of a capture: letters, digits and `_`, not beginning with a digit")]
    CaptureName(String),
    /// `{payload..a}`, `{other.x}`.
    #[error(
        "`{{{0}}}` is no part of a message: of those with a dot there are `{{payload.FIELD}}` and `{{property.NAME}}`"
    )]
    PartName(String),
    /// `$share` without a group or filter.
    #[error("a shared subscription is `$share/GROUP/FILTER`")]
    Share,
    /// `{time:%Q}`.
    #[error("`{0}` is no form of a time: write it as `date` takes it, such as `{{time:%Y-%m-%d}}`")]
    TimeFormat(String),
    /// `{a}/{a}`.
    #[error("`{{{0}}}` is captured twice")]
    CaptureTwice(String),
    /// `{rest}` in a pattern.
    #[error("`{{rest}}` is what a final `#` captures: write `#` here")]
    RestInPattern,
    /// `{topic}` in a pattern.
    #[error("`{{topic}}` always means the whole topic and cannot be captured")]
    TopicInPattern,
    /// `{` or `}` alone.
    #[error("`{{` and `}}` come in pairs around the name of a capture")]
    Brace,
    /// `{payload.temp C` in a free text.
    #[error("`{{{0}` is not closed: a part of the message is `{{{0}}}`")]
    NotClosed(String),
    /// `payload.temp} C` in a free text.
    #[error("no `{{` opens `{0}}}`: a part of the message is `{{{0}}}`")]
    NotOpened(String),
    /// `+` or `#` in a destination.
    #[error("`+` and `#` belong to `from`; a destination uses what was captured: `{{name}}`, `{{rest}}`")]
    WildcardInTemplate,
}

impl SyntaxError {
    pub(super) fn new(span: Range<usize>, problem: impl Into<Problem>) -> Self {
        Self { span, problem: problem.into() }
    }

    /// The same mistake, seen from a text in which the parsed part begins at `offset`.
    pub(super) fn shifted(self, offset: usize) -> Self {
        Self { span: self.span.start + offset..self.span.end + offset, problem: self.problem }
    }
}

/// Whether `name` may stand between braces.
pub(super) fn is_capture_name(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && name.chars().next().is_some_and(|c| !c.is_ascii_digit())
}
