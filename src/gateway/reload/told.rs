//! What a reload has done to buffers, in words (R34): which a link took over, which is left behind, and a `renamed_from` that found none.

use std::collections::BTreeMap;

use super::super::build::named_for;
use super::super::rename::{self, Carried, Holds};
use super::super::{Entry, Link, Orphan, Parts};
use crate::broker::Reread;
use crate::buffer::Lanes;
use crate::router::LinkId;

impl Parts {
    fn link(&self, id: &LinkId) -> Option<&Link> {
        self.links.iter().find(|link| link.config.id == *id).map(|link| &**link)
    }

    fn orphan(&self, id: &LinkId) -> Option<&Orphan> {
        self.orphans.iter().find(|orphan| orphan.name == id.as_str()).map(|orphan| &**orphan)
    }
}

/// What is told of links, and warnings, a line each.
pub(super) fn of(before: &Parts, after: &Parts, carried: &[Carried]) -> (BTreeMap<Entry, Vec<String>>, String) {
    let mut notes: BTreeMap<Entry, Vec<String>> = BTreeMap::new();
    let mut warnings = String::new();
    let mut note = |id: &LinkId, text| notes.entry(Entry::Link(id.to_string())).or_default().push(text);
    for link in &after.links {
        let id = &link.config.id;
        let was = before.link(id);
        if let (Some(carried), Some(lanes)) = (carried.iter().find(|carried| carried.link == *id), &link.lanes) {
            took_over(before, carried, lanes).into_iter().for_each(|text| note(id, text));
        } else if let Some(old) =
            asked(link, was, after).filter(|old| before.link(old).is_none_or(|old| old.lanes.is_some()))
        {
            warnings += &not_taken(link, old, after);
        } else if let (None, Some(orphan), Some(lanes)) = (was, before.orphan(id), &link.lanes) {
            note(id, format!("takes up the buffer that is there under its name: {}", waiting(lanes)));
            other_kind(orphan.kind.as_deref(), link).into_iter().for_each(|text| note(id, text));
        }
        if let Some(was) = was {
            other_kind(Some(was.config.kind.name()), link).into_iter().for_each(|text| note(id, text));
        }
    }
    let is_left = |gone: &&Link| after.link(&gone.config.id).is_none();
    for gone in before.links.iter().map(|link| &**link).filter(is_left) {
        if let Some(orphan) = after.orphan(&gone.config.id) {
            note(&gone.config.id, left_behind(gone, orphan, &heir(gone, before, after)));
        }
    }
    (notes, warnings)
}

/// Adds which files the broker has read again because they had changed.
pub(super) fn add_files(reread: &[Reread], notes: &mut BTreeMap<Entry, Vec<String>>) {
    for file in reread {
        let (entry, what) = match file {
            Reread::Certificates(listener) => (Entry::Listener(listener.clone()), "certificates"),
            Reread::Logins(what) => (Entry::Broker, *what),
        };
        notes.entry(entry).or_default().push(format!("{what} read again"));
    }
}

/// `3 records wait in it`.
fn waiting(lanes: &Lanes) -> String {
    let letters = lanes.iter().map(|(_, buffer)| buffer.dead_letters().len()).sum();
    owed(lanes.ledger().buffered, letters)
}

fn owed(records: u64, letters: u64) -> String {
    let counted = |count: u64, what: &str| match count {
        0 => None,
        1 => Some(format!("1 {what}")),
        _ => Some(format!("{count} {what}s")),
    };
    let both: Vec<_> = [counted(records, "record"), counted(letters, "dead letter")].into_iter().flatten().collect();
    match records + letters {
        0 => "nothing waits in it".to_owned(),
        1 => format!("{} waits in it", both.join(" and ")),
        _ => format!("{} wait in it", both.join(" and ")),
    }
}

/// What waits in its buffer was made for another kind of link.
fn other_kind(was: Option<&str>, link: &Link) -> Option<String> {
    let (was, is, lanes) = (was?, link.config.kind.name(), link.lanes.as_ref()?);
    (was != is && rename::holds(lanes) == Holds::Owed).then(|| format!("{}: {}", waiting(lanes), named_for(was, is)))
}

fn took_over(before: &Parts, carried: &Carried, lanes: &Lanes) -> Vec<String> {
    let Carried { link, old, aside } = carried;
    let is_renamed = before.link(link).is_none() && before.link(old).is_some();
    let whose =
        if is_renamed { "its buffer comes along".to_owned() } else { format!("takes over the buffer of {old}") };
    let own = aside.as_ref().map(|aside| format!("its own is kept as {aside}: nothing waits in it"));
    [format!("{whose}: {}", waiting(lanes))].into_iter().chain(own).collect()
}

/// The `renamed_from` that this file says first, or that leaves something behind for which a link waits.
fn asked<'l>(link: &'l Link, was: Option<&Link>, after: &Parts) -> Option<&'l LinkId> {
    let old = link.config.renamed_from.as_ref()?;
    let is_new = was.and_then(|was| was.config.renamed_from.as_ref()) != Some(old);
    let is_owed = |orphan: &Orphan| orphan.lanes.as_ref().map_or(true, |lanes| rename::holds(lanes) == Holds::Owed);
    Some(old).filter(|old| is_new || after.orphan(old).is_some_and(is_owed))
}

fn not_taken(link: &Link, old: &LinkId, after: &Parts) -> String {
    let (id, is) = (&link.config.id, link.config.kind.name());
    let why = match after.orphan(old) {
        Some(Orphan { kind: Some(was), lanes: Ok(lanes), .. }) if was != is => format!(
            "the buffer of `{old}` was made for a {was} link, and `{id}` is {is}: it stays where it is, orphaned: {}; `tidegate replay {old} --into {id}` sends copies by their topics",
            waiting(lanes)
        ),
        Some(Orphan { lanes: Ok(lanes), .. }) => match rename::holds(lanes) {
            Holds::Nothing => format!("the buffer of `{old}` never took a record: it stays where it is"),
            Holds::Settled => format!(
                "nothing waits in the buffer of `{old}`, and `{id}` has one of its own: it stays where it is, orphaned; `tidegate replay {old} --into {id}` sends what it keeps"
            ),
            Holds::Owed => format!(
                "the buffer of `{old}` stays where it is, orphaned: {}, and so it is with `{id}`'s own; a reload or a start that finds nothing waiting in that of `{id}` takes it over",
                waiting(lanes)
            ),
        },
        Some(Orphan { lanes: Err(error), .. }) => {
            format!("the buffer of `{old}` cannot be opened, so it is not taken over: {error}")
        }
        None => {
            let shown = |orphan: &Orphan| match &orphan.lanes {
                Ok(lanes) => format!("`{}` ({})", orphan.name, waiting(lanes)),
                Err(_) => format!("`{}` (it cannot be opened)", orphan.name),
            };
            let there: Vec<_> = after.orphans.iter().map(|orphan| shown(orphan)).collect();
            let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
            format!("no buffer has that name, so none is taken over; buffers without a link: {there}")
        }
    };
    format!("link `{id}`: warning: `renamed_from: {old}`: {why}\n")
}

/// Who could take over what is left: the one link of its kind that is new, or any.
fn heir(gone: &Link, before: &Parts, after: &Parts) -> String {
    let is_new = |link: &&Link| {
        let config = &link.config;
        before.link(&config.id).is_none() && config.has_sink && config.kind.name() == gone.config.kind.name()
    };
    let mut new = after.links.iter().map(|link| &**link).filter(is_new);
    match (new.next(), new.next()) {
        (Some(only), None) => only.config.id.to_string(),
        _ => "LINK".to_owned(),
    }
}

fn left_behind(gone: &Link, orphan: &Orphan, heir: &str) -> String {
    let old = &gone.config.id;
    match &orphan.lanes {
        Ok(lanes) if rename::holds(lanes) == Holds::Owed => format!(
            "its buffer is kept: {}; `renamed_from: {old}` on {heir} takes it over; `tidegate replay {old} --into {heir}` sends copies; `tidegate buffer export {old} FILE` writes it to a file",
            waiting(lanes)
        ),
        Ok(_) => "its buffer is kept: nothing waits in it".to_owned(),
        Err(error) => format!("its buffer is kept and cannot be opened: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r34_what_waits_is_counted_in_words() {
        let cases = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (3, 2)].map(|(records, letters)| owed(records, letters));
        let expected = [
            "nothing waits in it",
            "1 record waits in it",
            "2 records wait in it",
            "1 dead letter waits in it",
            "1 record and 1 dead letter wait in it",
            "3 records and 2 dead letters wait in it",
        ];
        assert_eq!(cases, expected);
    }
}
