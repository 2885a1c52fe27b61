//! What a route lets through: `throttle`, `sample`, `dedup`.

use std::time::Duration;

use super::Resolver;
use super::value::{Item, Section};
use crate::config::keys;
use crate::config::raw::Value;
use crate::router::{FieldPath, Gate};

/// Shorter ones would count by the clock's own steps, longer ones are no intervals.
const EVERY_MIN: Duration = Duration::from_millis(10);
const EVERY_MAX: Duration = Duration::from_hours(24 * 31);

impl Resolver<'_> {
    pub(super) fn gate(&mut self, route: &Section<'_>) -> Option<Gate> {
        let (throttle, sample, dedup) = (route.get("throttle"), route.get("sample"), route.get("dedup"));
        for item in [&throttle, &sample, &dedup].into_iter().flatten().skip(1) {
            let wrong = "a route has one of `throttle`, `sample` and `dedup`";
            let hint = "lead the one to `broker/..`, and begin another route there".to_owned();
            self.mistakes.error(item.place(), wrong, hint);
        }
        let throttle = self.duration(throttle, EVERY_MIN..=EVERY_MAX).map(Gate::Throttle);
        let sample = self.duration(sample, EVERY_MIN..=EVERY_MAX).map(Gate::Sample);
        let dedup = self.dedup(dedup);
        throttle.or(sample).or(dedup)
    }

    /// `id`, `payload`, `payload.FIELD`, fields in a list, or `{ by: .., again: 10m }`.
    fn dedup(&mut self, item: Option<Item<'_>>) -> Option<Gate> {
        let item = item?;
        if !matches!(item.node.value, Value::Map(_)) {
            return self.dedup_by(&item, None);
        }
        let section = self.section(&item, &keys::DEDUP);
        let again = self.duration(section.get("again"), EVERY_MIN..=EVERY_MAX);
        let Some(by) = section.get("by") else {
            let hint = "`id`, `payload` or `payload.FIELD`".to_owned();
            self.mistakes.error(&section.place, "`dedup` needs a `by`", hint);
            return None;
        };
        let gate = self.dedup_by(&by, again)?;
        if let (Gate::NewIds, Some(item)) = (&gate, section.get("again")) {
            let wrong = "`again` makes no difference with `by: id`: one message comes once";
            self.mistakes.warning(item.place(), wrong, None);
        }
        Some(gate)
    }

    fn dedup_by(&mut self, item: &Item<'_>, again: Option<Duration>) -> Option<Gate> {
        let (mut fields, mut whole, mut id) = (Vec::new(), false, false);
        let items = self.items(item);
        let (count, mut is_wrong) = (items.len(), false);
        for item in items {
            let text = self.text(Some(item))?;
            match (text.value.as_str(), text.value.strip_prefix("payload.").and_then(FieldPath::parse)) {
                ("id", _) => id = true,
                ("payload", _) => whole = true,
                (_, Some(field)) => fields.push(field),
                (_, None) => {
                    is_wrong = true;
                    let wrong = format!("`{}` is nothing that messages are compared by", text.shown());
                    let hint = "`id`, `payload` and `payload.FIELD` are; several fields are a list".to_owned();
                    self.mistakes.error(text.place(), wrong, hint);
                }
            }
        }
        if is_wrong {
            return None;
        }
        if count == 0 || ((id || whole) && count > 1) {
            let wrong = "messages are compared by `id`, by `payload`, or by fields: one of these";
            self.mistakes.error(item.place(), wrong, "such as `[ payload.state, payload.alarm ]`".to_owned());
            return None;
        }
        Some(if id { Gate::NewIds } else { Gate::Changes { fields, again } })
    }
}
