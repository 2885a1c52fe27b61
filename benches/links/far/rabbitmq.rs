//! A durable topic exchange and a durable classic queue that takes everything from it.

use std::collections::VecDeque;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Waker};
use std::thread::JoinHandle;

use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind};
use tokio::runtime::Runtime;

use super::{STAMPS, Seen, Server, load};
use crate::process::{Process, accepts, free_port};

/// The link's own.
const WINDOW: usize = 1_024;
const EXCHANGE: &str = "bench";
const QUEUE: &str = "bench";

pub(super) struct RabbitMq {
    runtime: Runtime,
    port: u16,
    channel: Channel,
    _connection: Connection,
    _process: Process,
}

impl RabbitMq {
    pub(super) fn start(port: u16, dir: &Path) -> Self {
        let (epmd, dist) = (free_port(), free_port());
        let arguments = [port.to_string(), format!("epmd={epmd}"), format!("dist={dist}")];
        let mut process = Process::peer("rabbitmq", dir, &arguments);
        process.await_ready(|_| accepts(port));
        let runtime = Runtime::new().unwrap();
        let (connection, channel) = runtime.block_on(connect(port));
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared = channel.exchange_declare(EXCHANGE.into(), ExchangeKind::Topic, durable, FieldTable::default());
        runtime.block_on(declared).unwrap();
        Self { runtime, port, channel, _connection: connection, _process: process }
    }

    fn depth(&self) -> u32 {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let asked = self.channel.queue_declare(QUEUE.into(), passive, FieldTable::default());
        self.runtime.block_on(asked).unwrap().message_count()
    }
}

impl Server for RabbitMq {
    fn begin(&mut self) {
        let channel = &self.channel;
        self.runtime.block_on(async {
            channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await.unwrap();
            channel.queue_declare(QUEUE.into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
            let (all, options) = ("#".into(), QueueBindOptions::default());
            channel.queue_bind(QUEUE.into(), EXCHANGE.into(), all, options, FieldTable::default()).await.unwrap();
        });
    }

    fn arrived(&mut self) -> u64 {
        u64::from(self.depth())
    }

    fn read(&mut self, seen: &mut Seen) {
        let depth = self.depth();
        self.runtime.block_on(async {
            let (_connection, channel) = connect(self.port).await;
            let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
            let consumer = channel.basic_consume(QUEUE.into(), "count".into(), options, FieldTable::default()).await;
            let mut consumer = consumer.unwrap();
            for _ in 0..depth {
                seen.note(&consumer.next().await.unwrap().unwrap().data);
            }
        });
    }

    /// As `lapin` publishes fastest: each publish is polled once, and the oldest is awaited when the window is full.
    fn direct(&mut self, messages: u64, stamped: bool) -> JoinHandle<()> {
        let (port, handle, properties) = (self.port, self.runtime.handle().clone(), properties(stamped));
        std::thread::spawn(move || {
            handle.block_on(async {
                let (_connection, channel) = connect(port).await;
                channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
                let mut open = VecDeque::new();
                for n in 0..messages {
                    if open.len() >= WINDOW {
                        confirmed(open.pop_front().unwrap()).await;
                    }
                    let mut publishing = publish(channel.clone(), n, properties.clone());
                    assert!(publishing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                    open.push_back(publishing);
                }
                for publishing in open {
                    confirmed(publishing).await;
                }
            });
        })
    }

    fn link(&self, port: u16) -> (String, String) {
        let url = format!("amqp://guest:guest@127.0.0.1:{port}/%2f");
        (format!("rabbitmq: {{ url: \"{url}\", exchange: {EXCHANGE} }}"), "bench.{n}.{what}".to_owned())
    }
}

type Publishing = Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send>>;

fn publish(channel: Channel, n: u64, properties: BasicProperties) -> Publishing {
    Box::pin(async move {
        let (key, payload) = load::message(n, '.');
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        channel.basic_publish(EXCHANGE.into(), key.into(), options, &payload, properties).await?.await
    })
}

fn properties(stamped: bool) -> BasicProperties {
    let persistent = BasicProperties::default().with_delivery_mode(2);
    if !stamped {
        return persistent;
    }
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut headers = FieldTable::default();
    for (name, value) in STAMPS {
        headers.insert(name.into(), text(value));
    }
    let mut passed = FieldTable::default();
    passed.insert("cluster-name".into(), text("bench"));
    passed.insert("redelivered".into(), AMQPValue::Boolean(false));
    passed.insert("uri".into(), text("tidegate://bench"));
    let passed = FieldArray::from(vec![AMQPValue::FieldTable(passed)]);
    headers.insert("x-received-from".into(), AMQPValue::FieldArray(passed));
    headers.insert("x-mqtt-qos".into(), AMQPValue::ShortShortUInt(1));
    headers.insert("x-mqtt-retain".into(), AMQPValue::Boolean(false));
    let id = STAMPS[0].1.into();
    persistent.with_timestamp(1_795_000_000).with_message_id(id).with_headers(headers)
}

async fn confirmed(publishing: Publishing) {
    assert!(matches!(publishing.await.unwrap(), Confirmation::Ack(None)), "not confirmed");
}

async fn connect(port: u16) -> (Connection, Channel) {
    let url = format!("amqp://guest:guest@127.0.0.1:{port}/%2f");
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}
