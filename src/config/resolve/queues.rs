//! The section `queues` of a link to RabbitMQ: the queues that it declares, and what each is bound to.

use super::Resolver;
use super::remote::is_empty_text;
use super::value::{Item, Section};
use crate::config::keys;
use crate::config::raw::{Entry, Node, Value};
use crate::config::source::Place;
use crate::links::rabbitmq::{Argument, QueueBinding, QueueDeclare, QueueKind};

/// What AMQP writes of a name or a key.
const NAME_BYTES_MAX: usize = 255;

impl Resolver<'_> {
    /// `exchange`: the link's own. `streams`: what it reads as streams.
    pub(super) fn queues(&mut self, item: &Item<'_>, exchange: &str, streams: Option<&Item<'_>>) -> Vec<QueueDeclare> {
        let entries = self.entries(item);
        let mut queues = Vec::new();
        for (at, entry) in entries.iter().enumerate() {
            if let Some(first) = entries.iter().take(at).find(|earlier| earlier.key == entry.key) {
                self.repeated(entry, first, "queue");
                continue;
            }
            self.check_queue_name(entry);
            let is_streamed = streams.is_some_and(|item| has_key(item, &entry.key));
            queues.push(self.queue(entry, exchange, is_streamed));
        }
        queues
    }

    fn check_queue_name(&mut self, entry: &Entry) {
        let name = entry.key.as_str();
        if name.is_empty() {
            let wrong = "a queue without a name: RabbitMQ would make one up, another one each time";
            self.mistakes.error(&entry.place, wrong, None);
        } else if name.starts_with("amq.") {
            let wrong = format!("`{name}` cannot be declared: names that begin with `amq.` are RabbitMQ's own");
            self.mistakes.error(&entry.place, wrong, "choose another name".to_owned());
        }
        self.check_short(&entry.place, "the name of a queue", name);
    }

    fn queue(&mut self, entry: &Entry, exchange: &str, is_streamed: bool) -> QueueDeclare {
        let section = self.section(&entry.item(), &keys::QUEUE);
        let kinds = [QueueKind::Classic, QueueKind::Quorum, QueueKind::Stream].map(|kind| (kind.name(), kind));
        let kind = self.choice(section.get("type"), &kinds);
        let is_misread = section.is_wrong || kind.is_none() && section.get("type").is_some();
        if is_streamed && kind != Some(QueueKind::Stream) && !is_misread {
            let wrong = format!("`{}` is no stream here, and `streams` reads it as one", entry.key);
            self.mistakes.error(&entry.place, wrong, "write `type: stream`, or take it out of `streams`".to_owned());
        }
        let durable = self.boolean(section.get("durable")).unwrap_or(true);
        if let (Some(kind @ (QueueKind::Quorum | QueueKind::Stream)), false, Some(item)) =
            (kind, durable, section.get("durable"))
        {
            let wrong = format!("a queue of the type {} is always durable", kind.name());
            self.mistakes.error(item.place(), wrong, "take `durable` out, or write `type: classic`".to_owned());
        }
        if let Some(entries) = section.get("arguments").map(|item| item.node).and_then(map_of)
            && let Some(twice) = entries.iter().find(|entry| entry.key == "x-queue-type")
        {
            let wrong = "`x-queue-type` is what `type` says";
            self.mistakes.error(&twice.place, wrong, "write `type` beside `arguments`".to_owned());
        }
        let arguments = self.short_arguments(section.get("arguments"));
        let mut bindings = Vec::new();
        for item in section.get("bindings").map(|item| self.items(&item)).unwrap_or_default() {
            bindings.extend(self.queue_binding(&item, exchange));
        }
        QueueDeclare { name: entry.key.clone(), kind, durable, arguments, bindings }
    }

    fn queue_binding(&mut self, item: &Item<'_>, exchange: &str) -> Option<QueueBinding> {
        let section = self.section(item, &keys::QUEUE_BINDING);
        if section.is_wrong {
            return None;
        }
        let from = self.bound_exchange(&section, exchange);
        let key = self.text(section.get("key").filter(|item| !is_empty_text(item)));
        if let Some(key) = &key {
            self.check_short(key.place(), "`key`", &key.value);
            if key.value.contains('/') && from.as_deref() == Some(exchange) {
                let wrong = "a `/` in a routing key: the link writes the topic `a/b` as `a.b`";
                let hint = format!("did you mean `{}`?", key.shown().replace('/', ".").replace('+', "*"));
                self.mistakes.warning(key.place(), wrong, hint);
            }
        }
        let key = key.map(|key| key.value).unwrap_or_default();
        let arguments = self.short_arguments(section.get("arguments"));
        Some(QueueBinding { exchange: from?, key, arguments })
    }

    /// The link's own where none is named.
    fn bound_exchange(&mut self, section: &Section<'_>, own: &str) -> Option<String> {
        let given = section.get("exchange");
        let place = match &given {
            Some(item) if is_empty_text(item) => item.place(),
            None if own.is_empty() => &section.place,
            None => return Some(own.to_owned()),
            Some(_) => {
                let text = self.text(given)?;
                self.check_short(text.place(), "the name of an exchange", &text.value);
                return Some(text.value);
            }
        };
        let wrong = "the default exchange takes no bindings: each queue is bound to it by its own name already";
        self.mistakes.error(place, wrong, "name another with `exchange: NAME`, or take the binding out".to_owned());
        None
    }

    fn short_arguments(&mut self, item: Option<Item<'_>>) -> Vec<(String, Argument)> {
        for entry in item.as_ref().and_then(|item| map_of(item.node)).unwrap_or_default() {
            self.check_short(&entry.place, "the name of an argument", &entry.key);
        }
        self.arguments(item)
    }

    fn check_short(&mut self, place: &Place, what: &str, text: &str) {
        if text.len() > NAME_BYTES_MAX {
            let wrong = format!("{what} has at most {NAME_BYTES_MAX} bytes, and this one {}", text.len());
            self.mistakes.error(place, wrong, None);
        }
    }
}

fn map_of(node: &Node) -> Option<&[Entry]> {
    match &node.value {
        Value::Map(entries) => Some(entries),
        Value::Null | Value::Scalar(_) | Value::List(_) => None,
    }
}

fn has_key(item: &Item<'_>, key: &str) -> bool {
    map_of(item.node).is_some_and(|entries| entries.iter().any(|entry| entry.key == key))
}
