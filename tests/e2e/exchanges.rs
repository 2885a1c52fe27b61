//! QoS 2 all the way to a remote MQTT broker, and from one (R25): the exchanges that are under way survive a reconnect, and a SIGKILL of the
//! gateway, so that the remote has each message once, and what comes again from there is known as what it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rumqttc_v5::QoS;
use tidegate::telemetry::board::LinkState;
use tokio::task::JoinSet;

use crate::support::client::{Subscriber, Work, publish_exactly_once};
use crate::support::gateway::Gateway;
use crate::support::ledger::{Delivery, Ledger};
use crate::support::proxy::{Proxy, Way};
use crate::support::remote::{Ending, Mosquitto, left_out};
use crate::support::wait::{PATIENCE, until_true};

const ROUNDS: usize = 12;

/// Acknowledgements between two blows, at least.
const STRIDE: usize = 60;

fn routes(port: u16, version: &str) -> String {
    format!(
        r#"
links:
  far:
    mqtt: {{ url: "mqtt://127.0.0.1:{port}", version: {version}, qos: 2 }}
    retry: {{ min: 10ms, max: 200ms }}
routes:
  - {{ from: "broker/line/#", to: "far/line/{{rest}}" }}
"#
    )
}

/// Kills of the gateway, and connections cut within packets, one way and the other, under load. The remote has each message once.
async fn once_over_kills(remote: u16, version: &str) {
    let far = Subscriber::start(remote, "far", "line/#", QoS::ExactlyOnce).await;
    let proxy = Proxy::start(remote).await;
    let mut gateway = Gateway::start(&routes(proxy.port(), version)).await;
    let messages = (ROUNDS + 2) * 2 * STRIDE;
    let topic = "line".to_owned();
    let work = Work { port: gateway.port, publishers: 1, messages, qos: QoS::ExactlyOnce, window: 40, topic };
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let mut publishing = JoinSet::new();
    publishing.spawn(publish_exactly_once(work, Arc::clone(&acknowledged)));
    for round in 0..ROUNDS {
        let next = (round + 1) * STRIDE;
        until_true("some more are acknowledged", PATIENCE, || acknowledged.load(Ordering::Relaxed) >= next).await;
        match round % 4 {
            0 => proxy.cut_after(Way::ToClient, 3 + 17 * round),
            1 => proxy.cut_after(Way::ToServer, 5 + 211 * round),
            _ => {}
        }
        if round % 2 == 1 {
            gateway.kill_9();
            gateway.start_again().await;
        }
        if round == ROUNDS / 2 {
            proxy.cut();
        }
    }
    let marks = publishing.join_next().await.unwrap().unwrap();
    let link = gateway.wait_until_drained("far").await;
    // What the publisher's library sends twice under two ids of its own is not the link's doing.
    assert_eq!(link.ledger["delivered"], u64::try_from(messages).unwrap(), "{:?}", link.ledger);
    let mut arrived = far.receive(&marks).await;
    if version == "3.1.1" {
        arrived.iter_mut().for_each(|delivery| delivery.properties.clear());
    } else {
        // The order in which they came to the gateway is its publisher's: what it sends again it does not send in order.
        let number =
            |delivery: &Delivery| delivery.property("tg-seq").and_then(|seq| seq.rsplit('-').next()?.parse().ok());
        let numbers: Vec<u64> = arrived.iter().filter_map(number).collect();
        assert_eq!(numbers.len(), arrived.len());
        assert!(numbers.is_sorted(), "in the buffer's order: {numbers:?}");
    }
    let ledger = Ledger::compare(marks, &arrived);
    assert_eq!((ledger.lost.len(), ledger.duplicates, ledger.published_again), (0, 0, 0), "{}", gateway.log());
    assert!(gateway.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn r25_qos_2_to_mosquitto_arrives_once_over_kills_of_the_gateway() {
    if left_out(&["mosquitto"]) {
        return;
    }
    for version in ["5", "3.1.1"] {
        let remote = Mosquitto::start().await;
        once_over_kills(remote.port, version).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r25_qos_2_to_another_gateway_arrives_once_over_kills() {
    for version in ["5", "3.1.1"] {
        let hq = Gateway::start_site("hq", "").await;
        once_over_kills(hq.port, version).await;
    }
}

/// A remote that has forgotten the session has forgotten the exchanges: nothing waits for ever. (That it is sent them anew no one can see here: this one
/// forgets its subscribers' messages too.)
#[tokio::test(flavor = "multi_thread")]
async fn r25_a_remote_that_forgets_the_session_is_sent_what_is_open_anew() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let forgetful = ["persist=off".to_owned()];
    let mut remote = Mosquitto::start_with(&forgetful).await;
    let gateway = Gateway::start(&routes(remote.port, "5")).await;
    let topic = "line".to_owned();
    let work = Work { port: gateway.port, publishers: 1, messages: 600, qos: QoS::ExactlyOnce, window: 40, topic };
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let mut publishing = JoinSet::new();
    publishing.spawn(publish_exactly_once(work, Arc::clone(&acknowledged)));
    for next in [100, 200, 300] {
        until_true("some more are acknowledged", PATIENCE, || acknowledged.load(Ordering::Relaxed) >= next).await;
        remote.end(Ending::Killed).await;
        remote.start_again().await;
    }
    publishing.join_next().await.unwrap().unwrap();
    let link = gateway.wait_until_drained("far").await;
    assert_eq!(link.ledger["delivered"], 600, "{:?}", link.ledger);
}

/// What a remote sends again to a gateway that was killed has the id that it had, and a buffer that has it does not get it once more: all that is
/// accepted there was published, each once.
#[tokio::test(flavor = "multi_thread")]
async fn r25_what_comes_with_qos_2_has_one_id_over_kills_of_the_gateway() {
    if left_out(&["mosquitto"]) {
        return;
    }
    for version in ["5", "3.1.1"] {
        let remote = Mosquitto::start().await;
        let next = Gateway::start_site("next", "").await;
        let far = Subscriber::start(next.port, "far", "line/#", QoS::AtLeastOnce).await;
        let proxy = Proxy::start(remote.port).await;
        let mut gateway = Gateway::start(&format!(
            r#"
links:
  hq:
    mqtt: {{ url: "mqtt://127.0.0.1:{}", version: {version}, qos: 2 }}
    retry: {{ min: 10ms, max: 200ms }}
  next: {{ mqtt: {{ url: "mqtt://127.0.0.1:{}", version: 5 }}, retry: {{ min: 10ms, max: 200ms }} }}
routes:
  - {{ from: "hq/line/#", to: "next/line/{{rest}}" }}
"#,
            proxy.port(),
            next.port
        ))
        .await;
        gateway.wait_for_state("hq", LinkState::Online).await;
        let messages = (ROUNDS + 2) * 2 * STRIDE;
        let topic = "line".to_owned();
        let work = Work { port: remote.port, publishers: 1, messages, qos: QoS::ExactlyOnce, window: 40, topic };
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let mut publishing = JoinSet::new();
        publishing.spawn(publish_exactly_once(work, Arc::clone(&acknowledged)));
        for round in 0..ROUNDS {
            let arrived = (round + 1) * STRIDE;
            until_true("some more have arrived", PATIENCE, || far.count() >= arrived).await;
            match round % 4 {
                0 => proxy.cut_after(Way::ToClient, 3 + 217 * round),
                1 => proxy.cut_after(Way::ToServer, 5 + 17 * round),
                _ => {}
            }
            if round % 2 == 1 {
                gateway.kill_9();
                gateway.start_again().await;
            }
        }
        let marks = publishing.join_next().await.unwrap().unwrap();
        // What the remote still had to bring has come when it has arrived.
        let arrived = far.receive(&marks).await;
        let link = gateway.wait_until_drained("next").await;
        // A buffer that is restarted gives up the segments that were delivered, and what is looked for there is not found: it is sent once more,
        // under its id, by which the receiver drops it.
        assert!(link.ledger["accepted"] >= u64::try_from(messages).unwrap(), "{:?}", link.ledger);
        let ledger = Ledger::compare(marks, &arrived);
        assert_eq!((ledger.lost.len(), ledger.duplicates, ledger.published_again), (0, 0, 0), "{}", gateway.log());
        assert!(gateway.terminate().await.success());
    }
}
