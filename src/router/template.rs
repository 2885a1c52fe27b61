//! Templates: what a route makes of what its pattern captured, and of the message.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use super::pattern::{Level, Pattern};
use super::syntax::{Problem, SyntaxError};
use super::view::{FIELDS, Field, Part as Value, View};
use crate::clock::WallMs;

/// A `to` or `key` template with `{captures}` and parts of the message.
///
/// `{name}`, `{rest}`, `{topic}` and the like are filled in; where `{rest}` is no level at all, the `/` before it goes too (R29).
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    text: Box<str>,
    pub(super) parts: Box<[Part]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Literal(Box<str>),
    /// With its place in the text, braces included.
    Field(Field, Range<usize>),
}

/// Why a template could not be filled for a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfilled {
    /// The message does not have it.
    #[error("the message has no `{0}`")]
    Missing(String),
    /// What it has would change the shape of a destination.
    #[error("`{0}` is {1:?}, and a destination takes one level of it: not empty, without `/`, `+`, `#`")]
    NotOneLevel(String, String),
}

/// What a level of a filled-in template can be.
enum Shape {
    Exact(String),
    One,
    /// Any number of levels.
    Many,
}

impl Template {
    /// Reads `{line}.{machine}`.
    ///
    /// # Errors
    /// The first mistake, with its place in `text`. Whether the captures exist is the caller's to check, see
    /// [`Template::uses`].
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        let mut parts = Vec::new();
        let mut start = 0;
        while let Some(open) = find_from(text, start, &['{', '}']) {
            push_literal(&mut parts, text, start..open);
            let close = find_from(text, open + 1, &['{', '}']);
            let whole = open..close.map_or(text.len(), |close| close + 1);
            let name = text.get(whole.clone()).and_then(|part| part.strip_prefix('{')?.strip_suffix('}'));
            let Some(name) = name else {
                return Err(SyntaxError::new(open..open + 1, Problem::Brace));
            };
            let field = Field::parse(name).map_err(|problem| SyntaxError::new(whole.clone(), problem))?;
            start = whole.end;
            parts.push(Part::Field(field, whole));
        }
        push_literal(&mut parts, text, start..text.len());
        Ok(Self { text: text.into(), parts: parts.into() })
    }

    /// Reads a text in which braces may stand for themselves, such as JSON: `{"t": {payload.temp}}`. What looks like a name
    /// has to be one, and to have both its braces.
    ///
    /// # Errors
    /// The first mistake, with its place in `text`.
    pub fn parse_text(text: &str) -> Result<Self, SyntaxError> {
        let mut parts = Vec::new();
        let (mut start, mut look) = (0, 0);
        // Braces that stand for themselves and are open.
        let mut depth = 0_usize;
        while let Some(brace) = find_from(text, look, &['{', '}']) {
            if text.get(brace..=brace) == Some("}") {
                if depth == 0
                    && let Some(name) = name_before(text.get(look..brace).unwrap_or_default())
                {
                    return Err(SyntaxError::new(brace..brace + 1, Problem::NotOpened(name.to_owned())));
                }
                (depth, look) = (depth.saturating_sub(1), brace + 1);
                continue;
            }
            let Some(close) = name_behind(text, brace)? else {
                (depth, look) = (depth + 1, brace + 1);
                continue;
            };
            let whole = brace..close + 1;
            let name = text.get(brace + 1..close).unwrap_or_default();
            let field = Field::parse(name).map_err(|problem| SyntaxError::new(whole.clone(), problem))?;
            push_literal(&mut parts, text, start..brace);
            (start, look) = (whole.end, whole.end);
            parts.push(Part::Field(field, whole));
        }
        push_literal(&mut parts, text, start..text.len());
        Ok(Self { text: text.into(), parts: parts.into() })
    }

    /// As written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The plain names that it needs, captures or [`FIELDS`], with their places in the text.
    pub fn uses(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        self.parts.iter().filter_map(|part| match part {
            Part::Field(Field::Name(name), span) => Some((&**name, span.clone())),
            Part::Field(Field::Time(_) | Field::Payload(_) | Field::Property(_), _) | Part::Literal(_) => None,
        })
    }

    /// What the forms of a time in it make of one, with their places in the text.
    pub fn times(&self, time: WallMs) -> impl Iterator<Item = (String, Range<usize>)> {
        self.parts.iter().filter_map(move |part| match part {
            Part::Field(field, span) => Some((field.at(time)?, span.clone())),
            Part::Literal(_) => None,
        })
    }

    /// Whether it is the same for every message.
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        self.literals().count() == self.parts.len()
    }

    /// Where it uses the whole payload, which is no name of anything.
    pub fn whole_payload(&self) -> Option<Range<usize>> {
        self.parts.iter().find_map(|part| match part {
            Part::Field(Field::Payload(path), span) if path.is_empty() => Some(span.clone()),
            Part::Field(..) | Part::Literal(_) => None,
        })
    }

    /// The texts between the captures.
    pub fn literals(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Literal(text) => Some(&**text),
            Part::Field(..) => None,
        })
    }

    /// The same template with `.` read as `/` where it is spelled out: how a RabbitMQ routing key is written. What
    /// captures bring stays as it is, so that a dot inside of a level can still be told from one between levels.
    #[must_use]
    pub fn with_dots_as_levels(self) -> Self {
        let parts = self.parts.into_iter().map(|part| match part {
            Part::Literal(text) => Part::Literal(text.replace('.', "/").into()),
            field @ Part::Field(..) => field,
        });
        Self { text: self.text, parts: parts.collect() }
    }

    /// The destination for one message. What is not of its topic (which the pattern saw) has to be one plain level.
    ///
    /// # Errors
    /// The message lacks what the template needs, or it would make more than one level.
    pub fn fill<'v>(&'v self, view: View<'v, '_>) -> Result<Cow<'v, str>, Unfilled> {
        self.filled(view, |field, text| is_plain(field, text, view))
    }

    /// The same, into an empty text whose memory is there already.
    ///
    /// # Errors
    /// The same.
    pub fn fill_into(&self, view: View<'_, '_>, out: &mut String) -> Result<(), Unfilled> {
        self.put_parts(view, |field, text| is_plain(field, text, view), out)
    }

    /// The text for one message where anything may stand: a key, a payload.
    ///
    /// # Errors
    /// The message lacks what the template needs.
    pub fn fill_text<'v>(&'v self, view: View<'v, '_>) -> Result<Cow<'v, str>, Unfilled> {
        self.filled(view, |_, _| true)
    }

    /// The same, into an empty text whose memory is there already.
    ///
    /// # Errors
    /// The same.
    pub fn fill_text_into(&self, view: View<'_, '_>, out: &mut String) -> Result<(), Unfilled> {
        self.put_parts(view, |_, _| true, out)
    }

    /// The value of the one part of the message that it consists of.
    pub(super) fn single<'v, 'a>(&self, view: View<'v, 'a>) -> Option<Value<'v, 'a>> {
        match &*self.parts {
            [Part::Field(field, _)] => field.of(view),
            _ => None,
        }
    }

    /// One part is borrowed, several are put together.
    fn filled<'v>(&'v self, view: View<'v, '_>, fits: impl Fn(&Field, &str) -> bool) -> Result<Cow<'v, str>, Unfilled> {
        if let [part] = &*self.parts {
            return self.text_of(part, view, fits);
        }
        let mut filled = String::with_capacity(self.text.len() + view.captures.topic.len());
        self.put_parts(view, fits, &mut filled)?;
        Ok(Cow::Owned(filled))
    }

    fn put_parts(
        &self,
        view: View<'_, '_>,
        fits: impl Fn(&Field, &str) -> bool,
        filled: &mut String,
    ) -> Result<(), Unfilled> {
        for part in &self.parts {
            let text = self.text_of(part, view, &fits)?;
            if text.is_empty() && part.is_rest() && filled.ends_with('/') && view.captures.has_no_rest() {
                filled.pop();
            }
            filled.push_str(&text);
        }
        Ok(())
    }

    fn text_of<'v>(
        &self,
        part: &'v Part,
        view: View<'v, '_>,
        fits: impl Fn(&Field, &str) -> bool,
    ) -> Result<Cow<'v, str>, Unfilled> {
        match part {
            Part::Literal(text) => Ok(Cow::Borrowed(&**text)),
            Part::Field(field, span) => {
                let name = || self.text.get(span.clone()).unwrap_or_default().to_owned();
                let text = field.text(view).ok_or_else(|| Unfilled::Missing(name()))?;
                if fits(field, &text) { Ok(text) } else { Err(Unfilled::NotOneLevel(name(), text.into_owned())) }
            }
        }
    }

    /// Whether some destination that this template makes is a topic that `pattern` matches. Says yes where it cannot
    /// be sure: captures may be anything.
    #[must_use]
    pub fn can_reach(&self, pattern: &Pattern) -> bool {
        let shapes = self.shapes();
        let starts_with_dollar = matches!(shapes.first(), Some(Shape::Exact(text)) if text.starts_with('$'));
        if starts_with_dollar && !matches!(pattern.levels.first(), Some(Level::Exact(_))) {
            return false;
        }
        overlap(&shapes, &pattern.levels)
    }

    /// What it makes of the topics of `narrow`, which `pattern` covers, by their levels and not by the names that captures have:
    /// two templates that make the same of them have the same text here. For comparing alone.
    #[must_use]
    pub fn placed(&self, pattern: Option<&Pattern>, narrow: Option<&Pattern>) -> String {
        let levels = narrow.map_or(&[][..], |narrow| &narrow.levels);
        let ours = pattern.map_or(&[][..], |pattern| &pattern.levels);
        let mut text = String::new();
        for part in &self.parts {
            let (name, span) = match part {
                Part::Literal(literal) => {
                    text.push_str(literal);
                    continue;
                }
                Part::Field(Field::Name(name), span) => (&**name, span),
                Part::Field(_, span) => ("", span),
            };
            let captured = ours.iter().position(|level| match level {
                Level::One(Some(own)) => **own == *name,
                Level::Rest => name == "rest",
                Level::Exact(_) | Level::One(None) => false,
            });
            let taken = match captured {
                Some(at) if name == "rest" => at..levels.len().max(at),
                Some(at) => at..at + 1,
                None if name == "topic" && narrow.is_some() => 0..levels.len(),
                None => {
                    text.push_str(self.text.get(span.clone()).unwrap_or_default());
                    continue;
                }
            };
            if taken.is_empty() && text.ends_with('/') {
                text.pop();
            }
            let levels = levels.iter().enumerate().skip(taken.start).take(taken.len());
            let shown = levels.map(|(at, level)| match level {
                Level::Exact(exact) => exact.to_string(),
                // No topic holds NUL.
                Level::One(_) => format!("\0{at}\0"),
                Level::Rest => format!("\0{at}#\0"),
            });
            text.push_str(&shown.collect::<Vec<_>>().join("/"));
        }
        text
    }

    /// Whether it gives back every topic that `pattern` matches, unchanged.
    #[must_use]
    pub fn is_identity_of(&self, pattern: &Pattern) -> bool {
        let same = match pattern.as_str().strip_suffix('#') {
            Some(before) => self.text.strip_suffix("{rest}") == Some(before),
            None => *self.text == *pattern.as_str(),
        };
        same || &*self.text == "{topic}"
    }

    fn shapes(&self) -> Vec<Shape> {
        let mut shapes = Vec::new();
        let mut level = Shape::Exact(String::new());
        for part in &self.parts {
            match part {
                Part::Literal(text) => {
                    for (at, piece) in text.split('/').enumerate() {
                        if at > 0 {
                            shapes.push(std::mem::replace(&mut level, Shape::Exact(String::new())));
                        }
                        if let Shape::Exact(exact) = &mut level {
                            exact.push_str(piece);
                        }
                    }
                }
                Part::Field(Field::Name(name), _) if matches!(&**name, "rest" | "topic") => {
                    // What stands behind several unknown levels does not make the answer surer.
                    if !matches!(&level, Shape::Exact(text) if text.is_empty()) {
                        shapes.push(Shape::One);
                    }
                    shapes.push(Shape::Many);
                    return shapes;
                }
                Part::Field(..) => level = Shape::One,
            }
        }
        shapes.push(level);
        shapes
    }
}

/// Whether it may stand in a destination: what the pattern saw, or one level.
fn is_plain(field: &Field, text: &str, view: View<'_, '_>) -> bool {
    let of_topic = matches!(field, Field::Name(name) if view.captures.get(name).is_some());
    of_topic || is_level(text)
}

/// Whether a text is one plain level: what a destination takes of a part that is not of the message's topic.
#[must_use]
pub fn is_level(text: &str) -> bool {
    !(text.is_empty() || text.contains(['/', '+', '#', '\0']))
}

impl Part {
    fn is_rest(&self) -> bool {
        matches!(self, Self::Field(Field::Name(name), _) if **name == *"rest")
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Template({:?})", self.text)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn find_from(text: &str, start: usize, any: &[char]) -> Option<usize> {
    text.get(start..)?.find(any).map(|at| start + at)
}

const fn is_name_like(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':' | '%' | '-')
}

/// Where the name ends that the brace at `open` of a free text begins; `None` if it stands for itself.
fn name_behind(text: &str, open: usize) -> Result<Option<usize>, SyntaxError> {
    let behind = text.get(open + 1..).unwrap_or_default();
    let run = behind.find(|c| !is_name_like(c)).unwrap_or(behind.len());
    let begun = behind.get(..run).unwrap_or_default();
    let end = behind.find(['{', '}']);
    let inside = end.filter(|at| behind.get(*at..=*at) == Some("}")).and_then(|at| behind.get(..at));
    let is_name = inside.is_some_and(|inside| {
        // The form of a date, and the names of fields and properties, hold what others do not.
        let of_payload =
            inside.starts_with("payload.") && inside.trim_end() == inside && !inside.contains(['"', ',', ':']);
        run == inside.len() || of_payload || inside.starts_with("time:") || inside.starts_with("property.")
    });
    if is_name && run > 0 {
        return Ok(end.map(|end| open + 1 + end));
    }
    // A section of JSON is closed; what is no name of anything is not known to be meant as one then.
    if run > 0 && (inside.is_none() || begun.starts_with("payload.")) {
        return Err(SyntaxError::new(open..open + 1 + run, Problem::NotClosed(begun.to_owned())));
    }
    Ok(None)
}

/// The part of a message that a text ends with, if it does.
fn name_before(text: &str) -> Option<&str> {
    let name = text.get(text.trim_end_matches(is_name_like).len()..)?;
    let dotted =
        ["payload.", "property.", "time:"].iter().any(|part| name.len() > part.len() && name.starts_with(part));
    (dotted || FIELDS.contains(&name)).then_some(name)
}

fn push_literal(parts: &mut Vec<Part>, text: &str, span: Range<usize>) {
    if let Some(literal) = text.get(span)
        && !literal.is_empty()
    {
        parts.push(Part::Literal(literal.into()));
    }
}

fn overlap(shapes: &[Shape], levels: &[Level]) -> bool {
    match (shapes, levels) {
        ([], []) | ([Shape::Many, ..], _) | (_, [Level::Rest, ..]) => true,
        ([], _) | (_, []) => false,
        ([shape, shapes @ ..], [level, levels @ ..]) => {
            let fits = match (shape, level) {
                (Shape::Exact(text), Level::Exact(wanted)) => **text == **wanted,
                _ => true,
            };
            fits && overlap(shapes, levels)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::Message;
    use crate::message::tests_support::message;
    use crate::router::Subject;

    fn filled(template: &str, pattern: &str, topic: &str) -> String {
        fill(template, pattern, &message(topic, b"")).0.unwrap()
    }

    /// What is made of a message, or why nothing is.
    fn fill(template: &str, pattern: &str, message: &Message) -> (Option<String>, Option<Unfilled>) {
        let (pattern, subject) = (Pattern::parse(pattern).unwrap(), Subject::new(message));
        let captures = pattern.captures(message.topic.as_str()).unwrap();
        match Template::parse(template).unwrap().fill(View::new(&subject, &captures)) {
            Ok(text) => (Some(text.into_owned()), None),
            Err(error) => (None, Some(error)),
        }
    }

    #[test]
    fn r29_templates_are_filled_and_a_rest_of_no_level_takes_its_slash_along() {
        for (template, pattern, topic, expected) in [
            ("{line}.{machine}", "factory/{line}/{machine}/telemetry", "factory/a/7/telemetry", "a.7"),
            ("cmd/{machine}/{rest}", "cmd/plant/{machine}/#", "cmd/plant/7/set/speed", "cmd/7/set/speed"),
            ("cmd/{machine}/{rest}", "cmd/plant/{machine}/#", "cmd/plant/7", "cmd/7"),
            ("cmd/{machine}/{rest}", "cmd/plant/{machine}/#", "cmd/plant/7/", "cmd/7/"),
            ("cmd/{machine}/{rest}", "cmd/plant/{machine}/#", "cmd/plant/7//", "cmd/7//"),
            ("cmd/{machine}/{rest}", "cmd/plant/{machine}/#", "cmd/plant//", "cmd//"),
            ("x/{rest}/y", "a/#", "a", "x/y"),
            ("x/{rest}/y", "a/#", "a/", "x//y"),
            ("x/{rest}", "#", "/", "x//"),
            ("{rest}", "a/#", "a", ""),
            ("x{rest}", "a/#", "a", "x"),
            ("{topic}", "a/#", "a/b", "a/b"),
            ("fixed", "a/#", "a/b", "fixed"),
            ("{a}/{b}", "{a}/{b}", "/x", "/x"),
        ] {
            assert_eq!(filled(template, pattern, topic), expected, "{template} of {topic}");
        }
    }

    #[test]
    fn mistakes_in_templates_carry_their_place() {
        for (text, span, problem) in [
            ("a/{b", 2..3, Problem::Brace),
            ("a}b", 1..2, Problem::Brace),
            ("{{a}}", 0..1, Problem::Brace),
            ("x{}", 1..3, Problem::CaptureName(String::new())),
            ("é{a b}", 2..7, Problem::CaptureName("a b".into())),
            ("{payload..a}", 0..12, Problem::PartName("payload..a".into())),
            ("x{time:%Q}", 1..10, Problem::TimeFormat("%Q".into())),
            ("{time:%Y %w}", 0..12, Problem::TimeFormat("%w".into())),
        ] {
            assert_eq!(Template::parse(text).unwrap_err(), SyntaxError { span, problem }, "{text:?}");
        }
    }

    #[test]
    fn r29_parts_of_the_message_are_filled_in_as_single_levels() {
        let mut message =
            message("a/b", br##"{"line":"x","deep":{"n":7},"bad":"x/y","wild":"#","empty":"","list":[]}"##);
        message.origin.client_id = Some("press-7".into());
        message.properties.user = vec![("shift".into(), "early".into())];
        let missing = |name: &str| Err(Unfilled::Missing(name.to_owned()));
        let not_one = |name: &str, text: &str| Err(Unfilled::NotOneLevel(name.to_owned(), text.to_owned()));
        for (template, expected) in [
            ("up/{client_id}/{rest}", Ok("up/press-7/b")),
            ("{site}.{qos}.{retain}.{size}", Ok("test.1.false.71")),
            ("{time:%Y/%m}", not_one("{time:%Y/%m}", "1970/01")),
            ("day/{time:%Y-%m-%d}", Ok("day/1970-01-01")),
            ("{payload.line}/{payload.deep.n}", Ok("x/7")),
            ("{property.shift}", Ok("early")),
            ("{property.none}", missing("{property.none}")),
            ("x/{payload.none}", missing("{payload.none}")),
            ("{payload.list}", missing("{payload.list}")),
            ("{payload.bad}", not_one("{payload.bad}", "x/y")),
            ("{payload.wild}", not_one("{payload.wild}", "#")),
            ("{payload.empty}", not_one("{payload.empty}", "")),
            ("{user}", missing("{user}")),
        ] {
            let expected: Result<&str, Unfilled> = expected;
            let expected = (expected.clone().ok().map(str::to_owned), expected.err());
            assert_eq!(fill(template, "a/#", &message), expected, "{template}");
        }
    }

    #[test]
    fn in_a_text_braces_may_stand_for_themselves_and_names_have_to_be_right() {
        let mut message = message("a/b", br#"{"temp":81.5}"#);
        message.time = WallMs(1_796_083_200_000);
        message.properties.user = vec![("a b/c".into(), "v".into())];
        let (subject, captures) = (Subject::new(&message), crate::router::Captures::of("a/b"));
        for (text, expected) in [
            ("{time:%d/%m/%Y, %H:%M} {property.a b/c}", "01/12/2026, 00:00 v"),
            (r#"{"t": {payload.temp}, "at": {"topic": "{topic}"}}"#, r#"{"t": 81.5, "at": {"topic": "a/b"}}"#),
            ("{} { } {", "{} { } {"),
            (
                r#"{"a": "}", "n": {"m": {topic}}, "re": "x{2,}", "b": 1}"#,
                r#"{"a": "}", "n": {"m": a/b}, "re": "x{2,}", "b": 1}"#,
            ),
            ("{payload.temp}} and {a: 1} ok}", "81.5} and {a: 1} ok}"),
            ("é{topic}é", "éa/bé"),
        ] {
            let template = Template::parse_text(text).unwrap();
            assert_eq!(template.fill_text(View::new(&subject, &captures)).unwrap(), expected);
        }
        for wrong in ["x {paylod.temp}", "x {time:%d/%q %m}", "x {property.}"] {
            assert_eq!(Template::parse_text(wrong).unwrap_err().span, 2..wrong.len(), "{wrong}");
        }
        for (wrong, span, name) in [
            ("{payload.x", 0..10, "payload.x"),
            ("é{payload.x C, {topic}", 2..12, "payload.x"),
            (r#"{"t": {payload.x, "u": 1}"#, 6..16, "payload.x"),
            ("{payload.x }", 0..10, "payload.x"),
            ("a {line", 2..7, "line"),
            ("{time:%H", 0..8, "time:%H"),
        ] {
            let problem = Problem::NotClosed(name.to_owned());
            assert_eq!(Template::parse_text(wrong).unwrap_err(), SyntaxError { span, problem }, "{wrong}");
        }
        for (wrong, span, name) in [
            ("payload.x}", 9..10, "payload.x"),
            ("é at topic} {site}", 11..12, "topic"),
            ("{topic}property.a}", 17..18, "property.a"),
        ] {
            let problem = Problem::NotOpened(name.to_owned());
            assert_eq!(Template::parse_text(wrong).unwrap_err(), SyntaxError { span, problem }, "{wrong}");
        }
    }

    #[test]
    fn captures_are_listed_with_their_places() {
        let template = Template::parse("é/{line}.{rest}").unwrap();
        assert_eq!(template.uses().collect::<Vec<_>>(), [("line", 3..9), ("rest", 10..16)]);
    }

    #[test]
    fn dots_that_are_spelled_out_become_levels_and_captured_ones_stay() {
        let template = Template::parse("x.{line}.{machine}").unwrap().with_dots_as_levels();
        let (pattern, message) = (Pattern::parse("{line}/{machine}").unwrap(), message("a.b/7", b""));
        let (subject, captures) = (Subject::new(&message), pattern.captures("a.b/7").unwrap());
        assert_eq!(template.fill(View::new(&subject, &captures)).unwrap(), "x/a.b/7");
        assert_eq!(template.as_str(), "x.{line}.{machine}");
    }

    #[test]
    fn a_template_that_gives_the_topic_back_is_known() {
        for (template, pattern, expected) in [
            ("{topic}", "a/+/#", true),
            ("a/{b}/{rest}", "a/{b}/#", true),
            ("{rest}", "#", true),
            ("a/b", "a/b", true),
            ("a/{b}/{rest}", "a/{c}/#", false),
            ("b/{rest}", "a/#", false),
        ] {
            let pattern = Pattern::parse(pattern).unwrap();
            assert_eq!(Template::parse(template).unwrap().is_identity_of(&pattern), expected, "{template}");
        }
    }

    #[test]
    fn disjoint_prefixes_are_out_of_reach() {
        for (template, pattern, expected) in [
            ("up/{rest}", "down/#", false),
            ("up/{rest}", "up/+/x", true),
            ("up", "up/#", true),
            ("up/{a}", "up", false),
            ("x{a}/b", "y/b", true),
            ("{topic}", "a/b", true),
            ("$SYS/{a}", "#", false),
        ] {
            let pattern = Pattern::parse(pattern).unwrap();
            assert_eq!(Template::parse(template).unwrap().can_reach(&pattern), expected, "{template} to {pattern}");
        }
    }

    #[test]
    fn templates_that_make_the_same_of_a_pattern_s_topics_are_known() {
        for (template, wide, other, narrow, expected) in [
            ("up/{topic}", "f/#", "up/f/{l}/{m}", "f/{l}/{m}", true),
            ("up/{rest}", "f/#", "up/{l}/{m}", "f/{l}/{m}", true),
            ("up/{rest}", "f/#", "up/a/{rest}", "f/a/#", true),
            ("up/{rest}", "f/#", "up", "f", true),
            ("{b}-{a}", "{a}/{b}", "{y}-x", "x/{y}", true),
            ("{payload.n}", "f/#", "{payload.n}", "f/a", true),
            ("up/{rest}", "f/#", "up/f/{l}/x", "f/{l}/+", false),
            ("{a}.{b}", "{a}/{b}", "{b}.{a}", "{a}/{b}", false),
            ("{a}", "{a}/#", "{a}", "+/{a}", false),
            ("{payload.n}", "f/#", "{payload.m}", "f/a", false),
        ] {
            let [template, other] = [template, other].map(|text| Template::parse(text).unwrap());
            let [wide, narrow] = [wide, narrow].map(|text| Pattern::parse(text).unwrap());
            let same = template.placed(Some(&wide), Some(&narrow)) == other.placed(Some(&narrow), Some(&narrow));
            assert_eq!(same, expected, "{template} of {wide}, {other} of {narrow}");
        }
    }

    proptest! {
        #[test]
        fn templates_that_are_placed_alike_make_the_same_of_every_topic(
            wide in "(([ab]|\\+|\\{x\\})/){0,2}([ab]|\\{y\\}|#)",
            narrow in "(([ab]|\\+|\\{x\\}|\\{y\\})/){0,2}([ab]|\\{z\\}|#)",
            template in "(([ab]|\\{[xyz]\\}|\\{rest\\})/){0,2}([ab]|\\{[xyz]\\}|\\{rest\\}|\\{topic\\})",
            other in "(([ab]|\\{[xyz]\\}|\\{rest\\})/){0,2}([ab]|\\{[xyz]\\}|\\{rest\\}|\\{topic\\})",
            topic in "[abc](/[abc]?){0,3}",
        ) {
            let (Ok(wide), Ok(narrow)) = (Pattern::parse(&wide), Pattern::parse(&narrow)) else { return Ok(()) };
            let [template, other] = [&template, &other].map(|text| Template::parse(text).unwrap());
            if wide.covers(&narrow) && narrow.matches(&topic)
                && template.placed(Some(&wide), Some(&narrow)) == other.placed(Some(&narrow), Some(&narrow))
            {
                let message = message(&topic, b"");
                let subject = Subject::new(&message);
                let [wide, narrow] = [&wide, &narrow].map(|pattern| pattern.captures(&topic).unwrap());
                let made = template.fill(View::new(&subject, &wide)).ok();
                prop_assert_eq!(made, other.fill(View::new(&subject, &narrow)).ok(), "{} and {}", template, other);
            }
        }

        #[test]
        fn a_template_that_spells_its_pattern_gives_every_topic_back(
            levels in prop::collection::vec(prop::sample::select(vec!["a", "b", "", "{x}", "{y}", "{z}"]), 0..4),
            has_rest in any::<bool>(),
            topic in "[ab/]{1,7}",
        ) {
            let whole = |last: &str| {
                let levels = levels.iter().copied().chain(has_rest.then_some(last));
                levels.collect::<Vec<_>>().join("/")
            };
            // No level at all and a name that is there twice are no patterns.
            let Ok(pattern) = Pattern::parse(&whole("#")) else { return Ok(()) };
            let template = Template::parse(&whole("{rest}")).unwrap();
            prop_assert!(template.is_identity_of(&pattern));
            if let Some(captures) = pattern.captures(&topic) {
                let message = message(&topic, b"");
                let subject = Subject::new(&message);
                let made = template.fill(View::new(&subject, &captures)).unwrap();
                prop_assert_eq!(made.as_ref(), topic.as_str());
            }
        }

        #[test]
        fn what_goes_under_another_prefix_comes_back_as_it_was(topic in "[ab/]{0,6}", prefix in "([ab]/){0,2}[ab]") {
            let through = |from: &str, to: &str, topic: &str| {
                let template = Template::parse(&format!("{to}/{{rest}}")).unwrap();
                let (pattern, message) = (Pattern::parse(&format!("{from}/#")).unwrap(), message(topic, b""));
                let (subject, captures) = (Subject::new(&message), pattern.captures(topic).unwrap());
                template.fill(View::new(&subject, &captures)).unwrap().into_owned()
            };
            for topic in ["x".to_owned(), format!("x/{topic}")] {
                let there = through("x", &prefix, &topic);
                prop_assert_eq!(there.strip_prefix(&prefix), topic.strip_prefix('x'));
                prop_assert_eq!(through(&prefix, "x", &there), topic);
            }
        }

        #[test]
        fn what_a_template_makes_is_within_its_reach(
            template in "(([ab]|\\{x\\}|a\\{x\\}|\\{rest\\})/){0,3}([ab]|\\{x\\}|\\{rest\\}|\\{topic\\})",
            reader in "(([ab]|\\+)/){0,3}([ab]|\\+|#)",
            topic in "[ab]/[ab]{1,2}(/[ab]?){0,2}",
        ) {
            let template = Template::parse(&template).unwrap();
            let reader = Pattern::parse(&reader).unwrap();
            let (pattern, message) = (Pattern::parse("{x}/#").unwrap(), message(&topic, b""));
            let (subject, captures) = (Subject::new(&message), pattern.captures(&topic).unwrap());
            let made = template.fill(View::new(&subject, &captures)).unwrap();
            if reader.captures(&made).is_some() {
                prop_assert!(template.can_reach(&reader), "{} makes {}, which {} matches", template, made, reader);
            }
        }
    }
}
