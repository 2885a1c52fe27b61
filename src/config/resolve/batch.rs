//! `batch`: what a link's sink sends as one message.

use std::time::Duration;

use super::Resolver;
use super::link::Draft;
use super::value::{Item, Section, Text};
use crate::buffer::SyncMode;
use crate::config::keys;
use crate::config::raw::Value;
use crate::links::Kind;
use crate::message::Qos;
use crate::router::{Batch, BatchForm, Change, Endpoint, Mode, To};
use crate::units::{ByteSize, show_duration};

const COUNT_MAX: u64 = 1_000;
const BYTES_MIN: ByteSize = ByteSize(1 << 10);
const BYTES_MAX: ByteSize = ByteSize(16 << 20);
const LINGER_MIN: Duration = Duration::from_millis(10);
const LINGER_MAX: Duration = Duration::from_hours(1);

impl Resolver<'_> {
    /// `json`, `ndjson`, or `{ format: .., count: 100, bytes: 256KiB, linger: 1s }`. What compresses a message compresses the batch then.
    pub(super) fn batch(
        &mut self,
        route: &Section<'_>,
        change: &mut Change,
        to: &[(To, &Text<'_>)],
        links: &[Draft<'_>],
        ttl: Option<Duration>,
    ) -> Option<Batch> {
        let item = route.get("batch")?;
        self.check_batch(&item, route.get("name").is_some(), to, links);
        if change.envelope.as_ref().is_some_and(|event| event.mode == Mode::Binary) {
            // Of several events only what all have the same would stay: `source`, and no `id`.
            let wrong = "the attributes of `cloudevents-binary` stand in properties, and a batch of several messages has no place for those of each";
            let hint = "`envelope: cloudevents-structured` has them in the payload";
            self.mistakes.error(item.place(), wrong, hint.to_owned());
        }
        let forms = [("json", BatchForm::Json), ("ndjson", BatchForm::Ndjson)];
        let mut batch = Batch {
            form: BatchForm::Json,
            count: Batch::COUNT,
            bytes: Batch::BYTES,
            linger: Batch::LINGER,
            compress: change.compress.take(),
        };
        if !matches!(item.node.value, Value::Map(_)) {
            batch.form = self.choice(Some(item.clone()), &forms)?;
            self.check_batch_limits(&batch, (&item, &item), to, links, ttl);
            return Some(batch);
        }
        let section = self.section(&item, &keys::BATCH);
        batch.form = self.choice(section.get("format"), &forms).unwrap_or(batch.form);
        let count = self.number(section.get("count"), 2..=COUNT_MAX);
        batch.count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(batch.count);
        batch.bytes = self.size(section.get("bytes"), BYTES_MIN..=BYTES_MAX).unwrap_or(batch.bytes);
        batch.linger = self.duration(section.get("linger"), LINGER_MIN..=LINGER_MAX).unwrap_or(batch.linger);
        let bytes = section.get("bytes").unwrap_or_else(|| item.clone());
        let linger = section.get("linger").unwrap_or_else(|| item.clone());
        self.check_batch_limits(&batch, (&bytes, &linger), to, links, ttl);
        Some(batch)
    }

    /// What is wrong with how much goes together, and how long it waits: shown where that is said.
    fn check_batch_limits(
        &mut self,
        batch: &Batch,
        (bytes, linger): (&Item<'_>, &Item<'_>),
        to: &[(To, &Text<'_>)],
        links: &[Draft<'_>],
        ttl: Option<Duration>,
    ) {
        if let Some(ttl) = ttl.filter(|ttl| *ttl <= batch.linger) {
            let (ttl, waits) = (show_duration(ttl), show_duration(batch.linger));
            let wrong = format!("with `ttl: {ttl}` messages lapse while they wait {waits} for others");
            self.mistakes.warning(linger.place(), wrong, "make `linger` shorter than `ttl`".to_owned());
        }
        for config in to.iter().filter_map(|(to, _)| config(&to.endpoint, links)) {
            let largest = match &config.kind {
                Kind::Mqtt(mqtt) => Some((mqtt.max_packet_size, "max_packet_size")),
                Kind::Kafka(kafka) => Some((ByteSize(kafka.message_bytes_max.into()), "max_message")),
                Kind::Rabbitmq(_) => None,
            };
            // How small it becomes compressed is not known here.
            let over = largest.filter(|(largest, _)| batch.compress.is_none() && batch.bytes >= *largest);
            if let Some((largest, key)) = over {
                let wrong = format!(
                    "a batch of {} does not fit into what `{}` sends (`{key}`: {largest}): its messages would go one by one",
                    batch.bytes, config.id
                );
                let hint = format!("lower `bytes` of the batch, or raise the link's `{key}`");
                self.mistakes.warning(bytes.place(), wrong, hint);
            }
            if let SyncMode::Spill(after) = config.buffer.sync
                && batch.linger >= after
            {
                let wrong = format!(
                    "`{}` has `sync: spill`: what waits for others, and what comes behind it, is acknowledged only when it is \
                     written to disk, after `spill_after` ({})",
                    config.id,
                    show_duration(after)
                );
                let hint = "make `linger` shorter than `spill_after`, or use `sync: group`".to_owned();
                self.mistakes.warning(linger.place(), wrong, hint);
            }
        }
    }

    fn check_batch(&mut self, item: &Item<'_>, is_named: bool, to: &[(To, &Text<'_>)], links: &[Draft<'_>]) {
        if !to.is_empty() && to.iter().all(|(to, _)| to.endpoint == Endpoint::Broker) {
            let wrong = "`batch` is for links, and this route leads to none";
            self.mistakes.warning(item.place(), wrong, None);
        }
        if !is_named && to.iter().any(|(to, _)| to.endpoint != Endpoint::Broker) {
            let wrong = "what waits in a buffer finds its batch by the route's name, and this route is called by its place in the list";
            let hint = "add `name: NAME`: another route before it then changes nothing for what is buffered";
            self.mistakes.warning(item.place(), wrong, hint.to_owned());
        }
        for (to, _) in to {
            let Some(config) = config(&to.endpoint, links) else { continue };
            // What is cut differently when it is sent again would be taken for what was there before.
            let (what, hint) = match &config.kind {
                Kind::Kafka(kafka) if kafka.exactly_once => {
                    ("`exactly_once`", "leave one of both out; Kafka's producer batches by itself")
                }
                Kind::Mqtt(mqtt) if mqtt.qos == Qos::ExactlyOnce => ("`qos: 2`", "leave one of both out"),
                Kind::Kafka(_) | Kind::Mqtt(_) | Kind::Rabbitmq(_) => continue,
            };
            let wrong = format!("`{}` has {what}, which counts single records", config.id);
            self.mistakes.error(item.place(), wrong, hint.to_owned());
        }
    }
}

fn config<'l>(endpoint: &Endpoint, links: &'l [Draft<'_>]) -> Option<&'l crate::links::Config> {
    let Endpoint::Link(name) = endpoint else { return None };
    links.iter().find(|draft| draft.name == name.as_str()).and_then(|draft| draft.config.as_ref())
}
