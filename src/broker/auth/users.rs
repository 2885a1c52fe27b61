//! The file of users: one `NAME:ENTRY` a line, as `tidegate passwd` and mosquitto_passwd write it.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use super::LineError;
use super::passwords::Secret;
use super::scram::Entry;

/// Users, and what checks their passwords.
#[derive(Debug, Default)]
pub struct Users {
    /// Names are asked for by clients, so the map keeps std's keyed hash.
    entries: HashMap<Box<str>, User>,
    /// In the order of the file.
    secrets: Vec<Arc<Secret>>,
    decoys: RandomState,
}

/// One user's lines: one that checks its password, and one for a proof; either may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct User {
    /// The proof's line where there is no other.
    password: Arc<Secret>,
    proof: Option<Arc<Secret>>,
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
        let proof = secret.proof().map(|_entry| Arc::clone(&secret));
        match self.entries.get_mut(name) {
            None => drop(self.entries.insert(name.into(), User { password: Arc::clone(&secret), proof })),
            Some(user) if proof.is_some() && user.proof.is_none() => user.proof = proof,
            Some(user) if proof.is_none() && user.password.proof().is_some() => user.password = Arc::clone(&secret),
            Some(_) => return Err(format!("user `{name}` is there twice")),
        }
        self.secrets.push(secret);
        Ok(())
    }

    /// What checks the password of `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Secret>> {
        self.entries.get(name).map(|user| &user.password)
    }

    /// What checks a proof of `name`.
    #[must_use]
    pub fn proof(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)?.proof.as_ref()?.proof()
    }

    /// The iterations of some entry for proofs; `None` where there are no such entries.
    #[must_use]
    pub fn nth_iterations(&self, at: usize) -> Option<u32> {
        let proofs = || self.secrets.iter().filter_map(|secret| secret.proof());
        proofs().nth(at.checked_rem(proofs().count())?).map(Entry::iterations)
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
        let others = self.entries.iter().filter(|(name, user)| newer.entries.get(*name) != Some(*user));
        others.map(|(name, _)| &**name)
    }
}

/// A file's text with the line of `name` as `entry`, or without any line of `name`; all other lines stay as they are. A line for proofs and one for
/// passwords stand side by side.
#[must_use]
pub fn edited(text: &str, name: &str, entry: Option<&str>) -> String {
    let is_his = |line: &&str| {
        let (user, old) = line.split_once(':').unwrap_or_default();
        user == name && line.contains(':') && entry.is_none_or(|new| Entry::is_one(new) == Entry::is_one(old))
    };
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
                "line 8: user `c`: `$5$` is none of the schemes known here: `$argon2id$`, `$scram-sha-256$`, `$7$` and `$6$`",
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
    fn a_user_has_a_line_for_passwords_and_one_for_proofs() {
        let proof = Entry::of_password("secret", b"saltsalt", 5_000).unwrap().to_text();
        for text in [format!("a:{SHA512}\na:{proof}\n"), format!("a:{proof}\na:{SHA512}\n")] {
            let users = Users::parse(&text).unwrap();
            assert_eq!((users.len(), users.proof("a").map(Entry::iterations)), (1, Some(5_000)));
            assert!(users.get("a").unwrap().proof().is_none(), "passwords are checked by their own line");
            assert_eq!(users.nth_iterations(17), Some(5_000));
        }
        let users = Users::parse(&format!("a:{proof}\nb:{SHA512}\n")).unwrap();
        assert!(users.get("a").unwrap().verify(b"secret") && !users.get("a").unwrap().verify(b"wrong"));
        assert!(users.proof("b").is_none());
        for twice in [format!("a:{proof}\na:{proof}\n"), format!("a:{SHA512}\na:{proof}\na:{SHA512}\n")] {
            assert!(Users::parse(&twice).unwrap_err()[0].text.contains("twice"));
        }
        assert!(Users::parse("a:$scram-sha-256$1$x").is_err());
    }

    #[test]
    fn an_edit_changes_one_line_alone() {
        for (text, entry, expected) in [
            ("", Some("$6$x"), "b:$6$x\n"),
            ("# c\na:1\nb:2\nbb:3", Some("$6$x"), "# c\na:1\nb:$6$x\nbb:3\n"),
            ("a:1\nb:2\nb:3\n", Some("$6$x"), "a:1\nb:$6$x\n"),
            ("a:1\nb:2\n", None, "a:1\n"),
            ("a:1\n", None, "a:1\n"),
            // A line for proofs stands beside one for passwords, and goes with it.
            ("b:$6$1\n", Some("$scram-sha-256$x"), "b:$6$1\nb:$scram-sha-256$x\n"),
            ("b:$scram-sha-256$1\nb:$6$1\n", Some("$6$x"), "b:$scram-sha-256$1\nb:$6$x\n"),
            ("b:$scram-sha-256$1\nb:$6$1\n", None, ""),
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
