//! The receiver at the cloud: a subscriber with a kept session, QoS 1, that counts every copy.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rumqttc_v5::{AsyncClient, BrokerSessionResumePolicy, Event, MqttOptions, Packet, QoS, SessionMode};
use tokio::sync::oneshot;

use super::machines::Reading;
use super::tally::Tally;
use crate::clock::{self, WallMs};

/// How long it waits before it tries the cloud's broker again.
const RETRY: Duration = Duration::from_millis(200);

/// Receives for ever; drop it to end it. Tells `subscribed` once.
pub(crate) async fn run(port: u16, filter: &str, tally: Arc<Mutex<Tally>>, subscribed: oneshot::Sender<()>) {
    let mut subscribed = Some(subscribed);
    let mut options = MqttOptions::new("receiver", ("127.0.0.1", port));
    options.set_keep_alive(5).set_session_mode(SessionMode::Persistent);
    // The session at the broker is what counts; what we have received stands in the tally.
    options.set_broker_session_resume_policy(BrokerSessionResumePolicy::AllowBrokerOnly);
    let mut network = options.network_options();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    let (client, mut events) = AsyncClient::builder(options).capacity(16).build();
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(connack))) if !connack.session_present => {
                // The client's own queue holds 16 requests and this is the only one.
                let _queued: Result<(), rumqttc_v5::ClientError> = client.try_subscribe(filter, QoS::AtLeastOnce);
            }
            Ok(Event::Incoming(Packet::SubAck(_))) => {
                if let Some(subscribed) = subscribed.take() {
                    let _heard: Result<(), ()> = subscribed.send(());
                }
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => count(&publish.payload, &tally),
            Ok(_) => {}
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

fn count(payload: &[u8], tally: &Mutex<Tally>) {
    match serde_json::from_slice::<Reading>(payload) {
        Ok(reading) => {
            let age = clock::wall().since(WallMs(reading.time_ms));
            tally.lock().arrive(reading.machine, reading.seq, age);
        }
        // Counted as a message that nobody made: a changed payload is a broken promise.
        Err(_) => tally.lock().arrive(usize::MAX, u64::MAX, Duration::ZERO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_that_was_changed_on_its_way_is_noticed() {
        let tally = Mutex::new(Tally::new(1));
        count(b"{\"machine\":0,\"seq\":", &tally);
        assert_eq!(tally.lock().report(true).strangers, 1);
    }
}
