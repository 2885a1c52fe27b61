//! R22, all the time: what the link says of itself, held against what the proxy does.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidegate::telemetry::board::{HalfStatus, LinkState, LinkStatus};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::support::gateway::{ask, link};

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What the link may say now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Things are changing: any state that bad weather can bring.
    Changing,
    /// Nothing passes, and the link has said so: it is not to say `online`.
    Away,
    /// All is well: `online`, whatever else.
    Online,
}

#[derive(Debug)]
struct Seen {
    rule: Rule,
    /// Of the rule: a look that began under another one proves nothing.
    version: u64,
    looks: u64,
    lies: Vec<String>,
}

/// Looks at the link until it is dropped.
#[derive(Debug)]
pub(super) struct Watcher {
    seen: Arc<Mutex<Seen>>,
    _task: JoinSet<()>,
}

impl Watcher {
    pub(super) fn start(data: &Path, name: &'static str, window: u64) -> Self {
        let seen = Arc::new(Mutex::new(Seen { rule: Rule::Changing, version: 0, looks: 0, lies: Vec::new() }));
        let (socket, watched) = (data.join("admin.sock"), Arc::clone(&seen));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut every = interval(LOOK_EVERY);
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                every.tick().await;
                let before = watched.lock().version;
                let Ok(status) = ask(&socket).await else { continue };
                let mut seen = watched.lock();
                if seen.version == before {
                    let rule = seen.rule;
                    seen.looks += 1;
                    seen.lies.extend(lie(rule, link(&status, name), window));
                }
            }
        });
        Self { seen, _task: task }
    }

    /// What holds from now on.
    pub(super) fn rule(&self, rule: Rule) {
        let mut seen = self.seen.lock();
        seen.rule = rule;
        seen.version += 1;
    }

    /// How many looks it has taken.
    pub(super) fn looks(&self) -> u64 {
        self.seen.lock().looks
    }

    /// # Panics
    /// If the link has said what was not so.
    pub(super) fn assert_truthful(&self, when: &str) {
        let seen = self.seen.lock();
        let first: Vec<_> = seen.lies.iter().take(3).collect();
        assert!(
            seen.lies.is_empty(),
            "{when}: {} of {} looks show what is not so: {first:#?}",
            seen.lies.len(),
            seen.looks
        );
    }
}

/// What is wrong with what the link says.
fn lie(rule: Rule, link: &LinkStatus, window: u64) -> Option<String> {
    // The half that the suite is about.
    let sink = link.sink.as_ref().or(link.source.as_ref())?;
    let wrong = match (rule, sink.state) {
        (_, LinkState::Misconfigured | LinkState::DeadLettersFull | LinkState::BufferFailed | LinkState::Paused) => {
            Some("no weather makes a link so")
        }
        (_, LinkState::Blocked) => Some("nobody asked us to hold back"),
        (Rule::Away, LinkState::Online) => Some("nothing passes"),
        (Rule::Online, LinkState::Online) => None,
        (Rule::Online, _) => Some("all is well"),
        (_, LinkState::BackingOff) if sink.last_error.is_none() => Some("the last error is not said"),
        (_, LinkState::BackingOff) if sink.next_try_ms.is_none() => Some("the next try is not said"),
        (Rule::Changing | Rule::Away, _) => None,
    };
    let wrong = wrong.or_else(|| (!link.balanced).then_some("the ledger does not balance"));
    let wrong = wrong.or_else(|| (sink.in_flight > window).then_some("more in flight than the window"));
    wrong.map(|wrong| format!("{wrong}, and it says {:?}: {:?}", sink.state, HalfStatus::clone(sink)))
}

mod tests {
    use super::*;

    fn says(state: LinkState) -> LinkStatus {
        let sink = HalfStatus { state, ..HalfStatus::default() };
        LinkStatus { sink: Some(sink), balanced: true, ..LinkStatus::default() }
    }

    #[test]
    fn lies_are_seen() {
        for (rule, state, is_lie) in [
            (Rule::Away, LinkState::Online, true),
            (Rule::Away, LinkState::Stalled, false),
            (Rule::Online, LinkState::Online, false),
            (Rule::Online, LinkState::Stalled, true),
            (Rule::Changing, LinkState::Connecting, false),
            (Rule::Changing, LinkState::BackingOff, true),
            (Rule::Changing, LinkState::Misconfigured, true),
        ] {
            assert_eq!(lie(rule, &says(state), 1).is_some(), is_lie, "{rule:?}, {state:?}");
        }
    }
}
