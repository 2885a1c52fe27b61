//! Mosquitto's `acl_file` (mosquitto.conf(5)), read as Mosquitto 2.0 reads it:
//!
//! ```text
//! topic read public/#                 # above the first `user`: clients without a user
//! user alice
//! topic readwrite plant/#             # read, write, readwrite (where nothing is said), deny
//! topic deny plant/secret/#
//! pattern write device/%c/#           # every client; %c is its client id, %u its user
//! ```
//!
//! A client's own lines are asked first, then the patterns; in both deny goes before allow. PURE.

use super::LineError;
use super::acl::{Acl, Asks, Glob, Grants, Pattern, Rule, Who, Whom};

/// What a line gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    ReadWrite,
    Deny,
}

/// Reads a file's text.
///
/// # Errors
/// Every line that is wrong.
pub fn parse(text: &str) -> Result<Acl, Vec<LineError>> {
    let mut wrong = Vec::new();
    let mut sections = vec![rule(Whom::Anonymous)];
    let mut patterns = rule(Whom::Everyone);
    let mut current = 0;
    for (n, line) in text.lines().enumerate() {
        let mut fail = |text: String| wrong.push(LineError { line: n + 1, text });
        let line = line.trim_end();
        if line.trim_start().is_empty() || line.starts_with('#') {
            continue;
        }
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = rest.trim();
        match word {
            "user" if rest.is_empty() => fail("`user` needs a name".to_owned()),
            "user" => current = section_of(&mut sections, rest),
            "topic" | "pattern" => {
                let read = if word == "topic" { Pattern::plain } else { Pattern::parse_mosquitto };
                match grant(rest, read) {
                    Err(text) => fail(text),
                    Ok((access, pattern)) if word == "pattern" => add(&mut patterns, access, pattern),
                    Ok((access, pattern)) => {
                        sections.get_mut(current).into_iter().for_each(|rule| add(rule, access, pattern.clone()));
                    }
                }
            }
            _ => fail(format!("`{word}` is none of `user`, `topic` and `pattern`")),
        }
    }
    sections.push(patterns);
    if wrong.is_empty() { Ok(Acl::new(sections, Asks::All)) } else { Err(wrong) }
}

fn rule(user: Whom) -> Rule {
    let who = Who { user, client: None, group: None };
    Rule { who, publish: Grants::default(), subscribe: Grants::default() }
}

/// Lines of one user may stand in several places.
fn section_of(sections: &mut Vec<Rule>, name: &str) -> usize {
    let whom = Whom::Named(Glob::Exactly(name.into()));
    sections.iter().position(|rule| rule.who.user == whom).unwrap_or_else(|| {
        sections.push(rule(whom));
        sections.len() - 1
    })
}

/// `[ACCESS] TOPIC`; a topic may hold spaces.
fn grant(
    rest: &str,
    read: impl Fn(&str) -> Result<Pattern, super::acl::PatternError>,
) -> Result<(Access, Pattern), String> {
    let (access, topic) = match rest.split_once(' ') {
        None => (Access::ReadWrite, rest),
        Some(("read", topic)) => (Access::Read, topic),
        Some(("write", topic)) => (Access::Write, topic),
        Some(("readwrite", topic)) => (Access::ReadWrite, topic),
        Some(("deny", topic)) => (Access::Deny, topic),
        Some((other, _)) => return Err(format!("`{other}` is none of `read`, `write`, `readwrite` and `deny`")),
    };
    let topic = topic.trim();
    read(topic).map(|pattern| (access, pattern)).map_err(|error| format!("`{topic}` is no topic filter: {error}"))
}

fn add(rule: &mut Rule, access: Access, pattern: Pattern) {
    match access {
        Access::Read => rule.subscribe.allow.push(pattern),
        Access::Write => rule.publish.allow.push(pattern),
        Access::ReadWrite => {
            rule.subscribe.allow.push(pattern.clone());
            rule.publish.allow.push(pattern);
        }
        Access::Deny => {
            rule.subscribe.deny.push(pattern.clone());
            rule.publish.deny.push(pattern);
        }
    }
}
