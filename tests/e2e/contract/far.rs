//! The remotes of the suite: a real server of each kind behind a proxy, and what arrived there.

use rumqttc_v5::QoS;

use crate::support::client::Subscriber;
use crate::support::gateway::Gateway;
use crate::support::ledger::{Delivery, Mark};
use crate::support::process::free_port;
use crate::support::proxy::Proxy;
use crate::support::remote::{Ending, Hivemq, Kafka, Mosquitto, Node, Rabbit};

/// What a link can lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Mosquitto.
    Mqtt(Version),
    /// Another gateway: unlike Mosquitto it has on disk what it has acknowledged, so it may be killed.
    Tidegate(Version),
    /// HiveMQ CE, towards 5 at QoS 2: with exchanges that are kept.
    Hivemq(Version),
    Rabbitmq,
    Kafka,
}

/// As `routes.yaml` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V5,
    V311,
}

impl Version {
    const fn key(self) -> &'static str {
        match self {
            Self::V5 => "5",
            Self::V311 => "3.1.1",
        }
    }
}

/// A remote.
pub(super) struct Far {
    pub(super) kind: Kind,
    pub(super) proxy: Proxy,
    server: Server,
}

enum Server {
    Mosquitto(Mosquitto, Subscriber),
    Tidegate(Gateway, Subscriber),
    Hivemq(Hivemq, Subscriber),
    Rabbitmq(Node, Rabbit),
    Kafka(Kafka),
}

impl Far {
    pub(super) async fn start(kind: Kind) -> Self {
        let subscriber = async |port| Subscriber::start(port, "far", "plant/#", QoS::AtLeastOnce).await;
        let (port, server) = match kind {
            Kind::Mqtt(_) => {
                let mosquitto = Mosquitto::start().await;
                let far = subscriber(mosquitto.port).await;
                (mosquitto.port, Server::Mosquitto(mosquitto, far))
            }
            Kind::Tidegate(_) => {
                let gateway = Gateway::start_site("hq", "").await;
                let far = subscriber(gateway.port).await;
                (gateway.port, Server::Tidegate(gateway, far))
            }
            Kind::Hivemq(_) => {
                let hivemq = Hivemq::start().await;
                let far = subscriber(hivemq.port).await;
                (hivemq.port, Server::Hivemq(hivemq, far))
            }
            Kind::Rabbitmq => {
                let node = Node::start().await;
                let rabbit = node.vhost("contract").await;
                rabbit.declare("telemetry", "all").await;
                (rabbit.port, Server::Rabbitmq(node, rabbit))
            }
            Kind::Kafka => {
                let behind = free_port();
                let proxy = Proxy::start(behind).await;
                let kafka = Kafka::start_behind(behind, proxy.port()).await;
                kafka.create_topic("lake", 3).await;
                return Self { kind, proxy, server: Server::Kafka(kafka) };
            }
        };
        Self { kind, proxy: Proxy::start(port).await, server }
    }

    /// The link's own section.
    pub(super) fn link(&self) -> String {
        let port = self.proxy.port();
        match (&self.server, self.kind) {
            (Server::Rabbitmq(_, rabbit), _) => {
                format!("rabbitmq: {{ url: \"{}\", exchange: telemetry }}", rabbit.url(port))
            }
            (Server::Kafka(_), _) => format!("kafka: {{ brokers: [\"127.0.0.1:{port}\"], acks: all }}"),
            (_, Kind::Mqtt(version) | Kind::Tidegate(version) | Kind::Hivemq(version)) => {
                let qos = if self.kind == Kind::Hivemq(Version::V5) { 2 } else { 1 };
                format!("mqtt: {{ url: \"mqtt://127.0.0.1:{port}\", version: {}, qos: {qos} }}", version.key())
            }
            (_, kind) => panic!("{kind:?} is another server"),
        }
    }

    /// What a source reads is there.
    pub(super) async fn prepare_source(&self) {
        match &self.server {
            Server::Mosquitto(..) | Server::Tidegate(..) | Server::Hivemq(..) => {}
            Server::Rabbitmq(_, rabbit) => rabbit.declare_queue("commands").await,
            Server::Kafka(kafka) => kafka.create_topic("commands", 3).await,
        }
    }

    /// The link's own section as a source, and what a route takes from it to where.
    pub(super) fn source(&self) -> (String, &'static str, &'static str) {
        let port = self.proxy.port();
        match &self.server {
            Server::Mosquitto(..) | Server::Tidegate(..) | Server::Hivemq(..) => {
                let link = self.link().replace(" }", ", client_id: edge, keep_alive: 5s }");
                (link, "far/up/#", "broker/cmd/{rest}")
            }
            Server::Rabbitmq(_, rabbit) => (
                format!("rabbitmq: {{ url: \"{}\", prefetch: 50 }}", rabbit.url(port)),
                "far/commands",
                "broker/cmd/all",
            ),
            Server::Kafka(_) => {
                // A member that was killed is missed by the group only after this.
                let options = "options: { session.timeout.ms: 6000 }";
                let link = format!("kafka: {{ brokers: [\"127.0.0.1:{port}\"], group: edge, {options} }}");
                (link, "far/commands", "broker/cmd/all")
            }
        }
    }

    /// Where MQTT publishers publish, past the proxy.
    pub(super) const fn mqtt_port(&self) -> Option<u16> {
        match &self.server {
            Server::Mosquitto(mosquitto, _) => Some(mosquitto.port),
            Server::Tidegate(gateway, _) => Some(gateway.port),
            Server::Hivemq(hivemq, _) => Some(hivemq.port),
            Server::Rabbitmq(..) | Server::Kafka(_) => None,
        }
    }

    /// Publishes past the proxy; returns when the server has acknowledged all.
    pub(super) async fn publish(&self, marks: &[Mark]) {
        match &self.server {
            Server::Rabbitmq(_, rabbit) => rabbit.publish("commands", marks).await,
            Server::Kafka(kafka) => kafka.publish("commands", marks).await,
            Server::Mosquitto(..) | Server::Tidegate(..) | Server::Hivemq(..) => {
                panic!("MQTT has publishers of its own")
            }
        }
    }

    /// What the server still has for the gateway, as far as it tells.
    pub(super) async fn left(&self, published: usize) -> usize {
        match &self.server {
            Server::Mosquitto(..) | Server::Tidegate(..) | Server::Hivemq(..) => 0,
            Server::Rabbitmq(_, rabbit) => usize::try_from(rabbit.depth("commands").await).unwrap(),
            Server::Kafka(kafka) => published - usize::try_from(kafka.committed("edge", "commands", 3)).unwrap(),
        }
    }

    /// Where routes lead.
    pub(super) const fn to(&self) -> &'static str {
        match self.kind {
            Kind::Mqtt(_) | Kind::Tidegate(_) | Kind::Hivemq(_) => "far/plant/{rest}",
            Kind::Rabbitmq => "far/plant/{rest}",
            Kind::Kafka => "far/lake",
        }
    }

    /// Whether message ids travel: where they do not, what a publisher sent again looks like a copy of ours.
    pub(super) const fn carries_ids(&self) -> bool {
        !matches!(self.kind, Kind::Mqtt(Version::V311) | Kind::Tidegate(Version::V311) | Kind::Hivemq(Version::V311))
    }

    /// Copies that the server itself may make of what it was still delivering to the receiver when it ended.
    pub(super) const fn own_copies_max(&self) -> usize {
        match self.kind {
            Kind::Mqtt(_) | Kind::Tidegate(_) | Kind::Hivemq(_) => 256,
            Kind::Rabbitmq | Kind::Kafka => 0,
        }
    }

    pub(super) async fn end(&mut self, ending: Ending) {
        match &mut self.server {
            Server::Mosquitto(mosquitto, _) => mosquitto.end(ending).await,
            Server::Tidegate(gateway, _) if ending == Ending::Asked => assert!(gateway.terminate().await.success()),
            Server::Tidegate(gateway, _) => gateway.kill_9(),
            Server::Hivemq(hivemq, _) => hivemq.end(ending).await,
            Server::Rabbitmq(node, _) => node.end(ending).await,
            Server::Kafka(kafka) => kafka.end(ending).await,
        }
    }

    pub(super) async fn start_again(&mut self) {
        match &mut self.server {
            Server::Mosquitto(mosquitto, _) => mosquitto.start_again().await,
            Server::Tidegate(gateway, _) => gateway.start_again().await,
            Server::Hivemq(hivemq, _) => hivemq.start_again().await,
            Server::Rabbitmq(node, _) => node.start_again().await,
            Server::Kafka(kafka) => kafka.start_again().await,
        }
    }

    /// Returns when all of these have arrived, with all that did.
    pub(super) async fn receive(&self, marks: &[Mark]) -> Vec<Delivery> {
        match &self.server {
            Server::Mosquitto(_, far) | Server::Tidegate(_, far) | Server::Hivemq(_, far) => far.receive(marks).await,
            Server::Rabbitmq(_, rabbit) => rabbit.receive("all", marks).await,
            Server::Kafka(kafka) => kafka.receive("lake", marks).await,
        }
    }
}
