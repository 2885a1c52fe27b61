//! A topic of one partition for each round.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};
use tokio::runtime::Runtime;

use super::{STAMPS, Seen, Server, load};
use crate::process::{Process, free_port};

const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Kafka {
    runtime: Runtime,
    port: u16,
    round: u32,
    /// It only asks how far the topic has come.
    looking: BaseConsumer,
    _process: Process,
}

impl Kafka {
    pub(super) fn start(port: u16, dir: &Path) -> Self {
        let controller = free_port();
        let mut process = Process::peer("kafka", dir, &[port.to_string(), format!("controller={controller}")]);
        process.await_ready(|log| log.lines().any(|line| line == "READY"));
        let looking = client(port).create().unwrap();
        Self { runtime: Runtime::new().unwrap(), port, round: 0, looking, _process: process }
    }

    fn topic(&self) -> String {
        format!("bench-{}", self.round)
    }
}

fn client(port: u16) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", format!("127.0.0.1:{port}")).set("group.id", "bench");
    config
}

impl Server for Kafka {
    fn begin(&mut self) {
        let admin: AdminClient<DefaultClientContext> = client(self.port).create().unwrap();
        let before = self.topic();
        self.round += 1;
        let topic = self.topic();
        self.runtime.block_on(async {
            let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1));
            for created in admin.create_topics(&[new], &AdminOptions::new()).await.unwrap() {
                created.unwrap();
            }
            // The disk's room is for the next ones; the first round has none before it.
            drop(admin.delete_topics(&[&before], &AdminOptions::new()).await);
        });
        while self.looking.fetch_watermarks(&topic, 0, PATIENCE).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn arrived(&mut self) -> u64 {
        let (_, high) = self.looking.fetch_watermarks(&self.topic(), 0, PATIENCE).unwrap();
        u64::try_from(high).unwrap()
    }

    fn read(&mut self, seen: &mut Seen) {
        let consumer: BaseConsumer = client(self.port).create().unwrap();
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(&self.topic(), 0, Offset::Beginning).unwrap();
        consumer.assign(&from).unwrap();
        for _ in 0..self.arrived() {
            let message = consumer.poll(PATIENCE).unwrap().unwrap();
            seen.note(message.payload().unwrap());
        }
    }

    /// As `rdkafka_performance` does: the producer's queue is kept full.
    fn direct(&mut self, messages: u64, stamped: bool) -> JoinHandle<()> {
        let topic = self.topic();
        let reports = Reports::default();
        let mut config = client(self.port);
        config.remove("group.id");
        // The link's own settings.
        for (name, value) in [
            ("acks", "all"),
            ("enable.idempotence", "true"),
            ("linger.ms", "5"),
            ("batch.size", "524288"),
            ("partitioner", "murmur2_random"),
            ("queue.buffering.max.messages", "16384"),
            ("queue.buffering.max.kbytes", "65536"),
            ("message.timeout.ms", "0"),
        ] {
            config.set(name, value);
        }
        let producer: ThreadedProducer<Reports> = config.create_with_context(reports.clone()).unwrap();
        std::thread::spawn(move || {
            for n in 0..messages {
                let (key, payload) = load::message(n, '/');
                let mut record = BaseRecord::to(&topic).key(&key).payload(payload.as_slice());
                if stamped {
                    record = record.headers(headers(&key));
                }
                while let Err((error, back)) = producer.send(record) {
                    assert!(matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)), "{error}");
                    std::thread::sleep(Duration::from_micros(200));
                    record = back;
                }
            }
            while reports.0.load(Ordering::Relaxed) < messages {
                std::thread::sleep(Duration::from_millis(1));
            }
        })
    }

    fn link(&self, port: u16) -> (String, String) {
        (format!("kafka: {{ brokers: \"127.0.0.1:{port}\", acks: all }}"), self.topic())
    }
}

fn headers(topic: &str) -> OwnedHeaders {
    let first = [("mqtt.topic", topic), ("x-mqtt-qos", "1")];
    let all = first.iter().chain(&STAMPS);
    all.fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(*value) }))
}

/// How many were delivered.
#[derive(Clone, Default)]
struct Reports(Arc<AtomicU64>);

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        assert!(result.is_ok(), "not delivered");
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
