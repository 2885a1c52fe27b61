//! From text to tree: one token ahead, one function a level of precedence.

use std::ops::Range;

use super::super::json::Number;
use super::super::view::Field;
use super::{Comparison, Expr, Function, Node, Operator};

/// Conditions inside of conditions. Reading is recursive, and so is asking.
const DEPTH_MAX: usize = 32;

/// Words, values and signs of one condition. A chain such as `a + b + c` is as deep as it is long, and is asked by threads with
/// small stacks.
const TOKENS_MAX: usize = 1_000;

/// A mistake in a condition, with the bytes of its text that are to blame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct FilterError {
    /// Never beyond the end of the text; may be empty.
    pub span: Range<usize>,
    /// What is wrong.
    pub problem: FilterProblem,
}

/// What is wrong with a condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterProblem {
    /// Something else stands there.
    #[error("{0} is expected here, not `{1}`")]
    Unexpected(&'static str, String),
    /// The text ends.
    #[error("the condition ends where {0} is expected")]
    End(&'static str),
    /// What other languages write.
    #[error("`{0}` is written `{1}` here")]
    Spelling(String, &'static str),
    /// A text without its closing quote, or an escape that is none.
    #[error("{0}")]
    Text(&'static str),
    /// `1.2.3`, or too large.
    #[error("`{0}` is no number")]
    Number(String),
    /// Not one of ours.
    #[error(
        "there is no function `{0}`; there are `has`, `size`, `startsWith`, `endsWith`, `contains`, `string`, `double`, `int`, `getHours`, `getMinutes`, `getDayOfWeek`"
    )]
    Function(String),
    /// `size(a, b)`.
    #[error("`{0}` takes {1}")]
    Arguments(&'static str, &'static str),
    /// `qos.x`.
    #[error("only `payload` and `property` have fields")]
    NoFields,
    /// `payload[a]`, `property.x.y`.
    #[error("{0}")]
    Field(&'static str),
    /// More than [`TOKENS_MAX`].
    #[error("a condition has at most {TOKENS_MAX} words, values and signs")]
    TooLong,
    /// More than [`DEPTH_MAX`].
    #[error("conditions are nested at most {DEPTH_MAX} deep")]
    TooDeep,
}

type Parsed<T> = Result<T, FilterError>;

#[derive(Clone, Debug, PartialEq)]
enum Token<'t> {
    Name(&'t str),
    Number(Number),
    Text(String),
    /// Operators and brackets.
    Sign(&'static str),
    End,
}

const SIGNS: [&str; 23] = [
    "||", "&&", "==", "!=", "<=", ">=", "<", ">", "!", "+", "-", "*", "/", "%", "?", ":", "(", ")", "[", "]", ",", ".",
    "=",
];

struct Parser<'t> {
    text: &'t str,
    token: Token<'t>,
    span: Range<usize>,
    /// Where the token before it ended.
    before: usize,
    depth: usize,
    tokens: usize,
}

/// Reads all of `text`.
pub(super) fn parse(text: &str) -> Parsed<Expr> {
    let mut parser = Parser { text, token: Token::End, span: 0..0, before: 0, depth: 0, tokens: 0 };
    parser.next()?;
    let root = parser.expression()?;
    if parser.token == Token::End { Ok(root) } else { Err(parser.unexpected("`&&`, `||` or the end")) }
}

impl<'t> Parser<'t> {
    fn expression(&mut self) -> Parsed<Expr> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(FilterError { span: self.span.clone(), problem: FilterProblem::TooDeep });
        }
        let condition = self.either()?;
        let chosen = if self.take("?")? {
            let then = self.expression()?;
            self.expect(":", "`:`")?;
            let other = self.expression()?;
            let span = condition.span.start..other.span.end;
            Expr { span, node: Node::Choose(Box::new([condition, then, other])) }
        } else {
            condition
        };
        self.depth -= 1;
        Ok(chosen)
    }

    fn either(&mut self) -> Parsed<Expr> {
        let mut left = self.both()?;
        while self.take("||")? {
            left = joined(left, self.both()?, Node::Either);
        }
        Ok(left)
    }

    fn both(&mut self) -> Parsed<Expr> {
        let mut left = self.relation()?;
        while self.take("&&")? {
            left = joined(left, self.relation()?, Node::Both);
        }
        Ok(left)
    }

    fn relation(&mut self) -> Parsed<Expr> {
        let mut left = self.sum()?;
        loop {
            let comparison = match self.token {
                Token::Sign("==") => Comparison::Equal,
                Token::Sign("!=") => Comparison::NotEqual,
                Token::Sign("<") => Comparison::Less,
                Token::Sign("<=") => Comparison::LessOrEqual,
                Token::Sign(">") => Comparison::Greater,
                Token::Sign(">=") => Comparison::GreaterOrEqual,
                Token::Name("in") => {
                    self.next()?;
                    left = joined(left, self.sum()?, Node::In);
                    continue;
                }
                Token::Name(_) | Token::Number(_) | Token::Text(_) | Token::Sign(_) | Token::End => return Ok(left),
            };
            self.next()?;
            left = joined(left, self.sum()?, |two| Node::Compare(comparison, two));
        }
    }

    fn sum(&mut self) -> Parsed<Expr> {
        let mut left = self.product()?;
        loop {
            let operator = match self.token {
                Token::Sign("+") => Operator::Add,
                Token::Sign("-") => Operator::Subtract,
                Token::Name(_) | Token::Number(_) | Token::Text(_) | Token::Sign(_) | Token::End => return Ok(left),
            };
            self.next()?;
            left = joined(left, self.product()?, |two| Node::Arithmetic(operator, two));
        }
    }

    fn product(&mut self) -> Parsed<Expr> {
        let mut left = self.unary()?;
        loop {
            let operator = match self.token {
                Token::Sign("*") => Operator::Multiply,
                Token::Sign("/") => Operator::Divide,
                Token::Sign("%") => Operator::Remainder,
                Token::Name(_) | Token::Number(_) | Token::Text(_) | Token::Sign(_) | Token::End => return Ok(left),
            };
            self.next()?;
            left = joined(left, self.unary()?, |two| Node::Arithmetic(operator, two));
        }
    }

    fn unary(&mut self) -> Parsed<Expr> {
        let start = self.span.start;
        let node: fn(Box<Expr>) -> Node = match self.token {
            Token::Sign("!") => Node::Not,
            Token::Sign("-") => Node::Negative,
            Token::Name(_) | Token::Number(_) | Token::Text(_) | Token::Sign(_) | Token::End => return self.member(),
        };
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(FilterError { span: self.span.clone(), problem: FilterProblem::TooDeep });
        }
        self.next()?;
        let inner = self.unary()?;
        self.depth -= 1;
        Ok(Expr { span: start..inner.span.end, node: node(Box::new(inner)) })
    }

    /// A value with what follows it: `.field`, `[0]`, `.function(..)`.
    fn member(&mut self) -> Parsed<Expr> {
        let mut value = self.primary()?;
        loop {
            let start = value.span.start;
            if self.take(".")? {
                let (name, span) = self.name("the name of a field")?;
                if self.take("(")? {
                    value = self.call(name, span, Some(value))?;
                } else {
                    value = self.field(value, name.to_owned(), span)?;
                }
            } else if self.take("[")? {
                let span = self.span.clone();
                let step = match &self.token {
                    Token::Text(text) => text.clone(),
                    Token::Number(Number::Whole(place)) => place.to_string(),
                    Token::Name(_) | Token::Number(_) | Token::Sign(_) | Token::End => {
                        return Err(
                            self.wrong(FilterProblem::Field("between `[ ]` a name in quotes or a place is expected"))
                        );
                    }
                };
                self.next()?;
                self.expect("]", "`]`")?;
                value = self.field(value, step, span)?;
            } else {
                return Ok(value);
            }
            value.span = start..self.before;
        }
    }

    /// One step deeper into the payload, or a property.
    fn field(&self, value: Expr, step: String, span: Range<usize>) -> Parsed<Expr> {
        let wrong = |problem| Err(FilterError { span, problem });
        let Node::Field(field) = value.node else { return wrong(FilterProblem::NoFields) };
        let field = match field {
            Field::Payload(path) => Field::Payload(path.into_iter().chain([step.into_boxed_str()]).collect()),
            Field::Property(name) if name.is_empty() => Field::Property(step.into()),
            Field::Property(_) => {
                return wrong(FilterProblem::Field("a property is a text: `property.NAME`, or `property[\"a.b\"]`"));
            }
            Field::Name(_) | Field::Time(_) => return wrong(FilterProblem::NoFields),
        };
        Ok(Expr { span: value.span, node: Node::Field(field) })
    }

    fn primary(&mut self) -> Parsed<Expr> {
        let span = self.span.clone();
        let node = match std::mem::replace(&mut self.token, Token::End) {
            Token::Number(number) => Node::Number(number),
            Token::Text(text) => Node::Text(text.into()),
            Token::Name(name) => {
                self.next()?;
                if self.take("(")? {
                    return self.call(name, span, None);
                }
                return Ok(Expr { node: named(name, &span)?, span });
            }
            Token::Sign("(") => {
                self.next()?;
                let inner = self.expression()?;
                self.expect(")", "`)`")?;
                return Ok(Expr { span: span.start..self.before, ..inner });
            }
            Token::Sign("[") => {
                self.next()?;
                let items = self.items("]", "`]`")?;
                return Ok(Expr { span: span.start..self.before, node: Node::List(items) });
            }
            other @ (Token::Sign(_) | Token::End) => {
                self.token = other;
                return Err(self.unexpected("a value"));
            }
        };
        self.next()?;
        Ok(Expr { span, node })
    }

    /// Behind the opening bracket of `NAME(`.
    fn call(&mut self, name: &str, span: Range<usize>, receiver: Option<Expr>) -> Parsed<Expr> {
        let start = receiver.as_ref().map_or(span.start, |receiver| receiver.span.start);
        let has_receiver = receiver.is_some();
        let arguments: Vec<Expr> = receiver.into_iter().chain(self.items(")", "`)`")?).collect();
        let whole = start..self.before;
        if name == "has" && !has_receiver {
            let problem = FilterProblem::Arguments("has", "one field, such as `has(payload.temp)`");
            return match <[Expr; 1]>::try_from(arguments) {
                Ok([Expr { node: Node::Field(field), span }]) => Ok(Expr { span, node: Node::Has(field) }),
                Ok(_) | Err(_) => Err(FilterError { span: whole, problem }),
            };
        }
        let Some((name, function)) = Function::ALL.iter().find(|(known, _)| *known == name) else {
            return Err(FilterError { span, problem: FilterProblem::Function(name.to_owned()) });
        };
        if arguments.len() != function.arguments() {
            let takes = match function.arguments() {
                1 => "one value",
                _ => "a text before its dot, and one between its brackets",
            };
            return Err(FilterError { span: whole, problem: FilterProblem::Arguments(name, takes) });
        }
        Ok(Expr { span: whole, node: Node::Call(*function, arguments) })
    }

    /// Values between commas, up to the closing bracket.
    fn items(&mut self, close: &'static str, wanted: &'static str) -> Parsed<Vec<Expr>> {
        let mut items = Vec::new();
        while !self.take(close)? {
            items.push(self.expression()?);
            if self.token != Token::Sign(close) {
                self.expect(",", wanted)?;
            }
        }
        Ok(items)
    }

    fn name(&mut self, wanted: &'static str) -> Parsed<(&'t str, Range<usize>)> {
        match self.token {
            Token::Name(name) => {
                let span = self.span.clone();
                self.next()?;
                Ok((name, span))
            }
            Token::Number(_) | Token::Text(_) | Token::Sign(_) | Token::End => Err(self.unexpected(wanted)),
        }
    }

    fn take(&mut self, sign: &'static str) -> Parsed<bool> {
        let is_it = self.token == Token::Sign(sign);
        if is_it {
            self.next()?;
        }
        Ok(is_it)
    }

    fn expect(&mut self, sign: &'static str, wanted: &'static str) -> Parsed<()> {
        if self.take(sign)? { Ok(()) } else { Err(self.unexpected(wanted)) }
    }

    fn wrong(&self, problem: FilterProblem) -> FilterError {
        FilterError { span: self.span.clone(), problem }
    }

    fn unexpected(&self, wanted: &'static str) -> FilterError {
        let found = self.text.get(self.span.clone()).unwrap_or_default();
        self.wrong(match (&self.token, found) {
            (Token::End, _) => FilterProblem::End(wanted),
            (Token::Sign("="), _) => FilterProblem::Spelling("=".to_owned(), "=="),
            (Token::Name(_), "and") => FilterProblem::Spelling(found.to_owned(), "&&"),
            (Token::Name(_), "or") => FilterProblem::Spelling(found.to_owned(), "||"),
            _ => FilterProblem::Unexpected(wanted, found.to_owned()),
        })
    }

    /// Reads the next token.
    fn next(&mut self) -> Parsed<()> {
        self.before = self.span.end;
        let rest = self.text.get(self.before..).unwrap_or_default();
        let start = self.before + rest.len() - rest.trim_start().len();
        let rest = self.text.get(start..).unwrap_or_default();
        let Some(first) = rest.chars().next() else {
            (self.token, self.span) = (Token::End, start..start);
            return Ok(());
        };
        self.tokens += 1;
        if self.tokens > TOKENS_MAX {
            return Err(FilterError { span: start..start + first.len_utf8(), problem: FilterProblem::TooLong });
        }
        let (token, length) = token(rest, first, start)?;
        (self.token, self.span) = (token, start..start + length);
        Ok(())
    }
}

/// What begins with `first`, and how long it is.
fn token(rest: &str, first: char, start: usize) -> Parsed<(Token<'_>, usize)> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if first.is_ascii_digit() {
        // A sign belongs to an exponent only.
        let mut before = ' ';
        let length = rest.find(|c: char| {
            let exponent = matches!(before, 'e' | 'E') && matches!(c, '+' | '-');
            before = c;
            !(word(c) || c == '.' || exponent)
        });
        let text = rest.get(..length.unwrap_or(rest.len())).unwrap_or_default();
        Ok((Token::Number(number(text, start)?), text.len()))
    } else if word(first) {
        let length = rest.find(|c| !word(c)).unwrap_or(rest.len());
        Ok((Token::Name(rest.get(..length).unwrap_or_default()), length))
    } else if matches!(first, '"' | '\'') {
        let (text, length) = quoted(rest, first, start)?;
        Ok((Token::Text(text), length))
    } else if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
        Ok((Token::Sign(sign), sign.len()))
    } else {
        let problem = match first {
            '&' => FilterProblem::Spelling("&".to_owned(), "&&"),
            '|' => FilterProblem::Spelling("|".to_owned(), "||"),
            _ => FilterProblem::Unexpected("a value or an operator", first.to_string()),
        };
        Err(FilterError { span: start..start + first.len_utf8(), problem })
    }
}

fn joined(left: Expr, right: Expr, node: impl FnOnce(Box<[Expr; 2]>) -> Node) -> Expr {
    Expr { span: left.span.start..right.span.end, node: node(Box::new([left, right])) }
}

/// A word that is no call.
fn named(name: &str, span: &Range<usize>) -> Parsed<Node> {
    Ok(match name {
        "true" => Node::Bool(true),
        "false" => Node::Bool(false),
        "null" => Node::Null,
        "payload" => Node::Field(Field::Payload(Box::default())),
        // Its name follows.
        "property" => Node::Field(Field::Property("".into())),
        "not" => {
            let problem = FilterProblem::Spelling("not".to_owned(), "!");
            return Err(FilterError { span: span.clone(), problem });
        }
        _ => Node::Field(Field::Name(name.into())),
    })
}

fn number(text: &str, start: usize) -> Parsed<Number> {
    let whole = text.parse::<i64>().ok().map(|number| Number::Whole(number.into()));
    let float = || text.parse::<f64>().ok().filter(|number| number.is_finite()).map(Number::Float);
    whole
        .or_else(float)
        .ok_or_else(|| FilterError { span: start..start + text.len(), problem: FilterProblem::Number(text.to_owned()) })
}

/// The text between quotes, and how long it is with them.
fn quoted(rest: &str, quote: char, start: usize) -> Parsed<(String, usize)> {
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == quote {
            return Ok((text, at + 1));
        }
        if c != '\\' {
            text.push(c);
            continue;
        }
        match chars.next().map(|(_, c)| c) {
            Some('n') => text.push('\n'),
            Some('t') => text.push('\t'),
            Some('r') => text.push('\r'),
            Some(c @ ('\\' | '"' | '\'')) => text.push(c),
            _ => {
                let problem = FilterProblem::Text("behind `\\` one of `n`, `t`, `r`, `\\`, `\"`, `'` is expected");
                return Err(FilterError { span: start + at..start + at + 1, problem });
            }
        }
    }
    let problem = FilterProblem::Text("this text has no closing quote");
    Err(FilterError { span: start..start + rest.len(), problem })
}
