//! The section `routes`: addresses, captures, and what each kind of remote allows as a name.

use std::collections::HashSet;
use std::time::Duration;

use super::Resolver;
use super::broker::YEAR;
use super::link::{Draft, KindName};
use super::value::{Item, Text, listed};
use crate::buffer::Lane;
use crate::clock::WallMs;
use crate::config::keys;
use crate::config::raw::Value;
use crate::config::source::Place;
use crate::links::Kind;
use crate::message::Qos;
use crate::router::{
    Binding, Endpoint, FIELDS, Filter, Form, From, Known, Mistake, Pattern, Priority, Route, SyntaxError, Template, To,
    is_level,
};

/// `org.apache.kafka.common.internals.Topic`.
const KAFKA_TOPIC_BYTES_MAX: usize = 249;
/// AMQP 0-9-1's short string.
const QUEUE_BYTES_MAX: usize = 255;

/// MQTT counts expiry in seconds, with 32 bits, which are 136 years.
const TTL_MIN: Duration = Duration::from_secs(1);
const TTL_MAX: Duration = YEAR.saturating_mul(100);

/// Moments that have all digits that a form of a time may write, and words of all lengths that matter: an early one, and one late in a year.
const SAMPLE_TIMES: [WallMs; 2] = [WallMs(0), WallMs(1_798_761_599_000)];

/// A route with the places of its addresses.
#[derive(Clone, Debug)]
pub(in crate::config) struct Draught {
    pub(in crate::config) route: Route,
    /// One for each of `route.from`.
    pub(in crate::config) from: Vec<Place>,
    /// One for each of `route.to`.
    pub(in crate::config) to: Vec<Place>,
    /// Its `where` is true of no message.
    pub(in crate::config) takes_nothing: bool,
    /// No mistake is in it, so that what is said of it with others is sure.
    pub(in crate::config) is_right: bool,
    /// Nothing in it waits for secrets that were not looked up.
    pub(super) is_read: bool,
}

impl Resolver<'_> {
    pub(super) fn routes(&mut self, item: Option<Item<'_>>, links: &mut [Draft<'_>]) -> Vec<Draught> {
        let Some(item) = item else { return Vec::new() };
        if matches!(item.node.value, Value::Scalar(_) | Value::Map(_)) {
            self.wrong_type(&item, "a list of routes", Some("begin each with `- `".to_owned()));
            self.addresses_are_known = false;
            return Vec::new();
        }
        let mut names = HashSet::new();
        let items = self.items(&item);
        items.into_iter().enumerate().filter_map(|(at, item)| self.route(&item, at, &mut names, links)).collect()
    }

    fn route(
        &mut self,
        item: &Item<'_>,
        at: usize,
        names: &mut HashSet<String>,
        links: &mut [Draft<'_>],
    ) -> Option<Draught> {
        let (errors, unread) = (self.mistakes.errors(), self.unread);
        let section = self.section(item, &keys::ROUTE);
        if section.is_wrong {
            self.addresses_are_known = false;
            return None;
        }
        let keys_are_right = self.mistakes.errors() == errors;
        let name = self.route_name(section.get("name"), at, names);
        let errors = self.mistakes.errors();
        let begins = self.addresses(item, section.get("from"), "from", "from: broker/factory/#");
        let from: Vec<_> = begins.iter().filter_map(|text| Some((self.from(text, links)?, text))).collect();
        let leads = self.addresses(item, section.get("to"), "to", "to: LINK/{topic}");
        let sources: Vec<&From> = from.iter().map(|(from, _)| from).collect();
        let except = self.except(section.get("except"), &sources);
        let (filter, takes_nothing) = self.filter(section.get("where"), &sources);
        let to: Vec<_> = leads.iter().filter_map(|text| Some((self.to(text, &sources, links)?, text))).collect();
        let has_all = from.len() == begins.len() && to.len() == leads.len();
        let key = self.key(section.get("key"), &sources);
        self.check_key(section.get("key").filter(|_| key.is_some()), &to, links);
        let ttl = self.duration(section.get("ttl"), TTL_MIN..=TTL_MAX);
        if !to.is_empty() && to.iter().all(|(to, _)| to.endpoint == Endpoint::Broker) {
            self.only_for_links(section.get("ttl"));
            self.only_for_links(section.get("priority"));
        }
        let priority = self.priority(section.get("priority"), &to, links);
        let gate = self.gate(&section);
        let mut change = self.change(&section, &sources);
        let batch = self.batch(&section, &mut change, &to, links, ttl);
        self.check_qos(section.get("qos"), change.qos, &to, links);
        self.check_envelope(section.get("envelope"), &change, &to, links);
        self.check_unseen(&section, &change, &to);
        let (from, from_places): (Vec<_>, _) =
            from.into_iter().map(|(from, text)| (from, text.place().clone())).unzip();
        let (to, to_places): (Vec<_>, _) = to.into_iter().map(|(to, text)| (to, text.place().clone())).unzip();
        Some(Draught {
            from: from_places,
            to: to_places,
            takes_nothing,
            is_right: keys_are_right && has_all && self.mistakes.errors() == errors,
            is_read: self.unread == unread,
            route: Route { except, filter, gate, key, ttl, priority, change, batch, ..Route::new(&name, from, to) },
        })
    }

    /// A `key` that no target looks at.
    fn check_key(&mut self, item: Option<Item<'_>>, to: &[(To, &Text<'_>)], links: &[Draft<'_>]) {
        if let Some(item) = item
            && !to.is_empty()
            && !to.iter().any(|(to, _)| is_kafka(links, &to.endpoint))
        {
            self.mistakes.warning(item.place(), "`key` is for Kafka, and this route leads to none", None);
        }
    }

    /// Topics that are taken away from what the route begins with.
    fn except(&mut self, item: Option<Item<'_>>, from: &[&From]) -> Vec<Pattern> {
        let Some(item) = item else { return Vec::new() };
        let mut except = Vec::new();
        for item in self.items(&item) {
            let Some(text) = self.text(Some(item)) else { continue };
            match Pattern::parse(&text.value) {
                Ok(pattern) => {
                    let meets = |from: &&From| from.pattern.as_ref().is_none_or(|from| from.meets(&pattern));
                    if !from.is_empty() && !from.iter().any(meets) {
                        let begins = |from: &&From| text.value.starts_with(&format!("{}/", from.endpoint));
                        let hint = from.iter().find(|from| begins(from)).map(|from| {
                            format!("`except` is a pattern on the topic alone: leave out `{}/`", from.endpoint)
                        });
                        let wrong = "this takes nothing away from what `from` takes";
                        self.mistakes.warning(text.place(), wrong, hint);
                    }
                    except.push(pattern);
                }
                Err(error) => drop(self.bad_address::<Pattern>(&text, &error)),
            }
        }
        except
    }

    /// What has to be true of a message, and whether it is of none.
    fn filter(&mut self, item: Option<Item<'_>>, from: &[&From]) -> (Option<Filter>, bool) {
        let Some(text) = self.text(item) else { return (None, false) };
        let filter = match Filter::parse(&text.value) {
            Ok(filter) => filter,
            Err(error) => {
                let hint = "YAML takes ` #` for the begin of a comment: put the condition in quotes";
                let hint = text.item.node.has_comment().then(|| hint.to_owned());
                self.wrong_part(&text, error.span.clone(), format!("`where`: {error}"), hint);
                return (None, false);
            }
        };
        // Where `from` itself is wrong, what it captures is not known, and no name is.
        let mistakes = filter.mistakes(|name| match names_of(from).all(|names| names.contains(&name)) {
            true if from.is_empty() && FIELDS.contains(&name) => Known::Field,
            true => Known::Captured,
            false if FIELDS.contains(&name) => Known::Field,
            false => Known::No,
        });
        let is_right = mistakes.is_empty();
        for mistake in mistakes {
            let hint = match &mistake {
                Mistake::Unknown { name, .. } if name == "property" => {
                    Some("name one: `property.NAME`, or `property[\"a.b\"]`".to_owned())
                }
                Mistake::Unknown { name, .. } => Some(unknown_name(name, from)),
                Mistake::NoCondition { .. } => Some("compare it with something, such as `qos > 0`".to_owned()),
                Mistake::Types { .. } => {
                    Some("`int(..)`, `double(..)` and `string(..)` make one of the other".to_owned())
                }
                Mistake::Argument { .. } => None,
            };
            self.wrong_part(&text, mistake.span().clone(), format!("`where`: {mistake}"), hint);
        }
        let captured = |name: &str| names_of(from).any(|names| names.contains(&name));
        let verdict = if is_right { filter.verdict(captured) } else { None };
        match verdict {
            Some(false) => {
                let wrong = "`where`: this is true of no message, so the route takes none";
                self.mistakes.warning(text.place(), wrong, "mend it, or take the route out".to_owned());
            }
            Some(true) => {
                let wrong = "`where`: this is true of every message";
                self.mistakes.warning(text.place(), wrong, "leave it out".to_owned());
            }
            None => {}
        }
        (Some(filter), verdict == Some(false))
    }

    /// The lane of the links that the route leads to.
    fn priority(&mut self, item: Option<Item<'_>>, to: &[(To, &Text<'_>)], links: &mut [Draft<'_>]) -> Priority {
        let choices = [("high", Priority::High), ("normal", Priority::Normal), ("low", Priority::Low)];
        let priority = self.choice(item, &choices).unwrap_or_default();
        let lane = match priority {
            Priority::High => Lane::High,
            Priority::Normal => Lane::Normal,
            Priority::Low => Lane::Low,
        };
        for (to, _) in to {
            let Endpoint::Link(link) = &to.endpoint else { continue };
            let config = find(links, link.as_str()).and_then(|draft| draft.config.as_mut());
            if let Some(config) = config.filter(|config| !config.lanes.contains(&lane)) {
                config.lanes.push(lane);
                config.lanes.sort_unstable();
            }
        }
        priority
    }

    /// A key that makes no difference on a route to the broker alone.
    fn only_for_links(&mut self, item: Option<Item<'_>>) {
        if let Some(item) = item {
            let wrong = format!("`{}` is for links, and this route leads to none", item.name);
            self.mistakes.warning(item.place(), wrong, None);
        }
    }

    fn route_name(&mut self, item: Option<Item<'_>>, at: usize, names: &mut HashSet<String>) -> String {
        let text = self.text(item);
        let name = text.as_ref().map_or_else(|| format!("route-{}", at + 1), |text| text.value.clone());
        if !names.insert(name.clone())
            && let Some(text) = text
        {
            let wrong = format!("two routes are called `{}`", text.shown());
            self.mistakes.error(text.place(), wrong, "names stand in metrics and logs".to_owned());
        }
        name
    }

    fn addresses<'n>(&mut self, route: &Item<'n>, item: Option<Item<'n>>, key: &str, example: &str) -> Vec<Text<'n>> {
        let Some(item) = item else {
            self.addresses_are_known = false;
            self.mistakes.error(
                &route.node.place,
                format!("this route has no `{key}`"),
                format!("such as `{example}`"),
            );
            return Vec::new();
        };
        let items = self.items(&item);
        if items.is_empty() {
            self.mistakes.error(item.place(), format!("`{key}` names no address"), format!("such as `{example}`"));
        }
        let texts: Vec<_> = items.into_iter().map(|item| self.text(Some(item))).collect();
        self.addresses_are_known &= !texts.is_empty() && texts.iter().all(Option::is_some);
        texts.into_iter().flatten().collect()
    }

    fn from(&mut self, text: &Text<'_>, links: &mut [Draft<'_>]) -> Option<From> {
        let endpoint = self.endpoint(text, links)?;
        let from = self.begin(text, &endpoint, links);
        if let (None, Endpoint::Link(link)) = (&from, &endpoint)
            && let Some(draft) = find(links, link.as_str())
        {
            draft.is_misread = true;
        }
        from
    }

    fn begin(&mut self, text: &Text<'_>, endpoint: &Endpoint, links: &mut [Draft<'_>]) -> Option<From> {
        let kind = match endpoint {
            Endpoint::Broker => None,
            // A link of unknown kind has its own error; what its addresses mean is not known.
            Endpoint::Link(link) => Some(find(links, link.as_str())?.kind?),
        };
        self.check_shared(text, kind.is_none(), endpoint.address_bytes())?;
        let form = match kind {
            None | Some(KindName::Mqtt) => Form::Topic,
            Some(KindName::Rabbitmq | KindName::Kafka) => Form::Channel,
        };
        let from = match From::parse(&text.value, form) {
            Ok(from) => from,
            Err(error) => return self.bad_address(text, &error),
        };
        if let (Some(kind), Some(channel)) = (kind, &from.channel) {
            self.check_channel(kind, channel, text)?;
        }
        if from.pattern.as_ref().is_some_and(|pattern| pattern.literals().any(|level| level == "*")) {
            let wrong = "`*` is no wildcard in MQTT: this matches only topics that have a `*` there";
            self.mistakes.warning(text.place(), wrong, "one level is `+` or `{name}`, all that follow `#`".to_owned());
        }
        if let Endpoint::Link(link) = endpoint
            && let Some(draft) = find(links, link.as_str())
        {
            draft.consume(&from, text.place());
        }
        Some(from)
    }

    /// MQTT's shared subscriptions are for links to remote brokers.
    fn check_shared(&mut self, text: &Text<'_>, of_broker: bool, offset: usize) -> Option<()> {
        if !of_broker || !text.value.get(offset..)?.starts_with("$share/") {
            return Some(());
        }
        let wrong = "`$share` is for clients: a route gets each message once anyway";
        self.mistakes.error(&text.part(offset..offset + 6), wrong, None);
        None
    }

    fn check_channel(&mut self, kind: KindName, channel: &str, text: &Text<'_>) -> Option<()> {
        let offset = text.value.find('/')? + 1;
        let part = offset..offset + channel.len();
        match kind {
            KindName::Kafka if channel.starts_with('^') => {
                self.not_built(&text.part(part), "a pattern on Kafka topics");
                None
            }
            KindName::Kafka => self.check_kafka_topic(channel, &text.part(part)),
            KindName::Rabbitmq if channel.len() > QUEUE_BYTES_MAX => {
                let wrong = format!("the name of a queue has at most {QUEUE_BYTES_MAX} bytes");
                self.mistakes.error(&text.part(part), wrong, None);
                None
            }
            KindName::Rabbitmq if channel.contains(['{', '}', '#', '+']) => {
                let wrong = format!("`{channel}` stands where the name of a queue is expected");
                let hint = "write `LINK/QUEUE/PATTERN`: the pattern on the message's topic follows the queue";
                self.wrong_part(text, part, wrong, Some(hint.to_owned()));
                None
            }
            KindName::Rabbitmq | KindName::Mqtt => Some(()),
        }
    }

    fn to(&mut self, text: &Text<'_>, from: &[&From], links: &mut [Draft<'_>]) -> Option<To> {
        let endpoint = self.endpoint(text, links)?;
        let mut to = match To::parse(&text.value) {
            Ok(to) => to,
            Err(error) => return self.bad_address(text, &error),
        };
        let offset = endpoint.address_bytes();
        self.check_captures(text, &to.template, offset, from);
        if let Some(span) = to.template.whole_payload() {
            let wrong = "a destination cannot hold the whole payload";
            let hint = "name a field of it: `{payload.line}`";
            self.mistakes.error(&text.part(span.start + offset..span.end + offset), wrong, hint.to_owned());
        }
        let Endpoint::Link(link) = &endpoint else {
            self.check_times(text, &to.template, offset, |_| None);
            if to.template.as_str().starts_with('$') {
                let wrong = "topics that begin with `$` are the broker's own";
                self.mistakes.error(&text.part(offset..text.value.len()), wrong, None);
            }
            return Some(to);
        };
        let draft = find(links, link.as_str())?;
        draft.has_sink = true;
        if let Some(config) = &mut draft.config {
            config.has_sink = true;
        }
        let kind = draft.kind?;
        to.binding = match kind {
            KindName::Mqtt => Binding::Mqtt,
            KindName::Rabbitmq => Binding::Amqp,
            KindName::Kafka => Binding::Kafka,
        };
        let ends_levels = |made: &str| {
            made.contains('.')
                .then(|| ("`.` would end a level in RabbitMQ's routing key".to_owned(), escaped(link.as_str())))
        };
        match kind {
            KindName::Mqtt => self.check_times(text, &to.template, offset, |_| None),
            KindName::Kafka => self.check_kafka_template(text, &to.template, offset),
            // To the default exchange a destination is the name of a queue, dots and all.
            KindName::Rabbitmq if draft.rabbitmq().is_some_and(|config| !config.exchange.is_empty()) => {
                if draft.known().is_some() && draft.rabbitmq().is_some_and(|config| !config.topic_escape) {
                    self.check_dots(text, &to.template, offset, from, link.as_str());
                    self.check_times(text, &to.template, offset, ends_levels);
                } else {
                    self.check_times(text, &to.template, offset, |_| None);
                }
                to.template = to.template.with_dots_as_levels();
            }
            KindName::Rabbitmq => self.check_times(text, &to.template, offset, |_| None),
        }
        Some(to)
    }

    fn key(&mut self, item: Option<Item<'_>>, from: &[&From]) -> Option<Template> {
        let text = self.text(item)?;
        match Template::parse(&text.value) {
            Ok(template) => {
                self.check_captures(&text, &template, 0, from);
                Some(template)
            }
            Err(error) => self.bad_address(&text, &error),
        }
    }

    /// The link that an address names, if it exists.
    fn endpoint(&mut self, text: &Text<'_>, links: &mut [Draft<'_>]) -> Option<Endpoint> {
        let endpoint = match Endpoint::of_address(&text.value) {
            Ok(endpoint) => endpoint,
            Err(error) => {
                self.addresses_are_known = false;
                return self.bad_address(text, &error);
            }
        };
        let Endpoint::Link(link) = &endpoint else { return Some(endpoint) };
        if let Some(draft) = find(links, link.as_str()) {
            draft.is_named = true;
            return Some(endpoint);
        }
        self.addresses_are_known = false;
        if !self.links_are_known {
            return Some(endpoint);
        }
        let names = || links.iter().map(|draft| draft.name).filter(|name| *name != "broker").chain(["broker"]);
        let hint = match keys::nearest(link.as_str(), names()) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("known: {}; a topic of the built-in broker is `broker/TOPIC`", listed(names())),
        };
        self.wrong_part(text, 0..link.as_str().len(), format!("there is no link `{link}`"), Some(hint));
        None
    }

    pub(super) fn bad_address<T>(&mut self, text: &Text<'_>, error: &SyntaxError) -> Option<T> {
        self.wrong_part(text, error.span.clone(), error.to_string(), None);
        None
    }

    /// QoS 2 is more than RabbitMQ knows, than Kafka does without transactions, and than an MQTT link asks for unless it is told to.
    fn check_qos(&mut self, item: Option<Item<'_>>, qos: Option<Qos>, to: &[(To, &Text<'_>)], links: &[Draft<'_>]) {
        let (Some(item), Some(Qos::ExactlyOnce)) = (item, qos) else { return };
        for (to, _) in to {
            let Endpoint::Link(name) = &to.endpoint else { continue };
            let link = links.iter().find(|draft| draft.name == name.as_str()).and_then(Draft::known);
            let (wrong, hint) = match link.map(|link| &link.kind) {
                Some(Kind::Mqtt(mqtt)) if mqtt.qos < Qos::ExactlyOnce => {
                    (format!("`{name}` is published to with QoS 1 at most"), format!("set `qos: 2` at link `{name}`"))
                }
                Some(Kind::Kafka(kafka)) if !kafka.exactly_once => {
                    let hint = format!(
                        "set `exactly_once: true` at link `{name}`, or have its readers drop copies by `tg-id`"
                    );
                    (format!("`{name}` has no QoS 2: what goes there arrives at least once"), hint)
                }
                Some(Kind::Rabbitmq(_)) => {
                    let hint = "a receiver drops copies by `tg-id`".to_owned();
                    (format!("`{name}` has no QoS 2: what goes there arrives at least once"), hint)
                }
                Some(Kind::Mqtt(_) | Kind::Kafka(_)) | None => continue,
            };
            self.mistakes.warning(item.place(), wrong, hint);
        }
    }

    /// R32: every name that a template uses is a part of any message, or captured in each `from` of its route.
    pub(super) fn check_captures(&mut self, text: &Text<'_>, template: &Template, offset: usize, from: &[&From]) {
        for (name, span) in template.uses() {
            let known = |from: &From| -> Vec<String> {
                let names = from.pattern.as_ref().map(|pattern| pattern.names().map(str::to_owned).collect());
                names.unwrap_or_else(|| vec!["topic".to_owned()])
            };
            if FIELDS.contains(&name) {
                continue;
            }
            let Some(names) = from.iter().map(|from| known(from)).find(|names| !names.iter().any(|n| n == name)) else {
                continue;
            };
            let captured = names.iter().map(String::as_str).filter(|name| *name != "topic");
            let hint = match keys::nearest(name, captured.clone().chain(FIELDS)) {
                Some(meant) => format!("did you mean `{{{meant}}}`?"),
                None if name == "rest" && from.iter().all(|from| from.pattern.is_some()) => {
                    "end `from` with `#`: `{rest}` is what that stands for".to_owned()
                }
                None => {
                    let names = listed(captured.map(|name| format!("{{{name}}}")));
                    let captured = if names.is_empty() { String::new() } else { format!("captured: {names}; ") };
                    let fields = listed(FIELDS.map(|name| format!("{{{name}}}")));
                    format!("{captured}every message has {fields}, `{{payload.FIELD}}`, `{{property.NAME}}`")
                }
            };
            let every = if from.len() > 1 { "every `from`" } else { "`from`" };
            let wrong = format!("`{{{name}}}` is not captured in {every} of this route");
            self.wrong_part(text, span.start + offset..span.end + offset, wrong, Some(hint));
        }
    }

    fn check_kafka_template(&mut self, text: &Text<'_>, template: &Template, offset: usize) {
        let place = text.part(offset..text.value.len());
        let long = template.uses().find(|(name, _)| matches!(*name, "rest" | "topic"));
        if let Some((name, span)) = long {
            let place = text.part(span.start + offset..span.end + offset);
            let hint = "the record's key is the MQTT topic anyway; name single levels: `{line}`";
            self.mistakes.error(
                &place,
                format!("`{{{name}}}` may hold `/`, and a Kafka topic cannot"),
                hint.to_owned(),
            );
        }
        self.check_times(text, template, offset, |made| {
            let hint = "such as `{time:%Y-%m-%d}` or `{time:%H%M}`".to_owned();
            kafka_illegal(made).map(|bad| (no_kafka_topic(bad), hint))
        });
        if template.is_fixed() {
            self.check_kafka_topic(template.as_str(), &place);
        } else if let Some(bad) = template.literals().find_map(kafka_illegal) {
            self.bad_kafka_topic(bad, &place);
        }
    }

    fn check_kafka_topic(&mut self, topic: &str, place: &Place) -> Option<()> {
        if let Some(bad) = kafka_illegal(topic) {
            self.bad_kafka_topic(bad, place);
        } else if topic.len() > KAFKA_TOPIC_BYTES_MAX || matches!(topic, "." | "..") {
            let wrong = format!("a Kafka topic has 1 to {KAFKA_TOPIC_BYTES_MAX} characters and is not `.` or `..`");
            self.mistakes.error(place, wrong, None);
        } else {
            return Some(());
        }
        None
    }

    fn bad_kafka_topic(&mut self, bad: char, place: &Place) {
        self.mistakes.error(place, no_kafka_topic(bad), None);
    }

    /// R32: the form of a time is the same for all messages. Where what it makes can never be sent, none would arrive.
    fn check_times(
        &mut self,
        text: &Text<'_>,
        template: &Template,
        offset: usize,
        of_link: impl Fn(&str) -> Option<(String, String)>,
    ) {
        let [first, second] = SAMPLE_TIMES;
        let samples: Vec<_> = template.times(first).zip(template.times(second)).collect();
        for ((first, span), (second, _)) in samples {
            let name = template.as_str().get(span.clone()).unwrap_or_default();
            let judged = |made: String| {
                let of_level = || {
                    let apart = format!("write its levels apart: `{}`", name.replace('/', "}/{time:"));
                    let hint = if name.contains('/') { apart } else { "such as `{time:%Y-%m-%d}`".to_owned() };
                    let why = "a destination takes one level of it: not empty, without `/`, `+`, `#`".to_owned();
                    (!is_level(&made)).then_some((why, hint))
                };
                let (why, hint) = of_link(&made).or_else(of_level)?;
                Some((format!("`{name}` makes {made:?}, and {why}"), hint))
            };
            if let Some((wrong, hint)) = [first, second].into_iter().find_map(judged) {
                self.wrong_part(text, span.start + offset..span.end + offset, wrong, Some(hint));
            }
        }
    }

    /// `{topic}` brings the dots of a literal level along, and RabbitMQ would take them for the ends of levels.
    fn check_dots(&mut self, text: &Text<'_>, template: &Template, offset: usize, from: &[&From], link: &str) {
        let Some((_, span)) = template.uses().find(|(name, _)| *name == "topic") else { return };
        let patterns = from.iter().filter_map(|from| from.pattern.as_ref());
        let Some(level) = patterns.flat_map(|pattern| pattern.literals()).find(|level| level.contains('.')) else {
            return;
        };
        let place = text.part(span.start + offset..span.end + offset);
        let wrong = format!("the dot in `{level}` would end a level in RabbitMQ's routing key");
        self.mistakes.error(&place, wrong, escaped(link));
    }
}

/// What each `from` captures.
fn names_of<'f>(from: &'f [&From]) -> impl Iterator<Item = Vec<&'f str>> {
    from.iter().map(|from| from.pattern.as_ref().map_or_else(|| vec!["topic"], |pattern| pattern.names().collect()))
}

/// A hint for a name in a condition that nothing has.
fn unknown_name(name: &str, from: &[&From]) -> String {
    let captured: Vec<&str> = names_of(from).next().unwrap_or_default();
    let names = captured.iter().copied().chain(FIELDS.into_iter().skip(1)).chain(["payload", "property"]);
    if names_of(from).any(|names| names.contains(&name)) {
        return "every `from` of the route has to capture it".to_owned();
    }
    match keys::nearest(name, names.clone()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("a text needs quotes: `'{name}'`; names are {}", listed(names)),
    }
}

fn find<'d, 'n>(links: &'d mut [Draft<'n>], name: &str) -> Option<&'d mut Draft<'n>> {
    links.iter_mut().find(|draft| draft.name == name)
}

fn is_kafka(links: &[Draft<'_>], endpoint: &Endpoint) -> bool {
    let Endpoint::Link(link) = endpoint else { return false };
    links.iter().any(|draft| draft.name == link.as_str() && draft.kind == Some(KindName::Kafka))
}

/// A hint for what has dots.
fn escaped(link: &str) -> String {
    format!("set `topic_escape: reversible` at link `{link}`")
}

fn no_kafka_topic(bad: char) -> String {
    format!("`{bad}` cannot stand in the name of a Kafka topic: letters, digits, `.`, `_`, `-` can")
}

fn kafka_illegal(text: &str) -> Option<char> {
    text.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-'))
}
