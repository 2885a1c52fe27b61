//! Who may what, on the wire: logins, rules, whose a session is; and that all of it follows the files.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::support::*;
use crate::broker::auth::{AclSource, Config as Auth};
use crate::broker::{Config, Listener, PrepareError};
use crate::message::Qos;
use crate::router::Table;
use crate::wire::{
    Connack, Connect, Packet, PacketId, Password, ReasonCode, Subscribe, SubscribeOptions, Subscription, Text, Version,
    Will, WillProperties,
};

/// Made by `mosquitto_passwd -H sha512`; the password is `hunter2` for all.
const ENTRY: &str =
    "$6$v5qDkQxHL3qpNS6B$PQxvmdCXyaKBYsDUKG3aJj1s2xDvSeApZJPsvJ9FuLZpVrcctvfNEhFMR/t2ULOBmHkgLjcksGfZ1ZB9RFGZHA==";

/// A folder with users, rules and the store.
struct Site {
    folder: tempfile::TempDir,
    anonymous: bool,
}

impl Site {
    fn new(acl: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let site = Self { folder, anonymous: false };
        site.users(&["alice", "bob", "carol"]);
        site.acl(acl);
        site
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn users(&self, names: &[&str]) {
        let lines: Vec<_> = names.iter().map(|name| format!("{name}:{ENTRY}\n")).collect();
        fs::write(self.file("users"), lines.concat()).unwrap();
    }

    fn acl(&self, text: &str) {
        fs::write(self.file("acl"), text).unwrap();
    }

    async fn start(&self) -> Rig {
        self.start_in(self.folder.path()).await
    }

    async fn start_in(&self, dir: &Path) -> Rig {
        let acl = AclSource::File(self.file("acl"));
        let auth = Auth { users: Some(self.file("users")), acl, ..Auth::default() };
        let listeners = vec![Listener { anonymous: self.anonymous, ..Config::default().listeners.remove(0) }];
        Rig::with(dir, Config { auth, listeners, ..Config::default() }, Table::default(), Vec::new()).await
    }
}

/// With the right password.
fn of(user: &str, connect: Connect) -> Connect {
    Connect { user: Some(user.into()), password: Some(Password(Bytes::from_static(b"hunter2"))), ..connect }
}

fn old(connect: Connect) -> Connect {
    Connect { version: Version::V311, properties: Default::default(), ..connect }
}

async fn enter(rig: &Rig, connect: Connect) -> Peer {
    let (peer, connack) = Peer::open(rig.address, connect).await;
    assert_eq!(connack.code, ReasonCode::Success, "{connack:?}");
    peer
}

async fn code(rig: &Rig, connect: Connect) -> ReasonCode {
    let connack: Connack = Peer::open(rig.address, connect).await.1;
    connack.code
}

async fn suback(peer: &mut Peer, filters: &[&str]) -> Vec<ReasonCode> {
    let options = SubscribeOptions { qos: Qos::AtLeastOnce, ..SubscribeOptions::default() };
    let subscriptions = filters.iter().map(|filter| Subscription { filter: Text::from(*filter), options }).collect();
    let id = PacketId::new(9).unwrap();
    peer.send(Packet::Subscribe(Subscribe { id, subscription_id: None, user: Vec::new(), subscriptions })).await;
    let Packet::Suback(suback) = peer.receive().await else { panic!("no SUBACK") };
    suback.codes
}

#[tokio::test]
async fn logins_are_answered_with_the_versions_own_codes_and_the_anonymous_come_in_where_the_listener_says_so() {
    let mut site = Site::new("topic public\nuser alice\ntopic a\n");
    for anonymous in [false, true] {
        site.anonymous = anonymous;
        let store = tempfile::tempdir().unwrap();
        let rig = site.start_in(store.path()).await;
        let wrong = Connect { password: Some(Password(Bytes::from_static(b"x"))), ..of("alice", connect("w")) };
        let unnamed = Connect { user: None, ..of("alice", connect("w")) };
        for (connect, five, three) in [
            (of("alice", connect("a")), ReasonCode::Success, ReasonCode::Success),
            (wrong, ReasonCode::BadUserNameOrPassword, ReasonCode::BadUserNameOrPassword),
            (of("mallory", connect("m")), ReasonCode::BadUserNameOrPassword, ReasonCode::BadUserNameOrPassword),
            (
                connect("n"),
                if anonymous { ReasonCode::Success } else { ReasonCode::NotAuthorized },
                if anonymous { ReasonCode::Success } else { ReasonCode::NotAuthorized },
            ),
        ] {
            assert_eq!(code(&rig, connect.clone()).await, five, "{connect:?}");
            assert_eq!(code(&rig, old(connect.clone())).await, three, "{connect:?}");
        }
        assert_eq!(code(&rig, unnamed).await, ReasonCode::BadUserNameOrPassword, "a password without a user");
        rig.stop().await;
    }
}

#[tokio::test]
async fn r31_a_publish_that_is_not_allowed_is_refused_and_delivered_to_nobody() {
    let site = Site::new("user alice\ntopic write up/#\nuser bob\ntopic read #\n");
    let rig = site.start().await;
    let mut bob = enter(&rig, of("bob", connect("bob"))).await;
    bob.subscribe("#", Qos::AtLeastOnce).await;
    let mut alice = enter(&rig, of("alice", connect("alice"))).await;
    alice.send(Packet::Publish(publish("down/x", "0", Qos::AtMostOnce, 0))).await;
    alice.send(Packet::Publish(publish("down/x", "1", Qos::AtLeastOnce, 1))).await;
    let Packet::Puback(refused) = alice.receive().await else { panic!("no PUBACK") };
    assert_eq!((refused.code, refused.id.get()), (ReasonCode::NotAuthorized, 1));
    alice.send(Packet::Publish(publish("down/x", "2", Qos::ExactlyOnce, 2))).await;
    let Packet::Pubrec(refused) = alice.receive().await else { panic!("no PUBREC") };
    assert_eq!((refused.code, refused.id.get()), (ReasonCode::NotAuthorized, 2));
    alice.deliver("up/x", "3", Qos::ExactlyOnce, 2).await;
    assert_eq!(&*bob.publication().await.payload, b"3");
    // MQTT 3.1.1 has no word for it: at QoS 0 it is dropped, above the connection ends, and nothing is acknowledged.
    let mut older = enter(&rig, old(of("alice", connect("older")))).await;
    older.send(Packet::Publish(publish("down/x", "4", Qos::AtMostOnce, 0))).await;
    older.expect_silence().await;
    older.send(Packet::Publish(publish("down/x", "5", Qos::AtLeastOnce, 1))).await;
    assert_eq!(older.next().await, None);
    alice.deliver("up/x", "6", Qos::AtLeastOnce, 3).await;
    let got = bob.publication().await;
    assert_eq!((got.topic.as_str(), &*got.payload), ("up/x", &b"6"[..]));
    assert_eq!(rig.board.snapshot().refused.get("not_allowed"), Some(&5));
    rig.stop().await;
}

#[tokio::test]
async fn r31_a_subscription_that_brings_nothing_is_refused_and_a_wider_one_brings_what_is_allowed() {
    let site = Site::new("user alice\ntopic write #\nuser bob\ntopic read a/#\ntopic deny a/secret\n");
    let rig = site.start().await;
    let mut alice = enter(&rig, of("alice", connect("alice"))).await;
    for (n, name) in ["a/secret", "b/x", "a/open"].into_iter().enumerate() {
        let mut retained = publish(name, "kept", Qos::AtLeastOnce, 1);
        (retained.retain, retained.id) = (true, PacketId::new(u16::try_from(n).unwrap() + 1));
        alice.send(Packet::Publish(retained)).await;
        assert!(matches!(alice.receive().await, Packet::Puback(_)));
    }
    let filters = ["b/#", "a/secret", "$share/g/b/x", "$SYS/#", "#"];
    let mut bob = enter(&rig, of("bob", connect("bob"))).await;
    let (no, yes) = (ReasonCode::NotAuthorized, ReasonCode::GrantedQos1);
    assert_eq!(suback(&mut bob, &filters).await, [no, no, no, no, yes]);
    let mut older = enter(&rig, old(of("bob", connect("older")))).await;
    let no = ReasonCode::UnspecifiedError;
    assert_eq!(suback(&mut older, &filters).await, [no, no, no, no, yes]);
    for peer in [&mut bob, &mut older] {
        let got = peer.publication().await;
        assert_eq!((got.topic.as_str(), got.retain), ("a/open", true), "of what is retained");
        if let Some(id) = got.id {
            peer.send(Packet::Puback(ack(id.get()))).await;
        }
    }
    for (id, name) in [(4, "a/secret"), (5, "b/x"), (6, "a/b/c")] {
        alice.deliver(name, "live", Qos::AtMostOnce, id).await;
    }
    for peer in [&mut bob, &mut older] {
        assert_eq!(peer.publication().await.topic.as_str(), "a/b/c");
        peer.expect_silence().await;
    }
    rig.stop().await;
}

#[tokio::test]
async fn r31_new_rules_hold_from_the_next_publish_and_delivery_on_and_for_what_is_owed() {
    let site = Site::new("user alice\ntopic write #\nuser bob\ntopic read a/#\n");
    let rig = site.start().await;
    let mut alice = enter(&rig, of("alice", connect("alice"))).await;
    let mut bob = enter(&rig, of("bob", kept("bob"))).await;
    bob.subscribe("a/#", Qos::AtLeastOnce).await;
    let mut away = enter(&rig, of("bob", kept("away"))).await;
    away.subscribe("a/#", Qos::AtLeastOnce).await;
    drop(away);
    rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    alice.deliver("a/x", "1", Qos::AtLeastOnce, 1).await;
    alice.deliver("a/y", "2", Qos::AtLeastOnce, 2).await;
    for _ in 0..2 {
        let id = bob.publication().await.id.unwrap().get();
        bob.send(Packet::Puback(ack(id))).await;
    }
    site.acl("user alice\ntopic write a/y\nuser bob\ntopic read a/y\n");
    rig.broker.reload_auth(true);
    alice.send(Packet::Publish(publish("a/x", "3", Qos::AtLeastOnce, 3))).await;
    let Packet::Puback(refused) = alice.receive().await else { panic!("no PUBACK") };
    assert_eq!(refused.code, ReasonCode::NotAuthorized);
    alice.deliver("a/y", "4", Qos::AtLeastOnce, 4).await;
    let got = bob.publication().await;
    assert_eq!((got.topic.as_str(), &*got.payload), ("a/y", &b"4"[..]));
    let (mut away, connack) = Peer::open(rig.address, of("bob", kept("away"))).await;
    assert!(connack.session_present);
    for wanted in [b"2", b"4"] {
        let got = away.publication().await;
        assert_eq!(&*got.payload, wanted, "what it may not have any more is left out");
        away.send(Packet::Puback(ack(got.id.unwrap().get()))).await;
    }
    away.expect_silence().await;
    assert_eq!(rig.board.snapshot().dropped.get("not_allowed"), Some(&1));
    // Nor does a broken file open anything.
    site.acl("user alice\ntopic wr ite #\n");
    rig.broker.reload_auth(true);
    alice.deliver("a/y", "5", Qos::AtLeastOnce, 5).await;
    rig.stop().await;
}

#[tokio::test]
async fn r31_what_a_session_is_owed_is_checked_when_it_comes_back_after_a_restart() {
    let site = Site::new("user alice\ntopic write #\nuser bob\ntopic read a/#\n");
    let rig = site.start().await;
    let mut alice = enter(&rig, of("alice", connect("alice"))).await;
    let mut bob = enter(&rig, of("bob", kept("bob"))).await;
    bob.subscribe("a/#", Qos::ExactlyOnce).await;
    drop(bob);
    rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    alice.deliver("a/x", "1", Qos::ExactlyOnce, 1).await;
    alice.deliver("a/y", "2", Qos::AtLeastOnce, 2).await;
    rig.stop().await;
    site.acl("user bob\ntopic read a/y\n");
    let rig = site.start().await;
    let mut bob = enter(&rig, of("bob", kept("bob"))).await;
    assert_eq!(&*bob.publication().await.payload, b"2");
    bob.expect_silence().await;
    rig.until("the other is settled", |rig| rig.broker.figures().owed == 1).await;
    rig.stop().await;
}

#[tokio::test]
async fn r31_a_member_of_a_shared_subscription_who_may_not_read_a_message_is_passed_over() {
    let site = Site::new("user alice\ntopic write #\nuser bob\ntopic read a/#\nuser carol\ntopic read a/+/open\n");
    let rig = site.start().await;
    let mut alice = enter(&rig, of("alice", connect("alice"))).await;
    let mut bob = enter(&rig, of("bob", connect("bob"))).await;
    let mut carol = enter(&rig, of("carol", connect("carol"))).await;
    for peer in [&mut bob, &mut carol] {
        peer.subscribe("$share/g/a/#", Qos::AtMostOnce).await;
    }
    for id in 1..=6 {
        alice.deliver("a/x/closed", "", Qos::AtLeastOnce, id).await;
    }
    for _ in 0..6 {
        assert_eq!(bob.publication().await.topic.as_str(), "a/x/closed");
    }
    carol.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn r31_a_will_is_checked_at_connect_and_when_it_is_published() {
    let site = Site::new("user alice\ntopic write up/#\nuser bob\ntopic read #\n");
    let rig = site.start().await;
    let will = |topic: &str| Will {
        topic: topic.into(),
        payload: Bytes::from_static(b"gone"),
        qos: Qos::AtLeastOnce,
        retain: false,
        properties: WillProperties::default(),
    };
    let with = |topic: &str, id| Connect { will: Some(will(topic)), ..of("alice", connect(id)) };
    assert_eq!(code(&rig, with("down/x", "a")).await, ReasonCode::NotAuthorized);
    assert_eq!(code(&rig, old(with("down/x", "a"))).await, ReasonCode::NotAuthorized);
    let mut bob = enter(&rig, of("bob", connect("bob"))).await;
    bob.subscribe("#", Qos::AtMostOnce).await;
    drop(enter(&rig, with("up/a", "a")).await);
    assert_eq!(bob.publication().await.topic.as_str(), "up/a");
    let doomed = enter(&rig, with("up/b", "b")).await;
    site.acl("user bob\ntopic read #\n");
    rig.broker.reload_auth(true);
    drop(doomed);
    rig.until("its will is refused", |rig| rig.board.snapshot().refused.get("not_allowed") == Some(&3)).await;
    bob.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn a_session_belongs_to_the_user_who_made_it_and_a_restart_changes_nothing_of_that() {
    let mut site = Site::new("topic #\npattern #\n");
    site.anonymous = true;
    let rig = site.start().await;
    let mut alice = enter(&rig, of("alice", kept("press"))).await;
    alice.subscribe("a", Qos::AtLeastOnce).await;
    let refused = ReasonCode::ClientIdentifierNotValid;
    for other in
        [of("bob", kept("press")), of("bob", connect("press")), old(of("bob", connect("press"))), kept("press")]
    {
        assert_eq!(code(&rig, other).await, refused, "while its user is connected");
    }
    alice.expect_silence().await;
    drop(alice);
    rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    assert_eq!(code(&rig, of("bob", connect("press"))).await, refused, "nor is it ended by another");
    rig.stop().await;
    let rig = site.start().await;
    assert_eq!(code(&rig, of("bob", kept("press"))).await, refused);
    let (_alice, connack) = Peer::open(rig.address, of("alice", kept("press"))).await;
    assert!(connack.session_present, "its own user has it");
    // What nobody in particular made is anybody's.
    drop(enter(&rig, kept("free")).await);
    rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    let (_bob, connack) = Peer::open(rig.address, of("bob", kept("free"))).await;
    assert!(connack.session_present);
    assert_eq!(code(&rig, of("carol", kept("free"))).await, refused, "and is bob's now");
    rig.stop().await;
}

#[tokio::test]
async fn who_is_taken_out_of_the_file_is_ended_and_others_stay() {
    let site = Site::new("pattern #\n");
    let rig = site.start().await;
    let mut alice = enter(&rig, of("alice", connect("alice"))).await;
    let mut bob = enter(&rig, of("bob", connect("bob"))).await;
    site.users(&["bob", "carol"]);
    rig.broker.reload_auth(true);
    let Packet::Disconnect(told) = alice.receive().await else { panic!("not told") };
    assert_eq!(told.code, ReasonCode::NotAuthorized);
    bob.expect_silence().await;
    assert_eq!(code(&rig, of("alice", connect("alice"))).await, ReasonCode::BadUserNameOrPassword);
    rig.stop().await;
}

#[tokio::test]
async fn other_rules_beside_a_file_of_users_that_cannot_be_read_change_nothing() {
    let site = Site::new("pattern #\n");
    let rig = site.start().await;
    fs::write(site.file("others"), "user alice\ntopic a\n").unwrap();
    let other = || {
        let mut config = Config::clone(&rig.broker.config.load());
        config.auth.acl = AclSource::File(site.file("others"));
        config
    };
    fs::write(site.file("users"), "alice:no entry\n").unwrap();
    let refused = rig.broker.prepare(other()).await.unwrap_err();
    assert!(matches!(&refused, PrepareError::Auth(words) if words.contains("users")), "{refused}");
    assert_eq!(code(&rig, of("alice", connect("alice"))).await, ReasonCode::Success, "logins go on as they were");
    site.users(&["alice"]);
    let prepared = rig.broker.prepare(other()).await.unwrap();
    rig.broker.change(prepared).await;
    let mut alice = enter(&rig, of("alice", connect("alice"))).await;
    assert_eq!(suback(&mut alice, &["a", "b"]).await, [ReasonCode::GrantedQos1, ReasonCode::NotAuthorized]);
    assert_eq!(code(&rig, of("bob", connect("bob"))).await, ReasonCode::BadUserNameOrPassword);
    rig.stop().await;
}
