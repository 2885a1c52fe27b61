//! The order of the system calls, which a test of results cannot see: what a power cut would leave. The real program under strace.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rumqttc_v5::QoS;

use crate::support::client::{Subscriber, publish_once};
use crate::support::gateway::Gateway;
use crate::support::ledger::{Ledger, Mark};
use crate::support::process::did_not_run;
use crate::support::remote::{Mosquitto, left_out};
use crate::support::wait::{PATIENCE, until_true};

/// Enough for some segments of 128 KiB, the least there are with this `max_size`.
const MESSAGES: usize = 60;
const PAYLOAD: usize = 8_000;

/// A call: where in the trace it began and ended.
#[derive(Clone, Debug)]
struct Call {
    began: usize,
    ended: usize,
    name: String,
    /// As strace prints them, with the paths of file descriptors.
    arguments: String,
    answer: String,
}

impl Call {
    fn is(&self, names: &[&str]) -> bool {
        names.contains(&self.name.as_str())
    }

    fn concerns(&self, path: &str) -> bool {
        self.arguments.contains(&format!("<{path}>")) || self.arguments.contains(&format!("\"{path}\""))
    }

    /// The path of a segment that it is about.
    fn segment(&self) -> Option<&str> {
        let mut paths = self.arguments.split(['<', '>', '"']);
        paths.find(|path| path.ends_with(".seg"))
    }
}

/// All calls of a trace that came to their end. One thread's calls do not overlap; a call that others interrupt stands on two lines.
fn calls(trace: &str) -> Vec<Call> {
    let mut open: BTreeMap<&str, Call> = BTreeMap::new();
    let mut done = Vec::new();
    for (at, line) in trace.lines().enumerate() {
        let Some((thread, said)) = line.split_once(' ') else { continue };
        let said = said.trim_start();
        let call = if let Some(rest) = said.strip_prefix("<... ") {
            let Some(mut call) = open.remove(thread) else { continue };
            let (_, rest) = rest.split_once("resumed>").unwrap();
            call.arguments += rest.rsplit_once(" = ").map_or(rest, |(arguments, _)| arguments);
            call.answer = rest.rsplit_once(" = ").map_or("", |(_, answer)| answer).to_owned();
            Call { ended: at, ..call }
        } else {
            let Some((name, rest)) = said.split_once('(') else { continue };
            let (arguments, answer) = rest.rsplit_once(" = ").unwrap_or((rest, ""));
            let (name, arguments) = (name.to_owned(), arguments.to_owned());
            let call = Call { began: at, ended: at, name, arguments, answer: answer.to_owned() };
            if said.ends_with("<unfinished ...>") {
                open.insert(thread, call);
                continue;
            }
            call
        };
        done.push(call);
    }
    done.sort_by_key(|call| call.began);
    done
}

/// As strace prints bytes of which not all are text.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

/// The bytes that a call writes, as far as strace shows them.
fn bytes_of(call: &Call) -> Vec<u8> {
    let text = call.arguments.split('"').nth(1).unwrap_or_default();
    text.split("\\x").skip(1).filter_map(|digits| u8::from_str_radix(digits.get(..2)?, 16).ok()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn r01_r09_the_log_and_the_folder_are_synced_before_an_acknowledgement_and_the_cursor_before_a_deletion() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let far = Subscriber::start(mosquitto.port, "far", "line/#", QoS::AtLeastOnce).await;
    let routes = format!(
        r#"
links:
  far:
    mqtt: {{ url: "mqtt://127.0.0.1:{}" }}
    buffer: {{ max_size: 1MiB }}
routes:
  - {{ name: far, from: "broker/line/#", to: "far/line/{{rest}}" }}
"#,
        mosquitto.port
    );
    let Some((mut gateway, trace)) = Gateway::start_traced(&routes).await else {
        return did_not_run("strace is not there, or this user may not trace a program");
    };
    let marks: Vec<_> = (0..MESSAGES).map(|number| Mark { publisher: 0, number }).collect();
    for mark in &marks {
        publish_once(gateway.port, "press", "line/0", mark.payload(PAYLOAD)).await.unwrap();
    }
    gateway.wait_until_drained("far").await;
    let folder = gateway.data().join("links/far");
    until_true("delivered segments are deleted", PATIENCE, || segments(&folder) == 1).await;
    Ledger::compare(marks.clone(), &far.receive(&marks).await).assert_exact("far");
    let port = gateway.port;
    assert!(gateway.terminate().await.success());
    let ended = || fs::read_to_string(&trace).is_ok_and(|text| text.trim_end().ends_with("+++ exited with 0 +++"));
    until_true("the trace is whole", PATIENCE, ended).await;
    let calls = calls(&fs::read_to_string(&trace).unwrap());
    let folder = folder.to_str().unwrap();
    let entries = folders_are_synced(&calls, port);
    assert!(entries >= 3, "folders made: {entries}");
    let rolls = acknowledged_when_synced(&calls, &marks, port, folder);
    assert!(rolls >= 3, "segments begun: {rolls}");
    let deleted = deleted_when_passed(&calls, folder);
    assert!(deleted >= 2, "segments deleted: {deleted}");
}

fn segments(folder: &Path) -> usize {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().ends_with(".seg")).count()
}

/// Each record is written, then its file synced, and for the first of a file its folder, then the PUBACK goes. Answers how many files
/// there were.
fn acknowledged_when_synced(calls: &[Call], marks: &[Mark], port: u16, folder: &str) -> usize {
    let socket = format!("TCP:[127.0.0.1:{port}->");
    let is_puback = |call: &Call| {
        call.is(&["sendto", "sendmsg", "write", "writev"])
            && call.arguments.contains(&socket)
            && call.arguments.contains("\"\\x40\\x02")
    };
    assert_eq!(calls.iter().filter(|call| is_puback(call)).count(), marks.len(), "one PUBACK each");
    let mut begun: Vec<&str> = Vec::new();
    for mark in marks {
        let text = hex(&mark.payload(PAYLOAD)[..24]);
        let is_write = |call: &&Call| {
            call.is(&["pwrite64", "pwritev"]) && call.segment().is_some() && call.arguments.contains(&text)
        };
        let write = calls.iter().find(is_write).unwrap_or_else(|| panic!("{mark:?} was not written"));
        let segment = write.segment().unwrap();
        let puback = calls.iter().find(|call| is_puback(call) && call.began > write.began).unwrap();
        let is_between =
            |call: &Call, from: usize| call.began > from && call.ended < puback.began && call.answer == "0";
        let synced = calls
            .iter()
            .any(|call| call.is(&["fdatasync", "fsync"]) && call.concerns(segment) && is_between(call, write.ended));
        assert!(synced, "{mark:?}: no sync of {segment} between its write {write:?} and {puback:?}");
        if begun.contains(&segment) {
            continue;
        }
        begun.push(segment);
        let is_made =
            |call: &&Call| call.is(&["openat"]) && call.concerns(segment) && call.arguments.contains("O_CREAT");
        let made = calls.iter().find(is_made).unwrap_or_else(|| panic!("{segment} was not made"));
        let synced = calls
            .iter()
            .any(|call| call.is(&["fsync", "fdatasync"]) && call.concerns(folder) && is_between(call, made.ended));
        assert!(synced, "{mark:?}: no sync of the folder between {made:?} and {puback:?}");
    }
    begun.len()
}

/// The entry of each new folder is synced in the folder above it before the first PUBACK. Answers how many there were.
fn folders_are_synced(calls: &[Call], port: u16) -> usize {
    let socket = format!("TCP:[127.0.0.1:{port}->");
    let first = calls.iter().find(|call| call.arguments.contains(&socket) && call.arguments.contains("\"\\x40\\x02"));
    let first = first.unwrap().began;
    let made = calls.iter().filter(|call| call.is(&["mkdir", "mkdirat"]) && call.answer == "0" && call.ended < first);
    let made: Vec<&Call> = made.collect();
    for call in &made {
        let path = call.arguments.split('"').nth(1).unwrap();
        let parent = Path::new(path).parent().unwrap().to_str().unwrap();
        let is_sync = |sync: &&Call| sync.is(&["fsync", "fdatasync"]) && sync.concerns(parent) && sync.answer == "0";
        let synced = calls.iter().filter(is_sync).any(|sync| sync.began > call.ended && sync.ended < first);
        assert!(synced, "{path} was made, and {parent} was not synced before the first PUBACK");
    }
    made.len()
}

/// A segment goes only when a cursor that has passed all of it is synced. Answers how many went.
fn deleted_when_passed(calls: &[Call], folder: &str) -> usize {
    let base = |path: &str| path.rsplit('/').next().unwrap().trim_end_matches(".seg").parse::<u64>().unwrap();
    let made = calls.iter().filter(|call| call.is(&["openat"]) && call.arguments.contains("O_CREAT"));
    let bases: Vec<u64> = made.filter_map(Call::segment).map(base).collect();
    let cursors = format!("{folder}/cursors");
    let mut deleted = 0;
    for gone in calls.iter().filter(|call| call.is(&["unlink", "unlinkat"])) {
        let Some(segment) = gone.segment() else { continue };
        deleted += 1;
        let next = bases.iter().copied().filter(|other| *other > base(segment)).min().unwrap();
        // The slot's header has 24 bytes; the cursor is the first number behind it.
        let floor = |call: &Call| bytes_of(call).get(24..32).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
        let mut passed = calls.iter().filter(|call| {
            call.is(&["pwrite64", "pwritev"])
                && call.concerns(&cursors)
                && floor(call).is_some_and(|floor| floor >= next)
        });
        let synced = passed.clone().any(|write| {
            calls.iter().any(|call| {
                call.is(&["fdatasync"])
                    && call.concerns(&cursors)
                    && call.answer == "0"
                    && call.began > write.ended
                    && call.ended < gone.began
            })
        });
        assert!(synced, "{segment} is gone before a cursor at {next} or above is synced: {:?}", passed.next_back());
    }
    deleted
}

#[test]
fn a_trace_is_read_also_where_threads_interrupt_each_other() {
    let trace = "\
10 pwrite64(5</d/0.seg>, \"\\x01\\x02\", 2, 0) = 2
11 fdatasync(5</d/0.seg> <unfinished ...>
10 sendto(7<TCP:[127.0.0.1:1->127.0.0.1:2]>, \"\\x40\\x02\", 2, MSG_NOSIGNAL, NULL, 0) = 2
11 <... fdatasync resumed>) = 0
10 +++ exited with 0 +++
";
    let calls = calls(trace);
    let names: Vec<_> = calls.iter().map(|call| (call.name.as_str(), call.began, call.ended, &*call.answer)).collect();
    assert_eq!(names, [("pwrite64", 0, 0, "2"), ("fdatasync", 1, 3, "0"), ("sendto", 2, 2, "2")]);
    assert_eq!(calls[1].segment(), Some("/d/0.seg"));
    assert_eq!(bytes_of(&calls[0]), [1, 2]);
}
