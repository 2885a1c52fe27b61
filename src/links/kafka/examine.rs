//! What `tidegate doctor` looks at here: whether the cluster answers, and the topics that are named.

use crate::links::kafka::{Config, KafkaSink};
use crate::links::{Identity, LinkError, Sink as _};

/// Each step, up to the first that the others need and that fails.
pub(in crate::links) async fn examine(
    config: &Config,
    identity: &Identity,
    topics: &[String],
) -> Vec<(&'static str, Result<String, LinkError>)> {
    let connection = match KafkaSink::new(config, identity).connect().await {
        Ok(connection) => connection,
        Err(error) => return vec![("login", Err(error))],
    };
    let mut looks = vec![("login", Ok("the cluster answers".to_owned()))];
    for topic in topics {
        let found = connection.look_at_topic(topic.clone()).await;
        looks.push(("topic", found.map(|()| format!("'{topic}' is there"))));
    }
    looks
}
