//! What `tidegate doctor` finds out: a link's remote, step by step, as the link itself would reach it, and what to do about the first step that
//! fails. Nothing is published unless a probe is asked for, nothing is consumed, and no session of the running gateway is disturbed.

mod tls;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::net::TcpStream;

use super::tls::{Roots, client_config};
use super::{Answer, Config, Identity, Kind, LinkError, Outgoing, Sent, Sink, SinkConnection, kafka, mqtt, rabbitmq};
use crate::buffer::Place;
use crate::clock::Clock;
use crate::message::{Envelope, IdSource, Message, Origin, Properties, Qos};
use crate::topic::TopicName;

/// What the probe's payload says.
const PROBE: &[u8] = b"tidegate doctor";

/// One step of an examination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// `name`, `tcp`, `tls`, `login`, `exchange`, `queue`, `topic`, `probe`.
    pub step: &'static str,
    /// How it went.
    #[serde(flatten)]
    pub finding: Finding,
}

/// How a step went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Finding {
    /// As it should.
    Ok {
        /// What was found.
        found: String,
    },
    /// Not.
    Failed {
        /// In the remote's or the system's own words.
        error: String,
        /// What to do about it.
        advice: &'static str,
        /// Whose matter it is.
        cause: Cause,
    },
}

/// Whose matter a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The remote, or the way to it: it is not there, or not as it should be.
    Remote,
    /// We may not: password, permission.
    Permission,
    /// The file does not fit the remote: a name, an authority, an exchange.
    Configuration,
    /// The remote did not take the probe.
    Probe,
}

/// What else is to be looked at.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Kafka topics that routes lead to by name.
    pub topics: Vec<String>,
    /// Publish one message there: a routing key, an MQTT topic, a Kafka topic.
    pub probe: Option<String>,
}

type Looked = Result<String, LinkError>;

impl Step {
    fn ok(step: &'static str, found: impl Into<String>) -> Self {
        Self { step, finding: Finding::Ok { found: found.into() } }
    }

    fn failed(step: &'static str, error: impl Into<String>, (cause, advice): (Cause, &'static str)) -> Self {
        Self { step, finding: Finding::Failed { error: error.into(), advice, cause } }
    }

    fn of(step: &'static str, looked: Looked) -> Self {
        match looked {
            Ok(found) => Self::ok(step, found),
            Err(error) => {
                let words = error.to_string();
                let advice = advice(step, &words, matches!(error, LinkError::Misconfigured(_)));
                Self::failed(step, words, advice)
            }
        }
    }

    /// Whether it went as it should.
    #[must_use]
    pub const fn is_ok(&self) -> bool {
        matches!(self.finding, Finding::Ok { .. })
    }
}

/// Examines one link. Ends at the first step that the others need and that fails.
pub async fn examine(config: &Config, identity: &Identity, request: &Request, clock: &dyn Clock) -> Vec<Step> {
    let mut steps = Vec::new();
    let timeout = config.timing.connect_timeout;
    match ways(&config.kind) {
        Ok(ways) => {
            let mut reached = false;
            for way in &ways {
                reached |= way.walk(timeout, &mut steps).await;
            }
            if !reached {
                return steps;
            }
        }
        Err(error) => {
            steps.push(Step::of("name", Err(error)));
            return steps;
        }
    }
    // As in `to:` of a route: a routing key's dots are levels, but for a queue's name at the default exchange.
    let has_dots = matches!(&config.kind, Kind::Rabbitmq(remote) if !remote.exchange.is_empty());
    let to = request.probe.as_deref().map(|to| if has_dots { to.replace('.', "/") } else { to.to_owned() });
    let probe = to.and_then(|to| probe(&to, identity, clock));
    match &config.kind {
        Kind::Mqtt(remote) => {
            let link = remote.client_id.clone().unwrap_or_else(|| format!("{}-{}", identity.site, identity.link));
            // The link's own id would throw the running gateway out.
            let remote = remote.as_client(format!("{link}-doctor"));
            let sink = mqtt::MqttSink::new(&remote, identity, false);
            steps.extend(log_in(sink, timeout, probe).await);
        }
        Kind::Rabbitmq(remote) => {
            let looks = rabbitmq::examine(remote, identity, config.has_sink, &config.sources);
            steps.extend(looked(timeout, looks).await);
            if let (Some(probe), true) = (probe, steps.iter().all(Step::is_ok)) {
                let sink = rabbitmq::RabbitSink::new(remote, identity);
                steps.push(Step::of("probe", within(timeout, publish(sink, probe)).await));
            }
        }
        Kind::Kafka(remote) => {
            let looks = kafka::Looks { topics: &request.topics, sources: &config.sources, has_sink: config.has_sink };
            let looks = kafka::examine(remote, identity, &looks);
            steps.extend(looked(timeout.saturating_mul(2), looks).await);
            if let (Some(probe), true) = (probe, steps.iter().all(Step::is_ok)) {
                let sink = kafka::KafkaSink::new(remote, identity);
                steps.push(Step::of("probe", within(timeout, publish(sink, probe)).await));
            }
        }
    }
    steps
}

/// MQTT: a login says nothing of permissions; a publish does.
async fn log_in<S: Sink>(mut sink: S, timeout: Duration, probe: Option<Outgoing>) -> Vec<Step> {
    let Some(probe) = probe else {
        let login = async {
            sink.connect().await?.close().await;
            Ok(())
        };
        let login = within(timeout, login).await;
        return vec![Step::of("login", login.map(|()| "accepted; permissions show only with `--probe`".to_owned()))];
    };
    match within(timeout, sink.connect()).await {
        Err(error) => vec![Step::of("login", Err(error))],
        Ok(connection) => {
            let answer = within(timeout, publish_on(connection, probe)).await;
            vec![Step::ok("login", "accepted"), Step::of("probe", answer)]
        }
    }
}

async fn within<T>(timeout: Duration, look: impl Future<Output = Result<T, LinkError>>) -> Result<T, LinkError> {
    let late = |_elapsed| Err(LinkError::Transient(format!("no answer within {timeout:?}")));
    tokio::time::timeout(timeout, look).await.unwrap_or_else(late)
}

async fn looked(timeout: Duration, looks: impl Future<Output = Vec<(&'static str, Looked)>>) -> Vec<Step> {
    match tokio::time::timeout(timeout, looks).await {
        Ok(looks) => looks.into_iter().map(|(step, looked)| Step::of(step, looked)).collect(),
        Err(_elapsed) => {
            vec![Step::of("login", Err(LinkError::Transient(format!("no answer within {timeout:?}"))))]
        }
    }
}

/// One message that says what it is.
fn probe(destination: &str, identity: &Identity, clock: &dyn Clock) -> Option<Outgoing> {
    let accepted = clock.moment();
    let message = Message {
        id: IdSource::new(std::sync::Arc::clone(&identity.site), rand::random()).next(),
        topic: TopicName::new("tidegate/doctor").ok()?,
        payload: Bytes::from_static(PROBE),
        qos: Qos::AtLeastOnce,
        retain: false,
        time: accepted.wall,
        time_unsync: !accepted.synced,
        expiry_s: Some(60),
        accepted,
        origin: Origin { site: std::sync::Arc::clone(&identity.site), ..Origin::default() },
        properties: Properties::default(),
    };
    Some(Outgoing {
        place: Place::default(),
        seq: "doctor-0-0".to_owned(),
        backfill: false,
        envelope: Envelope {
            destination: destination.into(),
            key: None,
            ordinal: 0,
            failure: None,
            batch: None,
            message,
        },
        expiry_left_s: Some(60),
        expired_before: 0,
    })
}

async fn publish<S: Sink>(mut sink: S, probe: Outgoing) -> Looked {
    let connection = sink.connect().await?;
    publish_on(connection, probe).await
}

async fn publish_on<C: SinkConnection>(mut connection: C, probe: Outgoing) -> Looked {
    let to = probe.envelope.destination.clone();
    if let Sent::Refused(words) = connection.send(probe)? {
        return Err(LinkError::Misconfigured(words));
    }
    loop {
        match connection.answer().await? {
            Answer::Confirmed(_) => break,
            Answer::Refused(_, words) => return Err(LinkError::Misconfigured(words)),
            Answer::Retry(_, words) => return Err(LinkError::Transient(words)),
            Answer::Blocked(true) => {
                return Err(LinkError::Transient("the remote asks us to hold back (connection.blocked)".to_owned()));
            }
            Answer::Blocked(false) | Answer::Alive => {}
        }
    }
    connection.close().await;
    Ok(format!("`{to}` took it, and confirmed it"))
}

/// One address of the remote.
struct Way {
    host: String,
    port: u16,
    /// With the name that the certificate has to have.
    tls: Option<(std::sync::Arc<rustls::ClientConfig>, rustls::pki_types::ServerName<'static>)>,
}

/// Kafka's TLS is librdkafka's own: what it says comes with the login.
fn ways(kind: &Kind) -> Result<Vec<Way>, LinkError> {
    match kind {
        Kind::Mqtt(remote) => {
            let config = client_config(&remote.tls, Roots::Instead)?;
            let way = |address: &mqtt::Address| {
                let name = address.tls.then(|| remote.tls.name(&address.host)).transpose()?;
                let tls = name.map(|name| (config.clone(), name));
                Ok(Way { host: address.host.clone(), port: address.port, tls })
            };
            remote.addresses.iter().map(way).collect()
        }
        Kind::Rabbitmq(remote) => {
            let (host, port, is_tls) = rabbitmq::endpoint(remote)?;
            let tls = is_tls.then(|| client_config(&remote.tls, Roots::Beside)).transpose()?;
            let tls = tls.map(|config| Ok((config, remote.tls.name(&host)?))).transpose()?;
            Ok(vec![Way { host, port, tls }])
        }
        Kind::Kafka(remote) => {
            let split = |broker: &String| {
                let (host, port) = broker.rsplit_once(':')?;
                Some(Way { host: host.to_owned(), port: port.parse().ok()?, tls: None })
            };
            Ok(remote.brokers.iter().filter_map(split).collect())
        }
    }
}

impl Way {
    /// Whether the remote was reached.
    async fn walk(&self, timeout: Duration, steps: &mut Vec<Step>) -> bool {
        let host = self.host.trim_matches(['[', ']']);
        let found = tokio::time::timeout(timeout, tokio::net::lookup_host((host, self.port))).await;
        let addresses: Vec<SocketAddr> = match found {
            Ok(Ok(addresses)) => addresses.collect(),
            Ok(Err(error)) => {
                steps.push(Step::failed("name", format!("{host}: {error}"), NAME));
                return false;
            }
            Err(_elapsed) => {
                steps.push(Step::failed("name", format!("{host}: no answer within {timeout:?}"), NAME));
                return false;
            }
        };
        let shown: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
        steps.push(Step::ok("name", format!("{host}: {}", shown.join(", "))));
        let mut last = format!("{host}: no address");
        for address in addresses {
            match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    steps.push(Step::ok("tcp", address.to_string()));
                    drop(stream);
                    return self.shake_hands(address, timeout, steps).await;
                }
                Ok(Err(error)) => last = format!("{address}: {error}"),
                Err(_elapsed) => last = format!("{address}: no answer within {timeout:?}"),
            }
        }
        let advice = if last.contains("refused") { REFUSED } else { SILENT };
        steps.push(Step::failed("tcp", last, advice));
        false
    }

    async fn shake_hands(&self, address: SocketAddr, timeout: Duration, steps: &mut Vec<Step>) -> bool {
        let Some((config, name)) = self.tls.clone() else { return true };
        let shaking = tokio::task::spawn_blocking(move || tls::shake_hands(config, name, address, timeout));
        let step = shaking.await.unwrap_or_else(|error| Step::failed("tls", error.to_string(), SILENT));
        let is_ok = step.is_ok();
        steps.push(step);
        is_ok
    }
}

const NAME: (Cause, &str) =
    (Cause::Remote, "look at the host in the link's address, and at this machine's DNS (`getent hosts HOST`)");
const REFUSED: (Cause, &str) =
    (Cause::Remote, "nothing listens there: is the remote running, is the port right, does a firewall reject us?");
const SILENT: (Cause, &str) =
    (Cause::Remote, "nothing answers there: is the address right, and does a firewall let this machine through?");

/// What to do about a step that the remote has refused, in words that it is known to use.
fn advice(step: &'static str, words: &str, hopeless: bool) -> (Cause, &'static str) {
    let has = |needles: &[&str]| needles.iter().any(|needle| words.contains(needle));
    match step {
        "login" if has(&["vhost", "NOT_ALLOWED"]) && has(&["not found"]) => (
            Cause::Configuration,
            "there is no such virtual host: correct the end of `url`, or `rabbitmqctl add_vhost NAME`",
        ),
        "login" if has(&["vhost"]) => (
            Cause::Permission,
            "the user may not use this virtual host: `rabbitmqctl set_permissions -p VHOST USER ..`",
        ),
        "login" if has(&["ACCESS_REFUSED", "BadUserNamePassword", "Authentication", "SASL"]) => (
            Cause::Permission,
            "the remote does not know this user with this password: look at both, and at the secret's file",
        ),
        "login" if has(&["certificate"]) => (
            Cause::Configuration,
            "the certificate does not hold: look at the authority's file (Kafka: `ssl.ca.location` below `options`), its dates, and the host's name",
        ),
        "login" if has(&["NotAuthorized", "Banned"]) => {
            (Cause::Permission, "the remote does not let us in: look at user, password and client id, and at its rules")
        }
        "exchange" if has(&["404"]) => (
            Cause::Configuration,
            "declare the exchange at the remote, or write `declare:` below the link's `rabbitmq`",
        ),
        "exchange" | "queue" if has(&["406"]) => (
            Cause::Configuration,
            "one of that name is there and is another: write it as it is there, or delete it there, with what is in it, for the link to declare it anew",
        ),
        "queue" if has(&["404"]) && has(&["cannot be bound"]) => (
            Cause::Configuration,
            "create the exchange at the remote, or correct the `exchange` of the queue's `bindings`",
        ),
        "queue" if has(&["404"]) => (
            Cause::Configuration,
            "declare the queue at the remote, and bind it, or write `queues:` below the link's `rabbitmq`",
        ),
        "queue" if has(&["403"]) && has(&["cannot be declared", "cannot be bound"]) => (
            Cause::Permission,
            "give the link's user `configure` and `write` on the queue and `read` on the exchanges that it is bound to, or have somebody else declare it and take it out of `queues`",
        ),
        "topic" if has(&["does not exist"]) => {
            (Cause::Configuration, "create the topic at the remote: Tidegate creates none by itself")
        }
        "group" if hopeless => (
            Cause::Permission,
            "give the link's user Read on the group and on its topics: `kafka-acls --add --allow-principal User:NAME --operation Read --group GROUP --topic TOPIC`",
        ),
        "producer" if hopeless => (
            Cause::Permission,
            "give the link's user Write on the transactional id: `kafka-acls --add --allow-principal User:NAME --operation Write --transactional-id ID`",
        ),
        "exchange" | "queue" | "topic" if hopeless => (Cause::Permission, "give the link's user the right to it"),
        "probe" if has(&["403", "NotAuthorized", "AUTHORIZATION", "uthorization"]) => {
            (Cause::Permission, "give the link's user the right to publish there")
        }
        "probe" => (Cause::Probe, "the remote did not take the message: its own words say why"),
        _ if hopeless => (Cause::Configuration, "correct what the remote's words name"),
        _ => SILENT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_remote_says_leads_to_whose_matter_it_is() {
        for (step, words, cause) in [
            ("login", "403 ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN", Cause::Permission),
            ("login", "530 NOT_ALLOWED - vhost nowhere not found", Cause::Configuration),
            ("login", "530 NOT_ALLOWED - access to vhost 'x' refused for user 'u'", Cause::Permission),
            ("login", "the remote refuses the connection: NotAuthorized", Cause::Permission),
            ("login", "the remote refuses the connection: BadUserNamePassword", Cause::Permission),
            ("exchange", "no exchange 'x' in vhost '/': 404 NOT_FOUND", Cause::Configuration),
            ("exchange", "exchange 'x' cannot be declared: 406 PRECONDITION_FAILED", Cause::Configuration),
            ("queue", "queue 'q' cannot be declared: 406 PRECONDITION_FAILED", Cause::Configuration),
            ("queue", "queue 'q' cannot be declared: 403 ACCESS_REFUSED", Cause::Permission),
            ("queue", "queue 'q' cannot be bound to exchange 'x': 404 NOT_FOUND", Cause::Configuration),
            ("topic", "topic 'lake' does not exist (UnknownTopic): create it", Cause::Configuration),
            ("topic", "topic 'lake': TopicAuthorizationFailed", Cause::Permission),
            ("probe", "403 ACCESS_REFUSED - access to exchange 'x' refused", Cause::Permission),
            ("probe", "unroutable: 312 NO_ROUTE", Cause::Probe),
        ] {
            assert_eq!(advice(step, words, true).0, cause, "{step}: {words}");
        }
        assert_eq!(advice("login", "no answer within 10s", false).0, Cause::Remote);
    }
}
