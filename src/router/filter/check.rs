//! What can never be right about a condition: names that nothing has, values that cannot go together.

use std::fmt;
use std::ops::Range;

use super::super::view::Field;
use super::{Comparison, Expr, Filter, Function, Node, Operator};

/// Whether a route knows a plain name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Every `from` captures it.
    Captured,
    /// Every message may have it ([`FIELDS`](super::super::FIELDS)).
    Field,
    /// Neither.
    No,
}

/// Something that is wrong with a condition that reads well.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// A name that nothing has.
    #[error("nothing is called `{name}`")]
    Unknown {
        /// Its place in the text.
        span: Range<usize>,
        /// As written.
        name: String,
    },
    /// Not true or false where that is needed.
    #[error("{what} needs a condition, and this is {kind}")]
    NoCondition {
        /// Of what is none.
        span: Range<usize>,
        /// `where`, `&&`, ...
        what: &'static str,
        /// What it is.
        kind: String,
    },
    /// `topic > 5`.
    #[error("{left} and {right} do not go together here")]
    Types {
        /// Of both.
        span: Range<usize>,
        /// What stands on the left.
        left: String,
        /// What stands on the right.
        right: String,
    },
    /// `size(5)`.
    #[error("{what} needs {wanted}, and this is {kind}")]
    Argument {
        /// Of what does not fit.
        span: Range<usize>,
        /// The function or operator.
        what: &'static str,
        /// What it takes.
        wanted: &'static str,
        /// What it was given.
        kind: String,
    },
}

impl Mistake {
    /// Its place in the text.
    #[must_use]
    pub const fn span(&self) -> &Range<usize> {
        match self {
            Self::Unknown { span, .. }
            | Self::NoCondition { span, .. }
            | Self::Types { span, .. }
            | Self::Argument { span, .. } => span,
        }
    }
}

/// What is known of a value before there is a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Any,
    Null,
    Bool,
    Number,
    Text,
    List,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "a value",
            Self::Null => "null",
            Self::Bool => "true or false",
            Self::Number => "a number",
            Self::Text => "a text",
            Self::List => "a list",
        })
    }
}

impl Filter {
    /// Everything that is wrong with it, given which names the route knows.
    pub fn mistakes(&self, known: impl Fn(&str) -> Known) -> Vec<Mistake> {
        let mut check = Check { known: &known, mistakes: Vec::new() };
        check.condition(&self.root, "`where`");
        check.mistakes
    }
}

struct Check<'k> {
    known: &'k dyn Fn(&str) -> Known,
    mistakes: Vec<Mistake>,
}

impl Check<'_> {
    fn condition(&mut self, expr: &Expr, what: &'static str) {
        let kind = self.kind(expr);
        if !matches!(kind, Kind::Any | Kind::Bool) {
            self.mistakes.push(Mistake::NoCondition { span: expr.span.clone(), what, kind: kind.to_string() });
        }
    }

    fn argument(&mut self, expr: &Expr, what: &'static str, wanted: &'static str, fits: &[Kind]) {
        let kind = self.kind(expr);
        if kind != Kind::Any && !fits.contains(&kind) {
            self.mistakes.push(Mistake::Argument { span: expr.span.clone(), what, wanted, kind: kind.to_string() });
        }
    }

    /// Of a value; what is inside of it is checked.
    fn kind(&mut self, expr: &Expr) -> Kind {
        match &expr.node {
            Node::Null => Kind::Null,
            Node::Bool(_) => Kind::Bool,
            Node::Number(_) => Kind::Number,
            Node::Text(_) => Kind::Text,
            Node::List(items) => {
                for item in items {
                    self.kind(item);
                }
                Kind::List
            }
            Node::Field(field) => self.field(field, &expr.span),
            Node::Has(field) => {
                self.field(field, &expr.span);
                Kind::Bool
            }
            Node::Not(inner) => {
                self.condition(inner, "`!`");
                Kind::Bool
            }
            Node::Negative(inner) => {
                self.argument(inner, "`-`", "a number", &[Kind::Number]);
                Kind::Number
            }
            Node::Both(two) => {
                two.iter().for_each(|side| self.condition(side, "`&&`"));
                Kind::Bool
            }
            Node::Either(two) => {
                two.iter().for_each(|side| self.condition(side, "`||`"));
                Kind::Bool
            }
            Node::Compare(comparison, two) => {
                self.comparison(*comparison, two, &expr.span);
                Kind::Bool
            }
            Node::In(two) => {
                let [one, among] = &**two;
                self.kind(one);
                self.argument(among, "`in`", "a list", &[Kind::List]);
                Kind::Bool
            }
            Node::Arithmetic(operator, two) => self.arithmetic(*operator, two, &expr.span),
            Node::Choose(three) => {
                let [condition, then, other] = &**three;
                self.condition(condition, "`?`");
                let (then, other) = (self.kind(then), self.kind(other));
                if then == other { then } else { Kind::Any }
            }
            Node::Call(function, arguments) => self.call(*function, arguments),
        }
    }

    fn field(&mut self, field: &Field, span: &Range<usize>) -> Kind {
        let name = match field {
            Field::Payload(_) => return Kind::Any,
            Field::Time(_) => return Kind::Text,
            Field::Property(name) if name.is_empty() => "property",
            Field::Property(_) => return Kind::Text,
            Field::Name(name) => &**name,
        };
        match ((self.known)(name), name) {
            (Known::Captured, _) => Kind::Text,
            (Known::Field, "qos" | "size" | "time") => Kind::Number,
            (Known::Field, "retain") => Kind::Bool,
            (Known::Field, _) => Kind::Text,
            (Known::No, _) => {
                self.mistakes.push(Mistake::Unknown { span: span.clone(), name: name.to_owned() });
                Kind::Any
            }
        }
    }

    fn comparison(&mut self, comparison: Comparison, two: &[Expr; 2], span: &Range<usize>) {
        let [left, right] = two.each_ref().map(|side| self.kind(side));
        let equality = matches!(comparison, Comparison::Equal | Comparison::NotEqual);
        let null = equality && (left == Kind::Null || right == Kind::Null);
        let compared = |kind: Kind| kind != Kind::List && (equality || kind != Kind::Null);
        let same = left == right || left == Kind::Any || right == Kind::Any || null;
        if !(same && compared(left) && compared(right)) {
            self.types(left, right, span);
        }
    }

    fn arithmetic(&mut self, operator: Operator, two: &[Expr; 2], span: &Range<usize>) -> Kind {
        let [left, right] = two.each_ref().map(|side| self.kind(side));
        match (left, right) {
            (Kind::Text, Kind::Text | Kind::Any) | (Kind::Any, Kind::Text) if operator == Operator::Add => Kind::Text,
            (Kind::Any, Kind::Any) if operator == Operator::Add => Kind::Any,
            (Kind::Number | Kind::Any, Kind::Number | Kind::Any) => Kind::Number,
            _ => {
                self.types(left, right, span);
                Kind::Any
            }
        }
    }

    fn types(&mut self, left: Kind, right: Kind, span: &Range<usize>) {
        let (left, right) = (left.to_string(), right.to_string());
        self.mistakes.push(Mistake::Types { span: span.clone(), left, right });
    }

    fn call(&mut self, function: Function, arguments: &[Expr]) -> Kind {
        let name = Function::ALL.iter().find(|(_, known)| *known == function).map_or("", |(name, _)| name);
        let (wanted, fits, gives): (_, &[Kind], _) = match function {
            Function::StartsWith | Function::EndsWith | Function::Contains => ("a text", &[Kind::Text], Kind::Bool),
            Function::Size => ("a text or a list", &[Kind::Text, Kind::List], Kind::Number),
            Function::String => ("a value", &[Kind::Text, Kind::Number, Kind::Bool], Kind::Text),
            Function::Double | Function::Int => ("a text or a number", &[Kind::Text, Kind::Number], Kind::Number),
            Function::Hours | Function::Minutes | Function::DayOfWeek => {
                ("a time, such as `time`", &[Kind::Number], Kind::Number)
            }
        };
        for argument in arguments {
            self.argument(argument, name, wanted, fits);
        }
        gives
    }
}
