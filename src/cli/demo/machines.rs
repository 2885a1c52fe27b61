//! The simulated machines: QoS 1 publishers that keep exact count of what was acknowledged, and send again what was
//! not when the connection breaks, as a careful device does.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use parking_lot::Mutex;
use rumqttc_v5::{
    AsyncClient, ClientError, ConnectionError, Event, EventLoop, MqttOptions, Packet, PublishOptions, QoS,
};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::tally::Tally;
use crate::clock;

/// What a machine measures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Reading {
    /// Which machine.
    pub machine: usize,
    /// Its message's number.
    pub seq: u64,
    /// When it was made, wall ms.
    pub time_ms: u64,
    /// Something to look at.
    pub temperature: f64,
}

/// Messages a machine holds unacknowledged at most; it stops making new ones then. A device has little memory.
const WINDOW: usize = 256;
/// Requests that the client holds: room for the window and what is on its way.
const REQUESTS: usize = 2 * WINDOW;
/// Messages that go into one write: without it the client writes them one by one.
const BATCH: usize = 64;
/// How often a machine looks whether messages are due.
const BEAT: Duration = Duration::from_millis(10);
/// How long a machine waits before it tries its gateway again.
const RETRY: Duration = Duration::from_millis(200);

/// One machine.
#[derive(Debug)]
pub(crate) struct Machine {
    /// Its number.
    pub index: usize,
    /// The edge's broker.
    pub port: u16,
    /// How many messages a second it makes.
    pub rate: f64,
    /// Where all are counted.
    pub tally: Arc<Mutex<Tally>>,
    /// Cancelled: it makes no more messages, and ends when all are acknowledged.
    pub enough: CancellationToken,
}

/// Messages made and not acknowledged, oldest first.
type Unacknowledged = VecDeque<(u64, Bytes)>;

/// Why a connection ended.
enum Ended {
    Finished,
    Lost,
}

impl Machine {
    /// Publishes until `enough` is cancelled and everything is acknowledged.
    pub(crate) async fn run(self) {
        let mut unacknowledged = Unacknowledged::new();
        loop {
            match Box::pin(self.connection(&mut unacknowledged)).await {
                Ended::Finished => return,
                Ended::Lost => tokio::time::sleep(RETRY).await,
            }
        }
    }

    /// One connection, from CONNECT to its end. Each has a client of its own, so that nothing but our own list
    /// decides what is sent again.
    async fn connection(&self, unacknowledged: &mut Unacknowledged) -> Ended {
        let mut options = MqttOptions::new(format!("machine-{}", self.index + 1), ("127.0.0.1", self.port));
        options.set_keep_alive(5).set_clean_start(true).set_max_request_batch(BATCH);
        let mut network = options.network_options();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        let (client, events) = AsyncClient::builder(options).capacity(REQUESTS).build();
        let (up, connected) = oneshot::channel();
        let driver = drive(events, up);
        tokio::pin!(driver);
        tokio::select! {
            _ = &mut driver => return Ended::Lost,
            up = connected => if up.is_err() {
                return Ended::Lost;
            },
        }
        let mut answers = FuturesOrdered::new();
        for (seq, payload) in unacknowledged.iter() {
            match self.send(&client, *seq, payload.clone()) {
                Ok(answer) => answers.push_back(answer),
                Err(_) => return Ended::Lost,
            }
        }
        let mut due = Due::new(self.rate);
        let mut beat = tokio::time::interval(BEAT);
        loop {
            if unacknowledged.is_empty() && self.enough.is_cancelled() {
                return self.goodbye(&client, driver).await;
            }
            tokio::select! {
                _ = &mut driver => return Ended::Lost,
                Some(answer) = answers.next() => match answer {
                    Some(seq) => {
                        unacknowledged.retain(|(waiting, _)| *waiting != seq);
                        self.tally.lock().acknowledge(self.index, seq);
                    }
                    None => return Ended::Lost,
                },
                _ = beat.tick(), if !self.enough.is_cancelled() => {
                    for _ in 0..due.at(clock::now()).min(WINDOW.saturating_sub(unacknowledged.len())) {
                        let (seq, payload) = self.measure();
                        unacknowledged.push_back((seq, payload.clone()));
                        match self.send(&client, seq, payload) {
                            Ok(answer) => answers.push_back(answer),
                            Err(_) => return Ended::Lost,
                        }
                    }
                }
            }
        }
    }

    /// Makes the next message and counts it as published.
    fn measure(&self) -> (u64, Bytes) {
        let seq = self.tally.lock().publish(self.index);
        let time_ms = clock::wall().0;
        #[expect(clippy::cast_precision_loss, reason = "a value to look at")]
        let temperature = 60.0 + (seq % 100) as f64 / 10.0;
        let reading = Reading { machine: self.index, seq, time_ms, temperature };
        (seq, serde_json::to_vec(&reading).unwrap_or_default().into())
    }

    /// Hands one message to the client; the answer is its number when it is acknowledged, `None` when it was not.
    fn send(
        &self,
        client: &AsyncClient,
        seq: u64,
        payload: Bytes,
    ) -> Result<impl Future<Output = Option<u64>> + use<>, ClientError> {
        let topic = format!("factory/line-{}/machine-{}/telemetry", self.index / 2 + 1, self.index + 1);
        let notice = client.try_publish_tracked(topic, payload, PublishOptions::new(QoS::AtLeastOnce))?;
        Ok(async move { notice.wait_async().await.ok().map(|_| seq) })
    }

    async fn goodbye(&self, client: &AsyncClient, driver: impl Future<Output = ConnectionError>) -> Ended {
        if client.try_disconnect().is_ok() {
            // The gateway may be gone already; nothing depends on the packet.
            let _in_time: Result<ConnectionError, _> = tokio::time::timeout(RETRY, driver).await;
        }
        Ended::Finished
    }
}

/// Polls the client until its connection is lost; tells when it is up.
async fn drive(mut events: EventLoop, up: oneshot::Sender<()>) -> ConnectionError {
    let mut up = Some(up);
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                if let Some(up) = up.take() {
                    // Nobody waits any more only when the connection is being dropped.
                    let _heard: Result<(), ()> = up.send(());
                }
            }
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

/// How many messages are due, at an even rate.
#[derive(Debug)]
struct Due {
    rate: f64,
    last: Option<Instant>,
    owed: f64,
}

impl Due {
    const fn new(rate: f64) -> Self {
        Self { rate, last: None, owed: 0.0 }
    }

    /// Whole messages that have become due since the last call. What could not be sent then is not made up for.
    fn at(&mut self, now: Instant) -> usize {
        if let Some(last) = self.last.replace(now) {
            self.owed += self.rate * now.saturating_duration_since(last).as_secs_f64();
        }
        let whole = self.owed.floor();
        self.owed -= whole;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and not negative")]
        let whole = whole as usize;
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_become_due_at_the_rate_however_often_one_looks() {
        let start = clock::now();
        let mut due = Due::new(50.0);
        let made: usize = (0..=1_000_u64).map(|ms| due.at(start + Duration::from_millis(ms))).sum();
        assert!((49..=50).contains(&made), "{made}");
    }
}
