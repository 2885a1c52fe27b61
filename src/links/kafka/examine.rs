//! What `tidegate doctor` looks at here: whether the cluster answers, the topics that are named, and whether the link may use its group and its
//! transactional id.
//!
//! Nothing of it disturbs a gateway that runs. The right to a group shows by a commit for a partition that no topic has: Kafka looks at the rights first. The
//! right to a transactional id shows by a request for one with a timeout that no broker grants: Kafka looks at the rights, and then at that,
//! before it takes the id from whoever has it.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::client::{self, GivenUp, Tokens};
use super::transaction::Asking;
use crate::links::kafka::{Config, KafkaSink, KafkaSource};
use crate::links::{Identity, LinkError, Sink as _};

/// No topic has so many partitions.
const NO_PARTITION: i32 = i32::MAX;
/// `transaction.timeout.ms`, more than any `transaction.max.timeout.ms` (15 minutes by default).
const NO_TIMEOUT_MS: &str = "2147483647";
/// One try, between two looks whether anybody still waits.
const STEP: Duration = Duration::from_secs(1);

/// What of a link is to be looked at.
pub(in crate::links) struct Looks<'a> {
    /// Topics that routes lead to.
    pub(in crate::links) topics: &'a [String],
    /// Topics that its source reads.
    pub(in crate::links) sources: &'a [String],
    /// Whether routes lead to it.
    pub(in crate::links) has_sink: bool,
}

/// Nothing is produced.
impl ProducerContext for Asking {
    type DeliveryOpaque = ();

    fn delivery(&self, _result: &DeliveryResult<'_>, (): ()) {}
}

type Step = (&'static str, Result<String, LinkError>);

/// Each step, up to the first that the others need and that fails.
pub(in crate::links) async fn examine(config: &Config, identity: &Identity, looks: &Looks<'_>) -> Vec<Step> {
    let sink = KafkaSink::new(config, identity);
    let connection = match sink.clone().connect().await {
        Ok(connection) => connection,
        Err(error) => return vec![("login", Err(error))],
    };
    let mut steps: Vec<Step> = vec![("login", Ok("the cluster answers".to_owned()))];
    for topic in looks.sources.iter().chain(looks.topics) {
        let found = connection.look_at_topic(topic.clone()).await;
        steps.push(("topic", found.map(|()| format!("'{topic}' is there"))));
    }
    if steps.iter().any(|(_, found)| found.is_err()) {
        return steps;
    }
    let tokens = Tokens::new(config);
    if !looks.sources.is_empty() {
        let settings = KafkaSource::new(config, looks.sources.to_vec(), identity).settings();
        steps.push(("group", look_at_group(settings, tokens.clone(), looks.sources.to_vec()).await));
    }
    if config.exactly_once && looks.has_sink {
        let (id, group) = sink.transactional();
        let last = [("transactional.id", id.as_str()), ("transaction.timeout.ms", NO_TIMEOUT_MS)];
        let settings = client::settings(config, identity, &[], &last);
        steps.push(("producer", look_at_id(settings, tokens.clone(), id).await));
        steps.push(("group", look_at_group(group, tokens, looks.topics.to_vec()).await));
    }
    steps
}

/// Whether the user may read in this group, and from these topics.
async fn look_at_group(mut settings: ClientConfig, tokens: Tokens, topics: Vec<String>) -> Result<String, LinkError> {
    let group = settings.get("group.id").unwrap_or_default().to_owned();
    settings.set("enable.auto.commit", "false");
    let given_up = GivenUp::default();
    let _guard = given_up.guard();
    client::blocking(move || {
        let consumer: BaseConsumer<Asking> =
            settings.create_with_context(Asking(tokens)).map_err(|error| client::not_created(&error))?;
        let refused = |error: &KafkaError| Err(LinkError::Misconfigured(format!("group '{group}': {error}")));
        let mut asked = TopicPartitionList::new();
        for topic in &topics {
            asked.add_partition(topic, NO_PARTITION);
        }
        // Until the group's coordinator is known. Who may not even see the group hears it here.
        loop {
            if let Some(Err(error)) = consumer.poll(STEP / 10)
                && error.rdkafka_error_code().is_some_and(client::is_hopeless)
            {
                return refused(&error);
            }
            match consumer.committed_offsets(asked.clone(), STEP) {
                Ok(_) => break,
                Err(error) if error.rdkafka_error_code().is_some_and(client::is_hopeless) => return refused(&error),
                Err(error) if given_up.is_set() => return Err(LinkError::Transient(error.to_string())),
                Err(_no_answer_yet) => {}
            }
        }
        asked.set_all_offsets(Offset::Offset(0)).map_err(|error| LinkError::Transient(error.to_string()))?;
        match consumer.commit(&asked, CommitMode::Sync).map_err(|error| (error.rdkafka_error_code(), error)) {
            Err((Some(code), error)) if is_of_our_rights(code) => refused(&error),
            Ok(()) | Err((Some(_), _)) => Ok(format!("'{group}' may read {}", quoted(&topics))),
            Err((None, error)) => Err(LinkError::Transient(error.to_string())),
        }
    })
    .await
}

/// Whether the user may use this transactional id.
async fn look_at_id(settings: ClientConfig, tokens: Tokens, id: String) -> Result<String, LinkError> {
    let given_up = GivenUp::default();
    let _guard = given_up.guard();
    client::blocking(move || {
        let producer: BaseProducer<Asking> =
            settings.create_with_context(Asking(tokens)).map_err(|error| client::not_created(&error))?;
        loop {
            let error = match producer.init_transactions(STEP) {
                Ok(()) => break,
                Err(error) => error,
            };
            match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::InvalidTransactionTimeout) => break,
                Some(code) if is_of_our_rights(code) => {
                    return Err(LinkError::Misconfigured(format!("transactional id '{id}': {error}")));
                }
                Some(_) | None if given_up.is_set() => return Err(LinkError::Transient(error.to_string())),
                Some(_) | None => std::thread::sleep(STEP / 10),
            }
        }
        Ok(format!("'{id}' may be used"))
    })
    .await
}

fn is_of_our_rights(code: RDKafkaErrorCode) -> bool {
    [
        RDKafkaErrorCode::TopicAuthorizationFailed,
        RDKafkaErrorCode::GroupAuthorizationFailed,
        RDKafkaErrorCode::ClusterAuthorizationFailed,
        RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
    ]
    .contains(&code)
}

fn quoted(topics: &[String]) -> String {
    topics.iter().map(|topic| format!("'{topic}'")).collect::<Vec<_>>().join(", ")
}
