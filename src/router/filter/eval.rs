//! Asking a condition about a message. `None` is no value: the message lacks it, or the types do not go together.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::super::json::{Found, Leaf, Number};
use super::super::view::{Field, Part, View, utc};
use super::{Comparison, Expr, Function, Node, Operator};
use crate::clock::WallMs;

/// A value while a condition is asked.
#[derive(Clone, Debug)]
pub(super) enum Value<'v, 'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'v, str>),
    /// A list or section of the payload.
    Json(Found<'v, 'a>),
    /// One that is written in the condition.
    List(&'v [Expr]),
}

pub(super) fn eval<'v, 'a>(expr: &'v Expr, view: View<'v, 'a>) -> Option<Value<'v, 'a>> {
    match &expr.node {
        Node::Null => Some(Value::Null),
        Node::Bool(value) => Some(Value::Bool(*value)),
        Node::Number(number) => Some(Value::Number(*number)),
        Node::Text(text) => Some(Value::Text(Cow::Borrowed(text))),
        Node::List(items) => Some(Value::List(items)),
        Node::Field(field) => field.of(view).map(Value::from),
        Node::Has(Field::Payload(_)) if view.is_delete => None,
        Node::Has(field) => Some(Value::Bool(field.of(view).is_some())),
        Node::Not(inner) => truth(inner, view).map(|value| Value::Bool(!value)),
        Node::Negative(inner) => match eval(inner, view)? {
            Value::Number(Number::Whole(number)) => Some(Value::Number(Number::Whole(number.checked_neg()?))),
            Value::Number(Number::Float(number)) => Some(Value::Number(Number::Float(-number))),
            Value::Null | Value::Bool(_) | Value::Text(_) | Value::Json(_) | Value::List(_) => None,
        },
        Node::Both(two) => decided(two, view, false),
        Node::Either(two) => decided(two, view, true),
        Node::Compare(comparison, two) => {
            let [left, right] = &**two;
            compare(*comparison, &eval(left, view)?, &eval(right, view)?).map(Value::Bool)
        }
        Node::In(two) => {
            let [one, among] = &**two;
            is_in(&eval(one, view)?, &eval(among, view)?, view).map(Value::Bool)
        }
        Node::Arithmetic(operator, two) => {
            let [left, right] = &**two;
            arithmetic(*operator, eval(left, view)?, eval(right, view)?)
        }
        Node::Choose(three) => {
            let [condition, then, other] = &**three;
            eval(if truth(condition, view)? { then } else { other }, view)
        }
        Node::Call(function, arguments) => call(*function, arguments, view),
    }
}

fn truth(expr: &Expr, view: View<'_, '_>) -> Option<bool> {
    match eval(expr, view)? {
        Value::Bool(value) => Some(value),
        Value::Null | Value::Number(_) | Value::Text(_) | Value::Json(_) | Value::List(_) => None,
    }
}

/// `&&` is decided by a side that is false, `||` by one that is true, whatever the other is.
fn decided<'v, 'a>(two: &[Expr; 2], view: View<'_, '_>, by: bool) -> Option<Value<'v, 'a>> {
    let [left, right] = two;
    let left = truth(left, view);
    if left == Some(by) {
        return Some(Value::Bool(by));
    }
    match (left, truth(right, view)) {
        (_, Some(right)) if right == by => Some(Value::Bool(by)),
        (Some(_), Some(_)) => Some(Value::Bool(!by)),
        (None, _) | (_, None) => None,
    }
}

fn compare(comparison: Comparison, left: &Value<'_, '_>, right: &Value<'_, '_>) -> Option<bool> {
    match comparison {
        Comparison::Equal => equal(left, right),
        Comparison::NotEqual => equal(left, right).map(|equal| !equal),
        Comparison::Less => order(left, right).map(Ordering::is_lt),
        Comparison::LessOrEqual => order(left, right).map(Ordering::is_le),
        Comparison::Greater => order(left, right).map(Ordering::is_gt),
        Comparison::GreaterOrEqual => order(left, right).map(Ordering::is_ge),
    }
}

/// Lists and sections are not compared.
fn equal(left: &Value<'_, '_>, right: &Value<'_, '_>) -> Option<bool> {
    match (left, right) {
        (Value::Json(_) | Value::List(_), _) | (_, Value::Json(_) | Value::List(_)) => None,
        (Value::Null, Value::Null) => Some(true),
        _ => Some(order(left, right).is_some_and(Ordering::is_eq)),
    }
}

fn order(left: &Value<'_, '_>, right: &Value<'_, '_>) -> Option<Ordering> {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left.partial_cmp(right),
        (Value::Text(left), Value::Text(right)) => Some(left.as_ref().cmp(right.as_ref())),
        (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
        _ => None,
    }
}

fn is_in(one: &Value<'_, '_>, among: &Value<'_, '_>, view: View<'_, '_>) -> Option<bool> {
    let same = |other: Option<Value<'_, '_>>| other.is_some_and(|other| equal(one, &other) == Some(true));
    match among {
        Value::List(items) => Some(items.iter().any(|item| same(eval(item, view)))),
        Value::Json(found) if *found.leaf() == Leaf::List => {
            Some(found.children().any(|child| same(Some(Value::from(Part::Json(child))))))
        }
        Value::Json(found) => match one {
            Value::Text(name) => Some(found.children().any(|child| child.key() == &**name)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Json(_) | Value::List(_) => None,
        },
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => None,
    }
}

/// Whole numbers stay whole, as in CEL: `7 / 2` is 3.
fn arithmetic<'v, 'a>(operator: Operator, left: Value<'v, 'a>, right: Value<'v, 'a>) -> Option<Value<'v, 'a>> {
    match (left, right) {
        (Value::Number(Number::Whole(left)), Value::Number(Number::Whole(right))) => {
            let result = match operator {
                Operator::Add => left.checked_add(right),
                Operator::Subtract => left.checked_sub(right),
                Operator::Multiply => left.checked_mul(right),
                Operator::Divide => left.checked_div(right),
                Operator::Remainder => left.checked_rem(right),
            };
            result.map(|number| Value::Number(Number::Whole(number)))
        }
        (Value::Number(left), Value::Number(right)) => {
            let (left, right) = (left.as_float(), right.as_float());
            let result = match operator {
                Operator::Add => left + right,
                Operator::Subtract => left - right,
                Operator::Multiply => left * right,
                Operator::Divide => left / right,
                Operator::Remainder => left % right,
            };
            result.is_finite().then_some(Value::Number(Number::Float(result)))
        }
        (Value::Text(left), Value::Text(right)) if operator == Operator::Add => {
            Some(Value::Text(Cow::Owned(left.into_owned() + &right)))
        }
        _ => None,
    }
}

fn call<'v, 'a>(function: Function, arguments: &'v [Expr], view: View<'v, 'a>) -> Option<Value<'v, 'a>> {
    let first = arguments.first()?;
    match function {
        Function::String => return string(first, view),
        Function::StartsWith => return texts(arguments, view, |text, part| text.starts_with(part)),
        Function::EndsWith => return texts(arguments, view, |text, part| text.ends_with(part)),
        Function::Contains => return texts(arguments, view, |text, part| text.contains(part)),
        Function::Size
        | Function::Double
        | Function::Int
        | Function::Hours
        | Function::Minutes
        | Function::DayOfWeek => {}
    }
    let value = eval(first, view)?;
    let number = match function {
        Function::Size => Number::Whole(i128::try_from(size(&value)?).ok()?),
        Function::Double => Number::Float(double(&value)?),
        Function::Int => int(&value)?,
        Function::Hours => Number::Whole(moment(&value)?.hour().into()),
        Function::Minutes => Number::Whole(moment(&value)?.minute().into()),
        Function::DayOfWeek => Number::Whole(moment(&value)?.weekday().number_days_from_sunday().into()),
        Function::String | Function::StartsWith | Function::EndsWith | Function::Contains => return None,
    };
    Some(Value::Number(number))
}

/// Asks something about two texts.
fn texts<'v, 'a>(arguments: &'v [Expr], view: View<'v, 'a>, ask: impl Fn(&str, &str) -> bool) -> Option<Value<'v, 'a>> {
    match (eval(arguments.first()?, view)?, eval(arguments.get(1)?, view)?) {
        (Value::Text(text), Value::Text(part)) => Some(Value::Bool(ask(&text, &part))),
        _ => None,
    }
}

/// A number of milliseconds since the epoch as a time in UTC.
fn moment(value: &Value<'_, '_>) -> Option<time::OffsetDateTime> {
    match value {
        Value::Number(Number::Whole(ms)) => utc(WallMs(u64::try_from(*ms).ok()?)),
        Value::Number(Number::Float(_))
        | Value::Null
        | Value::Bool(_)
        | Value::Text(_)
        | Value::Json(_)
        | Value::List(_) => None,
    }
}

/// The payload itself as text, JSON or not; else what a value is as text.
fn string<'v, 'a>(expr: &'v Expr, view: View<'v, 'a>) -> Option<Value<'v, 'a>> {
    if let Node::Field(field) = &expr.node {
        let is_unknown = view.is_delete && matches!(field, Field::Payload(_));
        return field.text(view).filter(|_| !is_unknown).map(Value::Text);
    }
    let text = match eval(expr, view)? {
        Value::Text(text) => text,
        Value::Bool(value) => Cow::Borrowed(if value { "true" } else { "false" }),
        Value::Number(number) => Cow::Owned(number.to_string()),
        Value::Null | Value::Json(_) | Value::List(_) => return None,
    };
    Some(Value::Text(text))
}

fn size(value: &Value<'_, '_>) -> Option<usize> {
    match value {
        Value::Text(text) => Some(text.chars().count()),
        Value::List(items) => Some(items.len()),
        Value::Json(found) => Some(found.children().count()),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

fn double(value: &Value<'_, '_>) -> Option<f64> {
    match value {
        Value::Number(number) => Some(number.as_float()),
        Value::Text(text) => text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
        Value::Null | Value::Bool(_) | Value::Json(_) | Value::List(_) => None,
    }
}

/// Towards zero, as in CEL.
fn int(value: &Value<'_, '_>) -> Option<Number> {
    match value {
        Value::Number(Number::Float(number)) => {
            // Every `f64` below 2^63 is a whole number of the format once it is cut.
            let cut = number.trunc();
            let text = format!("{cut:.0}");
            text.parse::<i64>().ok().map(|number| Number::Whole(number.into()))
        }
        Value::Number(whole) => Some(*whole),
        Value::Text(text) => text.trim().parse::<i64>().ok().map(|number| Number::Whole(number.into())),
        Value::Null | Value::Bool(_) | Value::Json(_) | Value::List(_) => None,
    }
}

impl<'v, 'a> From<Part<'v, 'a>> for Value<'v, 'a> {
    fn from(part: Part<'v, 'a>) -> Self {
        match part {
            Part::Bool(value) => Self::Bool(value),
            Part::Number(number) => Self::Number(number),
            Part::Text(text) => Self::Text(text),
            Part::Json(found) => match found.leaf() {
                Leaf::Null => Self::Null,
                Leaf::Bool(value) => Self::Bool(*value),
                Leaf::Number(number) => Self::Number(*number),
                Leaf::Text(text) => Self::Text(Cow::Borrowed(text)),
                Leaf::List | Leaf::Map => Self::Json(found),
            },
        }
    }
}
