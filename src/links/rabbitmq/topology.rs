//! What a link declares before it publishes or consumes (R27): its exchange where `declare` stands, its queues and their bindings where `queues`
//! does. Without these keys both are expected to be there. What is there already as it is declared stays as it is; what is there as something else
//! RabbitMQ refuses, in its own words, and closes the channel.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ErrorKind, ExchangeKind};

use super::client::{self, Client};
use super::{Argument, Config, QueueDeclare};
use crate::links::LinkError;

/// What AMQP calls a declaration that stays wrong until somebody changes something: no such path, locked to another connection, there as something
/// else, no such type, not to be had.
const STAYS: [u16; 5] = [402, 405, 406, 503, 540];

/// R27: expected to exist, made only with `declare`. The default exchange always exists and may not even be looked at.
pub(super) async fn prepare_exchange(channel: &Channel, config: &Config) -> Result<(), LinkError> {
    if config.exchange.is_empty() {
        return Ok(());
    }
    let exchange = short("the exchange's name", &config.exchange)?;
    let (kind, options) = match &config.declare {
        Some(declare) => {
            let options = ExchangeDeclareOptions { durable: declare.durable, ..ExchangeDeclareOptions::default() };
            (ExchangeKind::Custom(declare.kind.clone()), options)
        }
        None => (ExchangeKind::Topic, ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() }),
    };
    let arguments = config.declare.iter().flat_map(|declare| &declare.arguments);
    let declared = channel.exchange_declare(exchange, kind, options, table(arguments)?).await;
    declared.map_err(|error| match client::classify(&error) {
        LinkError::Misconfigured(words) if words.starts_with("404") => LinkError::Misconfigured(format!(
            "no exchange '{}' in vhost '{}': {words}; create it, or let the link do so with `declare:`",
            config.exchange,
            client::vhost(config)
        )),
        // It exists with another type or durability, or no such type exists: 406 or 503.
        LinkError::Transient(words) if config.declare.is_some() && error.is_amqp_error() => {
            LinkError::Misconfigured(format!("exchange '{}' cannot be declared: {words}", config.exchange))
        }
        other @ (LinkError::Misconfigured(_) | LinkError::Transient(_)) => other,
    })
}

/// Declares and binds a queue; how many messages are in it.
pub(super) async fn prepare_queue(channel: &Channel, queue: &QueueDeclare) -> Result<u32, LinkError> {
    let name = short("the queue's name", &queue.name)?;
    let options = QueueDeclareOptions { durable: queue.durable, ..QueueDeclareOptions::default() };
    let mut arguments = table(&queue.arguments)?;
    if let Some(kind) = queue.kind {
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.name().into()));
    }
    let declared = channel.queue_declare(name.clone(), options, arguments).await;
    let declared = declared.map_err(|error| refused(&format!("queue '{}' cannot be declared", queue.name), &error))?;
    for binding in &queue.bindings {
        let exchange = short("the exchange's name", &binding.exchange)?;
        let key = short("the binding's key", &binding.key)?;
        let arguments = table(&binding.arguments)?;
        let bound = channel.queue_bind(name.clone(), exchange, key, QueueBindOptions::default(), arguments).await;
        bound.map_err(|error| {
            refused(&format!("queue '{}' cannot be bound to exchange '{}'", queue.name, binding.exchange), &error)
        })?;
    }
    Ok(declared.message_count())
}

/// Before a source consumes: all that its link declares, but the queues that it reads, which it declares one by one as it comes to each.
pub(super) async fn prepare_beside(client: &Client, config: &Config, read: &[String]) -> Result<(), LinkError> {
    if config.queues.is_empty() {
        return Ok(());
    }
    let channel = client.connection.create_channel().await.map_err(|error| client::classify(&error))?;
    if config.declare.is_some() {
        prepare_exchange(&channel, config).await?;
    }
    for queue in config.queues.iter().filter(|queue| !read.contains(&queue.name)) {
        prepare_queue(&channel, queue).await?;
    }
    channel.close(200, "OK".into()).await.map_err(|error| client::classify(&error))
}

fn refused(what: &str, error: &lapin::Error) -> LinkError {
    let stays = matches!(error.kind(), ErrorKind::ProtocolError(remote) if STAYS.contains(&remote.get_id()));
    match client::classify(error) {
        LinkError::Misconfigured(words) => LinkError::Misconfigured(format!("{what}: {words}")),
        LinkError::Transient(words) if stays => LinkError::Misconfigured(format!("{what}: {words}")),
        LinkError::Transient(words) => LinkError::Transient(format!("{what}: {words}")),
    }
}

fn short(what: &str, text: &str) -> Result<ShortString, LinkError> {
    ShortString::try_new(text).map_err(|error| LinkError::Misconfigured(format!("{what} is too long: {error}")))
}

fn table<'a>(arguments: impl IntoIterator<Item = &'a (String, Argument)>) -> Result<FieldTable, LinkError> {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let key = short(&format!("the argument's name `{name}`"), name)?;
        let value = match value {
            Argument::Bool(value) => AMQPValue::Boolean(*value),
            Argument::Int(value) => AMQPValue::LongLongInt(*value),
            Argument::Text(value) => AMQPValue::LongString(value.as_str().into()),
        };
        table.insert(key, value);
    }
    Ok(table)
}
