//! R34: of two buffers, of which one is to be the other's by `renamed_from`, which one the link has then. Pure.

/// What would be lost with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// Nothing at all: no record, no figure, no damage.
    Nothing,
    /// Nothing that is owed: what it keeps is for replays and for its ledger.
    Settled,
    /// Records that wait, dead letters, or what cannot be told.
    Owed,
}

/// What becomes of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heir {
    /// The old name's becomes the link's; it has none.
    Takes,
    /// The same, in the place of one that holds nothing.
    Replaces,
    /// The same; the link's own is kept under another name.
    SetsAside,
    /// The link keeps its own, and the old name's stays where it is.
    Stays,
    /// Neither can give way.
    Conflict,
}

impl Heir {
    /// `own`: of the link, where it has one.
    pub(super) const fn of(old: Holds, own: Option<Holds>) -> Self {
        match (old, own) {
            (_, None) => Self::Takes,
            (Holds::Settled | Holds::Owed, Some(Holds::Nothing)) => Self::Replaces,
            (Holds::Owed, Some(Holds::Settled)) => Self::SetsAside,
            (Holds::Owed, Some(Holds::Owed)) => Self::Conflict,
            (Holds::Nothing | Holds::Settled, Some(_)) => Self::Stays,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r34_what_is_owed_is_never_in_the_way_of_a_start_but_where_both_have_it() {
        use Heir::{Conflict, Replaces, SetsAside, Stays, Takes};
        let own = [None, Some(Holds::Nothing), Some(Holds::Settled), Some(Holds::Owed)];
        for (old, expected) in [
            (Holds::Nothing, [Takes, Stays, Stays, Stays]),
            (Holds::Settled, [Takes, Replaces, Stays, Stays]),
            (Holds::Owed, [Takes, Replaces, SetsAside, Conflict]),
        ] {
            assert_eq!(own.map(|own| Heir::of(old, own)), expected, "{old:?}");
        }
    }
}
