//! What `tidegate doctor` looks at here. Passive declarations: nothing is made (but an exchange with `declare:` and what stands in `queues:`, as the link
//! would), nothing is consumed.

use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};

use super::{Config, QueueDeclare, client, topology};
use crate::links::{Identity, LinkError};

/// Each step, up to the first that the others need and that fails.
pub(in crate::links) async fn examine(
    config: &Config,
    identity: &Identity,
    has_sink: bool,
    queues: &[String],
) -> Vec<(&'static str, Result<String, LinkError>)> {
    let client = match client::connect(config, identity, "doctor").await {
        Ok(client) => client,
        Err(error) => return vec![("login", Err(error))],
    };
    let mut looks = vec![("login", Ok(format!("accepted, virtual host '{}'", client::vhost(config))))];
    if has_sink || config.declare.is_some() && !config.queues.is_empty() {
        looks.push(("exchange", exchange(&client, config).await));
    }
    for queue in &config.queues {
        looks.push(("queue", declared(&client, queue).await));
    }
    let is_declared = |queue: &&String| config.queues.iter().any(|declare| declare.name == **queue);
    for queue in queues.iter().filter(|queue| !is_declared(queue)) {
        looks.push(("queue", self::queue(&client, config, queue).await));
    }
    client.close().await;
    looks
}

async fn exchange(client: &client::Client, config: &Config) -> Result<String, LinkError> {
    if config.exchange.is_empty() {
        return Ok("the default exchange, which is always there".to_owned());
    }
    let channel = client.connection.create_channel().await.map_err(|error| client::classify(&error))?;
    topology::prepare_exchange(&channel, config).await?;
    Ok(format!("'{}' is there", config.exchange))
}

async fn declared(client: &client::Client, queue: &QueueDeclare) -> Result<String, LinkError> {
    let channel = client.connection.create_channel().await.map_err(|error| client::classify(&error))?;
    let messages = topology::prepare_queue(&channel, queue).await?;
    let bindings = queue.bindings.len();
    let bound = if bindings == 1 { "1 binding".to_owned() } else { format!("{bindings} bindings") };
    Ok(format!("'{}' is declared, {bound}, {messages} messages", queue.name))
}

async fn queue(client: &client::Client, config: &Config, queue: &str) -> Result<String, LinkError> {
    let name = ShortString::try_new(queue)
        .map_err(|error| LinkError::Misconfigured(format!("the queue's name is too long: {error}")))?;
    let channel = client.connection.create_channel().await.map_err(|error| client::classify(&error))?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    match channel.queue_declare(name, passive, FieldTable::default()).await {
        Ok(found) => Ok(format!("'{queue}' is there, {} messages", found.message_count())),
        Err(error) => Err(match client::classify(&error) {
            LinkError::Misconfigured(words) => {
                LinkError::Misconfigured(format!("queue '{queue}' in vhost '{}': {words}", client::vhost(config)))
            }
            lost @ LinkError::Transient(_) => lost,
        }),
    }
}
