//! `$SYS/broker/`: the broker's own figures, under the names that Mosquitto gives them (mosquitto(8), "Broker Status"), so that what
//! watches a Mosquitto goes on. Retained in memory only: they are made anew at each start. Values that did not change are not
//! published again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{Broker, convert};
use crate::clock::Moment;
use crate::hub::Publication;
use crate::message::{Message, MessageId, Origin, Properties, Qos};
use crate::telemetry::board::Traffic;
use crate::topic::TopicName;

/// What `$SYS/broker/load/` averages over.
const SPANS: [(&str, f64); 3] = [("1min", 60.0), ("5min", 300.0), ("15min", 900.0)];

/// A figure a minute, as a moving average over each of the spans.
#[derive(Debug, Default)]
struct Load {
    last: u64,
    means: [f64; 3],
}

impl Load {
    /// Takes in what was counted in `elapsed`.
    fn observe(&mut self, count: u64, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "an average for people to read")]
        let a_minute = count.saturating_sub(self.last) as f64 * 60.0 / seconds;
        self.last = count;
        for (mean, (_, span)) in self.means.iter_mut().zip(SPANS) {
            let weight = (-seconds / span).exp();
            *mean = a_minute + weight * (*mean - a_minute);
        }
    }
}

/// What was published last.
#[derive(Debug, Default)]
struct Figures {
    published: HashMap<String, String>,
    loads: HashMap<&'static str, Load>,
    clients_max: u64,
    memory_max: u64,
}

/// Publishes the figures at once and then every `sys_interval`, until `stop`.
pub(super) async fn run(broker: Arc<Broker>, stop: CancellationToken) {
    let begun = broker.clock.moment();
    let (mut figures, mut last) = (Figures::default(), begun);
    loop {
        let every = broker.config.load().sys_interval;
        if !every.is_zero() {
            let now = broker.clock.moment();
            for (topic, value) in figures.changes(&broker, now.since(begun), now.since(last)) {
                broker.announce(&topic, value).await;
            }
            last = now;
        }
        let pause = async {
            match every.is_zero() {
                true => std::future::pending().await,
                false => tokio::time::sleep(every).await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = broker.interval_changed.notified() => {}
            () = pause => {}
        }
    }
}

impl Figures {
    /// Topics whose value is another than before.
    fn changes(&mut self, broker: &Broker, uptime: Duration, elapsed: Duration) -> Vec<(String, String)> {
        let mut values = self.counts(broker);
        values.push(("version".into(), concat!("tidegate version ", env!("CARGO_PKG_VERSION")).to_owned()));
        values.push(("uptime".into(), format!("{} seconds", uptime.as_secs())));
        values.extend(self.loads(broker, elapsed));
        values.retain(|(topic, value)| self.published.get(topic) != Some(value));
        self.published.extend(values.iter().cloned());
        values.into_iter().map(|(topic, value)| (format!("$SYS/broker/{topic}"), value)).collect()
    }

    fn counts(&mut self, broker: &Broker) -> Vec<(String, String)> {
        let Traffic { packets_in, packets_out, bytes_in, bytes_out, publish_bytes_in, publish_bytes_out, .. } =
            broker.board.traffic();
        let (board, figures) = (broker.board.snapshot(), broker.figures());
        let (subscriptions, shared) = broker.topics.subscription_counts();
        let memory = broker.hub.memory().snapshot().used_bytes;
        self.clients_max = self.clients_max.max(board.clients);
        self.memory_max = self.memory_max.max(memory);
        let stored = figures.owed + figures.retained;
        let counts: [(&str, u64); 26] = [
            ("clients/total", board.clients + figures.sessions_offline),
            ("clients/connected", board.clients),
            ("clients/active", board.clients),
            ("clients/disconnected", figures.sessions_offline),
            ("clients/inactive", figures.sessions_offline),
            ("clients/maximum", self.clients_max),
            ("clients/expired", broker.expired.load(Ordering::Relaxed)),
            ("messages/received", packets_in),
            ("messages/sent", packets_out),
            ("messages/stored", stored),
            ("store/messages/count", stored),
            ("store/messages/bytes", figures.stored_bytes),
            ("retained messages/count", figures.retained),
            ("subscriptions/count", subscriptions as u64),
            ("shared_subscriptions/count", shared as u64),
            ("bytes/received", bytes_in),
            ("bytes/sent", bytes_out),
            ("publish/messages/received", board.received),
            ("publish/messages/sent", board.sent),
            ("publish/messages/dropped", board.dropped.values().sum()),
            ("publish/bytes/received", publish_bytes_in),
            ("publish/bytes/sent", publish_bytes_out),
            ("connections/socket/count", broker.board.traffic().sockets),
            ("connections/count", broker.board.traffic().connects),
            ("heap/current", memory),
            ("heap/maximum", self.memory_max),
        ];
        counts.into_iter().map(|(topic, count)| (topic.to_owned(), count.to_string())).collect()
    }

    fn loads(&mut self, broker: &Broker, elapsed: Duration) -> Vec<(String, String)> {
        let Traffic { packets_in, packets_out, bytes_in, bytes_out, sockets, connects, .. } = broker.board.traffic();
        let board = broker.board.snapshot();
        let mut values = Vec::new();
        for (what, count) in [
            ("messages/received", packets_in),
            ("messages/sent", packets_out),
            ("publish/dropped", board.dropped.values().sum()),
            ("publish/received", board.received),
            ("publish/sent", board.sent),
            ("bytes/received", bytes_in),
            ("bytes/sent", bytes_out),
            ("sockets", sockets),
            ("connections", connects),
        ] {
            let load = self.loads.entry(what).or_default();
            load.observe(count, elapsed);
            let means = load.means.iter().zip(SPANS);
            values.extend(means.map(|(mean, (span, _))| (format!("load/{what}/{span}"), format!("{mean:.2}"))));
        }
        values
    }
}

impl Broker {
    /// Publishes a value of the gateway's own below `$SYS/` and keeps it for later subscribers, in memory. QoS 0: who must not miss
    /// a change subscribes, and sees the last one at once. A topic that is none is ignored.
    pub async fn announce(&self, topic: &str, value: impl Into<Bytes>) {
        let (Ok(topic), payload) = (TopicName::new(topic), value.into()) else { return };
        let now = self.clock.moment();
        self.topics.keep_own(&topic, Arc::new(own_message(topic.clone(), payload.clone(), now)));
        let publication = Publication {
            topic,
            payload,
            qos: Qos::AtMostOnce,
            retain: false,
            expiry_s: None,
            time_ms: None,
            properties: Properties::default(),
            client_id: None,
            user: None,
            packet_id: None,
            id: None,
        };
        // Nobody waits for QoS 0; what refuses it counts it.
        drop(self.hub.offer(&convert::source(), vec![publication]).await);
    }
}

fn own_message(topic: TopicName, payload: Bytes, now: Moment) -> Message {
    Message {
        id: MessageId { site: "sys".into(), run: 0, counter: 0 },
        topic,
        payload,
        qos: Qos::AtMostOnce,
        retain: true,
        time: now.wall,
        time_unsync: !now.synced,
        expiry_s: None,
        accepted: now,
        origin: Origin::default(),
        properties: Properties::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_load_is_its_own_average_and_an_old_burst_fades() {
        let mut load = Load::default();
        for second in 1..=7_200 {
            load.observe(second * 2, Duration::from_secs(1));
        }
        assert!(load.means.iter().all(|mean| (mean - 120.0).abs() < 0.1), "{:?}", load.means);
        for _ in 0..60 {
            load.observe(14_400, Duration::from_secs(1));
        }
        let [one, five, fifteen] = load.means;
        assert!((one - 120.0 / std::f64::consts::E).abs() < 0.1 && five > one && fifteen > five, "{:?}", load.means);
        load.observe(99, Duration::ZERO);
        assert!(load.means.iter().all(|mean| mean.is_finite()));
    }
}
