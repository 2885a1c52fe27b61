//! Conditions of routes: `where: payload.temp > 80 && qos >= 1`.
//!
//! # The language
//! The part of [CEL](https://cel.dev) that conditions need, in CEL's own spelling and precedence: literals, `||`, `&&`, `!`, `==`, `!=`, `<`, `<=`,
//! `>`, `>=`, `in`, `+`, `-`, `*`, `/`, `%`, `? :`, lists, and the functions of [`Function`]. Names are captures, the parts of every message
//! ([`FIELDS`](super::FIELDS)), `payload` with its fields, `property` with its names.
//!
//! What a message lacks has no value, and a condition without a value takes nothing. As CEL has it, `||` and `&&` are decided by one side
//! where the other has no value: `payload.temp > 80 || payload.alarm` needs one of both fields. Values of different types are never
//! equal and have no order. What deletes a retained message has no payload that could be asked: a condition that is undecided for that
//! takes it (R21).
//!
//! # Why not a library
//! `cel` 0.15 (30,000 lines, with a generated parser and its run time of ten crates) evaluates over values that exist: the payload as a tree
//! of its own, about 4 µs a message. A condition is asked for each message of a route; here it is compiled to a tree of some nodes that
//! look up the few fields that it names, in a payload that is parsed once, without an allocation. What is left of the
//! language is two hundred lines, and mistakes have their place in the text to the byte, which `tidegate check` shows. `jaq` is a
//! language for making values; conditions in it read as programs.
//!
//! # Parts
//! `parse` makes the tree, `check` says what can never be right about it (R32) and `constant` what is the same for all messages, `eval` asks
//! it about one.

mod check;
mod constant;
mod eval;
mod parse;

use std::fmt;
use std::ops::Range;

use super::json::Number;
use super::view::{Field, View};

pub use check::{Known, Mistake};
pub use parse::{FilterError, FilterProblem};

/// A condition on messages.
#[derive(Clone, PartialEq)]
pub struct Filter {
    text: Box<str>,
    root: Expr,
}

#[derive(Clone, Debug, PartialEq)]
struct Expr {
    /// Its bytes in the text.
    span: Range<usize>,
    node: Node,
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Null,
    Bool(bool),
    Number(Number),
    Text(Box<str>),
    List(Vec<Expr>),
    Field(Field),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Both(Box<[Expr; 2]>),
    Either(Box<[Expr; 2]>),
    Compare(Comparison, Box<[Expr; 2]>),
    In(Box<[Expr; 2]>),
    Arithmetic(Operator, Box<[Expr; 2]>),
    /// Condition, then, else.
    Choose(Box<[Expr; 3]>),
    /// Whether the message has it.
    Has(Field),
    Call(Function, Vec<Expr>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// What can be called, with CEL's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    /// Characters of a text, or how many a list or section holds.
    Size,
    StartsWith,
    EndsWith,
    Contains,
    /// `string(payload)` is the payload itself as text.
    String,
    Double,
    Int,
    /// Of a time in milliseconds, in UTC.
    Hours,
    Minutes,
    /// 0 is Sunday.
    DayOfWeek,
}

impl Function {
    const ALL: [(&'static str, Self); 10] = [
        ("size", Self::Size),
        ("startsWith", Self::StartsWith),
        ("endsWith", Self::EndsWith),
        ("contains", Self::Contains),
        ("string", Self::String),
        ("double", Self::Double),
        ("int", Self::Int),
        ("getHours", Self::Hours),
        ("getMinutes", Self::Minutes),
        ("getDayOfWeek", Self::DayOfWeek),
    ];

    /// How many it takes, the one before the dot included.
    const fn arguments(self) -> usize {
        match self {
            Self::StartsWith | Self::EndsWith | Self::Contains => 2,
            Self::Size | Self::String | Self::Double | Self::Int | Self::Hours | Self::Minutes | Self::DayOfWeek => 1,
        }
    }
}

impl Filter {
    /// Reads a condition.
    ///
    /// # Errors
    /// The first mistake, with its place in `text`. Whether its names exist and its types fit is [`Filter::mistakes`]'.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        Ok(Self { text: text.into(), root: parse::parse(text)? })
    }

    /// As written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is true of a message. Allocates nothing for a payload of few values without escapes.
    #[must_use]
    pub fn takes(&self, view: View<'_, '_>) -> bool {
        self.is_true_of(view) || self.passes(view)
    }

    fn is_true_of(&self, view: View<'_, '_>) -> bool {
        matches!(eval::eval(&self.root, view), Some(eval::Value::Bool(true)))
    }

    /// Whether it takes a message only since that deletes a retained one (R21), of whose payload nothing can be asked: what decides without
    /// it decides.
    #[must_use]
    pub fn passes(&self, view: View<'_, '_>) -> bool {
        view.is_delete && self.asks_payload() && eval::eval(&self.root, view).is_none()
    }

    fn asks_payload(&self) -> bool {
        let mut asks = false;
        self.root.walk(&mut |expr| {
            asks |= matches!(&expr.node, Node::Field(Field::Payload(_)) | Node::Has(Field::Payload(_)));
        });
        asks
    }

    /// What it looks at and what it finds there, for who wants to know why: names with values, `None` where a message has none.
    #[must_use]
    pub fn looks_at(&self, view: View<'_, '_>) -> Vec<(String, Option<String>)> {
        let mut found: Vec<(String, Option<String>)> = Vec::new();
        self.root.walk(&mut |expr| {
            let (Node::Field(field) | Node::Has(field)) = &expr.node else { return };
            let name = self.text.get(expr.span.clone()).unwrap_or_default();
            if !found.iter().any(|(known, _)| known == name) {
                found.push((name.to_owned(), field.of(view).map(|value| value.to_string())));
            }
        });
        found
    }
}

impl Expr {
    fn walk<'e>(&'e self, visit: &mut impl FnMut(&'e Self)) {
        visit(self);
        let parts: &[Self] = match &self.node {
            Node::List(items) | Node::Call(_, items) => items,
            Node::Not(inner) | Node::Negative(inner) => std::slice::from_ref(&**inner),
            Node::Both(two) | Node::Either(two) | Node::In(two) => &**two,
            Node::Compare(_, two) | Node::Arithmetic(_, two) => &**two,
            Node::Choose(three) => &**three,
            Node::Null | Node::Bool(_) | Node::Number(_) | Node::Text(_) | Node::Field(_) | Node::Has(_) => &[],
        };
        for part in parts {
            part.walk(visit);
        }
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter({:?})", self.text)
    }
}

// Numbers of conditions are never NaN: there is no way to write one.
impl Eq for Filter {}

#[cfg(test)]
mod tests;
