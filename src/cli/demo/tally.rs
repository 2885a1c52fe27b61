//! What the demo knows of every message: made, acknowledged, arrived. Pure: no clock, no network.
//!
//! A message is a machine and a sequence number; the gateway's own ids and counters play no part, so the figures
//! do not rest on what is being shown.
//!
//! - **lost**: acknowledged to its machine, and never arrived.
//! - **duplicated**: copies beyond the first. At least once means that there may be some: the machines send again what
//!   was not acknowledged when their gateway died, and so does the link.
//! - **out of order**: judged on each message's *last* copy (R10). A resend repeats older messages, which is a
//!   duplicate and not disorder; what counts is that the last copies of one topic stand in the order in which they were sent.

use std::time::Duration;

/// One machine's messages.
#[derive(Clone, Debug, Default)]
struct Messages {
    /// How many were made; their numbers are `0..made`.
    made: u64,
    /// By number: whether the machine holds an acknowledgement.
    acknowledged: Vec<bool>,
    /// By number.
    arrived: Vec<Arrived>,
}

/// How one message arrived.
#[derive(Clone, Copy, Debug, Default)]
struct Arrived {
    copies: u64,
    /// Position of the last copy among all arrivals.
    last: u64,
}

/// All machines' messages.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    machines: Vec<Messages>,
    arrivals: u64,
    strangers: u64,
    figures: Figures,
    age_max: Duration,
}

/// What the screen shows while it runs; kept up to date with every event, so that reading is cheap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Messages made and handed to the machine's client.
    pub published: u64,
    /// Of those, acknowledged.
    pub acknowledged: u64,
    /// Of those that were made, arrived at least once.
    pub delivered: u64,
    /// Of those that were acknowledged, not arrived so far.
    pub owed: u64,
    /// Copies beyond the first.
    pub duplicated: u64,
}

impl Tally {
    /// For so many machines.
    pub(crate) fn new(machines: usize) -> Self {
        Self { machines: vec![Messages::default(); machines], ..Self::default() }
    }

    /// A machine makes its next message; its number.
    pub(crate) fn publish(&mut self, machine: usize) -> u64 {
        let Some(messages) = self.machines.get_mut(machine) else { return 0 };
        let seq = messages.made;
        messages.made += 1;
        messages.acknowledged.push(false);
        messages.arrived.push(Arrived::default());
        self.figures.published += 1;
        seq
    }

    /// The machine got its acknowledgement.
    pub(crate) fn acknowledge(&mut self, machine: usize, seq: u64) {
        let Some((acknowledged, arrived)) = self.message(machine, seq) else { return };
        if !std::mem::replace(acknowledged, true) {
            let owed = arrived.copies == 0;
            self.figures.acknowledged += 1;
            self.figures.owed += u64::from(owed);
        }
    }

    /// A copy arrived, `age` after it was made.
    pub(crate) fn arrive(&mut self, machine: usize, seq: u64, age: Duration) {
        let position = self.arrivals;
        let Some((acknowledged, arrived)) = self.message(machine, seq) else {
            self.strangers += 1;
            return;
        };
        let (first, was_owed) = (arrived.copies == 0, *acknowledged);
        arrived.copies += 1;
        arrived.last = position;
        self.arrivals += 1;
        if first {
            self.figures.delivered += 1;
            self.figures.owed -= u64::from(was_owed);
            self.age_max = self.age_max.max(age);
        } else {
            self.figures.duplicated += 1;
        }
    }

    /// The figures so far.
    pub(crate) const fn figures(&self) -> Figures {
        self.figures
    }

    /// The reckoning.
    pub(crate) fn report(&self, drained: bool) -> Report {
        Report {
            figures: self.figures,
            lost: self.figures.owed,
            out_of_order: self.machines.iter().map(Messages::out_of_order).sum(),
            strangers: self.strangers,
            age_max: self.age_max,
            drained,
        }
    }

    fn message(&mut self, machine: usize, seq: u64) -> Option<(&mut bool, &mut Arrived)> {
        let messages = self.machines.get_mut(machine)?;
        let at = usize::try_from(seq).ok()?;
        Some((messages.acknowledged.get_mut(at)?, messages.arrived.get_mut(at)?))
    }
}

impl Messages {
    /// Messages whose last copy came before the last copy of an earlier one.
    fn out_of_order(&self) -> u64 {
        let mut latest = None;
        let mut count = 0;
        for arrived in self.arrived.iter().filter(|arrived| arrived.copies > 0) {
            if latest.is_some_and(|latest| arrived.last < latest) {
                count += 1;
            } else {
                latest = Some(arrived.last);
            }
        }
        count
    }
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// The counts at the end.
    pub figures: Figures,
    /// Acknowledged and never arrived.
    pub lost: u64,
    /// See the module.
    pub out_of_order: u64,
    /// Arrivals that no machine made: there must be none.
    pub strangers: u64,
    /// The longest time from a machine to the receiver.
    pub age_max: Duration,
    /// Whether the buffer was empty and everything acknowledged had arrived before the time was up.
    pub drained: bool,
}

impl Report {
    /// Whether the promise was kept.
    pub(crate) const fn kept(&self) -> bool {
        self.lost == 0 && self.drained && self.strangers == 0 && self.figures.delivered > 0
    }

    /// One figure a line (R33), for people and for `grep`.
    pub(crate) fn lines(&self) -> Vec<String> {
        let tenths = self.age_max.as_millis() / 100;
        let mut lines = vec![
            format!("published {}", self.figures.published),
            format!("acknowledged {}", self.figures.acknowledged),
            format!("delivered {}", self.figures.delivered),
            format!("lost {}", self.lost),
            format!("duplicated {}", self.figures.duplicated),
            format!("out of order {}", self.out_of_order),
            format!("longest age {}.{}s", tenths / 10, tenths % 10),
        ];
        if self.strangers > 0 {
            lines.push(format!("never published {}", self.strangers));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::from_millis(7_240);

    fn tally(acknowledged: u64) -> Tally {
        let mut tally = Tally::new(2);
        for _ in 0..4 {
            tally.publish(0);
        }
        for seq in 0..acknowledged {
            tally.acknowledge(0, seq);
        }
        tally
    }

    #[test]
    fn what_was_acknowledged_and_never_arrived_is_lost() {
        let mut tally = tally(3);
        tally.arrive(0, 0, AGE);
        tally.arrive(0, 2, AGE);
        let report = tally.report(true);
        assert_eq!((report.lost, report.figures.delivered), (1, 2));
        assert!(!report.kept());
    }

    #[test]
    fn what_was_never_acknowledged_is_not_lost_and_may_arrive_all_the_same() {
        let mut tally = tally(0);
        tally.arrive(0, 3, AGE);
        tally.acknowledge(0, 3);
        let report = tally.report(true);
        assert_eq!((report.lost, report.figures.delivered, report.figures.acknowledged), (0, 1, 1));
    }

    #[test]
    fn r10_a_resend_from_an_earlier_message_on_is_duplicates_and_no_disorder() {
        let mut tally = tally(4);
        for seq in [0, 1, 2, 1, 2, 3] {
            tally.arrive(0, seq, AGE);
        }
        let report = tally.report(true);
        assert_eq!((report.figures.duplicated, report.out_of_order, report.lost), (2, 0, 0));
        assert!(report.kept());
    }

    #[test]
    fn r10_a_last_copy_before_that_of_an_earlier_message_is_disorder() {
        let mut tally = tally(4);
        for seq in [0, 2, 1, 3] {
            tally.arrive(0, seq, AGE);
        }
        assert_eq!(tally.report(true).out_of_order, 1);
    }

    #[test]
    fn machines_do_not_disorder_each_other() {
        let mut tally = tally(1);
        tally.publish(1);
        tally.arrive(1, 0, AGE);
        tally.arrive(0, 0, AGE);
        assert_eq!(tally.report(true).out_of_order, 0);
    }

    #[test]
    fn a_message_that_nobody_made_breaks_the_promise() {
        let mut tally = tally(1);
        tally.arrive(0, 0, AGE);
        tally.arrive(0, 99, AGE);
        let report = tally.report(true);
        assert!(!report.kept());
        assert!(report.lines().contains(&"never published 1".to_owned()));
    }

    #[test]
    fn r33_the_report_is_one_figure_a_line() {
        let mut tally = tally(4);
        for seq in 0..4 {
            tally.arrive(0, seq, AGE);
        }
        let expected = [
            "published 4",
            "acknowledged 4",
            "delivered 4",
            "lost 0",
            "duplicated 0",
            "out of order 0",
            "longest age 7.2s",
        ];
        assert_eq!(tally.report(true).lines(), expected);
        assert!(!tally.report(false).kept(), "a drain that does not finish is a broken promise too");
    }
}
