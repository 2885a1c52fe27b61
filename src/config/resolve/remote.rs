//! The sections `rabbitmq` and `kafka` of a link, and what all remotes share.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use url::Url;

use super::Resolver;
use super::broker::PACKET_BYTES_MIN;
use super::value::{Item, NOT_SHOWN, Section, Text, beside};
use crate::broker::{TlsClientSources, examine_tls_client};
use crate::buffer::SyncMode;
use crate::config::hidden;
use crate::config::keys;
use crate::config::raw::{ScalarKind, Value};
use crate::config::source::Place;
use crate::links::{Config, Drain, Kind, Tls, kafka, rabbitmq};
use crate::units::ByteSize;

/// librdkafka's limit of `message.max.bytes`.
const KAFKA_MESSAGE_MAX: ByteSize = ByteSize(1_000_000_000);
/// R3.
pub(super) const MESSAGE_DEFAULT: ByteSize = ByteSize(1 << 20);
/// librdkafka properties that have a key of their own, or that the promise stands on.
const KAFKA_LOCKED: [(&str, &str); 17] = [
    ("bootstrap.servers", "the key `brokers`"),
    ("metadata.broker.list", "the key `brokers`"),
    ("acks", "the key `acks`"),
    ("request.required.acks", "the key `acks`"),
    ("group.id", "the key `group`"),
    ("compression.type", "the key `compression`"),
    ("compression.codec", "the key `compression`"),
    ("message.max.bytes", "the key `max_message`"),
    ("enable.idempotence", "the key `acks`"),
    ("transactional.id", "the key `transactional_id`"),
    ("auto.offset.reset", "the key `start`"),
    ("transaction.timeout.ms", "Tidegate, which ends a transaction in time,"),
    ("enable.auto.offset.store", "Tidegate, which stores an offset when its message is safe,"),
    ("enable.auto.commit", "Tidegate, which commits what it has stored,"),
    ("auto.commit.interval.ms", "Tidegate, which commits what it has stored,"),
    ("message.timeout.ms", "the buffer, which keeps a record for `max_age`,"),
    ("delivery.timeout.ms", "the buffer, which keeps a record for `max_age`,"),
];

const RABBITMQ_SCHEMES: [&str; 2] = ["amqp", "amqps"];

/// librdkafka properties that name a file.
const KAFKA_FILES: [&str; 6] = [
    "ssl.key.location",
    "ssl.certificate.location",
    "ssl.ca.location",
    "ssl.crl.location",
    "ssl.keystore.location",
    "sasl.kerberos.keytab",
];

/// What to do about a secret that the file spells out.
const NOT_PLAIN: &str = "write `${env:NAME}` or `${file:PATH}` in its place";

impl Resolver<'_> {
    pub(super) fn rabbitmq(&mut self, item: &Item<'_>, positions: PathBuf) -> Option<rabbitmq::Config> {
        let section = self.section(item, &keys::RABBITMQ);
        let exchange = self.text(section.get("exchange").filter(|item| !is_empty_text(item))).map(|text| text.value);
        let exchange = exchange.unwrap_or_default();
        let declare = section.get("declare").and_then(|item| self.declare(&item, &exchange));
        let streamed = section.get("streams");
        let queues = section.get("queues").map(|item| self.queues(&item, &exchange, streamed.as_ref()));
        let mandatory = self.boolean(section.get("mandatory")).unwrap_or(true);
        let unroutables = [("dead_letter", rabbitmq::Unroutable::DeadLetter), ("retry", rabbitmq::Unroutable::Retry)];
        let unroutable = self.choice(section.get("unroutable"), &unroutables).unwrap_or_default();
        let prefetch = self.number(section.get("prefetch"), 1..=65_535).and_then(|count| u16::try_from(count).ok());
        let topic_escape = self.choice(section.get("topic_escape"), &[("reversible", true), ("none", false)]);
        let streams = self.streams(streamed);
        let tls = self.remote_tls(&section, Vec::new());
        let (text, url) = self.url(&section, &RABBITMQ_SCHEMES, "such as `amqp://rmq.example:5672/%2f`")?;
        match url.scheme() {
            "amqps" => {}
            "amqp" => self.check_no_tls_keys(&section, &["ca", "cert", "key", "server_name"], "amqps://"),
            scheme => {
                self.wrong_scheme(&text, scheme, &RABBITMQ_SCHEMES);
                return None;
            }
        }
        if url.path() == "/" {
            let wrong = "this URL asks for a vhost without a name";
            self.mistakes.warning(text.place(), wrong, "the default vhost is `/%2f`".to_owned());
        }
        Some(rabbitmq::Config {
            url: text.value,
            exchange,
            declare,
            queues: queues.unwrap_or_default(),
            mandatory,
            unroutable,
            prefetch: prefetch.unwrap_or(512),
            topic_escape: topic_escape.unwrap_or(false),
            tls,
            positions: Some(positions).filter(|_| !streams.is_empty()),
            streams,
        })
    }

    /// The keys that say how a remote is trusted, and what is shown to it.
    pub(super) fn remote_tls(&mut self, section: &Section<'_>, alpn: Vec<String>) -> Tls {
        let files = ["ca", "cert", "key"].map(|name| self.tls_file(section.get(name)));
        let [ca, cert, key] = files.each_ref().map(|file| file.as_ref()?.text.as_deref());
        self.tls_findings(section, examine_tls_client(TlsClientSources { ca, cert, key }));
        self.check_pair(section);
        if let (Some(item), [_, _, Some(file)]) = (section.get("key"), &files)
            && file.text.is_some()
        {
            self.check_public_key(item.place(), &file.path);
        }
        let [ca, cert, key] = files.map(|file| file.map(|file| file.path));
        let server_name = self.text(section.get("server_name")).filter(|text| {
            let right = rustls_pki_types::ServerName::try_from(text.value.as_str()).is_ok();
            if !right {
                let wrong = format!("`{}` is no name that a certificate can have", text.shown());
                self.mistakes.error(text.place(), wrong, "such as `hq.example`".to_owned());
            }
            right
        });
        Tls { ca, identity: cert.zip(key), server_name: server_name.map(|text| text.value), alpn }
    }

    /// Queues that are streams, and where each begins.
    fn streams(&mut self, item: Option<Item<'_>>) -> BTreeMap<String, rabbitmq::StreamStart> {
        let Some(item) = item else { return BTreeMap::new() };
        let mut streams = BTreeMap::new();
        for entry in self.entries(&item) {
            let Some(text) = self.text(Some(entry.item())) else { continue };
            let time = || OffsetDateTime::parse(&text.value, &Rfc3339).ok()?.unix_timestamp().try_into().ok();
            let start = match text.value.as_str() {
                "first" => Some(rabbitmq::StreamStart::First),
                "last" => Some(rabbitmq::StreamStart::Last),
                "next" => Some(rabbitmq::StreamStart::Next),
                other => other.parse().ok().map(rabbitmq::StreamStart::Offset),
            };
            match start.or_else(|| time().map(rabbitmq::StreamStart::Time)) {
                Some(start) => drop(streams.insert(entry.key.clone(), start)),
                None => {
                    let wrong = format!("`{}` is no place in a stream", text.shown());
                    let hint =
                        "`first`, `last`, `next`, an offset, and a time such as `2026-11-27T06:00:00Z` are".to_owned();
                    self.mistakes.error(text.place(), wrong, hint);
                }
            }
        }
        streams
    }

    pub(super) fn arguments(&mut self, item: Option<Item<'_>>) -> Vec<(String, rabbitmq::Argument)> {
        let Some(item) = item else { return Vec::new() };
        let mut arguments = Vec::new();
        for entry in self.entries(&item) {
            if let Value::Scalar(scalar) = &entry.value.value
                && let ScalarKind::Bool(value) = scalar.kind
            {
                arguments.push((entry.key.clone(), rabbitmq::Argument::Bool(value)));
                continue;
            }
            if is_empty_text(&entry.item()) {
                arguments.push((entry.key.clone(), rabbitmq::Argument::Text(String::new())));
                continue;
            }
            let is_number = matches!(&entry.value.value, Value::Scalar(scalar) if scalar.kind == ScalarKind::Number);
            let Some(text) = self.text(Some(entry.item())) else { continue };
            let number = text.value.parse().ok().filter(|_| is_number).map(rabbitmq::Argument::Int);
            arguments.push((entry.key.clone(), number.unwrap_or(rabbitmq::Argument::Text(text.value))));
        }
        arguments
    }

    fn declare(&mut self, item: &Item<'_>, exchange: &str) -> Option<rabbitmq::Declare> {
        let section = self.section(item, &keys::DECLARE);
        let kinds = ["topic", "direct", "fanout", "headers"].map(|kind| (kind, kind.to_owned()));
        let kind = self.choice(section.get("type"), &kinds);
        let durable = self.boolean(section.get("durable")).unwrap_or(true);
        let arguments = self.arguments(section.get("arguments"));
        if exchange.is_empty() {
            let wrong = "`declare` needs the name of an exchange: the default exchange is always there";
            self.mistakes.error(&section.place, wrong, "add `exchange: NAME`".to_owned());
            return None;
        }
        Some(rabbitmq::Declare { kind: kind.unwrap_or_else(|| "topic".to_owned()), durable, arguments })
    }

    pub(super) fn kafka(&mut self, item: &Item<'_>) -> Option<kafka::Config> {
        let section = self.section(item, &keys::KAFKA);
        let acks = self.choice(section.get("acks"), &[("all", "all"), ("-1", "all"), ("1", "1"), ("0", "0")]);
        if let (Some("0" | "1"), Some(item)) = (acks, section.get("acks")) {
            let wrong = "a confirmation then does not mean that the message is safe in the cluster";
            self.mistakes.warning(item.place(), wrong, "`all`, the default, does".to_owned());
        }
        let codecs = ["none", "gzip", "snappy", "lz4", "zstd"].map(|codec| (codec, codec.to_owned()));
        let compression = self.choice(section.get("compression"), &codecs);
        let group = self.text(section.get("group")).map(|text| text.value);
        let largest = self.size(section.get("max_message"), PACKET_BYTES_MIN..=KAFKA_MESSAGE_MAX);
        let tombstones = self.boolean(section.get("tombstones")).unwrap_or(false);
        let start = self.kafka_start(section.get("start"));
        let token = self.looked_up(&section, "token_file", "token_command");
        let (exactly_once, transactional_id) = self.exactly_once(&section, acks);
        let options = section.get("options").map(|item| self.kafka_options(&item)).unwrap_or_default();
        let Some(list) = section.get("brokers") else {
            self.missing(&section, "brokers", "such as `brokers: [\"127.0.0.1:9092\"]`");
            return None;
        };
        let items = self.items(&list);
        // All are looked at before the first that is wrong ends it.
        let brokers: Vec<Option<String>> = items.into_iter().map(|item| self.kafka_broker(item)).collect();
        let brokers = brokers.into_iter().collect::<Option<Vec<String>>>()?;
        if brokers.is_empty() {
            self.mistakes.error(list.place(), "`brokers` names no broker", None);
            return None;
        }
        Some(kafka::Config {
            brokers,
            acks: acks.unwrap_or("all").to_owned(),
            compression,
            group,
            options,
            message_bytes_max: u32::try_from(largest.unwrap_or(MESSAGE_DEFAULT).0).unwrap_or(u32::MAX),
            exactly_once,
            transactional_id,
            tombstones,
            start: start.unwrap_or_default(),
            token: token.unwrap_or_default(),
        })
    }

    fn kafka_start(&mut self, item: Option<Item<'_>>) -> Option<kafka::Start> {
        let text = self.text(item)?;
        let time = || OffsetDateTime::parse(&text.value, &Rfc3339).ok()?.unix_timestamp().checked_mul(1_000);
        let start = match text.value.as_str() {
            "earliest" => Some(kafka::Start::Earliest),
            "latest" => Some(kafka::Start::Latest),
            _ => time().map(kafka::Start::Time),
        };
        if start.is_none() {
            let hint = "`earliest`, `latest`, and a time such as `2026-11-27T06:00:00Z` are".to_owned();
            self.mistakes.error(text.place(), format!("`{}` is no place to begin at", text.shown()), hint);
        }
        start
    }

    fn exactly_once(&mut self, section: &Section<'_>, acks: Option<&str>) -> (bool, Option<String>) {
        let exactly_once = self.boolean(section.get("exactly_once")).unwrap_or(false);
        let id = self.text(section.get("transactional_id"));
        if let (true, Some("0" | "1"), Some(item)) = (exactly_once, acks, section.get("acks")) {
            self.mistakes.error(item.place(), "`exactly_once` needs `acks: all`", None);
        }
        if let (false, Some(id)) = (exactly_once, &id) {
            let wrong = "`transactional_id` does nothing without transactions";
            self.mistakes.error(id.place(), wrong, "add `exactly_once: true`".to_owned());
        }
        (exactly_once, id.map(|id| id.value))
    }

    /// What the whole link has to be for `exactly_once` to be true (R26).
    pub(super) fn check_exactly_once(&mut self, link: &Section<'_>, config: &Config) {
        if !matches!(&config.kind, Kind::Kafka(remote) if remote.exactly_once) {
            return;
        }
        if config.buffer.sync != SyncMode::Group
            && let Some(item) = link.get("buffer")
        {
            let wrong = "`exactly_once` needs `sync: group`: a number whose record a power cut takes would be given again, and Kafka counts it as sent";
            self.mistakes.error(item.place(), wrong, None);
        }
        if let (Drain::LiveFirst { .. }, Some(item)) = (config.drain, link.get("drain")) {
            let wrong = "`exactly_once` needs `drain: fifo`: how far the log is has to be one number";
            self.mistakes.error(item.place(), wrong, None);
        }
    }

    fn kafka_broker(&mut self, item: Item<'_>) -> Option<String> {
        let text = self.text(Some(item))?;
        let right = text.value.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && !host.contains(['/', ',', ' ']) && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if !right {
            let wrong = format!("`{}` is no broker's address", text.shown());
            self.mistakes.error(text.place(), wrong, "write `HOST:PORT`, such as `127.0.0.1:9092`".to_owned());
        }
        right.then_some(text.value)
    }

    fn kafka_options(&mut self, item: &Item<'_>) -> BTreeMap<String, String> {
        let mut options = BTreeMap::new();
        for entry in self.entries(item) {
            let key = entry.key.as_str();
            if let Some((_, owner)) = KAFKA_LOCKED.iter().find(|(locked, _)| *locked == key) {
                let wrong = format!("`{key}` is no option here: {owner} sets it");
                self.mistakes.error(&entry.place, wrong, None);
                continue;
            }
            let Some(text) = self.text(Some(entry.item())) else { continue };
            if hidden::is_secret_key(key) && !text.is_substituted() {
                self.plain_password(text.place());
            }
            let value = if KAFKA_FILES.contains(&key) { self.kafka_file(key, &text) } else { text.value };
            options.insert(key.to_owned(), value);
        }
        options
    }

    /// A file that librdkafka opens when the link connects: it has to be there, relative to the file of routes like all others (R30).
    fn kafka_file(&mut self, key: &str, text: &Text<'_>) -> String {
        if key == "ssl.ca.location" && text.value == "probe" {
            return text.value.clone();
        }
        let path = beside(text.place(), Path::new(&text.value));
        if !self.env.no_secrets {
            match (self.env.file)(&path) {
                // What it holds, or a folder of authorities, is librdkafka's to judge.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                    let wrong = format!("{}: {error}", path.display());
                    self.wrong_part(text, 0..text.given.len(), wrong, None);
                }
                Ok(_) | Err(_) if key == "ssl.key.location" => self.check_public_key(text.place(), &path),
                Ok(_) | Err(_) => {}
            }
        }
        path.to_string_lossy().into_owned()
    }

    /// The key `url`, parsed.
    fn url<'n>(&mut self, section: &Section<'n>, schemes: &[&str], example: &str) -> Option<(Text<'n>, Url)> {
        let Some(item) = section.get("url") else {
            self.missing(section, "url", example);
            return None;
        };
        self.parsed_url(item, schemes, example)
    }

    pub(super) fn parsed_url<'n>(
        &mut self,
        item: Item<'n>,
        schemes: &[&str],
        example: &str,
    ) -> Option<(Text<'n>, Url)> {
        if self.is_of_other_scheme(&item, schemes) {
            return None;
        }
        let text = self.url_text(Some(item))?;
        if let Some(password) = hidden::passwords_in(text.given).into_iter().next() {
            let place = text.item.node.part(password);
            self.plain_password(&place);
        }
        match Url::parse(&text.value) {
            Ok(url) if url.host_str().is_some_and(|host| !host.is_empty()) => Some((text, url)),
            Ok(_) => {
                self.mistakes.error(text.place(), "the URL names no host", example.to_owned());
                None
            }
            Err(error) => {
                self.mistakes.error(text.place(), format!("this is no URL: {error}"), example.to_owned());
                None
            }
        }
    }

    pub(super) fn missing(&mut self, section: &Section<'_>, key: &str, example: &str) {
        if !section.is_wrong {
            self.mistakes.error(&section.place, format!("`{key}` is missing"), example.to_owned());
        }
    }

    pub(super) fn plain_password(&mut self, place: &Place) {
        self.mistakes.warning(place, "a password stands in the file for everyone to read", NOT_PLAIN.to_owned());
    }

    pub(super) fn plain_secret(&mut self, place: &Place) {
        self.mistakes.warning(place, "a secret stands in the file for everyone to read", NOT_PLAIN.to_owned());
    }

    pub(super) fn wrong_scheme(&mut self, text: &Text<'_>, scheme: &str, wanted: &[&str]) {
        if text.is_substituted() {
            let wrong = format!("`{}` does not begin with {} once it is filled in", text.shown(), alternatives(wanted));
            self.mistakes.error(text.place(), wrong, NOT_SHOWN.to_owned());
        } else {
            self.other_scheme(&text.part(0..text.given.len()), scheme, wanted);
        }
    }

    /// By what stands before the first `${..}`, which is no secret and needs none to be looked up.
    pub(super) fn is_of_other_scheme(&mut self, item: &Item<'_>, wanted: &[&str]) -> bool {
        let Value::Scalar(scalar) = &item.node.value else { return false };
        let Some((before, _)) = scalar.text.split_once("${") else { return false };
        let Some((scheme, _)) = before.split_once("://") else { return false };
        let is_other = !wanted.contains(&scheme.to_ascii_lowercase().as_str());
        if is_other {
            self.other_scheme(&item.node.part(0..scheme.len()), scheme, wanted);
        }
        is_other
    }

    fn other_scheme(&mut self, place: &Place, scheme: &str, wanted: &[&str]) {
        let wrong = format!("`{scheme}://` does not fit here: {} does", alternatives(wanted));
        let hint = keys::nearest(scheme, wanted.iter().copied()).map(|meant| format!("did you mean `{meant}://`?"));
        self.mistakes.error(place, wrong, hint);
    }

    /// A certificate without its key, or the other way round.
    pub(super) fn check_pair(&mut self, section: &Section<'_>) {
        let alone = match (section.get("cert"), section.get("key")) {
            (Some(cert), None) => Some((cert, "key")),
            (None, Some(key)) => Some((key, "cert")),
            (Some(_), Some(_)) | (None, None) => None,
        };
        if let Some((item, other)) = alone {
            self.mistakes.error(item.place(), format!("`{}` needs `{other}` beside it", item.name), None);
        }
    }

    pub(super) fn check_no_tls_keys(&mut self, section: &Section<'_>, names: &[&'static str], scheme: &str) {
        for item in names.iter().filter_map(|name| section.get(name)) {
            let wrong = format!("`{}` has no meaning without TLS", item.name);
            self.mistakes.error(item.place(), wrong, format!("begin the URL with `{scheme}`"));
        }
    }
}

/// "`a://`, `b://` or `c://`".
fn alternatives(schemes: &[&str]) -> String {
    let named: Vec<_> = schemes.iter().map(|scheme| format!("`{scheme}://`")).collect();
    match named.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

/// `exchange: ""` is RabbitMQ's name for the default exchange.
pub(super) fn is_empty_text(item: &Item<'_>) -> bool {
    matches!(&item.node.value, Value::Scalar(scalar) if scalar.text.is_empty())
}
