//! Real remote brokers, started by the scripts in `tests/peers`, and what a test does at them: declare, publish, consume.
//!
//! RabbitMQ takes long to start: one node serves a whole run, with a virtual host for each test. The others are a test's own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use nix::sys::signal::Signal;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::message::{Headers, Message};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use super::http;
use super::ledger::{Delivery, Mark};
use super::process::{Process, Room, did_not_run, free_port};
use super::wait::{PATIENCE, until};

/// Whether a test has to do without one of these brokers, because `TIDEGATE_WITHOUT` names it. Without that, a missing broker fails
/// the test that needs it.
pub(crate) fn left_out(needed: &[&str]) -> bool {
    let without = std::env::var("TIDEGATE_WITHOUT").unwrap_or_default();
    let missing: Vec<&str> =
        needed.iter().copied().filter(|name| without.split([',', ' ']).any(|w| w == *name)).collect();
    if !missing.is_empty() {
        did_not_run(&format!("without {}", missing.join(" and ")));
    }
    !missing.is_empty()
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(name).join("start.sh")
}

/// How a server is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// SIGTERM: it may put its affairs in order.
    Asked,
    /// SIGKILL.
    Killed,
}

impl Ending {
    async fn end(self, mut process: Process) {
        match self {
            Self::Asked => {
                process.signal(Signal::SIGTERM);
                process.exit(PATIENCE).await;
            }
            Self::Killed => process.kill_9(),
        }
    }
}

/// Starts a peer; returns when `ready` says so.
async fn start(
    name: &str,
    room: &Room,
    arguments: &[String],
    ready: impl AsyncFn(&Process) -> Result<(), String>,
) -> Process {
    let data = room.file("data").display().to_string();
    let mut all = vec![data];
    all.extend_from_slice(arguments);
    let mut process = Process::start(&script(name), &all, &room.file("log"));
    until(&format!("{name} is ready"), PATIENCE, async || {
        if let Some(status) = process.ended() {
            panic!("{name} ended ({status}); tests/run.sh installs what it needs:\n{}", process.log());
        }
        ready(&process).await
    })
    .await;
    process
}

async fn accepts(port: u16) -> Result<(), String> {
    TcpStream::connect(("127.0.0.1", port)).await.map(drop).map_err(|error| error.to_string())
}

// ---- Mosquitto.

/// A remote MQTT broker.
#[derive(Debug)]
pub(crate) struct Mosquitto {
    pub(crate) port: u16,
    more: Vec<String>,
    /// Ends before its folder goes.
    process: Option<Process>,
    room: Room,
}

impl Mosquitto {
    /// With kept sessions that queue without limit.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with further arguments of its script.
    pub(crate) async fn start_with(more: &[String]) -> Self {
        let room = Room::new("mosquitto");
        let mut mosquitto = Self { port: free_port(), more: more.to_vec(), room, process: None };
        mosquitto.start_again().await;
        mosquitto
    }

    /// Returns when it is gone.
    pub(crate) async fn end(&mut self, ending: Ending) {
        ending.end(self.process.take().expect("it runs")).await;
    }

    /// On the same port, with what it had saved.
    pub(crate) async fn start_again(&mut self) {
        let port = self.port;
        let arguments = [&[port.to_string(), "persist=on".to_owned()], self.more.as_slice()].concat();
        let process = start("mosquitto", &self.room, &arguments, async |_: &Process| accepts(port).await).await;
        self.process = Some(process);
    }
}

// ---- HiveMQ.

/// HiveMQ CE: another remote MQTT broker, of other people.
#[derive(Debug)]
pub(crate) struct Hivemq {
    pub(crate) port: u16,
    /// Ends before its folder goes.
    process: Option<Process>,
    room: Room,
}

impl Hivemq {
    /// With kept sessions that queue without limit.
    pub(crate) async fn start() -> Self {
        let mut hivemq = Self { port: free_port(), process: None, room: Room::new("hivemq") };
        hivemq.start_again().await;
        hivemq
    }

    /// Returns when it is gone.
    pub(crate) async fn end(&mut self, ending: Ending) {
        ending.end(self.process.take().expect("it runs")).await;
    }

    /// On the same port, with what it had saved.
    pub(crate) async fn start_again(&mut self) {
        // Its log goes on where it was: READY counts.
        let before = std::fs::read_to_string(self.room.file("log")).unwrap_or_default();
        let ready = async |process: &Process| {
            if readies(&process.log()) > readies(&before) { Ok(()) } else { Err(process.log()) }
        };
        self.process = Some(start("hivemq", &self.room, &[self.port.to_string()], ready).await);
    }
}

/// How often a server has said that it is ready.
fn readies(log: &str) -> usize {
    log.lines().filter(|line| *line == "READY").count()
}

// ---- OpenLDAP.

/// A directory with and without TLS; who is in it stands at the head of its script.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) port: u16,
    pub(crate) tls_port: u16,
    /// Ends before its folder goes.
    _process: Process,
    room: Room,
}

impl Directory {
    pub(crate) async fn start() -> Self {
        let (port, tls_port, room) = (free_port(), free_port(), Room::new("ldap"));
        let arguments = [port.to_string(), format!("tls={tls_port}")];
        let ready = async |_: &Process| {
            accepts(port).await?;
            accepts(tls_port).await
        };
        let process = start("ldap", &room, &arguments, ready).await;
        Self { port, tls_port, _process: process, room }
    }

    /// The authority of its certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.room.file("data").join("ca.pem")
    }
}

// ---- RabbitMQ.

/// The value of an argument in a table.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument {
    Text(&'static str),
}

fn table(arguments: &[(&str, Argument)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, Argument::Text(text)) in arguments {
        table.insert((*name).into(), AMQPValue::LongString((*text).into()));
    }
    table
}

/// A RabbitMQ node.
#[derive(Debug)]
pub(crate) struct Node {
    ports: [u16; 4],
    more: Vec<String>,
    /// Ends before its folder goes.
    process: Option<Process>,
    room: Room,
}

impl Node {
    /// One of its own, for a test that ends it.
    pub(crate) async fn start() -> Self {
        Self::start_with(Vec::new()).await
    }

    /// The same, and on a second port with TLS, by the `ca.pem`, `server.pem` and `server.key` of a folder. Who has a certificate of that
    /// authority can log in with it, under its common name.
    pub(crate) async fn start_tls(certificates: &Path) -> (Self, u16) {
        let port = free_port();
        let more = vec![format!("amqps={port}"), format!("certs={}", certificates.display())];
        (Self::start_with(more).await, port)
    }

    async fn start_with(more: Vec<String>) -> Self {
        let ports = std::array::from_fn(|_| free_port());
        let mut node = Self { ports, more, process: None, room: Room::new("rabbitmq") };
        node.start_again().await;
        node
    }

    /// Returns when it is gone.
    pub(crate) async fn end(&mut self, ending: Ending) {
        ending.end(self.process.take().expect("it runs")).await;
    }

    /// On the same ports, with what it had stored.
    pub(crate) async fn start_again(&mut self) {
        let [port, management, epmd, dist] = self.ports;
        let arguments =
            [port.to_string(), format!("mgmt={management}"), format!("epmd={epmd}"), format!("dist={dist}")];
        let arguments = [&arguments, self.more.as_slice()].concat();
        let process = start("rabbitmq", &self.room, &arguments, async |_: &Process| accepts(port).await).await;
        self.process = Some(process);
    }

    /// `rabbitmqctl`, as the operator of this node.
    pub(crate) async fn ctl(&self, arguments: &[&str]) {
        let [_, _, epmd, _] = self.ports;
        let data = self.room.file("data");
        let name = std::fs::read_to_string(data.join("node")).unwrap();
        let mut command = tokio::process::Command::new("/usr/lib/rabbitmq/bin/rabbitmqctl");
        command.args(["-n", name.trim()]).args(arguments).kill_on_drop(true);
        command.env("HOME", &data).env("ERL_EPMD_PORT", epmd.to_string()).env("ERL_EPMD_ADDRESS", "127.0.0.1");
        command
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", data.join("enabled_plugins"));
        let done = tokio::time::timeout(PATIENCE, command.output()).await.expect("rabbitmqctl ends").unwrap();
        assert!(done.status.success(), "rabbitmqctl {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// A virtual host on it.
    pub(crate) async fn vhost(&self, vhost: &str) -> Rabbit {
        let [port, management, ..] = self.ports;
        put(management, &format!("/api/vhosts/{vhost}"), "").await;
        Rabbit { port, management, vhost: vhost.to_owned() }
    }
}

static NODE: OnceCell<Node> = OnceCell::const_new();

async fn node() -> &'static Node {
    NODE.get_or_init(Node::start).await
}

/// A PUT at the management API, as guest.
async fn put(management: u16, path: &str, body: &str) {
    let stream = TcpStream::connect(("127.0.0.1", management)).await.unwrap();
    let headers = "Authorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\nContent-Type: application/json\r\n";
    let (code, body) = http::request_with(stream, "PUT", path, headers, body).await.unwrap();
    assert!(matches!(code, 201 | 204), "{code}: {body}");
}

/// A virtual host of its own on the shared node.
#[derive(Clone, Debug)]
pub(crate) struct Rabbit {
    pub(crate) port: u16,
    management: u16,
    pub(crate) vhost: String,
}

impl Rabbit {
    pub(crate) async fn start(vhost: &str) -> Self {
        node().await.vhost(vhost).await
    }

    /// A user, with what it may configure, write and read here.
    pub(crate) async fn user(&self, name: &str, password: &str, [configure, write, read]: [&str; 3]) {
        let body = format!("{{\"password\":\"{password}\",\"tags\":\"\"}}");
        put(self.management, &format!("/api/users/{name}"), &body).await;
        let body = format!("{{\"configure\":\"{configure}\",\"write\":\"{write}\",\"read\":\"{read}\"}}");
        put(self.management, &format!("/api/permissions/{}/{name}", self.vhost), &body).await;
    }

    /// Which routing keys of an exchange a user may publish to.
    pub(crate) async fn topic_permission(&self, name: &str, exchange: &str, write: &str) {
        let body = format!("{{\"exchange\":\"{exchange}\",\"write\":\"{write}\",\"read\":\".*\"}}");
        put(self.management, &format!("/api/topic-permissions/{}/{name}", self.vhost), &body).await;
    }

    /// One that only a certificate lets in, and that may do anything here.
    pub(crate) async fn user_without_password(&self, name: &str) {
        put(self.management, &format!("/api/users/{name}"), "{\"password_hash\":\"\",\"tags\":\"\"}").await;
        let body = "{\"configure\":\".*\",\"write\":\".*\",\"read\":\".*\"}";
        put(self.management, &format!("/api/permissions/{}/{name}", self.vhost), body).await;
    }

    /// As seen through a proxy, or directly.
    pub(crate) fn url(&self, port: u16) -> String {
        format!("amqp://guest:guest@127.0.0.1:{port}/{}", self.vhost)
    }

    async fn connect(&self) -> (Connection, Channel) {
        let connection = Connection::connect(&self.url(self.port), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }

    /// A durable topic exchange, and a durable queue that takes everything from it.
    pub(crate) async fn declare(&self, exchange: &str, queue: &str) {
        let (_connection, channel) = self.connect().await;
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let none = FieldTable::default;
        channel.exchange_declare(exchange.into(), ExchangeKind::Topic, durable, none()).await.unwrap();
        channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), none()).await.unwrap();
        let bind = QueueBindOptions::default();
        channel.queue_bind(queue.into(), exchange.into(), "#".into(), bind, none()).await.unwrap();
    }

    /// A durable queue alone.
    pub(crate) async fn declare_queue(&self, queue: &str) {
        self.declare_queue_with(queue, &[]).await;
    }

    /// The same with arguments, such as its type.
    pub(crate) async fn declare_queue_with(&self, queue: &str, arguments: &[(&str, Argument)]) {
        let (_connection, channel) = self.connect().await;
        channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), table(arguments)).await.unwrap();
    }

    pub(crate) async fn bind(&self, queue: &str, exchange: &str, key: &str, arguments: &[(&str, Argument)]) {
        let (_connection, channel) = self.connect().await;
        let options = QueueBindOptions::default();
        channel.queue_bind(queue.into(), exchange.into(), key.into(), options, table(arguments)).await.unwrap();
    }

    pub(crate) async fn delete_queue(&self, queue: &str) {
        let (_connection, channel) = self.connect().await;
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }

    /// Messages ready in a queue (not those that a consumer holds).
    pub(crate) async fn depth(&self, queue: &str) -> u32 {
        let (_connection, channel) = self.connect().await;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        channel.queue_declare(queue.into(), passive, FieldTable::default()).await.unwrap().message_count()
    }

    /// How many consumers a queue has.
    pub(crate) async fn consumers(&self, queue: &str) -> u32 {
        let (_connection, channel) = self.connect().await;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        channel.queue_declare(queue.into(), passive, FieldTable::default()).await.unwrap().consumer_count()
    }

    /// Publishes persistent messages to a queue, each confirmed.
    pub(crate) async fn publish(&self, queue: &str, marks: &[Mark]) {
        let (_connection, channel) = self.connect().await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let properties = BasicProperties::default().with_delivery_mode(2).with_content_type("text/plain".into());
        let mut confirms = Vec::new();
        for mark in marks {
            let payload = mark.payload(64);
            let options = BasicPublishOptions::default();
            confirms.push(
                channel.basic_publish("".into(), queue.into(), options, &payload, properties.clone()).await.unwrap(),
            );
        }
        for confirm in confirms {
            assert!(confirm.await.unwrap().is_ack());
        }
    }

    /// Consumes a queue until every one of these has arrived; returns all that did.
    pub(crate) async fn receive(&self, queue: &str, marks: &[Mark]) -> Vec<Delivery> {
        let (_connection, channel) = self.connect().await;
        channel.basic_qos(1_000, BasicQosOptions::default()).await.unwrap();
        let options = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(queue.into(), "test".into(), options, FieldTable::default()).await;
        let mut consumer = consumer.unwrap();
        let mut arrived = Vec::new();
        gather(queue, marks, &mut arrived, async |arrived| {
            let delivery = consumer.next().await.expect("the consumer lives").unwrap();
            delivery.acker.ack(BasicAckOptions::default()).await.unwrap();
            arrived.push(Delivery {
                topic: delivery.routing_key.to_string(),
                properties: headers(&delivery.properties),
                content_type: delivery.properties.content_type().as_ref().map(ToString::to_string),
                payload: delivery.data,
                key: None,
            });
        })
        .await;
        arrived
    }
}

fn headers(properties: &BasicProperties) -> BTreeMap<String, String> {
    let headers = properties.headers().clone().unwrap_or_default();
    let text = |value: &AMQPValue| {
        if let AMQPValue::LongString(text) = value { text.to_string() } else { format!("{value:?}") }
    };
    let mut all: BTreeMap<String, String> =
        headers.inner().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    if let Some(id) = properties.message_id() {
        all.insert("message_id".into(), id.to_string());
    }
    all
}

/// Takes one after the other until all marks are there, then whatever else is on its way, so that copies are seen.
async fn gather(
    from: &str,
    marks: &[Mark],
    arrived: &mut Vec<Delivery>,
    mut take: impl AsyncFnMut(&mut Vec<Delivery>),
) {
    /// A copy that was sent would be here by then.
    const QUIET: Duration = Duration::from_millis(1_500);
    let mut open: BTreeSet<Mark> = marks.iter().copied().collect();
    let mut seen = 0;
    loop {
        for delivery in &arrived[seen..] {
            open.remove(&delivery.mark());
        }
        seen = arrived.len();
        if open.is_empty() {
            break;
        }
        // Patience is for the next one: how long all of them take is no business of a test.
        if tokio::time::timeout(PATIENCE, take(arrived)).await.is_err() {
            panic!("{from}: {seen} arrived of {}, {} missing, and nothing more comes", marks.len(), open.len());
        }
    }
    while tokio::time::timeout(QUIET, take(arrived)).await.is_ok() {}
}

// ---- Kafka.

/// A Kafka node of its own.
#[derive(Debug)]
pub(crate) struct Kafka {
    pub(crate) port: u16,
    arguments: Vec<String>,
    /// Ends before its folder goes.
    process: Option<Process>,
    room: Room,
}

impl Kafka {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With a second listener on `behind`, for clients that come through a proxy on `seen`.
    pub(crate) async fn start_behind(behind: u16, seen: u16) -> Self {
        Self::start_with(&[format!("proxied={behind}:{seen}")]).await
    }

    /// With two more listeners, by the `ca.pem`, `server.pem` and `server.key` of a folder: one that demands a client's certificate, and one
    /// for logins (plant-7 and reader, both `secret`). Only who is not known, plant-7, and certificates of that name may do anything.
    pub(crate) async fn start_secure(certificates: &Path) -> (Self, [u16; 2]) {
        let ports @ [mutual, login] = [free_port(), free_port()];
        let certificates = format!("certs={}", certificates.display());
        (Self::start_with(&[format!("mtls={mutual}"), format!("sasl_tls={login}"), certificates]).await, ports)
    }

    async fn start_with(more: &[String]) -> Self {
        let (port, controller) = (free_port(), free_port());
        let mut arguments = vec![port.to_string(), format!("controller={controller}")];
        arguments.extend_from_slice(more);
        let mut kafka = Self { port, arguments, process: None, room: Room::new("kafka") };
        kafka.start_again().await;
        kafka
    }

    /// Returns when it is gone.
    pub(crate) async fn end(&mut self, ending: Ending) {
        ending.end(self.process.take().expect("it runs")).await;
    }

    /// On the same ports, with what it had stored.
    pub(crate) async fn start_again(&mut self) {
        // Its log goes on where it was: READY counts.
        let before = std::fs::read_to_string(self.room.file("log")).unwrap_or_default();
        let ready = async |process: &Process| {
            if readies(&process.log()) > readies(&before) { Ok(()) } else { Err(process.log()) }
        };
        self.process = Some(start("kafka", &self.room, &self.arguments, ready).await);
    }

    /// Adds a rule: see `tests/peers/kafka/acls.sh`.
    pub(crate) async fn allow(&self, rule: &str) {
        let added = tokio::process::Command::new(script("kafka").with_file_name("acls.sh"))
            .arg(self.port.to_string())
            .args(rule.split(' '))
            .output()
            .await
            .unwrap();
        assert!(added.status.success(), "{added:?}");
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", format!("127.0.0.1:{}", self.port));
        config
    }

    pub(crate) async fn create_topic(&self, topic: &str, partitions: i32) {
        self.create_topic_with(topic, partitions, &[]).await;
    }

    /// With settings of its own.
    pub(crate) async fn create_topic_with(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        let new = settings.iter().fold(new, |new, (name, value)| new.set(name, value));
        for created in admin.create_topics(&[new], &AdminOptions::new()).await.unwrap() {
            created.unwrap();
        }
    }

    pub(crate) async fn publish(&self, topic: &str, marks: &[Mark]) {
        let producer: FutureProducer = self.client().set("linger.ms", "5").create().unwrap();
        let mut confirms = Vec::new();
        for mark in marks {
            let payload = mark.payload(64);
            let key = format!("origin/{}", mark.publisher);
            confirms.push(producer.send_result(FutureRecord::to(topic).payload(&payload).key(&key)).unwrap());
        }
        for confirm in confirms {
            confirm.await.unwrap().unwrap();
        }
    }

    /// The same, written at this time (ms since 1970).
    pub(crate) async fn publish_at(&self, topic: &str, marks: &[Mark], ms: i64) {
        let producer: FutureProducer = self.client().create().unwrap();
        for mark in marks {
            let payload = mark.payload(64);
            let record: FutureRecord<'_, str, Vec<u8>> = FutureRecord::to(topic).payload(&payload).timestamp(ms);
            producer.send_result(record).unwrap().await.unwrap().unwrap();
        }
    }

    /// The first values of a topic's only partition.
    pub(crate) async fn values(&self, topic: &str, count: usize) -> Vec<Option<Vec<u8>>> {
        let consumer: StreamConsumer = self.client().set("group.id", "values").create().unwrap();
        let mut from = rdkafka::TopicPartitionList::new();
        from.add_partition_offset(topic, 0, rdkafka::Offset::Beginning).unwrap();
        consumer.assign(&from).unwrap();
        let mut values = Vec::new();
        while values.len() < count {
            let message = tokio::time::timeout(PATIENCE, consumer.recv()).await.expect("one more").unwrap();
            values.push(message.payload().map(<[u8]>::to_vec));
        }
        values
    }

    /// How far a group has committed, summed over a topic's partitions.
    pub(crate) fn committed(&self, group: &str, topic: &str, partitions: i32) -> i64 {
        let consumer: StreamConsumer = self.client().set("group.id", group).create().unwrap();
        let mut asked = rdkafka::TopicPartitionList::new();
        asked.add_partition_range(topic, 0, partitions - 1);
        let committed = consumer.committed_offsets(asked, Duration::from_secs(10)).unwrap();
        committed
            .elements()
            .iter()
            .filter_map(|partition| partition.offset().to_raw())
            .map(|offset| offset.max(0))
            .sum()
    }

    /// Reads a topic from its beginning until every one of these has arrived; returns all that did.
    pub(crate) async fn receive(&self, topic: &str, marks: &[Mark]) -> Vec<Delivery> {
        let mut config = self.client();
        config.set("group.id", "test").set("auto.offset.reset", "earliest").set("enable.auto.commit", "false");
        let consumer: StreamConsumer = config.create().unwrap();
        consumer.subscribe(&[topic]).unwrap();
        let mut arrived = Vec::new();
        gather(topic, marks, &mut arrived, async |arrived| {
            let message = consumer.recv().await.unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let pairs = message.headers().into_iter().flat_map(|headers| headers.iter());
            let properties: BTreeMap<String, String> =
                pairs.map(|header| (header.key.to_owned(), text(header.value.unwrap_or_default()))).collect();
            arrived.push(Delivery {
                topic: properties.get("mqtt.topic").cloned().unwrap_or_default(),
                content_type: properties.get("content_type").cloned(),
                properties,
                payload: message.payload().unwrap_or_default().to_vec(),
                key: message.key().map(text),
            });
        })
        .await;
        arrived
    }
}

mod tests {
    use rumqttc_v5::QoS;

    use super::super::client::{Publishers, Subscriber, Work};
    use super::super::ledger::Ledger;
    use super::super::proxy::Proxy;
    use super::*;

    fn marks() -> Vec<Mark> {
        (0..200).map(|number| Mark { publisher: 0, number }).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rabbitmq_gives_back_what_was_published() {
        if left_out(&["rabbitmq"]) {
            return;
        }
        let rabbit = Rabbit::start("self").await;
        rabbit.declare_queue("q").await;
        rabbit.publish("q", &marks()).await;
        assert_eq!(rabbit.depth("q").await, 200);
        Ledger::compare(marks(), &rabbit.receive("q", &marks()).await).assert_exact("RabbitMQ alone");
        assert_eq!(rabbit.depth("q").await, 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn kafka_gives_back_what_was_published_and_a_proxys_clients_stay_behind_it() {
        if left_out(&["kafka"]) {
            return;
        }
        let behind = free_port();
        let proxy = Proxy::start(behind).await;
        let kafka = Kafka::start_behind(behind, proxy.port()).await;
        kafka.create_topic("t", 2).await;
        let seen = Kafka { port: proxy.port(), ..kafka };
        seen.publish("t", &marks()).await;
        Ledger::compare(marks(), &seen.receive("t", &marks()).await).assert_exact("Kafka alone");
        let metadata = seen.client().create::<StreamConsumer>().unwrap();
        let metadata = metadata.fetch_metadata(None, Duration::from_secs(10)).unwrap();
        assert!(metadata.brokers().iter().all(|broker| broker.port() == i32::from(proxy.port())));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn mosquitto_gives_to_a_subscriber_what_publishers_had_acknowledged() {
        if left_out(&["mosquitto"]) {
            return;
        }
        let mosquitto = Mosquitto::start().await;
        let subscriber = Subscriber::start(mosquitto.port, "subscriber", "t/#", QoS::AtLeastOnce).await;
        let work = Work {
            port: mosquitto.port,
            publishers: 2,
            messages: 1_000,
            qos: QoS::AtLeastOnce,
            window: 20,
            topic: "t".into(),
        };
        let acknowledged = Publishers::start(work).finish().await;
        let arrived = subscriber.receive(&acknowledged).await;
        Ledger::compare(acknowledged, &arrived).assert_exact("Mosquitto alone");
    }
}
