//! Eclipse Paho's interoperability suites (github.com/eclipse/paho.mqtt.testing), each test against a gateway of its own. They are
//! not part of this repository: `PAHO_DIR` names a checkout, and without it these tests say that they did not run.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::process::Command;

use crate::support::gateway::Gateway;
use crate::support::process::did_not_run;

/// Some of them wait for something that may never come.
const LIMIT: Duration = Duration::from_secs(90);

/// They mostly sleep.
const AT_ONCE: usize = 10;

/// What the suites expect of a broker's settings.
const SETTINGS: &str = "  keep_alive_max: 60s\n  deny_subscribe: test/nosubscribe\n";

/// Runs one test, or lists them all. Arguments: module, port, name or nothing.
const RUNNER: &str = r##"
import importlib, sys, time, unittest
module, port, *names = sys.argv[1:]
t = importlib.import_module(module)

# Two of its tests mean to wait for a client's SUBACK and ask the other client: they publish before the subscription is there.
def subscribe(self, *arguments, **more):
    id, end = send(self, *arguments, **more), time.monotonic() + 3
    heard = getattr(self.callback, "subscribeds", None)
    while heard is not None and self.getReceiver() and all(one[0] != id for one in heard) and time.monotonic() < end:
        time.sleep(0.01)
    return id
if module == "client_test5":
    send, t.mqtt_client.Client.subscribe = t.mqtt_client.Client.subscribe, subscribe
t.host, t.port, t.topic_prefix = "127.0.0.1", int(port), "client_test5/"
t.topics = ("TopicA", "TopicA/B", "Topic/C", "TopicA/C", "/TopicA")
t.wildtopics = ("TopicA/+", "+/C", "#", "/#", "/+", "+/+", "TopicA/#")
t.nosubscribe_topics = ("test/nosubscribe",)
if not names:
    print("\n".join(unittest.defaultTestLoader.getTestCaseNames(t.Test)))
    sys.exit(0)
result = unittest.TextTestRunner(verbosity=2).run(unittest.defaultTestLoader.loadTestsFromNames(["Test." + n for n in names], t))
sys.exit(0 if result.wasSuccessful() and result.testsRun == len(names) else 1)
"##;

#[tokio::test(flavor = "multi_thread")]
async fn paho_interoperability_3_1_1() {
    suite("client_test", 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paho_interoperability_5_0() {
    suite("client_test5", 27).await;
}

async fn suite(module: &str, count: usize) {
    let Some(dir) = std::env::var_os("PAHO_DIR") else {
        return did_not_run("PAHO_DIR does not name a checkout of github.com/eclipse/paho.mqtt.testing");
    };
    let dir = PathBuf::from(dir).join("interoperability");
    let names = python(&dir, &[module, "0"]).await.expect("the suite's tests can be listed");
    let names: Vec<&str> = names.lines().collect();
    assert_eq!(names.len(), count, "{names:?}");
    let runs = names.iter().map(|name| one(&dir, module, name));
    let mut failed: Vec<(&str, String)> =
        stream::iter(runs).buffer_unordered(AT_ONCE).filter_map(async |end| end.err()).collect().await;
    // Some wait for a moment and not for an event: on a machine that is busy they fail by themselves. So each gets a second run, alone.
    for (name, first) in std::mem::take(&mut failed) {
        eprintln!("once more, alone: {first}");
        failed.extend(one(&dir, module, name).await.err());
    }
    let passed = count - failed.len();
    let words = failed.iter().map(|(_, why)| why.as_str()).collect::<Vec<_>>().join("\n");
    assert_eq!(passed, count, "{passed} of {count} passed\n{words}");
}

async fn one<'n>(dir: &Path, module: &str, name: &'n str) -> Result<(), (&'n str, String)> {
    let gateway = Gateway::start(SETTINGS).await;
    let port = gateway.port.to_string();
    let run = tokio::time::timeout(LIMIT, python(dir, &[module, &port, name])).await;
    let run = run.unwrap_or_else(|_| Err(format!("not over after {LIMIT:?}")));
    run.map(drop).map_err(|why| (name, format!("==== {module} {name}\n{why}")))
}

async fn python(dir: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new("python3");
    command.arg("-c").arg(RUNNER).args(arguments).current_dir(dir).stdin(Stdio::null()).kill_on_drop(true);
    // Its sources are not ours to write to.
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONPATH", dir);
    let output = command.output().await.map_err(|error| format!("python3: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{}\n{}", text(&output.stdout), text(&output.stderr)))
}
