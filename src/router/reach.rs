//! Which topics can get somewhere: sets of topics, roughly, and what patterns and templates make of them. The circles that
//! `tidegate check` looks for are followed with these, hop by hop.

use super::pattern::{Level, Pattern};
use super::template::{Part, Template};
use super::view::Field;

/// A set of topics. It may hold some that never occur, and misses none that does (but where a level is empty and a template
/// drops the `/` before it).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reach {
    levels: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    Exact(String),
    One,
    /// Any number of levels, none included; only at the end.
    Many,
}

impl Reach {
    /// All topics.
    #[must_use]
    pub fn any() -> Self {
        Self { levels: vec![Step::Many] }
    }

    /// Those that `pattern` matches.
    #[must_use]
    pub fn of(pattern: &Pattern) -> Self {
        Self { levels: pattern.levels.iter().map(Step::of).collect() }
    }

    /// Those of them that `pattern` matches too; `None` if there are none.
    #[must_use]
    pub fn within(&self, pattern: &Pattern) -> Option<Self> {
        let own = matches!(self.levels.first(), Some(Step::Exact(first)) if first.starts_with('$'));
        if own && !matches!(pattern.levels.first(), Some(Level::Exact(_))) {
            return None;
        }
        let (mut ours, mut theirs) = (&*self.levels, &*pattern.levels);
        let mut levels = Vec::new();
        loop {
            match (ours, theirs) {
                ([], []) => break,
                (rest, [Level::Rest, ..]) => {
                    levels.extend_from_slice(rest);
                    break;
                }
                ([Step::Many, ..], rest) => {
                    levels.extend(rest.iter().map(Step::of));
                    break;
                }
                ([], _) | (_, []) => return None,
                ([Step::Exact(text), ..], [Level::Exact(wanted), ..]) if **text != **wanted => return None,
                ([Step::One, our_rest @ ..], [level, their_rest @ ..]) => {
                    levels.push(Step::of(level));
                    (ours, theirs) = (our_rest, their_rest);
                }
                ([step, our_rest @ ..], [_, their_rest @ ..]) => {
                    levels.push(step.clone());
                    (ours, theirs) = (our_rest, their_rest);
                }
            }
        }
        Some(Self { levels })
    }

    /// Whether `pattern` matches all of them.
    #[must_use]
    pub fn is_covered_by(&self, pattern: &Pattern) -> bool {
        let own = matches!(self.levels.first(), Some(Step::Exact(first)) if first.starts_with('$'));
        if own && !matches!(pattern.levels.first(), Some(Level::Exact(_))) {
            return false;
        }
        let mut ours = self.levels.iter();
        for level in &pattern.levels {
            match (level, ours.next()) {
                (Level::Rest, _) => return true,
                (Level::One(_), Some(Step::One | Step::Exact(_))) => {}
                (Level::Exact(wanted), Some(Step::Exact(text))) if **wanted == **text => {}
                (Level::One(_) | Level::Exact(_), _) => return false,
            }
        }
        ours.next().is_none()
    }

    /// What `template` makes of these topics, which `pattern` matched.
    #[must_use]
    pub fn through(&self, pattern: Option<&Pattern>, template: &Template) -> Self {
        let captured = pattern.map_or(&[][..], |pattern| &pattern.levels);
        let mut made = Made { levels: Vec::new(), last: Step::Exact(String::new()) };
        let mut parts = template.parts.iter();
        while let Some(part) = parts.next() {
            let field = match part {
                Part::Literal(literal) => {
                    made.literal(literal);
                    continue;
                }
                Part::Field(field, _) => field,
            };
            let at = captured.iter().position(|level| match (level, field) {
                (Level::One(Some(own)), Field::Name(name)) => own == name,
                (Level::Rest, Field::Name(name)) => **name == *"rest",
                (Level::Exact(_) | Level::One(_) | Level::Rest, _) => false,
            });
            let is_topic = matches!(field, Field::Name(name) if **name == *"topic");
            let is_whole = match at.and_then(|at| captured.get(at)) {
                Some(level) => *level == Level::Rest,
                None => is_topic,
            };
            if is_whole {
                let levels = self.levels.get(at.unwrap_or_default()..).unwrap_or_default();
                if made.levels_of_topic(levels) {
                    return Self { levels: made.open_ended(parts.as_slice()) };
                }
            } else {
                made.level(at.and_then(|at| self.levels.get(at)).unwrap_or(&Step::One));
            }
        }
        made.levels.push(made.last);
        Self { levels: made.levels }
    }

    /// The same, but that nothing is told of what lies deeper than so many levels: then all that grows comes to an end.
    #[must_use]
    pub fn widened(mut self, depth: usize) -> Self {
        if self.levels.len() > depth {
            self.levels.truncate(depth);
            self.levels.push(Step::Many);
        }
        self
    }

    /// Whether `text` can be one of them, read as a topic.
    #[must_use]
    pub fn may_be(&self, text: &str) -> bool {
        let mut levels = text.split('/');
        for step in &self.levels {
            match (step, levels.next()) {
                (Step::Many, _) => return true,
                (_, None) => return false,
                (Step::Exact(own), Some(level)) if own != level => return false,
                (Step::Exact(_) | Step::One, Some(_)) => {}
            }
        }
        levels.next().is_none()
    }

    /// The levels that are the same in all of them, from the first on.
    pub fn stem(&self) -> impl Iterator<Item = &str> {
        self.levels.iter().map_while(|step| match step {
            Step::Exact(text) => Some(&**text),
            Step::One | Step::Many => None,
        })
    }
}

impl std::fmt::Display for Reach {
    /// As a filter.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, step) in self.levels.iter().enumerate() {
            let slash = if at > 0 { "/" } else { "" };
            match step {
                Step::Exact(text) => write!(f, "{slash}{text}")?,
                Step::One => write!(f, "{slash}+")?,
                Step::Many => write!(f, "{slash}#")?,
            }
        }
        Ok(())
    }
}

impl Step {
    fn of(level: &Level) -> Self {
        match level {
            Level::Exact(text) => Self::Exact(text.to_string()),
            Level::One(_) => Self::One,
            Level::Rest => Self::Many,
        }
    }
}

/// A set in the making: whole levels, and one that more may come to.
struct Made {
    levels: Vec<Step>,
    last: Step,
}

impl Made {
    fn literal(&mut self, text: &str) {
        for (at, piece) in text.split('/').enumerate() {
            if at > 0 {
                let last = std::mem::replace(&mut self.last, Step::Exact(String::new()));
                self.levels.push(last);
            }
            if let Step::Exact(exact) = &mut self.last {
                exact.push_str(piece);
            }
        }
    }

    /// A part of one level.
    fn level(&mut self, step: &Step) {
        match (&mut self.last, step) {
            (Step::Exact(exact), Step::Exact(text)) => exact.push_str(text),
            (last, _) => *last = Step::One,
        }
    }

    /// Ends with any number of levels. `behind`: what the template has behind them; it comes to the level before where there are none (R29), be it that
    /// a second rest takes away the `/` between.
    fn open_ended(mut self, behind: &[Part]) -> Vec<Step> {
        let begins_a_level = match behind {
            [] => true,
            [Part::Literal(text), others @ ..] => text.starts_with('/') && (text.len() > 1 || others.is_empty()),
            [Part::Field(..), ..] => false,
        };
        if !begins_a_level {
            self.levels.truncate(self.levels.len().saturating_sub(2));
            self.levels.push(Step::Many);
        }
        self.levels
    }

    /// Levels of a topic, `true` if nothing is known of what follows.
    fn levels_of_topic(&mut self, levels: &[Step]) -> bool {
        let Some((first, others)) = levels.split_first() else {
            // An empty rest takes the `/` before it along (R29).
            let is_empty = matches!(&self.last, Step::Exact(text) if text.is_empty());
            if let Some(before) = self.levels.pop_if(|_| is_empty) {
                self.last = before;
            }
            return false;
        };
        let mut next = Some(first);
        let mut others = others.iter();
        let mut is_first = true;
        while let Some(step) = next {
            if !is_first {
                let last = std::mem::replace(&mut self.last, Step::Exact(String::new()));
                self.levels.push(last);
            }
            is_first = false;
            if *step == Step::Many {
                let begun = !matches!(&self.last, Step::Exact(text) if text.is_empty());
                self.levels.extend(begun.then_some(Step::One));
                self.levels.push(Step::Many);
                return true;
            }
            self.level(step);
            next = others.next();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::tests_support::message;
    use crate::router::{Subject, View};

    fn reach(filter: &str) -> Reach {
        Reach::of(&Pattern::parse(filter).unwrap())
    }

    #[test]
    fn what_two_patterns_both_match_is_as_exact_as_both() {
        for (one, other, expected) in [
            ("a/+/#", "+/b/c", Some("a/b/c")),
            ("a/#", "a/{x}/b/#", Some("a/+/b/#")),
            ("a/b", "a/#", Some("a/b")),
            ("a", "a/#", Some("a")),
            ("a/b", "a/c", None),
            ("a/b/c", "a/b", None),
            ("$SYS/a", "#", None),
            ("$SYS/a", "$SYS/#", Some("$SYS/a")),
        ] {
            let within = reach(one).within(&Pattern::parse(other).unwrap());
            assert_eq!(within.map(|reach| reach.to_string()).as_deref(), expected, "{one} and {other}");
        }
    }

    #[test]
    fn a_template_makes_other_topics_of_them() {
        for (topics, pattern, template, expected) in [
            ("a/b/c", "a/{x}/#", "up/{x}.{rest}", "up/b.c"),
            ("a/#", "a/#", "up/{rest}", "up/#"),
            ("a/#", "a/#", "up/x{rest}", "up/+/#"),
            ("a/#", "a/#", "up/{rest}/x", "up/#"),
            ("a/#", "a/#", "on/up/{rest}x", "on/#"),
            ("a/#", "a/#", "on/up/{rest}/{rest}x", "on/#"),
            ("a/#", "a/#", "on/up/{rest}/x{rest}", "on/up/#"),
            ("a/#", "a/#", "{topic}/x", "a/#"),
            ("a", "a/#", "up/{rest}", "up"),
            ("a/+/c", "a/#", "{topic}", "a/+/c"),
            ("a/+", "a/{x}", "up/{x}/{payload.y}/z", "up/+/+/z"),
            ("a/b", "{x}/+", "{x}{x}/x", "aa/x"),
        ] {
            let pattern = Pattern::parse(pattern).unwrap();
            let made = reach(topics).through(Some(&pattern), &Template::parse(template).unwrap());
            assert_eq!(made.to_string(), expected, "{template} of {topics}");
        }
        let fixed = Template::parse("telemetry").unwrap();
        assert_eq!(Reach::any().through(None, &fixed).to_string(), "telemetry");
    }

    #[test]
    fn what_is_deeper_than_is_looked_may_be_anything() {
        for (topics, depth, expected) in [
            ("a/b/c", 3, "a/b/c"),
            ("a/b/c", 2, "a/b/#"),
            ("a/+/#", 3, "a/+/#"),
            ("a/+/#", 2, "a/+/#"),
            ("a/b/#", 1, "a/#"),
        ] {
            assert_eq!(reach(topics).widened(depth).to_string(), expected, "{topics} {depth}");
        }
    }

    proptest! {
        // Most topics are not in a set that is made without a look at them.
        #![proptest_config(ProptestConfig::with_cases(4_096))]

        #[test]
        fn a_topic_that_is_in_a_set_is_in_what_becomes_of_the_set(
            topics in "(([ab]|\\+)/){0,2}([ab]|\\+|#)",
            pattern in "(([ab]|\\+|\\{x\\})/){0,2}([ab]|\\{y\\}|#)",
            template in "(([ab]|\\{x\\}|a\\{y\\}|\\{rest\\}|\\{qos\\})/){0,2}(b?\\{topic\\}|[ab]|\\{x\\}|\\{rest\\}b?)",
            topic in "[ab](/[ab]){0,3}",
        ) {
            let (topics, Ok(pattern)) = (reach(&topics), Pattern::parse(&pattern)) else { return Ok(()) };
            if !topics.may_be(&topic) || !pattern.matches(&topic) {
                return Ok(());
            }
            let within = topics.within(&pattern);
            prop_assert!(within.as_ref().is_some_and(|within| within.may_be(&topic)), "{topics} {pattern}");
            prop_assert!(within.as_ref().is_some_and(|within| within.is_covered_by(&pattern)), "{topics} {pattern}");
            let template = Template::parse(&template).unwrap();
            let message = message(&topic, b"");
            let (subject, captures) = (Subject::new(&message), pattern.captures(&topic).unwrap());
            if let (Some(within), Ok(made)) = (within, template.fill(View::new(&subject, &captures))) {
                let reach = within.through(Some(&pattern), &template);
                prop_assert!(reach.may_be(&made), "{template} makes {made} of {topic}, not in {reach}");
            }
        }
    }
}
