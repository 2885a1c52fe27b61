//! `tidegate explain`, `tidegate test` and `tidegate check` as an operator meets them, and every example of docs/routes.md on
//! what routes make of messages, run by the program itself.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is its purpose")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with(files: &[(&str, &str)]) -> Self {
        let folder = Self::new();
        for (name, text) in files {
            folder.file(name, text);
        }
        folder
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.args(arguments).current_dir(self.0.path()).env_remove("NOT_SET").output().unwrap()
    }

    /// Runs it; what it prints, if it ended with this code.
    fn expect(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        text
    }
}

const ROUTES: &str = r#"site: plant-7
links:
  cloud: { rabbitmq: { url: "amqp://u:${env:NOT_SET}@127.0.0.1", exchange: telemetry } }
  lake: { kafka: { brokers: "127.0.0.1:9092" } }
  hq: { mqtt: { url: "mqtt://127.0.0.1:2883" } }
routes:
  - name: telemetry
    from: broker/factory/{line}/{machine}/telemetry
    except: factory/test/#
    where: payload.temp > 80
    to: [ "cloud/{line}.{machine}", lake/hot, "broker/hot/{machine}" ]
    key: "{payload.order}"
    priority: high
    ttl: 5m
  - { name: hot, from: broker/hot/+, to: "hq/{site}/{topic}" }
  - { name: office, from: broker/office/#, to: lake/office }
  - { name: orders, from: lake/orders, to: "broker/orders/{rest}x{topic}" }
"#;

#[test]
fn r33_explain_says_what_each_route_does_and_why() {
    let routes = ROUTES.replace("orders/{rest}x{topic}", "orders/{topic}");
    let folder = Folder::with(&[
        ("routes.yaml", &routes),
        ("hot.json", r#"{"temp":81.5,"order":"A7"}"#),
        ("cold.json", r#"{"temp":20}"#),
        ("lacking.json", r#"{"temp":90}"#),
    ]);
    let topic = "factory/a/press/telemetry";
    let told =
        folder.expect(0, &["explain", topic, "--payload", "hot.json", "--property", "shift=early", "--client-id", "c"]);
    let lines = [
        "broker/factory/a/press/telemetry",
        "  + telemetry line=a machine=press: payload.temp > 80 (payload.temp is 81.5)",
        "  - hot: the topic does not match hot/+",
        "  - office: the topic does not match office/#",
        "  1 more begin elsewhere",
        "broker/hot/press",
        "  - telemetry: the topic does not match factory/{line}/{machine}/telemetry",
        "  + hot",
        "  - office: the topic does not match office/#",
        "  1 more begin elsewhere",
        "> broker/factory/a/press/telemetry  to local clients, as published, qos 1",
        "    property shift=early",
        r#"    payload {"temp":81.5,"order":"A7"}"#,
        "> broker/hot/press  by telemetry, qos 1",
        "    property shift=early",
        r#"    payload {"temp":81.5,"order":"A7"}"#,
        "> cloud/a.press  by telemetry, qos 1, priority high, ttl 300s",
        "    property shift=early",
        r#"    payload {"temp":81.5,"order":"A7"}"#,
        "> lake/hot  by telemetry, qos 1, priority high, ttl 300s",
        "    key A7",
        "    property shift=early",
        r#"    payload {"temp":81.5,"order":"A7"}"#,
        "> hq/plant-7/hot/press  by hot, qos 1",
        "    property shift=early",
        r#"    payload {"temp":81.5,"order":"A7"}"#,
        "taken 2",
        "outputs 5",
    ];
    assert_eq!(told.lines().collect::<Vec<_>>(), lines, "{told}");
    let told = folder.expect(1, &["explain", topic, "--payload", "cold.json"]);
    assert!(
        told.contains("  - telemetry line=a machine=press: not payload.temp > 80 (payload.temp is 20)\n"),
        "{told}"
    );
    assert!(told.ends_with("taken 0\noutputs 1\n"), "{told}");
    let told = folder.expect(1, &["explain", topic]);
    assert!(told.contains("not payload.temp > 80 (there is no payload.temp)\n"), "{told}");
    let told = folder.expect(1, &["explain", "factory/test/1/telemetry", "--payload", "hot.json"]);
    assert!(told.contains("  - telemetry: except factory/test/#\n"), "{told}");
    let told = folder.expect(0, &["explain", topic, "--payload", "lacking.json"]);
    assert!(
        told.contains("    dead letter: transform: route `telemetry`: the message has no `{payload.order}`\n"),
        "{told}"
    );
    let told = folder.expect(0, &["explain", "a/b", "--from", "lake/orders"]);
    assert!(
        told.starts_with("lake/orders\n  + orders\n") && told.contains("> broker/orders/a/b  by orders, qos 1\n"),
        "{told}"
    );
    let told = folder.expect(0, &["explain", "office/1", "--json"]);
    let json: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(json["outputs"][1]["target"], "lake");
    assert_eq!(json["arrivals"][0]["routes"][2]["verdict"], "taken");
}

#[test]
fn r33_explain_shows_what_each_step_of_a_route_makes() {
    let routes = r#"site: plant-7
links: { hq: { mqtt: { url: "mqtt://127.0.0.1:2883" } } }
routes:
  - name: event
    from: broker/{line}/temp
    throttle: 10s
    pick: [ temp, axis.x ]
    set: { payload.unit: C, payload.axis.x: 2, property.line: "{line}", content_type: application/json }
    envelope: { format: cloudevents-structured, time: "0", id: x }
    to: hq/{topic}
"#;
    let folder =
        Folder::with(&[("routes.yaml", routes), ("hot.json", r#"{"temp":81.5,"raw":[1],"axis":{"x":1,"y":0}}"#)]);
    let told = folder.expect(0, &["explain", "a/temp", "--payload", "hot.json"]);
    let event = r#"{"specversion":"1.0","id":"x","source":"/plant-7","type":"tidegate.message","subject":"a/temp","time":"1970-01-01T00:00:00Z","datacontenttype":"application/json","data":{"temp":81.5,"axis":{"x":2},"unit":"C"}}"#;
    let lines = [
        "  + event line=a".to_owned(),
        "      throttle: lets it through".to_owned(),
        "      pick: no payload.axis.y, no payload.raw".to_owned(),
        r#"      set: payload.axis.x 2, payload.unit "C", content type application/json, property line=a"#.to_owned(),
        format!("      envelope: payload {event}, content type application/cloudevents+json"),
    ];
    assert_eq!(told.lines().skip(1).take(5).collect::<Vec<_>>(), lines, "{told}");
    assert!(told.contains(&format!("    payload {event}\n")), "{told}");
}

#[test]
fn r33_explain_says_what_a_question_that_nothing_takes_may_have_meant() {
    let folder = Folder::with(&[("routes.yaml", &ROUTES.replace("{rest}x", ""))]);
    let told = folder.expect(1, &["explain", "a/b", "--from", "lake/ordrs"]);
    assert!(told.contains("hint: `orders` begins with lake/orders\ntaken 0\n"), "{told}");
    let told = folder.expect(1, &["explain", "broker/office/1"]);
    assert!(told.contains("`broker/` is where it comes from, ask about `office/1`\n"), "{told}");
    let told = folder.expect(1, &["explain", "lake/orders"]);
    assert!(told.contains("asked with `--from lake`\n"), "{told}");
    for arguments in [&["explain", "office/1"][..], &["explain", "a/b", "--from", "lake/orders"]] {
        assert!(!folder.expect(0, arguments).contains("hint: "), "{arguments:?}");
    }
}

#[test]
fn r33_explain_and_tests_say_what_a_link_refuses_in_its_own_words() {
    let file = r#"site: plant-7
links:
  cloud: { rabbitmq: { url: "amqp://u:p@127.0.0.1", exchange: telemetry } }
  lake: { kafka: { brokers: "127.0.0.1:9092", max_message: 2KiB } }
  hq: { mqtt: { url: "mqtt://127.0.0.1:2883", max_packet_size: 2KiB } }
routes:
  - { from: "broker/kafka/{line}", to: "lake/{line}" }
  - { from: broker/mqtt/#, to: "hq/{rest}" }
  - { from: broker/amqp/#, to: "cloud/{rest}" }
  - { name: own, from: broker/local/#, to: "broker/{rest}" }
  - { name: field, from: broker/field, to: [ "hq/{payload.to}", "broker/x/{payload.to}" ] }
"#;
    let folder = Folder::with(&[("routes.yaml", file)]);
    let long = |bytes| "x".repeat(bytes);
    for (topic, words) in [
        ("kafka/", "topic `` is no Kafka topic"),
        ("kafka/a b", "topic `a b` is no Kafka topic"),
        ("kafka/..", "topic `..` is no Kafka topic"),
        (&format!("kafka/{}", long(250)), "is no Kafka topic"),
        ("mqtt", "`` is no topic: a topic has at least one character"),
        (&format!("amqp/{}", long(256)), "topic: its routing key has 256 bytes, and RabbitMQ takes 255"),
        ("amqp/a.b", "topic `a.b` holds a dot"),
        ("local", "a topic has at least one character"),
        ("local/$SYS/a", "below `$SYS/` are the gateway's own values"),
    ] {
        let told = folder.expect(0, &["explain", topic]);
        let lost = if topic.starts_with("local") { "    not delivered: " } else { "    dead letter: " };
        let line = told.lines().find_map(|line| line.strip_prefix(lost)).unwrap_or_else(|| panic!("{topic}: {told}"));
        assert!(line.contains(words), "{told}");
    }
    for topic in [&format!("kafka/{}", long(249)), "mqtt/a/b", &format!("amqp/{}", long(255)), "local/a"] {
        let told = folder.expect(0, &["explain", topic]);
        assert!(!told.contains("dead letter") && !told.contains("not delivered"), "{told}");
    }
    folder.file("large.json", &"x".repeat(2048));
    for topic in ["kafka/a", "mqtt/a"] {
        let told = folder.expect(0, &["explain", topic, "--payload", "large.json"]);
        assert!(told.contains("    dead letter: too large: "), "{told}");
    }
    let told = folder.expect(0, &["explain", "mqtt/a", "--response-topic", "a/+"]);
    assert!(told.contains("    dead letter: `response topic` is a topic with wildcards"), "{told}");
    let told = folder.expect(0, &["explain", "field"]);
    assert!(
        told.contains("> broker/x/{payload.to}  by field, qos 1\n    not delivered: transform: route `field`: "),
        "{told}"
    );

    let tests = r#"tests:
  - { name: none, message: { topic: mqtt }, expect: { to: "hq/" } }
  - { name: letter, message: { topic: mqtt }, expect: { to: "hq/", dead_letter: no topic } }
  - { name: own, message: { topic: local/$SYS/a }, expect: [] }
"#;
    folder.file("routes.test.yaml", tests);
    let told = folder.expect(1, &["test", "routes.test.yaml"]);
    for line in [
        "FAILED routes.test.yaml: none",
        "    hq/: a dead letter, which is not expected: `` is no topic: a topic has at least one character",
        "ok routes.test.yaml: letter",
        "    broker/$SYS/a: not expected, not delivered: below `$SYS/` are the gateway's own values",
    ] {
        assert!(told.lines().any(|told| told == line), "{line}: {told}");
    }
}

#[test]
fn r33_explain_says_why_wildcards_leave_out_what_begins_with_a_dollar() {
    let routes = |more: &str| {
        let hq = r#"links: { hq: { mqtt: { url: "mqtt://127.0.0.1:2883" } } }"#;
        Folder::with(&[(
            "routes.yaml",
            &format!("{hq}\nroutes:\n  - {{ name: all, from: broker/#, to: \"hq/{{topic}}\" }}\n{more}"),
        )])
    };
    let topic = "$SYS/broker/uptime";
    let told = routes("").expect(1, &["explain", topic]);
    let hint = "hint: a topic that begins with `$` goes only through routes whose `from` names its first level (`$SYS/#`): \
                wildcards leave it out; ";
    assert!(told.contains(&format!("{hint}and none does\n")), "{told}");
    let load = "  - { name: load, from: \"broker/$SYS/broker/load/#\", to: \"hq/{topic}\" }\n";
    let told = routes(load).expect(1, &["explain", topic]);
    assert!(told.contains(&format!("{hint}and there `load` ($SYS/broker/load/#) does not take this one\n")), "{told}");
    let told = routes(load).expect(0, &["explain", "$SYS/broker/load/x"]);
    assert!(!told.contains("hint:"), "{told}");
}

#[test]
fn explain_takes_a_time_as_people_write_it() {
    let routes = "links: { hq: { mqtt: { url: \"mqtt://127.0.0.1:2883\" } } }\nroutes: [ { from: broker/a, where: time == 1795651200250, to: hq/a } ]\n";
    let folder = Folder::with(&[("routes.yaml", routes)]);
    for time in ["2026-11-26T01:30:00.25+01:30", "1795651200250"] {
        folder.expect(0, &["explain", "a", "--time", time]);
    }
    folder.expect(1, &["explain", "a", "--time", "2026-11-26"]);
    let told = folder.expect(64, &["explain", "a", "--time", "soon"]);
    assert!(told.contains("a time is such as `2026-11-26T08:00:00Z`"), "{told}");
}

#[test]
fn r33_a_question_that_is_wrong_is_wrong_usage() {
    let folder = Folder::with(&[("routes.yaml", &ROUTES.replace("{rest}x", ""))]);
    for (arguments, words) in [
        (&["explain", "a/#"][..], "`+` and `#` belong to filters"),
        (&["explain", "a", "--from", "nobody"], "there is no link `nobody`; there are: cloud, lake, hq, broker"),
        (&["explain", "a", "--from", "hq/x"], "from an MQTT link a message has its topic alone"),
        (&["explain", "a", "--from", "cloud"], "say which queue or Kafka topic of `cloud`: `cloud/NAME`"),
        (&["explain", "a", "--property", "x"], "a property is NAME=VALUE"),
        (&["explain", "a", "--qos", "3"], "3 is not in 0..=2"),
    ] {
        assert!(folder.expect(64, arguments).contains(words), "{arguments:?}: {}", folder.expect(64, arguments));
    }
    assert!(folder.expect(74, &["explain", "a", "--payload", "none.json"]).contains("--payload none.json"));
    let broken = Folder::with(&[("routes.yaml", ROUTES)]);
    assert!(broken.expect(65, &["explain", "a"]).contains("`{rest}` is not captured"));
}

#[test]
fn mistakes_of_a_file_of_tests_are_told_with_those_of_its_routes() {
    let folder = Folder::with(&[("routes.yaml", &ROUTES.replace("{rest}x", ""))]);
    // What the routes do not have is told with all else, and so is what is wrong with them.
    folder.file(
        "wrong.yaml",
        &TESTS.replacen("key: A7", "keys: A7", 1).replace("from: lake/orders }", "from: lakes/x }"),
    );
    let told = folder.expect(65, &["test", "wrong.yaml"]);
    assert!(told.contains("unknown key `keys`") && told.contains("there is no link `lakes`"), "{told}");
    assert!(told.ends_with("2 errors, 0 warnings\n"), "{told}");
    folder.file("bad.yaml", ROUTES);
    folder.file("wrong.yaml", &TESTS.replacen("key: A7", "keys: A7", 1).replace("config: routes", "config: bad"));
    let told = folder.expect(65, &["test", "wrong.yaml"]);
    assert!(told.contains("unknown key `keys`") && told.contains("`{rest}` is not captured"), "{told}");
    folder.file("twice.yaml", &TESTS.replacen("from a Kafka topic", "what is cold goes nowhere", 1));
    let told = folder.expect(65, &["test", "twice.yaml"]);
    assert!(told.contains("twice.yaml:20:11: error: two tests are named `what is cold goes nowhere`"), "{told}");
    folder.file("empty.yaml", "config: routes.yaml\ntests: []\n");
    let told = folder.expect(65, &["test", "empty.yaml"]);
    assert!(told.contains("empty.yaml:2:1: error: `tests` lists no test\n"), "{told}");
    assert!(told.contains("take the file out where there is nothing to test"), "{told}");
    folder.file("astray.yaml", &TESTS.replacen("config: routes.yaml", "config: nothere.yaml", 1));
    let told = folder.expect(65, &["test", "astray.yaml"]);
    assert!(told.contains("astray.yaml:1:9: error: nothere.yaml cannot be read: "), "{told}");
    assert!(told.contains("`config` is looked for from the folder of this file"), "{told}");
}

const TESTS: &str = r#"config: routes.yaml
tests:
  - name: what is hot goes everywhere
    message: { topic: factory/a/press/telemetry, payload: { temp: 81.5, order: A7 } }
    expect:
      - { to: lake/hot, key: A7, priority: high, route: telemetry, payload: { order: A7, temp: 81.5 } }
      - { to: cloud/a.press, qos: 1, retain: false }
      - { to: broker/hot/press }
      - { to: hq/plant-7/hot/press }
  - name: what is cold goes nowhere
    message: { topic: factory/a/press/telemetry, payload: { temp: 20 } }
    expect: []
  - name: what has no order is a dead letter, where there are keys
    message: { topic: factory/a/press/telemetry, payload: '{"temp":90}', qos: 2, properties: { x: y } }
    expect:
      - { to: cloud/a.press, qos: 2 }
      - { to: lake/hot, dead_letter: transform, properties: { x: y } }
      - { to: broker/hot/press, qos: 2 }
      - { to: hq/plant-7/hot/press }
  - name: from a Kafka topic
    message: { topic: a/b, from: lake/orders }
    expect: [ { to: broker/orders/a/b } ]
"#;

#[test]
fn route_tests_pass_and_say_what_differs() {
    let folder = Folder::with(&[("routes.yaml", &ROUTES.replace("{rest}x", "")), ("tests.yaml", TESTS)]);
    let told = folder.expect(0, &["test", "tests.yaml"]);
    assert!(told.starts_with("ok tests.yaml: what is hot goes everywhere\n"), "{told}");
    assert!(told.ends_with("passed 4\nfailed 0\n"), "{told}");
    for (from, to, words) in [
        ("key: A7,", "key: A8,", "    lake/hot: key is A7, not A8\n"),
        (
            "expect: []",
            "expect: [ { to: lake/cold } ]",
            "    lake/cold: expected, and nothing goes there\n      broker/factory/a/press/telemetry:  - telemetry line=a machine=press: not payload.temp > 80 (payload.temp is 20)\n",
        ),
        (
            "expect: []",
            "expect: [ { to: lake/office, route: office } ]",
            "    lake/office: expected, and nothing goes there\n      broker/factory/a/press/telemetry:  - office: the topic does not match office/#\n",
        ),
        ("      - { to: hq/plant-7/hot/press }\n", "", "    hq/plant-7/hot/press: not expected, by route `hot`\n"),
        (
            "temp: 81.5 } }",
            "temp: 82 } }",
            r#"    lake/hot: payload is {"order":"A7","temp":81.5}, not {"order":"A7","temp":82}"#,
        ),
        (
            "dead_letter: transform, properties",
            "properties",
            "    lake/hot: a dead letter, which is not expected: transform: route `telemetry`: the message has no",
        ),
        ("qos: 1, retain: false", "qos: 1, retain: true", "    cloud/a.press: retain is false, not true\n"),
        ("x: y } }\n      - { to: broker", "x: z } }\n      - { to: broker", "    lake/hot: property x is y, not z\n"),
        (
            "      - { to: lake/hot, dead_letter: transform, properties: { x: y } }\n",
            "",
            "    lake/hot: not expected, a dead letter: transform: route `telemetry`: the message has no",
        ),
    ] {
        assert!(TESTS.contains(from), "{from}");
        folder.file("wrong.yaml", &TESTS.replacen(from, to, 1));
        let told = folder.expect(1, &["test", "wrong.yaml"]);
        assert!(told.contains(words) && told.contains("FAILED wrong.yaml: "), "{words} is not in\n{told}");
        assert!(told.ends_with("passed 3\nfailed 1\n"), "{told}");
    }
    let json = folder.run(&["test", "tests.yaml", "wrong.yaml", "--json"]);
    assert_eq!(json.status.code(), Some(1));
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    let verdicts = json.as_array().unwrap();
    assert_eq!((verdicts.len(), verdicts.iter().filter(|verdict| verdict["passed"] == false).count()), (8, 1));
    for (from, to, words) in [
        ("from: lake/orders }", "from: lakes/orders }", "error: there is no link `lakes`"),
        ("to: hq/plant-7", "to: mq/plant-7", "error: there is no link `mq`"),
        ("to: broker/hot/press", "to: broker", "error: `broker` is no address: `LINK/DESTINATION` or `broker/TOPIC`"),
        ("route: telemetry", "route: telemetri", "error: there is no route `telemetri`"),
        ("expect: []", "expect:", "error: `expect` is missing"),
    ] {
        assert!(TESTS.contains(from), "{from}");
        folder.file("wrong.yaml", &TESTS.replacen(from, to, 1));
        let told = folder.expect(65, &["test", "wrong.yaml", "tests.yaml"]);
        assert!(told.contains(words) && !told.contains("passed"), "{words} is not in\n{told}");
        assert_eq!(told.contains("= hint: did you mean `"), words.contains("there is no "), "{told}");
    }
    folder.file("unknown.yaml", &TESTS.replacen("key: A7", "keys: A7", 1));
    folder.expect(74, &["test", "none.yaml"]);
    // A mistake in one file hides none in another.
    let told = folder.expect(65, &["test", "unknown.yaml", "none.yaml", "tests.yaml"]);
    assert!(told.contains("did you mean `key`?") && told.contains("none.yaml: ") && !told.contains("passed"), "{told}");
    // Without `config` in the file the usual one is taken.
    folder.file("without.yaml", &TESTS.replacen("config: routes.yaml\n", "", 1));
    folder.expect(0, &["-c", "routes.yaml", "test", "without.yaml"]);
}

#[test]
fn one_message_before_and_one_that_is_expected_need_no_list() {
    let routes = "site: x\nlinks: { hq: { mqtt: { url: \"mqtt://127.0.0.1:2883\" } } }\nroutes: [ { name: slow, from: broker/a, to: hq/a, throttle: 10s } ]\n";
    let tests = r#"config: routes.yaml
tests:
  - name: one of each
    before: { topic: a, time: 1000, payload: 1 }
    message: { topic: a, time: 20000, payload: 2 }
    expect: { to: hq/a, payload: 2 }
"#;
    let folder = Folder::with(&[("routes.yaml", routes), ("tests.yaml", tests)]);
    folder.expect(0, &["test", "tests.yaml"]);
    folder.file("tests.yaml", &tests.replace("20000", "2000"));
    assert!(folder.expect(1, &["test", "tests.yaml"]).contains("hq/a: expected, and nothing goes there"));
}

#[test]
fn explain_takes_every_part_of_a_message() {
    let routes = r#"site: x
links: { hq: { mqtt: { url: "mqtt://127.0.0.1:2883" } }, exact: { mqtt: { url: "mqtt://127.0.0.1:3883", qos: 2 } } }
routes:
  - from: broker/a
    where: user == 'u' && client_id == 'c' && time == 5 && content_type == 't' && response_topic == 'r' && qos == 2 && retain && property.p == 'v'
    to: [ hq/a, exact/a ]
"#;
    let folder = Folder::with(&[("routes.yaml", routes)]);
    let all = [
        ("--user", "u"),
        ("--client-id", "c"),
        ("--time", "5"),
        ("--content-type", "t"),
        ("--response-topic", "r"),
        ("--qos", "2"),
        ("--property", "p=v"),
    ];
    let arguments = |left_out: usize| {
        let given =
            all.iter().enumerate().filter(|(at, _)| *at != left_out).flat_map(|(_, (name, value))| [*name, *value]);
        ["explain", "a", "--retain"].into_iter().chain(given).collect::<Vec<_>>()
    };
    let told = folder.expect(0, &arguments(all.len()));
    // An MQTT link publishes with its own QoS at most.
    assert!(told.contains("> hq/a  by route-1, qos 1, retained\n"), "{told}");
    assert!(told.contains("> exact/a  by route-1, qos 2, retained\n    content type t\n"), "{told}");
    for left_out in 0..all.len() {
        folder.expect(1, &arguments(left_out));
    }
}

#[test]
fn a_file_of_tests_has_all_its_mistakes_told_in_one_run() {
    let wrong = r#"config: routes.yaml
confg: x
tests:
  - { name: no expectations, message: { topic: a } }
  - message: { topik: a/b, payload: 1, payload_base64: "*" }
    expect: [ { to: hq/a, qos: 3, priority: urgent, retain: maybe }, { key: [ a ] }, text ]
  - { name: no message, expect: [] }
  - { name: no number, message: { topic: a, payload: [ -0x1f, 0b11, 0x10000000000000000, 0xffffffffffffffff, 1_0 ] }, expect: [] }
  - name: wrong topics
    before: [ { topic: a/#, time: soon }, { payload: {} } ]
    message: { topic: "a\0b" }
    expect: []
  - name: more of them
    message: { topic: "", properties: { a: 1, a: 2 }, payload: { n: [ 1, { m: 1, m: 2 } ] } }
    expect: { to: broker/a, payloads: 1 }
"#;
    let folder = Folder::with(&[("routes.yaml", ROUTES), ("wrong.yaml", wrong)]);
    insta::assert_snapshot!("wrong-tests", folder.expect(65, &["test", "wrong.yaml"]));
    folder.file("long.yaml", &format!("tests: [ {{ message: {{ topic: {} }} }} ]", "a".repeat(70_000)));
    assert!(folder.expect(65, &["test", "long.yaml"]).contains("`: a topic has at most 65535 bytes\n"));
    folder.file("list.yaml", "- a\n");
    assert!(folder.expect(65, &["test", "list.yaml"]).contains("list.yaml:1:1: error: "));
    folder.file("none.yaml", "# nothing\n");
    assert!(folder.expect(65, &["test", "none.yaml"]).contains("none.yaml:1:1: error: this file has no `tests`"));
    assert!(folder.expect(65, &["test", "none.yaml"]).contains("= hint: such as `tests: [ { name: .., message: "));
    folder.file("no.yaml", "tests: [\n");
    assert!(folder.expect(65, &["test", "no.yaml"]).contains("no.yaml:"));
}

#[test]
fn what_is_in_a_compressed_payload_can_be_expected_and_is_explained() {
    let routes = "site: x\nlinks: { hq: { mqtt: { url: \"mqtt://127.0.0.1:2883\" } } }\nroutes: [ { name: pack, from: broker/a, to: hq/a, compress: gzip, set: { response_topic: \"answers/{topic}\" } } ]\n";
    let tests = r#"config: routes.yaml
tests:
  - name: packed
    message: { topic: a, payload: { temp: 81.5, unit: C } }
    expect: [ { to: hq/a, decompressed: { unit: C, temp: 81.5 }, contains: '"temp":81.5', response_topic: answers/a } ]
"#;
    let folder = Folder::with(&[("routes.yaml", routes), ("tests.yaml", tests)]);
    folder.expect(0, &["test", "tests.yaml"]);
    for (from, to, words) in [
        (
            "{ unit: C, temp: 81.5 }",
            "{ unit: C, temp: 81 }",
            r#"payload, decompressed, is {"temp":81.5,"unit":"C"}, not {"temp":81,"unit":"C"}"#,
        ),
        (
            "decompressed: { unit: C, temp: 81.5 }",
            "payload: { unit: C }",
            r#"payload is compressed (gzip), not {"unit":"C"}: `decompressed` looks into it, and it is {"temp":81.5,"unit":"C"}"#,
        ),
        ("'\"temp\":81.5'", "'\"temp\":80'", "not one with \"temp\":80"),
        ("response_topic: answers/a", "response_topic: a", "response_topic is answers/a, not a"),
    ] {
        assert!(tests.contains(from), "{from}");
        folder.file("wrong.yaml", &tests.replacen(from, to, 1));
        let told = folder.expect(1, &["test", "wrong.yaml"]);
        assert!(told.contains(words), "{words} is not in\n{told}");
    }
    folder.file("plain.yaml", &routes.replace("compress: gzip, ", ""));
    folder.file("tests.yaml", &tests.replace("routes.yaml", "plain.yaml"));
    assert!(folder.expect(1, &["test", "tests.yaml"]).contains("payload, decompressed, is nothing, not "));
    folder.file("payload.json", r#"{"temp":81.5}"#);
    let told = folder.expect(0, &["explain", "a", "--payload", "payload.json"]);
    for line in ["    response topic answers/a\n", "    payload, decompressed: {\"temp\":81.5}\n"] {
        assert!(told.contains(line), "{told}");
    }
}

#[test]
fn a_reader_of_check_that_has_gone_away_is_no_failure() {
    let folder = Folder::with(&[("bad.yaml", ROUTES), ("good.yaml", &ROUTES.replace("{rest}x", ""))]);
    for (files, code) in [(&["bad.yaml"][..], 65), (&["good.yaml"], 0), (&["bad.yaml", "--format", "json"], 65)] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        let command = command.arg("check").args(files).current_dir(folder.0.path()).env("NOT_SET", "p").stdout(writer);
        let output = command.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), told.as_str()), (Some(code), ""), "{files:?}");
    }
}

/// Fenced blocks of YAML below a heading.
fn blocks(text: &str, heading: &str) -> Vec<String> {
    let section = text.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading {heading}")).1;
    let section = section.split("\n#").next().unwrap();
    let blocks = section.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.map(str::to_owned).collect()
}

#[test]
fn the_reference_s_examples_do_what_it_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/routes.md");
    let reference = std::fs::read_to_string(file).unwrap();
    for heading in [
        "### `routes.batch`",
        "### `routes.dedup`",
        "### Sparkplug B",
        "### What a route makes of a message",
        "### `routes.envelope`",
        "### Route tests",
    ] {
        let blocks = blocks(&reference, heading);
        assert_eq!(blocks.len(), 2, "{heading}: routes, and their tests");
        let folder = Folder::with(&[("routes.yaml", &blocks[0]), ("routes.test.yaml", &blocks[1])]);
        let told = folder.expect(0, &["test", "routes.test.yaml"]);
        assert!(told.contains("failed 0\n") && !told.contains("passed 0\n"), "{told}");
    }
    for block in blocks(&reference, "### Conditions") {
        let folder = Folder::new();
        let links = "links: { cloud: { rabbitmq: { url: \"amqp://127.0.0.1\", exchange: x } } }\n";
        folder.file("routes.yaml", &format!("{links}{block}"));
        folder.expect(0, &["check", "routes.yaml", "--deny-warnings"]);
    }
}

#[test]
fn r32_check_writes_json_and_can_refuse_warnings() {
    let folder = Folder::new();
    folder.file("good.yaml", "site: x\n");
    folder.file("warned.yaml", "links: { hq: { mqtt: { url: \"mqtt://127.0.0.1\" } } }\n");
    folder.file("bad.yaml", "site: x\nlinkz: {}\n");
    for (file, plain, strict) in [("good.yaml", 0, 0), ("warned.yaml", 0, 65), ("bad.yaml", 65, 65)] {
        folder.expect(plain, &["check", file]);
        let told = folder.expect(strict, &["check", file, "--deny-warnings"]);
        let (is_ok, last) = (strict == 0, told.lines().last().unwrap_or_default());
        assert_eq!(last.contains(": ok"), is_ok, "{told}");
        assert_eq!(last.ends_with(": 1 warning, refused by --deny-warnings"), plain != strict, "{told}");
        let json = folder.expect(strict, &["check", file, "--deny-warnings", "--format", "json"]);
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["ok"], is_ok, "{json}");
    }
    let json: Value = serde_json::from_str(&folder.expect(65, &["check", "bad.yaml", "--format", "json"])).unwrap();
    assert_eq!((&json["ok"], &json["errors"], &json["warnings"]), (&Value::Bool(false), &1.into(), &0.into()));
    let found = &json["diagnostics"][0];
    assert_eq!((&found["line"], &found["column"], &found["severity"]), (&2.into(), &1.into(), &"error".into()));
    assert_eq!((&found["span"]["start"], &found["span"]["end"]), (&8.into(), &13.into()));
    assert_eq!(found["hint"], "did you mean `links`?");
}

const DELETES: &str = r##"
links:
  hq: { mqtt: { url: "mqtt://127.0.0.1:1" } }
  lake: { kafka: { brokers: "127.0.0.1:9" } }
routes:
  - name: set
    from: broker/set/#
    set: { property.k: "{payload.t}", property.at: "{topic}", content_type: "{payload.kind}", payload.x: 1 }
    to: hq/{topic}
  - { name: key, from: broker/key/#, key: "{payload.t}", to: lake/keyed }
  - { name: where, from: broker/where/#, where: payload.t > 80, to: "hq/{topic}" }
  - { name: throttle, from: broker/throttle/#, throttle: 10s, to: "hq/{topic}" }
  - { name: dedup, from: broker/dedup/#, dedup: payload.t, to: "hq/{topic}" }
  - { name: place, from: broker/place/#, to: "hq/{payload.t}" }
"##;

const DELETES_TESTS: &str = r#"
config: routes.yaml
tests:
  - name: what cannot be made of the payload is left out
    message: { topic: set/a, retain: true, payload: "" }
    expect: { to: hq/set/a, payload: "", retain: true, properties: { at: set/a } }
  - name: nor a key
    message: { topic: key/a, retain: true, payload: "" }
    expect: { to: lake/keyed, payload: "" }
  - name: where
    message: { topic: where/a, retain: true, payload: "" }
    expect: { to: hq/where/a, payload: "", retain: true }
  - name: without retain it deletes nothing
    message: { topic: where/a, payload: "" }
    expect: []
  - name: throttle
    before: { topic: throttle/a, time: 1000, retain: true, payload: 1 }
    message: { topic: throttle/a, time: 1001, retain: true, payload: "" }
    expect: { to: hq/throttle/a, payload: "", retain: true }
  - name: what comes behind it is not held back for it
    before:
      - { topic: dedup/a, time: 1000, retain: true, payload: { t: 1 } }
      - { topic: dedup/a, time: 1001, retain: true, payload: "" }
    message: { topic: dedup/a, time: 1002, retain: true, payload: { t: 1 } }
    expect: { to: hq/dedup/a, payload: { t: 1 } }
  - name: where it would go nobody knows
    message: { topic: place/a, retain: true, payload: "" }
    expect: { to: "hq/{payload.t}", dead_letter: "the message has no `{payload.t}`" }
"#;

#[test]
fn r21_what_deletes_a_retained_message_passes_its_routes() {
    let folder = Folder::with(&[("routes.yaml", DELETES), ("tests.yaml", DELETES_TESTS)]);
    let told = folder.expect(0, &["test", "tests.yaml"]);
    assert!(told.ends_with("passed 7\nfailed 0\n"), "{told}");
    let told = folder.expect(0, &["explain", "where/a", "--retain"]);
    let line =
        "  + where rest=a: payload.t > 80, which what deletes a retained message passes (there is no payload.t)\n";
    assert!(told.contains(line), "{told}");
}

const ROUND: &str = r##"
site: m
links:
  hq: { mqtt: { url: "mqtt://127.0.0.1:1" } }
  lake: { kafka: { brokers: "127.0.0.1:9" } }
routes:
  - { name: in, from: hq/f/#, to: "broker/f/{rest}" }
  - { name: out, from: broker/f/#, to: "hq/g/{rest}" }
  - { name: both, from: broker/f/#, to: [ "hq/b/{rest}", lake/all ] }
  - { name: straight, from: hq/f/#, to: "hq/h/{rest}" }
"##;

#[test]
fn r12_explain_and_tests_say_what_stops_a_message_that_came_round() {
    let tests = r#"
config: routes.yaml
tests:
  - name: round
    message: { topic: f/w, properties: { tg-path: m } }
    expect: { to: hq/g/w }
  - name: and nothing is expected
    message: { topic: f/w, properties: { tg-path: "a,m" } }
    expect: []
"#;
    let folder = Folder::with(&[("routes.yaml", ROUND), ("tests.yaml", tests)]);
    let why = "stopped: it has passed this site before: `tg-path` names `m`";
    let told = folder.expect(1, &["explain", "f/w", "--property", "tg-path=m"]);
    assert_eq!(told, format!("broker/f/w\n  {why}\ntaken 0\noutputs 0\n"));
    let told = folder.expect(1, &["explain", "f/w", "--from", "hq", "--property", "hmq-bridge-hop-count=16"]);
    assert!(told.contains("\n  stopped: it has passed 16 gateways or bridges"), "{told}");
    let told = folder.expect(1, &["explain", "f/w", "--property", "tg-path=m", "--json"]);
    let json: Value = serde_json::from_str(&told).unwrap();
    assert!(json["stopped"].as_str().unwrap().contains("`m`"), "{told}");
    let told = folder.expect(0, &["explain", "f/w", "--property", "tg-path=a,b"]);
    assert!(told.ends_with("taken 2\noutputs 4\n"), "{told}");
    let told = folder.expect(1, &["test", "tests.yaml"]);
    assert!(told.contains(&format!("    hq/g/w: expected, and nothing goes there\n      {why}\n")), "{told}");
    assert!(told.ends_with("passed 1\nfailed 1\n"), "{told}");
}

#[test]
fn what_is_not_sent_back_to_its_link_is_told() {
    let tests = r#"
config: routes.yaml
tests:
  - name: back
    message: { from: hq, topic: f/w }
    expect: [ { to: broker/f/w }, { to: lake/all }, { to: hq/h/w }, { to: hq/g/w }, { to: hq/b/w, route: both } ]
"#;
    let folder = Folder::with(&[("routes.yaml", ROUND), ("tests.yaml", tests)]);
    let told = folder.expect(0, &["explain", "f/w", "--from", "hq"]);
    let lines = [
        "hq/f/w",
        "  + in rest=w",
        "  + straight rest=w",
        "  2 more begin elsewhere",
        "broker/f/w",
        "  - out rest=w: not sent back to hq/g/{rest}, by the broker nothing goes back to the link that it came from, `hq`",
        "  + both rest=w",
        "      not sent back to hq/b/{rest}: by the broker nothing goes back to the link that it came from",
        "  2 more begin elsewhere",
        "> broker/f/w  by in, qos 1",
        "> hq/h/w  by straight, qos 1",
        "> lake/all  by both, qos 1",
        "taken 3",
        "outputs 3",
    ];
    assert_eq!(told.lines().collect::<Vec<_>>(), lines, "{told}");
    let told = folder.expect(1, &["test", "tests.yaml"]);
    for line in [
        "    hq/g/w: expected, and nothing goes there\n      broker/f/w:  - out rest=w: not sent back to hq/g/{rest}",
        "    hq/b/w: expected, and nothing goes there\n      broker/f/w not sent back to hq/b/{rest}: by the broker",
    ] {
        assert!(told.contains(line), "{told}");
    }
}
