//! The broker towards client libraries that nobody here wrote: Eclipse Paho for Python, and MQTT.js, both over TCP and over WebSocket.
//! What each checks stands in its script below `tests/peers/`; rumqttc is in `rumqttc`, Mosquitto's own clients in `sessions` and `transports`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::support::gateway::Gateway;
use crate::support::process::free_port;
use crate::support::remote::left_out;

/// Some seconds, as a rule.
const LIMIT: Duration = Duration::from_secs(120);

/// Both versions, each check.
const PAHO: &[&str] = &["every_qos", "many_in_order", "retained", "will", "kept_session"];

/// The same.
const MQTT_JS: &[&str] = &["every_qos", "large", "retained", "will", "kept_session"];

/// Runs a client's script; it says which checks passed.
async fn passes(client: &str, arguments: &[&str], checks: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(client).join("run.sh");
    let mut command = Command::new(script);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(LIMIT, command.output()).await.expect("the client's checks end").unwrap();
    let (out, errors) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success(), "{client} {arguments:?}\n{out}{errors}");
    let both = ["3.1.1", "5.0"].into_iter().flat_map(|version| checks.iter().map(move |check| (version, *check)));
    for (version, check) in both.chain([("5.0", "properties")]) {
        assert!(out.lines().any(|line| line == format!("ok {version} {check}")), "{version} {check}\n{out}");
    }
}

/// A gateway with a WebSocket listener too, and its port.
async fn with_websocket() -> (Gateway, u16) {
    let port = free_port();
    let listener = format!("    - {{ bind: \"127.0.0.1:{port}\", websocket: true, anonymous: true }}\n");
    (Gateway::start(&listener).await, port)
}

#[tokio::test(flavor = "multi_thread")]
async fn eclipse_paho_for_python() {
    if left_out(&["paho-mqtt"]) {
        return;
    }
    let (gateway, websocket) = with_websocket().await;
    passes("paho-mqtt", &[&gateway.port.to_string()], PAHO).await;
    passes("paho-mqtt", &[&websocket.to_string(), "websockets"], PAHO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mqtt_js() {
    if left_out(&["mqttjs"]) {
        return;
    }
    let (gateway, websocket) = with_websocket().await;
    passes("mqttjs", &[&format!("mqtt://127.0.0.1:{}", gateway.port)], MQTT_JS).await;
    passes("mqttjs", &[&format!("ws://127.0.0.1:{websocket}/mqtt")], MQTT_JS).await;
}
