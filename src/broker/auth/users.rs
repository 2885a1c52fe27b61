//! The file of users: one `NAME:ENTRY` a line, as `tidegate passwd` and mosquitto_passwd write it.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use super::LineError;
use super::passwords::Secret;

/// Users, and what checks their passwords.
#[derive(Debug, Default)]
pub struct Users {
    /// Names are asked for by clients, so the map keeps std's keyed hash.
    entries: HashMap<Box<str>, Arc<Secret>>,
    /// In the order of the file.
    secrets: Vec<Arc<Secret>>,
    decoys: RandomState,
}

impl Users {
    /// Reads a file's text. Empty lines and those that begin with `#` are comments.
    ///
    /// # Errors
    /// Every line that is wrong. No message holds a password.
    pub fn parse(text: &str) -> Result<Self, Vec<LineError>> {
        let mut users = Self::default();
        let mut wrong = Vec::new();
        for (n, line) in text.lines().enumerate() {
            let line = line.trim_end_matches('\r');
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            if let Err(text) = users.add(line) {
                wrong.push(LineError { line: n + 1, text });
            }
        }
        if wrong.is_empty() { Ok(users) } else { Err(wrong) }
    }

    fn add(&mut self, line: &str) -> Result<(), String> {
        let (name, entry) = line.split_once(':').ok_or("a line is `NAME:ENTRY`, and this one has no `:`")?;
        if name.is_empty() {
            return Err("the user's name is missing in front of the `:`".to_owned());
        }
        let secret = Arc::new(Secret::parse(entry).map_err(|error| format!("user `{name}`: {error}"))?);
        if self.entries.insert(name.into(), Arc::clone(&secret)).is_some() {
            return Err(format!("user `{name}` is there twice"));
        }
        self.secrets.push(secret);
        Ok(())
    }

    /// What checks the password of `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Secret>> {
        self.entries.get(name)
    }

    /// How many users there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no user.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Some user's entry, always the same for one `name`: checking it costs a name that is not there what it costs one that is, so
    /// that nobody learns by the clock which names there are.
    #[must_use]
    pub fn decoy(&self, name: &str) -> Option<&Arc<Secret>> {
        let at = self.decoys.hash_one(name).checked_rem(self.secrets.len() as u64)?;
        usize::try_from(at).ok().and_then(|at| self.secrets.get(at))
    }

    /// Users whose entry is another than in `newer`, or who are not in it any more.
    pub fn changed<'a>(&'a self, newer: &'a Self) -> impl Iterator<Item = &'a str> {
        let differs = |(name, secret): &(&str, &Arc<Secret>)| newer.entries.get(*name) != Some(*secret);
        self.entries.iter().map(|(name, secret)| (&**name, secret)).filter(differs).map(|(name, _)| name)
    }
}

/// A file's text with the line of `name` as `entry`, or without it; all other lines stay as they are.
#[must_use]
pub fn edited(text: &str, name: &str, entry: Option<&str>) -> String {
    let is_his = |line: &&str| line.split_once(':').is_some_and(|(user, _)| user == name);
    let mut line = entry.map(|entry| format!("{name}:{entry}"));
    let mut edited = String::new();
    for old in text.lines() {
        let new = if is_his(&old) { line.take() } else { Some(old.to_owned()) };
        new.into_iter().for_each(|new| edited.extend([new.as_str(), "\n"]));
    }
    line.into_iter().for_each(|line| edited.extend([line.as_str(), "\n"]));
    edited
}

/// Whether `name` can stand in the file.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        Err("a user's name has at least one character")
    } else if name.contains(':') || name.starts_with('#') || name.chars().any(char::is_control) {
        Err("a user's name holds no `:` and no control character, and does not begin with `#`")
    } else if name.len() > usize::from(u16::MAX) {
        Err("a user's name has at most 65535 bytes")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA512: &str =
        "$6$v5qDkQxHL3qpNS6B$PQxvmdCXyaKBYsDUKG3aJj1s2xDvSeApZJPsvJ9FuLZpVrcctvfNEhFMR/t2ULOBmHkgLjcksGfZ1ZB9RFGZHA==";

    #[test]
    fn every_wrong_line_is_told_with_its_number_and_no_password() {
        let text =
            format!("# machines\nalice:{SHA512}\n\nbob:hunter2\nalice:{SHA512}\nnobody\n:{SHA512}\nc:$5$hunter2$x\n");
        let wrong: Vec<_> = Users::parse(&text).unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(
            wrong,
            [
                "line 4: user `bob`: the password is not hashed: `tidegate passwd FILE USER` writes such a line",
                "line 5: user `alice` is there twice",
                "line 6: a line is `NAME:ENTRY`, and this one has no `:`",
                "line 7: the user's name is missing in front of the `:`",
                "line 8: user `c`: `$5$` is none of the schemes known here: `$argon2id$`, `$7$` and `$6$`",
            ]
        );
    }

    #[test]
    fn names_that_are_not_there_have_a_decoy_of_their_own() {
        let users = Users::parse(&format!("a:{SHA512}\nb:{SHA512}\r\n")).unwrap();
        assert_eq!((users.len(), users.get("b").is_some(), users.get("c").is_some()), (2, true, false));
        let decoy = users.decoy("c").unwrap();
        assert!(std::ptr::eq(decoy, users.decoy("c").unwrap()));
        assert!(Users::default().decoy("c").is_none());
    }

    #[test]
    fn an_edit_changes_one_line_alone() {
        for (text, entry, expected) in [
            ("", Some("$6$x"), "b:$6$x\n"),
            ("# c\na:1\nb:2\nbb:3", Some("$6$x"), "# c\na:1\nb:$6$x\nbb:3\n"),
            ("a:1\nb:2\nb:3\n", Some("$6$x"), "a:1\nb:$6$x\n"),
            ("a:1\nb:2\n", None, "a:1\n"),
            ("a:1\n", None, "a:1\n"),
        ] {
            assert_eq!(edited(text, "b", entry), expected, "{text:?}");
        }
    }

    #[test]
    fn who_changed_or_went_is_known() {
        let other = SHA512.replace("v5qD", "v5qE");
        let old = Users::parse(&format!("a:{SHA512}\nb:{SHA512}\nc:{SHA512}\n")).unwrap();
        let new = Users::parse(&format!("a:{SHA512}\nb:{other}\nd:{SHA512}\n")).unwrap();
        let mut changed: Vec<_> = old.changed(&new).collect();
        changed.sort_unstable();
        assert_eq!(changed, ["b", "c"]);
    }
}
