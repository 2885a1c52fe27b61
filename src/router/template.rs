//! Templates: what a route makes of what its pattern captured.

use std::fmt;
use std::ops::Range;

use super::pattern::{Captures, Level, Pattern};
use super::syntax::{Problem, SyntaxError, is_capture_name};

/// A `to` or `key` template with `{captures}`.
///
/// `{name}`, `{rest}` and `{topic}` are filled in; where `{rest}` is empty, the `/` before it goes too (R29).
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    text: Box<str>,
    parts: Box<[Part]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Box<str>),
    /// With its place in the text, braces included.
    Capture(Box<str>, Range<usize>),
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
            if !is_capture_name(name) {
                return Err(SyntaxError::new(whole, Problem::CaptureName(name.to_owned())));
            }
            start = whole.end;
            parts.push(Part::Capture(name.into(), whole));
        }
        push_literal(&mut parts, text, start..text.len());
        Ok(Self { text: text.into(), parts: parts.into() })
    }

    /// As written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The captures that it needs, with their places in the text.
    pub fn uses(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        self.parts.iter().filter_map(|part| match part {
            Part::Capture(name, span) => Some((&**name, span.clone())),
            Part::Literal(_) => None,
        })
    }

    /// The texts between the captures.
    pub fn literals(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Literal(text) => Some(&**text),
            Part::Capture(..) => None,
        })
    }

    /// The same template with `.` read as `/` where it is spelled out: how a RabbitMQ routing key is written. What
    /// captures bring stays as it is, so that a dot inside of a level can still be told from one between levels.
    #[must_use]
    pub fn with_dots_as_levels(self) -> Self {
        let parts = self.parts.into_iter().map(|part| match part {
            Part::Literal(text) => Part::Literal(text.replace('.', "/").into()),
            capture @ Part::Capture(..) => capture,
        });
        Self { text: self.text, parts: parts.collect() }
    }

    /// The destination or key for one message. A capture that the pattern does not have is filled in as nothing:
    /// `config` refuses such a route.
    #[must_use]
    pub fn fill(&self, captures: &Captures<'_>) -> String {
        let mut filled = String::with_capacity(self.text.len() + captures.topic.len());
        for part in &self.parts {
            match part {
                Part::Literal(text) => filled.push_str(text),
                Part::Capture(name, _) => {
                    let text = captures.get(name).unwrap_or_default();
                    if text.is_empty() && **name == *"rest" && filled.ends_with('/') {
                        filled.pop();
                    }
                    filled.push_str(text);
                }
            }
        }
        filled
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
                Part::Capture(name, _) if **name == *"rest" || **name == *"topic" => {
                    // What stands behind several unknown levels does not make the answer surer.
                    if !matches!(&level, Shape::Exact(text) if text.is_empty()) {
                        shapes.push(Shape::One);
                    }
                    shapes.push(Shape::Many);
                    return shapes;
                }
                Part::Capture(..) => level = Shape::One,
            }
        }
        shapes.push(level);
        shapes
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

    fn filled(template: &str, pattern: &str, topic: &str) -> String {
        let pattern = Pattern::parse(pattern).unwrap();
        Template::parse(template).unwrap().fill(&pattern.captures(topic).unwrap())
    }

    #[test]
    fn r29_templates_are_filled_and_an_empty_rest_takes_its_slash_along() {
        for (template, pattern, topic, expected) in [
            ("{line}.{machine}", "factory/{line}/{machine}/telemetry", "factory/a/7/telemetry", "a.7"),
            ("cmd/{machine}/{rest}", "cmd/plant/{machine}/#", "cmd/plant/7/set/speed", "cmd/7/set/speed"),
            ("cmd/{machine}/{rest}", "cmd/plant/{machine}/#", "cmd/plant/7", "cmd/7"),
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
        ] {
            assert_eq!(Template::parse(text).unwrap_err(), SyntaxError { span, problem }, "{text:?}");
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
        let pattern = Pattern::parse("{line}/{machine}").unwrap();
        assert_eq!(template.fill(&pattern.captures("a.b/7").unwrap()), "x/a.b/7");
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

    proptest! {
        #[test]
        fn what_a_template_makes_is_within_its_reach(
            template in "(([ab]|\\{x\\}|a\\{x\\}|\\{rest\\})/){0,3}([ab]|\\{x\\}|\\{rest\\}|\\{topic\\})",
            reader in "(([ab]|\\+)/){0,3}([ab]|\\+|#)",
            topic in "[ab]/[ab]{1,2}(/[ab]){0,2}",
        ) {
            let template = Template::parse(&template).unwrap();
            let reader = Pattern::parse(&reader).unwrap();
            let made = template.fill(&Pattern::parse("{x}/#").unwrap().captures(&topic).unwrap());
            if reader.captures(&made).is_some() {
                prop_assert!(template.can_reach(&reader), "{} makes {}, which {} matches", template, made, reader);
            }
        }
    }
}
