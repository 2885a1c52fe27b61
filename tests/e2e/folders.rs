//! What a data folder goes through between two starts: links that get another name or go, and programs that are older than it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rumqttc_v5::QoS;
use tidegate::telemetry::board::LinkState;

use crate::support::client::{Publishers, Subscriber, Work};
use crate::support::gateway::{Gateway, link, run};
use crate::support::ledger::{Ledger, Mark};
use crate::support::process::free_port;
use crate::support::remote::{Mosquitto, left_out};

fn routes(name: &str, port: u16, more: &str) -> String {
    format!(
        r#"
links:
  {name}:
    mqtt: {{ url: "mqtt://127.0.0.1:{port}" }}
    retry: {{ min: 100ms, max: 1s }}
    {more}
routes:
  - {{ name: up, from: "broker/line/#", to: "{name}/line/{{rest}}" }}
"#
    )
}

/// So many messages in the buffer of link `old`, whose remote is away.
async fn with_data(messages: usize) -> (Gateway, Vec<Mark>) {
    let mut gateway = Gateway::start(&routes("old", free_port(), "")).await;
    let work =
        Work { port: gateway.port, publishers: 2, messages, qos: QoS::AtLeastOnce, window: 20, topic: "line".into() };
    let acknowledged = Publishers::start(work).finish().await;
    assert!(gateway.terminate().await.success());
    (gateway, acknowledged)
}

/// Messages, passwords, and who may read them.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_may_read_what_lies_in_the_data_folder() {
    let (gateway, _) = with_data(10).await;
    let mut folders = vec![gateway.data().to_owned()];
    let (mut files, mut odd) = (0, Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let (path, found) = (entry.path(), entry.metadata().unwrap());
            // Not for others at all, and for the group to read at most.
            if found.permissions().mode() & 0o027 != 0 {
                odd.push(format!("{} {:o}", path.display(), found.permissions().mode()));
            }
            files += usize::from(found.is_file());
            folders.extend(Some(path).filter(|_| found.is_dir()));
        }
    }
    assert!(odd.is_empty(), "{odd:?}");
    assert!(files >= 6, "the store, its log, meta, cursors, segments, letters: {files}");
}

async fn refused(gateway: &Gateway) -> (Option<i32>, String) {
    let ended = run(&["run", "-c", gateway.config().to_str().unwrap()]).await;
    (ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn r34_data_of_a_removed_link_is_said_shown_and_kept_until_a_renamed_link_delivers_it() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let (mut gateway, acknowledged) = with_data(300).await;
    gateway.configure("");
    for _ in 0..2 {
        gateway.start_again().await;
        assert!(gateway.log().contains("a link that routes.yaml does not have"), "{}", gateway.log());
        let status = gateway.status().await;
        let orphan = link(&status, "old");
        assert_eq!((orphan.kind.as_str(), orphan.depth, orphan.balanced), ("orphaned", 300, true));
        assert!(orphan.disk_bytes > 300 * 64 && orphan.oldest_age_ms.is_some(), "{orphan:?}");
        let shown = run(&["status", "-c", gateway.config().to_str().unwrap()]).await;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("link old (orphaned)") && shown.contains("kept 300"), "{shown}");
        assert!(gateway.terminate().await.success());
    }

    let mosquitto = Mosquitto::start().await;
    let far = Subscriber::start(mosquitto.port, "far", "line/#", QoS::AtLeastOnce).await;
    gateway.configure(&routes("new", mosquitto.port, "renamed_from: old"));
    gateway.start_again().await;
    let drained = gateway.wait_until_drained("new").await;
    assert_eq!(drained.ledger["delivered"], 300);
    assert!(!gateway.data().join("links/old").exists());
    Ledger::compare(acknowledged.clone(), &far.receive(&acknowledged).await).assert_exact("under the new name");
}

#[tokio::test(flavor = "multi_thread")]
async fn r34_data_of_a_removed_link_that_cannot_be_opened_is_shown_too() {
    let (mut gateway, _) = with_data(10).await;
    let cursors = gateway.data().join("links/old/cursors");
    fs::remove_file(&cursors).unwrap();
    fs::create_dir(&cursors).unwrap();
    gateway.configure("");
    gateway.start_again().await;
    let status = gateway.status().await;
    assert!(status.ready, "{status:?}");
    let orphan = link(&status, "old");
    assert_eq!((orphan.kind.as_str(), orphan.state), ("orphaned", LinkState::BufferFailed));
    let note = orphan.note.as_deref().unwrap();
    assert!(note.contains("cannot be opened") && note.contains("links/old/cursors"), "{note}");
    assert!(gateway.terminate().await.success());
    assert!(cursors.is_dir(), "left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn r34_a_start_that_would_rename_onto_a_buffer_with_data_leaves_both_and_says_so() {
    let (mut gateway, _) = with_data(10).await;
    let links = gateway.data().join("links");
    fs::create_dir(links.join("new")).unwrap();
    for entry in fs::read_dir(links.join("old")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, links.join("new").join(path.file_name().unwrap())).unwrap();
        }
    }
    gateway.configure(&routes("new", free_port(), "renamed_from: old"));
    gateway.start_again().await;
    let status = gateway.status().await;
    let (old, new) = (link(&status, "old"), link(&status, "new"));
    assert_eq!(
        (old.kind.as_str(), old.depth, new.kind.as_str(), new.depth),
        ("orphaned", 10, "mqtt", 10),
        "{status:?}"
    );
    let said = gateway.log();
    assert!(said.contains("both hold what is not delivered"), "{said}");
    assert!(gateway.terminate().await.success());
    assert!(links.join("old").exists() && links.join("new").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn r36_a_folder_of_a_later_version_is_refused_in_clear_words() {
    let (gateway, _) = with_data(10).await;
    let meta = gateway.data().join("links/old/meta");
    let mut bytes = fs::read(&meta).unwrap();
    // Both slots say that a later format wrote them: magic, version, zero, generation, length, checksum, payload.
    for slot in bytes.chunks_mut(16 << 10).filter(|slot| slot.starts_with(b"TGSL")) {
        slot[4] = 200;
        let length = usize::try_from(u32::from_le_bytes(slot[16..20].try_into().unwrap())).unwrap();
        let sum = crc32c::crc32c_append(crc32c::crc32c(&slot[..20]), &slot[24..24 + length]);
        slot[20..24].copy_from_slice(&sum.to_le_bytes());
    }
    fs::write(&meta, &bytes).unwrap();
    let (code, said) = refused(&gateway).await;
    assert_eq!(code, Some(74), "{said}");
    assert!(said.contains("later version of Tidegate (format 200; this program knows "), "{said}");
    assert_eq!(fs::read(&meta).unwrap(), bytes, "nothing was changed");
}
