//! Conditions that are the same for every message: what they never, or always, say. Only what is sure is said.

use std::cmp::Ordering;

use super::super::json::Number;
use super::super::view::Field;
use super::{Comparison, Expr, Filter, Node};

/// What a condition can come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Can {
    be_true: bool,
    be_false: bool,
    /// The message may lack what it needs.
    be_nothing: bool,
}

/// A side of a comparison that is written down.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fixed<'f> {
    Null,
    Bool(bool),
    Number(Number),
    Text(&'f str),
}

/// What one comparison asks of a part of a message.
#[derive(Clone, Copy, Debug)]
struct Demand<'f> {
    field: &'f Field,
    comparison: Comparison,
    fixed: Fixed<'f>,
}

impl Filter {
    /// Whether it says the same of every message: `false` if it takes none, `true` if it takes all. `captured` tells which names
    /// are captures and not parts of the message.
    #[must_use]
    pub fn verdict(&self, captured: impl Fn(&str) -> bool) -> Option<bool> {
        let can = Judge { captured: &captured }.judge(&self.root);
        match (can.be_true, can.be_false || can.be_nothing) {
            (false, _) => Some(false),
            (true, false) => Some(true),
            (true, true) => None,
        }
    }
}

struct Judge<'c> {
    captured: &'c dyn Fn(&str) -> bool,
}

impl Judge<'_> {
    fn judge(&self, expr: &Expr) -> Can {
        match &expr.node {
            Node::Bool(value) => Can::be(*value),
            Node::Not(inner) => {
                let Can { be_true, be_false, be_nothing } = self.judge(inner);
                Can { be_true: be_false, be_false: be_true, be_nothing }
            }
            Node::Both(two) => {
                let mut demands = Vec::new();
                gather(expr, &mut demands);
                let can = self.both(two);
                Can { be_true: can.be_true && !contradict(&demands), ..can }
            }
            Node::Either(two) => {
                let [left, right] = two.each_ref().map(|side| self.judge(side));
                let unless_true = |one: Can, other: Can| one.be_nothing && (other.be_nothing || other.be_false);
                Can {
                    be_true: left.be_true || right.be_true,
                    be_false: left.be_false && right.be_false,
                    be_nothing: unless_true(left, right) || unless_true(right, left),
                }
            }
            Node::Choose(three) => {
                let [condition, then, other] = three.each_ref().map(|part| self.judge(part));
                let of = |way: fn(Can) -> bool| (condition.be_true && way(then)) || (condition.be_false && way(other));
                Can {
                    be_true: of(|can| can.be_true),
                    be_false: of(|can| can.be_false),
                    be_nothing: condition.be_nothing || of(|can| can.be_nothing),
                }
            }
            Node::Compare(..) => self.comparison(expr),
            Node::Null
            | Node::Number(_)
            | Node::Text(_)
            | Node::List(_)
            | Node::Field(_)
            | Node::Negative(_)
            | Node::In(_)
            | Node::Arithmetic(..)
            | Node::Has(_)
            | Node::Call(..) => Can::ANYTHING,
        }
    }

    /// Of a whole chain of `&&`, whose comparisons are held against each other once.
    fn both(&self, two: &[Expr; 2]) -> Can {
        let [left, right] = two
            .each_ref()
            .map(|side| if let Node::Both(inner) = &side.node { self.both(inner) } else { self.judge(side) });
        let unless_false = |one: Can, other: Can| one.be_nothing && (other.be_nothing || other.be_true);
        Can {
            be_true: left.be_true && right.be_true,
            be_false: left.be_false || right.be_false,
            be_nothing: unless_false(left, right) || unless_false(right, left),
        }
    }

    fn comparison(&self, expr: &Expr) -> Can {
        if let Node::Compare(comparison, two) = &expr.node
            && let [Some(left), Some(right)] = two.each_ref().map(fixed)
        {
            return holds(*comparison, left, right).map_or(Can::NOTHING, Can::be);
        }
        let Some(Demand { field: Field::Name(name), comparison, fixed: Fixed::Number(wanted) }) = demand(expr) else {
            return Can::ANYTHING;
        };
        // Every message has these, within these bounds.
        let (least, most) = match &**name {
            name if (self.captured)(name) => return Can::ANYTHING,
            "qos" => (0, Some(2)),
            "size" | "time" => (0, None),
            _ => return Can::ANYTHING,
        };
        let least = Number::Whole(least).partial_cmp(&wanted);
        let most = most.and_then(|most: i128| Number::Whole(most).partial_cmp(&wanted));
        let (all_above, all_below) = (least == Some(Ordering::Greater), most == Some(Ordering::Less));
        let (none_below, none_above) = (least.is_some_and(Ordering::is_ge), most.is_some_and(Ordering::is_le));
        let (always, never) = match comparison {
            Comparison::Equal => (false, all_above || all_below),
            Comparison::NotEqual => (all_above || all_below, false),
            Comparison::Less => (all_below, none_below),
            Comparison::LessOrEqual => (none_above, all_above),
            Comparison::Greater => (all_above, none_above),
            Comparison::GreaterOrEqual => (none_below, all_below),
        };
        Can { be_true: !never, be_false: !always, be_nothing: false }
    }
}

impl Can {
    const ANYTHING: Self = Self { be_true: true, be_false: true, be_nothing: true };
    const NOTHING: Self = Self { be_true: false, be_false: false, be_nothing: true };

    const fn be(value: bool) -> Self {
        Self { be_true: value, be_false: !value, be_nothing: false }
    }
}

fn fixed(expr: &Expr) -> Option<Fixed<'_>> {
    match &expr.node {
        Node::Null => Some(Fixed::Null),
        Node::Bool(value) => Some(Fixed::Bool(*value)),
        Node::Number(number) => Some(Fixed::Number(*number)),
        Node::Text(text) => Some(Fixed::Text(text)),
        Node::Negative(inner) => match fixed(inner)? {
            Fixed::Number(Number::Whole(number)) => Some(Fixed::Number(Number::Whole(number.checked_neg()?))),
            Fixed::Number(Number::Float(number)) => Some(Fixed::Number(Number::Float(-number))),
            Fixed::Null | Fixed::Bool(_) | Fixed::Text(_) => None,
        },
        Node::List(_)
        | Node::Field(_)
        | Node::Not(_)
        | Node::Both(_)
        | Node::Either(_)
        | Node::Compare(..)
        | Node::In(_)
        | Node::Arithmetic(..)
        | Node::Choose(_)
        | Node::Has(_)
        | Node::Call(..) => None,
    }
}

/// A comparison of a part of a message with what is written down, that part on the left.
fn demand(expr: &Expr) -> Option<Demand<'_>> {
    let Node::Compare(comparison, two) = &expr.node else { return None };
    let [left, right] = &**two;
    match (&left.node, &right.node) {
        (Node::Field(field), _) => Some(Demand { field, comparison: *comparison, fixed: fixed(right)? }),
        (_, Node::Field(field)) => {
            let comparison = match comparison {
                Comparison::Less => Comparison::Greater,
                Comparison::LessOrEqual => Comparison::GreaterOrEqual,
                Comparison::Greater => Comparison::Less,
                Comparison::GreaterOrEqual => Comparison::LessOrEqual,
                same @ (Comparison::Equal | Comparison::NotEqual) => *same,
            };
            Some(Demand { field, comparison, fixed: fixed(left)? })
        }
        _ => None,
    }
}

/// The comparisons that all have to hold.
fn gather<'f>(expr: &'f Expr, demands: &mut Vec<Demand<'f>>) {
    if let Node::Both(two) = &expr.node {
        two.iter().for_each(|side| gather(side, demands));
    } else {
        demands.extend(demand(expr));
    }
}

/// Whether two of them cannot hold of one value.
fn contradict(demands: &[Demand<'_>]) -> bool {
    demands.iter().enumerate().any(|(at, one)| {
        let mut others = demands.iter().skip(at + 1).filter(|other| other.field == one.field);
        others.any(|other| excludes(one, other) || excludes(other, one))
    })
}

fn excludes(one: &Demand<'_>, other: &Demand<'_>) -> bool {
    use Comparison::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    match (one.comparison, other.comparison) {
        (NotEqual, NotEqual) => false,
        // A value that is this one has to be as the other wants it.
        (Equal, wanted) => holds(wanted, one.fixed, other.fixed) != Some(true),
        (NotEqual, _) | (_, Equal | NotEqual) => false,
        (Greater | GreaterOrEqual, Less | LessOrEqual) => match order(one.fixed, other.fixed) {
            Some(Ordering::Greater) => true,
            Some(Ordering::Equal) => one.comparison == Greater || other.comparison == Less,
            Some(Ordering::Less) => false,
            // A number and a text: no value is both.
            None => true,
        },
        (Greater | GreaterOrEqual | Less | LessOrEqual, _) => order(one.fixed, other.fixed).is_none(),
    }
}

/// As conditions are asked; `None` is no value.
fn holds(comparison: Comparison, left: Fixed<'_>, right: Fixed<'_>) -> Option<bool> {
    let order = order(left, right);
    let same = order == Some(Ordering::Equal) || (left == Fixed::Null && right == Fixed::Null);
    match comparison {
        Comparison::Equal => Some(same),
        Comparison::NotEqual => Some(!same),
        Comparison::Less => order.map(Ordering::is_lt),
        Comparison::LessOrEqual => order.map(Ordering::is_le),
        Comparison::Greater => order.map(Ordering::is_gt),
        Comparison::GreaterOrEqual => order.map(Ordering::is_ge),
    }
}

fn order(left: Fixed<'_>, right: Fixed<'_>) -> Option<Ordering> {
    match (left, right) {
        (Fixed::Bool(left), Fixed::Bool(right)) => Some(left.cmp(&right)),
        (Fixed::Number(left), Fixed::Number(right)) => left.partial_cmp(&right),
        (Fixed::Text(left), Fixed::Text(right)) => Some(left.cmp(right)),
        _ => None,
    }
}
