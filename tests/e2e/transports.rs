//! Mosquitto's own clients over every transport that they speak, and what an operator sees of it.

use std::fs;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::gateway::Gateway;
use crate::support::pki::{Authority, Identity};
use crate::support::process::free_port;
use crate::support::remote::left_out;
use crate::support::wait::{PATIENCE, until_true};

/// Certificates, keys and lists in a folder.
struct Files {
    dir: tempfile::TempDir,
    servers: Authority,
    clients: Authority,
}

impl Files {
    fn new() -> Self {
        let files = Self {
            dir: tempfile::tempdir().unwrap(),
            servers: Authority::new("Servers"),
            clients: Authority::new("Clients"),
        };
        files.write("ca.pem", &files.servers.pem);
        files.write("clients.pem", &files.clients.pem);
        files.identity("server", &files.servers.server());
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new file in the place of the old one, as tools that renew certificates do it.
    fn write(&self, name: &str, text: &str) {
        fs::write(self.path("new"), text).unwrap();
        fs::rename(self.path("new"), self.path(name)).unwrap();
    }

    fn identity(&self, name: &str, identity: &Identity) {
        self.write(&format!("{name}.pem"), &identity.cert);
        self.write(&format!("{name}.key"), &identity.key);
    }

    /// A listener's entry, with `DIR` for the folder.
    fn listener(&self, port: u16, more: &str) -> String {
        let more = more.replace("DIR", &self.dir.path().display().to_string());
        format!("    - {{ bind: \"127.0.0.1:{port}\", anonymous: true, {more} }}\n")
    }

    /// Arguments of Mosquitto's clients, with `DIR` for the folder.
    fn arguments(&self, port: u16, tls: &str) -> Vec<String> {
        let dir = self.dir.path().display().to_string();
        let all = format!("-h localhost -p {port} {}", tls.replace("DIR", &dir));
        all.split_whitespace().map(str::to_owned).collect()
    }
}

async fn ended(program: &str, arguments: &[String], more: &[&str]) -> (ExitStatus, String) {
    let mut command = Command::new(program);
    command.args(arguments).args(more).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await.expect("it ends").unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status, String::from_utf8_lossy(&said).into_owned())
}

/// Publishes a retained message; the broker has acknowledged it.
async fn publish(arguments: &[String], topic: &str, payload: &str) {
    let (status, said) = ended("mosquitto_pub", arguments, &["-q", "1", "-r", "-t", topic, "-m", payload]).await;
    assert!(status.success(), "{arguments:?}: {status}: {said}");
}

/// What is retained there, or why it cannot be had.
async fn retained(arguments: &[String], topic: &str) -> Result<String, String> {
    let (status, said) = ended("mosquitto_sub", arguments, &["-q", "1", "-C", "1", "-W", "20", "-t", topic]).await;
    if status.success() { Ok(said.trim().to_owned()) } else { Err(format!("{status}: {said}")) }
}

#[tokio::test(flavor = "multi_thread")]
async fn mosquittos_clients_meet_over_every_transport() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let files = Files::new();
    files.identity("press-7", &files.clients.client("press-7"));
    let (tls, mutual) = (free_port(), free_port());
    let socket = files.path("mqtt.sock");
    let listeners = [
        files.listener(tls, "tls: { cert: DIR/server.pem, key: DIR/server.key }"),
        files.listener(
            mutual,
            "tls: { cert: DIR/server.pem, key: DIR/server.key, client_ca: DIR/clients.pem, versions: 1.3 }",
        ),
        format!("    - {{ bind: \"unix:{}\", mode: \"0600\", anonymous: true }}\n", socket.display()),
    ];
    let mut gateway = Gateway::start(&listeners.concat()).await;
    let with_certificate = "--cafile DIR/ca.pem --cert DIR/press-7.pem --key DIR/press-7.key";
    let ways = [
        files.arguments(gateway.port, ""),
        files.arguments(tls, "--cafile DIR/ca.pem --tls-version tlsv1.2"),
        files.arguments(tls, "--cafile DIR/ca.pem --tls-version tlsv1.3"),
        files.arguments(tls, "--cafile DIR/ca.pem --tls-alpn mqtt -V mqttv5"),
        files.arguments(mutual, with_certificate),
        vec!["--unix".to_owned(), socket.display().to_string()],
    ];
    for (n, way) in ways.iter().enumerate() {
        publish(way, &format!("way/{n}"), &format!("by way {n}")).await;
    }
    for (n, way) in ways.iter().enumerate() {
        let from = (n + 1) % ways.len();
        assert_eq!(retained(way, &format!("way/{from}")).await.unwrap(), format!("by way {from}"), "{way:?}");
    }
    let status = gateway.status().await;
    let shown: Vec<String> = status.broker.listeners.iter().map(ToString::to_string).collect();
    let expected = [
        format!("127.0.0.1:{}", gateway.port),
        format!("127.0.0.1:{tls} (tls)"),
        format!("127.0.0.1:{mutual} (tls)"),
        format!("unix:{}", socket.display()),
    ];
    assert_eq!(shown, expected);
    assert!(gateway.terminate().await.success());
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_are_missing_foreign_revoked_or_over_are_refused() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let files = Files::new();
    let (good, revoked) = (files.clients.client("good"), files.clients.client("revoked"));
    files.write("crl.pem", &files.clients.revoke(&[&revoked]));
    files.write("other-ca.pem", &Authority::new("Others").pem);
    files.identity("good", &good);
    files.identity("revoked", &revoked);
    files.identity("over", &files.clients.expired("over"));
    files.identity("foreign", &Authority::new("Others").client("foreign"));
    let port = free_port();
    let terms = "tls: { cert: DIR/server.pem, key: DIR/server.key, client_ca: DIR/clients.pem, crl: DIR/crl.pem }";
    let gateway = Gateway::start(&files.listener(port, terms)).await;
    publish(&files.arguments(gateway.port, ""), "a", "1").await;
    for version in ["tlsv1.2", "tlsv1.3"] {
        let with = |who: &str| {
            let tls = format!("--tls-version {version} --cafile DIR/ca.pem --cert DIR/{who}.pem --key DIR/{who}.key");
            files.arguments(port, &tls)
        };
        assert_eq!(retained(&with("good"), "a").await.as_deref(), Ok("1"));
        for who in ["revoked", "over", "foreign"] {
            retained(&with(who), "a").await.expect_err(who);
        }
        let none = files.arguments(port, &format!("--tls-version {version} --cafile DIR/ca.pem"));
        retained(&none, "a").await.expect_err("without a certificate");
        let wrong = format!("--tls-version {version} --cafile DIR/other-ca.pem --cert DIR/good.pem --key DIR/good.key");
        retained(&files.arguments(port, &wrong), "a").await.expect_err("the client does not know the server");
    }
    let refused = gateway.status().await.broker.refused;
    assert!(refused.get("tls_handshake").is_some_and(|count| *count >= 10), "{refused:?}");
    let log = gateway.log();
    assert!(log.contains("a connection is refused") && log.contains("tls_handshake"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_shown_to_new_connections_and_old_ones_live_on() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let files = Files::new();
    let port = free_port();
    let gateway = Gateway::start(&files.listener(port, "tls: { cert: DIR/server.pem, key: DIR/server.key }")).await;
    let old = files.arguments(port, "--cafile DIR/ca.pem");
    // Into a pipe it would say nothing before it has said 4 KiB.
    let mut command = Command::new("stdbuf");
    command.args(["-oL", "mosquitto_sub"]).args(&old).args(["-t", "live/#", "-v", "-q", "1", "-d"]);
    let mut watching = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut line_with = async |words: &str| {
        loop {
            let line = timeout(PATIENCE, lines.next_line()).await.expect("it says more").unwrap();
            if line.expect("it lives").contains(words) {
                return;
            }
        }
    };
    line_with("SUBACK").await;

    // A key that does not fit: nothing changes, and the operator is told.
    let next = Authority::new("Servers, the next");
    files.write("next-ca.pem", &next.pem);
    files.write("server.key", &next.server().key);
    gateway.wait_for("the mistake is shown", |status| !status.broker.reload_errors.is_empty()).await;
    publish(&old, "live/1", "one").await;
    line_with("live/1 one").await;

    // Both, and a signal.
    files.identity("server", &next.server());
    gateway.hang_up();
    gateway.wait_for("it is mended", |status| status.broker.reload_errors.is_empty()).await;
    let new = files.arguments(port, "--cafile DIR/next-ca.pem");
    publish(&new, "live/2", "two").await;
    line_with("live/2 two").await;
    retained(&old, "live/1").await.expect_err("the old authority does not vouch for the new certificate");

    // And once more, without a signal.
    files.identity("server", &files.servers.server());
    until_true("it is noticed", PATIENCE, || gateway.log().matches("have been read again").count() >= 2).await;
    publish(&old, "live/3", "three").await;
    line_with("live/3 three").await;
}

/// A CONNECT of 3.1.1 that asks for a kept session without a client id: it is refused, which the log shows with the address.
const REFUSED: &[u8] = b"\x10\x0C\0\x04MQTT\x04\0\0\x3C\0\0";

/// One of a version that does not exist: refused for another reason, since the log says each only once in a while.
const UNKNOWN: &[u8] = b"\x10\x0C\0\x04MQTT\x09\0\0\x3C\0\0";

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_proxy_the_log_has_the_clients_own_address() {
    let files = Files::new();
    let port = free_port();
    let gateway = Gateway::start(&files.listener(port, "proxy_protocol: true")).await;
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C\xC6\x33\x64\x09\x0A\0\0\x01\xC0\x01\x07\x5B";
    let v1 = &b"PROXY TCP6 2001:db8::7 ::1 49152 1883\r\n"[..];
    for (header, connect, code) in [(v1, REFUSED, 2), (v2, UNKNOWN, 1)] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(&[header, connect].concat()).await.unwrap();
        let mut answer = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it is answered").unwrap();
        assert_eq!(answer, [0x20, 2, 0, code]);
    }
    let log = gateway.log();
    assert!(log.contains("[2001:db8::7]:49152") && log.contains("198.51.100.9:49153"), "{log}");
    // Without the header nobody is let in, and that is the proxy's address.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(REFUSED).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it is closed").unwrap();
    assert!(answer.is_empty(), "{answer:02X?}");
    until_true("it is logged", PATIENCE, || gateway.log().contains("no PROXY header")).await;
}
