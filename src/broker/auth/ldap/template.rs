//! Names and filters with places for what a client says, which is escaped there and so stays a value.

use std::fmt;

/// What is escaped, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// RFC 4514.
    Name,
    /// RFC 4515.
    Filter,
}

/// A template: text with `{user}`, in filters of groups also `{dn}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    kind: Kind,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    User,
    Dn,
}

/// Why text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A `{..}` that means nothing there.
    #[error("`{{{0}}}` means nothing here: {1}")]
    Unknown(String, &'static str),
    /// A `{` without its `}`.
    #[error("a `{{` is not closed")]
    Open,
    /// The same for everybody: whoever knows one password would be anyone.
    #[error("`{{user}}` is missing: it would be the same for every user")]
    NoUser,
    /// Not a filter.
    #[error("it is no filter of RFC 4515, such as `(uid={{user}})`")]
    Filter,
}

impl Template {
    /// The name of an entry: `uid={user},ou=people,dc=plant`.
    ///
    /// # Errors
    /// [`TemplateError`]: what is wrong with it.
    pub fn name(text: &str) -> Result<Self, TemplateError> {
        let template = Self { kind: Kind::Name, parts: parts(text, false)? };
        if template.parts.contains(&Part::User) { Ok(template) } else { Err(TemplateError::NoUser) }
    }

    /// A filter for a user's entry: `(uid={user})`.
    ///
    /// # Errors
    /// [`TemplateError`]: what is wrong with it.
    pub fn user_filter(text: &str) -> Result<Self, TemplateError> {
        let template = Self::filter(text, false)?;
        if template.parts.contains(&Part::User) { Ok(template) } else { Err(TemplateError::NoUser) }
    }

    /// A filter for groups: `(member={dn})` or `(memberUid={user})`.
    ///
    /// # Errors
    /// [`TemplateError`]: what is wrong with it.
    pub fn group_filter(text: &str) -> Result<Self, TemplateError> {
        let template = Self::filter(text, true)?;
        let asks = template.parts.iter().any(|part| matches!(part, Part::User | Part::Dn));
        if asks { Ok(template) } else { Err(TemplateError::NoUser) }
    }

    fn filter(text: &str, with_dn: bool) -> Result<Self, TemplateError> {
        let template = Self { kind: Kind::Filter, parts: parts(text, with_dn)? };
        // The library's own reading, with a value in each place.
        match ldap3::parse_filter(template.filled("user", "dc=plant")) {
            Ok(_) => Ok(template),
            Err(_) => Err(TemplateError::Filter),
        }
    }

    /// The text for one user.
    #[must_use]
    pub fn filled(&self, user: &str, dn: &str) -> String {
        let escaped = |value| match self.kind {
            Kind::Name => ldap3::dn_escape(value),
            Kind::Filter => ldap3::ldap_escape(value),
        };
        let filled = self.parts.iter().map(|part| match part {
            Part::Text(text) => std::borrow::Cow::Borrowed(&**text),
            Part::User => escaped(user),
            Part::Dn => escaped(dn),
        });
        filled.collect()
    }
}

/// As it was written.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(text),
            Part::User => f.write_str("{user}"),
            Part::Dn => f.write_str("{dn}"),
        })
    }
}

fn parts(text: &str, with_dn: bool) -> Result<Vec<Part>, TemplateError> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, behind) = after.split_once('}').ok_or(TemplateError::Open)?;
        if !before.is_empty() {
            parts.push(Part::Text(before.into()));
        }
        parts.push(match name {
            "user" => Part::User,
            "dn" if with_dn => Part::Dn,
            _ if with_dn => return Err(TemplateError::Unknown(name.to_owned(), "`{user}` and `{dn}` do")),
            _ => return Err(TemplateError::Unknown(name.to_owned(), "`{user}` does")),
        });
        rest = behind;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.into()));
    }
    Ok(parts)
}
