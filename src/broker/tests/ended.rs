//! What the log says at its default level of clients that MQTT 3.1.1 has no words for.

use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::*;
use crate::broker::auth::{AclSource, Config as Auth};
use crate::broker::{Config, Listener};
use crate::message::Qos;
use crate::router::Table;
use crate::units::ByteSize;
use crate::wire::{Connack, Connect, Packet, Password, ReasonCode, Version};

/// Made by `mosquitto_passwd -H sha512`; the password is `hunter2`.
const USERS: &str = "anna:$6$v5qDkQxHL3qpNS6B$PQxvmdCXyaKBYsDUKG3aJj1s2xDvSeApZJPsvJ9FuLZpVrcctvfNEhFMR/t2ULOBmHkgLjcksGfZ1ZB9RFGZHA==\n";

/// Lines of the log.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// Those that hold all of `words`.
    fn with(&self, words: &[&str]) -> usize {
        let text = String::from_utf8(self.0.lock().clone()).unwrap();
        text.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }
}

fn old(client_id: &str, password: Option<&str>) -> Connect {
    let password = password.map(|password| Password(password.as_bytes().to_vec().into()));
    let user = password.as_ref().map(|_| "anna".into());
    Connect { version: Version::V311, user, password, ..connect(client_id) }
}

#[tokio::test]
async fn the_log_says_who_of_mqtt_3_1_1_was_ended_why_and_what_would_be_right() {
    let lines = Lines::default();
    let to = lines.clone();
    let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || to.clone());
    // While there is one subscriber alone, a line that another test's thread comes to first is decided by that thread, which has none, and for all
    // (`tracing_core::callsite`, `Rebuilder::JustOne`): a second one, which takes nothing.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let _guard = tracing::subscriber::set_default(log.with_max_level(tracing::Level::INFO).finish());
    let dir = tempfile::tempdir().unwrap();
    let (users, rules) = (dir.path().join("users"), dir.path().join("acl"));
    std::fs::write(&users, USERS).unwrap();
    std::fs::write(&rules, "topic read #\ntopic write open/#\n").unwrap();
    let auth = Auth { users: Some(users), acl: AclSource::File(rules), ..Auth::default() };
    let listeners = vec![Listener { anonymous: true, ..Config::default().listeners.remove(0) }];
    let config = Config { auth, listeners, max_packet_size: ByteSize(2 << 10), ..Config::default() };
    let rig = Rig::with(dir.path(), config, Table::default(), Vec::new()).await;

    // A wrong password.
    let (_, Connack { code, .. }) = Peer::open(rig.address, old("guess", Some("wrong"))).await;
    assert_eq!(code, ReasonCode::BadUserNameOrPassword);
    let whose = |client: &str| ["INFO".to_owned(), format!("client=\"{client}\""), "address=127.0.0.1:".to_owned()];
    let said = |client: &str, words: &[&str]| {
        let whose = whose(client);
        let all: Vec<&str> =
            whose.iter().map(String::as_str).chain(["listener=127.0.0.1:"]).chain(words.iter().copied()).collect();
        lines.with(&all)
    };
    // The line may be written after the answer.
    rig.until("it is said", |_| {
        said("guess", &["a client is refused", "bad user name or password (0x86)", "passwd --verify", "held_back=0"])
            == 1
    })
    .await;

    // A publish that no rule allows.
    let mut denied = Peer::open(rig.address, old("denied", None)).await.0;
    denied.send(Packet::Publish(publish("shut/\u{1b}[2J", "x", Qos::AtLeastOnce, 1))).await;
    assert_eq!(denied.next().await, None);
    rig.until("it is said", |_| {
        said("denied", &["connection is ended", "not authorized (0x87)", "a rule of `acl`"]) == 1
    })
    .await;
    assert_eq!(
        said("denied", &["message is not taken", "may not publish to \"shut/\\u{1b}[2J\""]),
        1,
        "what it made up is quoted"
    );

    // A packet that is too large, and one that does not belong there.
    let mut large = Peer::open(rig.address, old("large", None)).await.0;
    large.send(Packet::Publish(publish("open/a", &"x".repeat(3_000), Qos::AtLeastOnce, 1))).await;
    assert_eq!(large.next().await, None);
    let mut twice = Peer::open(rig.address, old("twice", None)).await.0;
    twice.send(Packet::Connect(Box::new(old("twice", None)))).await;
    assert_eq!(twice.next().await, None);
    let is_said = |_: &Rig| {
        said("large", &["connection is ended", "packet too large (0x95)", "`max_packet_size`"]) == 1
            && said("twice", &["connection is ended", "protocol error (0x82)"]) == 1
    };
    rig.until("both are said", is_said).await;

    // No CONNECT at all: nobody knows its name.
    let mut nameless = TcpStream::connect(rig.address).await.unwrap();
    nameless.write_all(b"\xC0\0").await.unwrap();
    let mut answer = Vec::new();
    soon(nameless.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.is_empty());
    assert_eq!(lines.with(&["a client is refused", "protocol error (0x82)", "address=127.0.0.1:"]), 1);
    rig.stop().await;
}
