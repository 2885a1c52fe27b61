//! Enhanced authentication on the wire (MQTT 5.0 section 4.12): SCRAM-SHA-256 at CONNECT and again later, and all that may go wrong.

use std::path::Path;

use bytes::Bytes;

use super::support::{Peer, Rig, connect, publish, soon};
use crate::broker::Config;
use crate::broker::auth::scram::tests::answer;
use crate::broker::auth::scram::{Entry, ITERATIONS_MIN, METHOD};
use crate::message::Qos;
use crate::router::Table;
use crate::wire::{
    Auth, AuthProperties, Connack, Connect, Disconnect, DisconnectProperties, Packet, ReasonCode, Version,
};

const FIRST: &str = "n,,n=anna,r=theirs";

/// A broker that knows anna, by a proof alone.
async fn rig(dir: &Path) -> Rig {
    let entry = Entry::of_password("secret", b"saltsalt", ITERATIONS_MIN).unwrap();
    let users = dir.join("users.passwd");
    std::fs::write(&users, format!("anna:{}\n", entry.to_text())).unwrap();
    let mut config = Config::default();
    config.auth.users = Some(users);
    Rig::with(dir, config, Table::default(), Vec::new()).await
}

fn auth(code: ReasonCode, method: &str, data: &str) -> Packet {
    let data = (!data.is_empty()).then(|| Bytes::copy_from_slice(data.as_bytes()));
    let properties = AuthProperties { method: Some(method.into()), data, ..AuthProperties::default() };
    Packet::Auth(Auth { code, properties })
}

fn asking(data: &str) -> Connect {
    let mut connect = connect("press-7");
    connect.properties.auth_method = Some(METHOD.into());
    connect.properties.auth_data = (!data.is_empty()).then(|| Bytes::copy_from_slice(data.as_bytes()));
    connect
}

/// The data of an AUTH packet with this code.
async fn asked(peer: &mut Peer, code: ReasonCode) -> String {
    let packet = peer.receive().await;
    let Packet::Auth(auth) = packet else { panic!("expected AUTH, got {packet:?}") };
    assert_eq!((auth.code, auth.properties.method.as_deref()), (code, Some(METHOD)));
    assert_eq!((auth.properties.reason, auth.properties.user.len()), (None, 0), "nothing that could make it too large");
    String::from_utf8(auth.properties.data.unwrap_or_default().to_vec()).unwrap()
}

/// A whole log-in with a password.
async fn log_in(rig: &Rig, connect: Connect, first: &str, password: &str) -> (Peer, Connack) {
    let mut peer = Peer::begin(rig.address, connect).await;
    let challenge = asked(&mut peer, ReasonCode::ContinueAuthentication).await;
    peer.send(auth(ReasonCode::ContinueAuthentication, METHOD, &answer(password, first, &challenge))).await;
    let packet = peer.receive().await;
    let Packet::Connack(connack) = packet else { panic!("expected CONNACK, got {packet:?}") };
    (peer, *connack)
}

#[tokio::test]
async fn scram_lets_in_who_proves_to_know_the_password_and_proves_it_back() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(dir.path()).await;
    let (mut peer, connack) = log_in(&rig, asking(FIRST), FIRST, "secret").await;
    assert_eq!((connack.code, connack.properties.auth_method.as_deref()), (ReasonCode::Success, Some(METHOD)));
    assert!(connack.properties.auth_data.unwrap().starts_with(b"v="));
    peer.deliver("a", "x", Qos::AtLeastOnce, 1).await;
    // The first message may come with the first AUTH, and the user name may stand in CONNECT too.
    let mut named = asking("");
    named.user = Some("anna".into());
    let mut peer = Peer::begin(rig.address, named).await;
    assert_eq!(asked(&mut peer, ReasonCode::ContinueAuthentication).await, "");
    peer.send(auth(ReasonCode::ContinueAuthentication, METHOD, FIRST)).await;
    let challenge = asked(&mut peer, ReasonCode::ContinueAuthentication).await;
    peer.send(auth(ReasonCode::ContinueAuthentication, METHOD, &answer("secret", FIRST, &challenge))).await;
    assert!(matches!(peer.receive().await, Packet::Connack(connack) if connack.code == ReasonCode::Success));
    rig.stop().await;
}

#[tokio::test]
async fn scram_refuses_the_wrong_password_the_unknown_user_and_the_other_name_alike() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(dir.path()).await;
    let eve = "n,,n=eve,r=theirs";
    for (connect, first, password) in [(asking(FIRST), FIRST, "wrong"), (asking(eve), eve, "secret")] {
        let (mut peer, connack) = log_in(&rig, connect, first, password).await;
        assert_eq!(connack.code, ReasonCode::NotAuthorized);
        assert_eq!(connack.properties.reason.as_deref(), Some("the authentication has failed"));
        assert_eq!(peer.next().await, None);
    }
    let mut other = asking(FIRST);
    other.user = Some("ben".into());
    assert_eq!(Peer::open(rig.address, other).await.1.code, ReasonCode::NotAuthorized);
    rig.stop().await;
}

#[tokio::test]
async fn an_authentication_takes_only_the_packets_that_are_due() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(dir.path()).await;
    let on = ReasonCode::ContinueAuthentication;
    for (packet, code) in [
        (auth(ReasonCode::ReAuthenticate, METHOD, FIRST), ReasonCode::ProtocolError),
        (auth(ReasonCode::Success, METHOD, FIRST), ReasonCode::ProtocolError),
        (auth(on, "SCRAM-SHA-1", FIRST), ReasonCode::BadAuthenticationMethod),
        (auth(on, METHOD, "garbage"), ReasonCode::NotAuthorized),
        (Packet::Pingreq, ReasonCode::ProtocolError),
        (Packet::Publish(publish("a", "x", Qos::AtMostOnce, 0)), ReasonCode::ProtocolError),
        (Packet::Connect(Box::new(asking(FIRST))), ReasonCode::ProtocolError),
    ] {
        let mut peer = Peer::begin(rig.address, asking(FIRST)).await;
        asked(&mut peer, on).await;
        peer.send(packet.clone()).await;
        let answer = peer.receive().await;
        assert!(matches!(&answer, Packet::Connack(connack) if connack.code == code), "{packet:?}: {answer:?}");
        assert_eq!(peer.next().await, None);
    }
    let mut peer = Peer::begin(rig.address, asking(FIRST)).await;
    asked(&mut peer, on).await;
    let gone = Disconnect { code: ReasonCode::Success, properties: DisconnectProperties::default() };
    peer.send(Packet::Disconnect(gone)).await;
    assert_eq!(peer.next().await, None);
    rig.stop().await;
}

#[tokio::test]
async fn a_method_that_is_not_known_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(dir.path()).await;
    for method in ["SCRAM-SHA-256-PLUS", "scram-sha-256", "GS2-KRB5", ""] {
        let mut connect = asking(FIRST);
        connect.properties.auth_method = Some(method.into());
        assert_eq!(Peer::open(rig.address, connect).await.1.code, ReasonCode::BadAuthenticationMethod, "{method}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_client_that_takes_no_packet_of_that_size_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(dir.path()).await;
    let mut connect = asking(FIRST);
    connect.properties.maximum_packet_size = std::num::NonZeroU32::new(40);
    assert_eq!(Peer::open(rig.address, connect).await.1.code, ReasonCode::PacketTooLarge);
    rig.stop().await;
}

#[tokio::test]
async fn a_client_authenticates_again_while_its_messages_flow() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(dir.path()).await;
    let (mut peer, _) = log_in(&rig, asking(FIRST), FIRST, "secret").await;
    for id in 1..3 {
        peer.send(auth(ReasonCode::ReAuthenticate, METHOD, FIRST)).await;
        let challenge = asked(&mut peer, ReasonCode::ContinueAuthentication).await;
        peer.deliver("a", "x", Qos::AtLeastOnce, id).await;
        peer.send(auth(ReasonCode::ContinueAuthentication, METHOD, &answer("secret", FIRST, &challenge))).await;
        assert!(asked(&mut peer, ReasonCode::Success).await.starts_with("v="));
    }
    peer.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn a_failed_or_disordered_authentication_ends_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(dir.path()).await;
    let (on, again) = (ReasonCode::ContinueAuthentication, ReasonCode::ReAuthenticate);
    let ben = "n,,n=ben,r=theirs";
    for (packets, code) in [
        // As somebody else; by another method; without having begun; by a packet of the server's.
        (vec![auth(again, METHOD, ben)], ReasonCode::NotAuthorized),
        (vec![auth(again, "SCRAM-SHA-1", FIRST)], ReasonCode::BadAuthenticationMethod),
        (vec![auth(on, METHOD, FIRST)], ReasonCode::ProtocolError),
        (vec![auth(ReasonCode::Success, METHOD, "")], ReasonCode::ProtocolError),
        // Twice at once; with a wrong proof.
        (vec![auth(again, METHOD, FIRST), auth(again, METHOD, FIRST)], ReasonCode::ProtocolError),
        (vec![auth(again, METHOD, FIRST), auth(on, METHOD, "c=biws,r=x,p=AAAA")], ReasonCode::NotAuthorized),
    ] {
        let (mut peer, _) = log_in(&rig, asking(FIRST), FIRST, "secret").await;
        let last = packets.len() - 1;
        for (n, packet) in packets.into_iter().enumerate() {
            peer.send(packet).await;
            if n < last {
                asked(&mut peer, on).await;
            }
        }
        let end = peer.receive().await;
        assert!(matches!(&end, Packet::Disconnect(told) if told.code == code), "{code}: {end:?}");
        assert_eq!(peer.next().await, None);
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_client_that_named_no_method_sends_no_auth() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(dir.path()).await;
    let mut peer = rig.peer("plain").await;
    peer.send(auth(ReasonCode::ReAuthenticate, METHOD, FIRST)).await;
    assert!(matches!(peer.receive().await, Packet::Disconnect(told) if told.code == ReasonCode::ProtocolError));
    rig.stop().await;
}

#[tokio::test]
async fn a_conversation_that_stalls_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let users = dir.path().join("users.passwd");
    let entry = Entry::of_password("secret", b"saltsalt", ITERATIONS_MIN).unwrap();
    std::fs::write(&users, format!("anna:{}\n", entry.to_text())).unwrap();
    let mut config = Config { connect_timeout: std::time::Duration::from_millis(100), ..Config::default() };
    config.auth.users = Some(users);
    let rig = Rig::with(dir.path(), config, Table::default(), Vec::new()).await;
    let mut peer = Peer::begin(rig.address, asking(FIRST)).await;
    asked(&mut peer, ReasonCode::ContinueAuthentication).await;
    assert_eq!(soon(peer.next()).await, None);
    rig.stop().await;
}

#[tokio::test]
async fn an_older_version_has_no_auth() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(dir.path()).await;
    let old = Connect { version: Version::V311, user: Some("anna".into()), ..connect("old") };
    let mut right = old.clone();
    right.password = Some(crate::wire::Password(Bytes::from_static(b"secret")));
    assert_eq!(
        Peer::open(rig.address, right).await.1.code,
        ReasonCode::Success,
        "a proof's entry checks a password too"
    );
    let mut wrong = old;
    wrong.password = Some(crate::wire::Password(Bytes::from_static(b"wrong")));
    assert!(Peer::open(rig.address, wrong).await.1.code.is_error());
    rig.stop().await;
}

#[tokio::test]
async fn who_is_removed_between_challenge_and_proof_is_not_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(dir.path()).await;
    let mut peer = Peer::begin(rig.address, asking(FIRST)).await;
    let challenge = asked(&mut peer, ReasonCode::ContinueAuthentication).await;
    std::fs::write(dir.path().join("users.passwd"), "").unwrap();
    rig.broker.reload_auth(true);
    peer.send(auth(ReasonCode::ContinueAuthentication, METHOD, &answer("secret", FIRST, &challenge))).await;
    let Packet::Connack(connack) = peer.receive().await else { panic!("no CONNACK") };
    assert_eq!(connack.code, ReasonCode::NotAuthorized);
    assert_eq!(rig.board.snapshot().clients, 0);
    rig.stop().await;
}
