//! What `tidegate doctor` looks at here. Passive declarations: nothing is made (but an exchange with `declare:`, as the link would), nothing is consumed.

use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};

use super::{Config, client, sink};
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
    if has_sink {
        looks.push(("exchange", exchange(&client, config).await));
    }
    for queue in queues {
        looks.push(("queue", self::queue(&client, config, queue).await));
    }
    client.close().await;
    looks
}

async fn exchange(client: &client::Client, config: &Config) -> Result<String, LinkError> {
    if config.exchange.is_empty() {
        return Ok("the default exchange, which is always there".to_owned());
    }
    let name = ShortString::try_new(config.exchange.as_str())
        .map_err(|error| LinkError::Misconfigured(format!("the exchange's name is too long: {error}")))?;
    let channel = client.connection.create_channel().await.map_err(|error| client::classify(&error))?;
    sink::prepare_exchange(&channel, config, &name).await?;
    Ok(format!("'{}' is there", config.exchange))
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
