//! Users and rules with the real program, files by the real `mosquitto_passwd`, and clients of Mosquitto.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Output, Stdio};

use tidegate::telemetry::board::Status;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::support::gateway::{Gateway, PROGRAM};
use crate::support::process::{Room, free_port};
use crate::support::remote::left_out;
use crate::support::wait::{PATIENCE, until};

/// A command with this on its standard input.
async fn fed(program: &str, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    // One that does not ask for it may be gone already.
    drop(child.stdin.take().unwrap().write_all(input.as_bytes()).await);
    tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("the command ends").unwrap()
}

async fn passwd(arguments: &[&str], password: &str) -> (i32, String) {
    let ended = fed(PROGRAM, &[&["passwd", "--stdin"], arguments].concat(), &format!("{password}\n")).await;
    let said = [ended.stdout, ended.stderr].concat();
    (ended.status.code().unwrap(), String::from_utf8(said).unwrap())
}

async fn mosquitto_passwd(arguments: &[&str]) {
    let ended = fed("mosquitto_passwd", arguments, "").await;
    assert!(ended.status.success(), "mosquitto_passwd {arguments:?}: {}", String::from_utf8_lossy(&ended.stderr));
}

#[tokio::test]
async fn passwd_adds_changes_checks_and_removes_users_of_a_file_for_its_owner_alone() {
    let room = Room::new("passwd");
    let file = room.file("users");
    let path = file.to_str().unwrap();
    assert_eq!(passwd(&["--verify", path, "alice"], "x").await.0, 74, "there is no file");
    assert_eq!(passwd(&[path, "alice"], "first").await.0, 0);
    assert_eq!(passwd(&[path, "bob"], "bob's").await.0, 0);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    fs::write(&file, format!("# people\n{}", fs::read_to_string(&file).unwrap())).unwrap();
    assert_eq!(passwd(&[path, "alice"], "second").await.0, 0);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("# people\nalice:$argon2id$") && text.lines().count() == 3, "{text}");
    for (user, password, code) in
        [("alice", "first", 1), ("alice", "second", 0), ("bob", "bob's", 0), ("carol", "x", 1)]
    {
        assert_eq!(passwd(&["--verify", path, user], password).await.0, code, "{user} {password}");
    }
    for (arguments, password, code) in
        [(["", "x:y"], "x", 64), (["", "dave"], "", 64), (["--delete", "carol"], "", 64), (["", "#x"], "x", 64)]
    {
        let [option, user] = arguments;
        let all: Vec<&str> = [option, path, user].into_iter().filter(|word| !word.is_empty()).collect();
        let (ended, said) = passwd(&all, password).await;
        assert_eq!(ended, code, "{arguments:?}: {said}");
    }
    let ended = fed(PROGRAM, &["passwd", "--delete", path, "carol"], "").await;
    assert_eq!(ended.status.code(), Some(1));
    let ended = fed(PROGRAM, &["passwd", "--delete", path, "alice"], "").await;
    assert!(ended.status.success());
    assert_eq!(text.lines().filter(|line| !line.starts_with("alice:")).collect::<Vec<_>>(), read(&file));
    let before = fs::read_dir(file.parent().unwrap()).unwrap().count();
    assert_eq!(before, 1, "nothing else is left");
}

fn read(file: &Path) -> Vec<String> {
    fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect()
}

/// What `mosquitto_pub` says, and whether it got through.
async fn publishes(port: u16, login: &[&str], topic: &str) -> (bool, String) {
    let port = port.to_string();
    let common = ["-p", &port, "-q", "1", "-m", "x", "-t", topic];
    let ended = fed("mosquitto_pub", &[&common, login].concat(), "").await;
    (ended.status.success(), String::from_utf8_lossy(&ended.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn r31_users_and_rules_of_a_mosquitto_work_as_they_are_and_follow_their_files() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let room = Room::new("access");
    let (users, acl, port) = (room.file("users"), room.file("acl"), free_port());
    let path = users.to_str().unwrap();
    mosquitto_passwd(&["-c", "-b", path, "alice", "secret"]).await;
    mosquitto_passwd(&["-H", "sha512", "-b", path, "bob", "hunter2"]).await;
    assert_eq!(passwd(&[path, "carol"], "ours").await.0, 0);
    fs::write(
        &acl,
        "topic read public/#\nuser alice\ntopic up/#\nuser bob\ntopic read up/#\npattern write own/%u/%c\n",
    )
    .unwrap();
    let rest =
        format!("    - {{ bind: \"127.0.0.1:{port}\" }}\n  auth: {{ users: {path}, acl_file: {} }}\n", acl.display());
    let gateway = Gateway::start(&rest).await;
    let (alice, carol) = (["-u", "alice", "-P", "secret"], ["-u", "carol", "-P", "ours"]);
    for (login, topic, passes) in [
        (&alice[..], "up/x", true),
        (&alice, "own/alice/c1", false),
        (&[&alice[..], &["-i", "c1"]].concat(), "own/alice/c1", true),
        (&carol, "up/x", false),
        (&[&carol[..], &["-i", "c2", "-V", "5"]].concat(), "own/carol/c2", true),
        (&[&carol[..], &["-i", "c2", "-V", "5"]].concat(), "own/alice/c2", true),
    ] {
        // mosquitto_pub ends well even where MQTT 5 says 0x87: then only its words tell.
        let (ended_well, said) = publishes(port, login, topic).await;
        assert_eq!(
            ended_well && !said.to_lowercase().contains("not auth"),
            passes && topic != "own/alice/c2",
            "{login:?} {topic}: {said}"
        );
    }
    for (login, words) in [
        (&["-u", "alice", "-P", "wrong"][..], "bad user name or password"),
        (&["-u", "mallory", "-P", "secret"], "bad user name or password"),
        (&[], "not authorised"),
    ] {
        let (ended_well, said) = publishes(port, login, "up/x").await;
        assert!(!ended_well && said.to_lowercase().contains(words), "{login:?}: {said}");
    }
    let (ended_well, said) = publishes(gateway.port, &alice, "up/x").await;
    assert!(ended_well, "by the anonymous listener too: {said}");
    let (ended_well, _) = publishes(gateway.port, &["-u", "alice", "-P", "wrong"], "up/x").await;
    assert!(!ended_well, "a wrong login is not let in as anonymous");

    // A user that is added, and one that gets another password, by tools that replace the file.
    mosquitto_passwd(&["-b", path, "dave", "new"]).await;
    mosquitto_passwd(&["-b", path, "alice", "changed"]).await;
    let changed = ["-u", "alice", "-P", "changed"];
    until("the new password works", PATIENCE, async || match publishes(port, &changed, "up/x").await {
        (true, _) => Ok(()),
        (false, said) => Err(said),
    })
    .await;
    assert!(!publishes(port, &alice, "up/x").await.0, "the old one does not");
    fs::write(&users, "alice:changed\n").unwrap();
    until("the mistake is told", PATIENCE, async || {
        if gateway.log().contains("not hashed") { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    assert!(publishes(port, &changed, "up/x").await.0, "what was in force stays so");
    shown_until_mended(&gateway, &users, &acl, port).await;
    let log = gateway.log();
    // Which of them is chance: one line a second.
    assert!(log.contains("a login has failed") && log.contains("address=\"127.0.0.1\" user="), "{log}");
    assert!(!log.contains("secret") && !log.contains("hunter2"), "a password in the log");
}

/// The file of users has a mistake in its first line: `status` shows it. Then it is mended, and the rules are others too.
async fn shown_until_mended(gateway: &Gateway, users: &Path, acl: &Path, port: u16) {
    let path = users.to_str().unwrap();
    let shown = format!("the users of {path} are as they were: line 1: ");
    let is_shown = |status: &Status| status.broker.reload_errors.iter().any(|error| error.starts_with(&shown));
    gateway.wait_for("status shows it", is_shown).await;
    fs::write(users, "").unwrap();
    assert_eq!(passwd(&[path, "carol"], "again").await.0, 0);
    fs::write(acl, "user carol\ntopic up/#\n").unwrap();
    gateway.hang_up();
    gateway.wait_for("it is mended", |status| status.broker.reload_errors.is_empty()).await;
    let (again, before) = (["-u", "carol", "-P", "again"], ["-u", "carol", "-P", "ours"]);
    assert!(publishes(port, &again, "up/x").await.0, "her new password, and what she may by the new rules");
    assert!(!publishes(port, &before, "up/x").await.0, "not by the old one");
}
