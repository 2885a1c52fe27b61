//! Held acknowledgements: each leaves when what it waits for has come, and never before one that was pushed earlier
//! (MQTT-4.6.0-2).

use std::collections::VecDeque;

/// Replies `R`, each with what it waits for, `W`.
#[derive(Debug)]
pub(crate) struct Acks<R, W> {
    held: VecDeque<(R, W)>,
    /// The number of the first one held.
    first: u64,
}

impl<R, W> Default for Acks<R, W> {
    fn default() -> Self {
        Self { held: VecDeque::new(), first: 0 }
    }
}

impl<R, W> Acks<R, W> {
    /// How many are held: the connection stops reading at its Receive Maximum.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether none is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Holds one more; the answer is its number.
    pub(crate) fn push(&mut self, reply: R, wait: W) -> u64 {
        self.held.push_back((reply, wait));
        self.first + self.held.len() as u64 - 1
    }

    /// Says anew what `number` waits for. Nothing happens if it has left.
    pub(crate) fn set(&mut self, number: u64, wait: W) {
        let at = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some((_, slot)) = at.and_then(|at| self.held.get_mut(at)) {
            *slot = wait;
        }
    }

    /// What the first one waits for.
    pub(crate) fn head_mut(&mut self) -> Option<&mut W> {
        self.held.front_mut().map(|(_, wait)| wait)
    }

    /// Takes the first one if `decide` has an answer for it.
    pub(crate) fn poll<D>(&mut self, decide: impl FnOnce(&W) -> Option<D>) -> Option<(R, D)> {
        let decision = decide(&self.held.front()?.1)?;
        let (reply, _) = self.held.pop_front()?;
        self.first += 1;
        Some((reply, decision))
    }

    /// Takes all that are left, in order.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (R, W)> {
        self.first += self.held.len() as u64;
        self.held.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_leave_in_order_of_receipt_though_later_ones_are_ready_first() {
        let mut acks = Acks::default();
        let first = acks.push("first", false);
        let second = acks.push("second", false);
        acks.set(second, true);
        assert_eq!(acks.poll(|ready| ready.then_some(())), None);
        acks.set(first, true);
        assert_eq!(acks.poll(|ready| ready.then_some(())), Some(("first", ())));
        assert_eq!(acks.poll(|ready| ready.then_some(())), Some(("second", ())));
        assert!(acks.is_empty());
    }

    #[test]
    fn numbers_stay_true_after_others_have_left() {
        let mut acks = Acks::default();
        acks.push('a', true);
        let b = acks.push('b', false);
        assert!(acks.poll(|ready| ready.then_some(())).is_some());
        acks.set(b, true);
        assert_eq!(acks.head_mut(), Some(&mut true));
        assert_eq!(acks.drain().count(), 1);
        let c = acks.push('c', false);
        acks.set(c, true);
        assert_eq!(acks.len(), 1);
        assert_eq!(acks.poll(|ready| ready.then_some(())), Some(('c', ())));
    }
}
