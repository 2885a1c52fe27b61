//! `routes.yaml`, good and bad: what the shipped files say, what a full file resolves to, and every diagnostic as the
//! operator sees it (`tests/config/bad/`, one snapshot a file).

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is its purpose")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;
use tidegate::broker::auth::jwt::{Algorithm, KeySource};
use tidegate::broker::auth::ldap::Find;
use tidegate::buffer::{Compression, Lane, SyncMode, WhenFull};
use tidegate::cli::check::{CheckError, Format, Options, check, check_together};
use tidegate::clock::{Moment, WallMs};
use tidegate::config::{self, Env, Severity, Ties};
use tidegate::gateway::Config;
use tidegate::links::{self, Kind, kafka, mqtt, rabbitmq};
use tidegate::message::{Message, MessageId, Origin, Properties, Qos};
use tidegate::router::{Arrival, Endpoint, LinkId, Subject, Table, Told, View};
use tidegate::topic::TopicName;
use tidegate::units::{ByteSize, show_duration};

#[path = "config/secrets.rs"]
mod secrets;

/// A machine that is the same everywhere: known variables, a disk of 100 GiB, 8 GiB of memory, a day at the end of 2026, and keys that only their
/// owner can read, but for one.
fn env() -> Env {
    let variable = |name: &str| match name {
        "PASSWORD" => Some("hunter2".to_owned()),
        "RMQ_USER" => Some("us:er".to_owned()),
        "SITE" => Some("plant-7".to_owned()),
        "URL" => Some("hunter2://host".to_owned()),
        "EMPTY" => Some(" ".to_owned()),
        _ => None,
    };
    Env {
        variable: Box::new(variable),
        disk_bytes: Box::new(|_| Some(100 << 30)),
        memory_bytes: Some(8 << 30),
        v6_only: false,
        is_public: Box::new(|path| path.ends_with("other.key")),
        now: WallMs(1_796_083_200_000),
        host_name: "host".to_owned(),
        ..Env::real()
    }
}

fn checked(file: &str, env: &Env) -> (u8, String) {
    let mut out = Vec::new();
    let code = check(Path::new(file), env, &mut out).unwrap();
    (code, String::from_utf8(out).unwrap())
}

fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == "yaml")).collect();
    files.sort();
    files
}

fn loaded(file: &str) -> Config {
    config::load(Path::new(file), &env()).unwrap_or_else(|mistakes| panic!("{}", config::render(&mistakes))).0
}

fn link<'c>(config: &'c Config, name: &str) -> &'c links::Config {
    config.links.iter().find(|link| link.id == LinkId::new(name)).unwrap()
}

#[test]
fn the_shipped_files_are_free_of_mistakes() {
    let mut files = yaml_files(Path::new("routes"));
    for folder in std::fs::read_dir("examples").unwrap() {
        files.extend(yaml_files(&folder.unwrap().path()));
    }
    assert!(files.len() >= 6, "{files:?}");
    // Who may read a checkout's files is not the files' mistake.
    let env = Env { is_public: Box::new(|_| false), ..Env::real() };
    for file in files {
        let (code, out) = checked(file.to_str().unwrap(), &env);
        assert_eq!(code, 0, "{out}");
        assert!(out.lines().count() == 1 && out.contains(": ok, "), "{out}");
        assert!(config::load(&file, &env).is_ok());
    }
}

#[test]
fn a_secret_that_everyone_may_read_is_warned_of_once_where_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routes.yaml");
    let text = "site: x\nlinks: { hq: { mqtt: { url: \"mqtts://plant:${file:secret}@h\" } } }\nroutes: [ { from: broker/a, to: hq/a } ]\n";
    std::fs::write(&file, text).unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "hunter2").unwrap();
    for (mode, warned) in [(0o600, false), (0o640, false), (0o644, true)] {
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(mode)).unwrap();
        let (code, out) = checked(file.to_str().unwrap(), &Env::real());
        assert_eq!(
            (code, out.matches(" can be read by every user of this machine\n").count()),
            (0, usize::from(warned)),
            "{mode:o}: {out}"
        );
        assert_eq!(out.contains(&format!("chmod o-r {}", secret.display())), warned, "{out}");
        assert!(!out.contains("hunter2"), "{out}");
    }
}

#[test]
fn a_file_of_users_that_everyone_may_read_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let (file, users) = (folder.path().join("routes.yaml"), folder.path().join("users"));
    let text = "site: x\nbroker:\n  listeners: [ { bind: \"127.0.0.1:1883\" } ]\n  auth: { users: users }\n";
    std::fs::write(&file, text).unwrap();
    std::fs::copy("tests/config/good/users.passwd", &users).unwrap();
    for (mode, warnings) in [(0o600, 0), (0o640, 0), (0o644, 1)] {
        std::fs::set_permissions(&users, std::fs::Permissions::from_mode(mode)).unwrap();
        let (code, out) = checked(file.to_str().unwrap(), &Env::real());
        let words = format!(
            ":4:18: warning: the passwords' hashes in {} can be read by every user of this machine\n",
            users.display()
        );
        assert_eq!((code, out.matches(&words).count()), (0, warnings), "{mode:o}: {out}");
        assert_eq!(out.contains(&format!("chmod o-r {}", users.display())), warnings == 1, "{out}");
    }
}

#[test]
fn the_readme_s_routes_are_free_of_mistakes() {
    let readme = std::fs::read_to_string("README.md").unwrap();
    let blocks: Vec<_> = readme.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("routes.yaml");
        std::fs::write(&file, block).unwrap();
        let (code, out) = checked(file.to_str().unwrap(), &Env::real());
        assert_eq!((code, out.lines().count()), (0, 1), "{out}");
    }
}

#[test]
fn r32_each_mistake_is_shown_with_its_place_and_what_would_be_right() {
    for file in yaml_files(Path::new("tests/config/bad")) {
        let (code, out) = checked(file.to_str().unwrap(), &env());
        let name = file.file_stem().unwrap().to_str().unwrap();
        insta::assert_snapshot!(name, format!("{out}exit code {code}\n"));
        assert!(!out.contains("hunter2"), "a secret shows:\n{out}");
    }
}

#[test]
fn the_scheme_of_a_url_is_judged_without_its_secrets() {
    let blind = Env { no_secrets: true, ..env() };
    let (code, out) = checked("tests/config/bad/schemes.yaml", &blind);
    insta::assert_snapshot!("schemes-no-secrets", format!("{out}exit code {code}\n"));
}

#[test]
fn r32_ten_mistakes_are_reported_in_one_run() {
    let mistakes = config::load(Path::new("tests/config/bad/ten-mistakes.yaml"), &env()).unwrap_err();
    let errors = mistakes.iter().filter(|mistake| mistake.severity == Severity::Error).count();
    assert_eq!(errors, 10, "{}", config::render(&mistakes));
    let (code, out) = checked("tests/config/bad/ten-mistakes.yaml", &env());
    assert_eq!(code, 65);
    let lines = out.lines().filter(|line| line.starts_with("tests/config/bad/ten-mistakes.yaml:"));
    assert!(lines.clone().all(|line| line.contains(": error: ")), "{out}");
    assert_eq!(lines.count(), 10, "{out}");
}

#[test]
fn what_is_not_there_is_reported_too() {
    insta::assert_snapshot!("missing-file", checked("tests/config/missing.yaml", &env()).1);
    let folder = tempfile::tempdir().unwrap();
    let (code, out) = checked(folder.path().to_str().unwrap(), &env());
    assert_eq!(code, 65);
    assert!(out.contains("the folder holds no *.yaml file"), "{out}");
}

#[test]
fn a_folder_is_read_as_one_file() {
    insta::assert_snapshot!("folder", checked("tests/config/bad/folder", &env()).1);
}

#[test]
fn a_file_of_a_folder_that_is_no_yaml_hides_nothing_of_the_others() {
    let (code, out) = checked("tests/config/bad/folder-partly", &env());
    insta::assert_snapshot!("folder-partly", format!("{out}exit code {code}\n"));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("1.yaml"), "routes: [ { from: broker/a, too: broker/b } ]\n").unwrap();
    std::fs::write(folder.path().join("2.yaml"), [0xff]).unwrap();
    let (code, out) = checked(folder.path().to_str().unwrap(), &env());
    assert!(
        code == 65 && out.contains("2.yaml:1:1: error: cannot be read: ") && out.contains("did you mean `to`?"),
        "{out}"
    );
}

/// Several sites' files, by their names in `tests/config/sites`.
fn checked_together(files: &[&str], env: &Env, ties: &Ties, options: Options) -> (u8, String) {
    let files: Vec<_> = files.iter().map(|file| Path::new("tests/config/sites").join(file)).collect();
    let mut out = Vec::new();
    let code = check_together(&files, env, ties, options, &mut out).unwrap();
    (code, String::from_utf8(out).unwrap())
}

#[test]
fn circles_through_several_sites_are_told_hop_by_hop() {
    let files = ["plant-a.yaml", "plant-b.yaml", "hq.yaml"];
    let (code, out) = checked_together(&files, &env(), &Ties::default(), Options::default());
    insta::assert_snapshot!("sites-circles", format!("{out}exit code {code}\n"));
    let strict = Options { deny_warnings: true, ..Options::default() };
    let (code, out) = checked_together(&files, &env(), &Ties::default(), strict);
    assert!(code == 65 && out.ends_with(", refused by --deny-warnings\n"), "{out}");
    let strict = Options { format: Format::Json, ..strict };
    let told: Value = serde_json::from_str(&checked_together(&files, &env(), &Ties::default(), strict).1).unwrap();
    assert_eq!(told["ok"], false, "{told}");
    // Without secrets the same is found.
    let blind = Env { no_secrets: true, ..env() };
    let (_, without) = checked_together(&files, &blind, &Ties::default(), Options::default());
    assert_eq!(without.matches("comes back to it").count(), out.matches("comes back to it").count(), "{without}");
}

#[test]
fn names_that_several_sites_share_are_told_of() {
    let files = ["names-1.yaml", "names-2.yaml", "names-3.yaml"];
    let (code, out) = checked_together(&files, &env(), &Ties::default(), Options::default());
    insta::assert_snapshot!("sites-names", format!("{out}exit code {code}\n"));
}

#[test]
fn what_is_found_between_sites_is_told_as_json_too() {
    let json = Options { format: Format::Json, ..Options::default() };
    let (code, out) = checked_together(&["plant-a.yaml", "plant-b.yaml"], &env(), &Ties::default(), json);
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &told["ok"], told["files"].as_array().map(Vec::len)), (0, &Value::Bool(true), Some(2)), "{out}");
    let circle = &told["diagnostics"][0];
    assert_eq!((&circle["severity"], &circle["file"]), (&"warning".into(), &"tests/config/sites/plant-a.yaml".into()));
    assert_eq!(circle["hops"][1]["file"], "tests/config/sites/plant-b.yaml", "{circle}");
    assert_eq!(
        (circle["hops"][1]["line"].as_u64(), circle["hops"][1]["column"].as_u64()),
        (Some(9), Some(44)),
        "{circle}"
    );
    let counted = told["files"].as_array().unwrap().iter().map(|file| file["warnings"].as_u64().unwrap()).sum::<u64>();
    assert_eq!(told["warnings"], counted + told["diagnostics"].as_array().unwrap().len() as u64);
}

#[test]
fn a_file_with_errors_is_left_out_of_what_is_checked_together() {
    let (code, out) = checked_together(
        &["plant-a.yaml", "../bad/top.yaml", "plant-b.yaml"],
        &env(),
        &Ties::default(),
        Options::default(),
    );
    assert_eq!(code, 65);
    assert!(out.contains("tests/config/sites/../bad/top.yaml: ") && out.contains(" errors, "), "{out}");
    assert!(out.contains("what route `mesh` sends comes back to it"), "{out}");
    assert!(out.ends_with(", 1 file with errors left out\n"), "{out}");
}

#[test]
fn whose_an_address_is_can_be_said() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name)
    };
    let listens = "broker: { listeners: [ { bind: \"0.0.0.0:1883\", anonymous: true }, { bind: \"127.0.0.1:1884\", anonymous: true } ] }";
    let site = |name: &str, url: &str| {
        write(
            &format!("{name}.yaml"),
            &format!(
                "site: {name}\n{listens}\nlinks: {{ out: {{ mqtt: {{ url: \"{url}\" }} }} }}\nroutes: [ {{ from: broker/x/#, to: \"out/{{topic}}\" }} ]\n"
            ),
        )
    };
    let (mut a, b) = (site("a", "mqtt://b.example:1883"), site("b", "mqtt://a.example"));
    let told = |a: &Path, ties: &[(&str, &str)], one_machine: bool| {
        let same = ties.iter().map(|(one, other)| ((*one).to_owned(), (*other).to_owned())).collect();
        let mut out = Vec::new();
        check_together(&[a.to_owned(), b.clone()], &env(), &Ties { one_machine, same }, Options::default(), &mut out)
            .map(|_code| String::from_utf8(out).unwrap())
    };
    let circle = "what route `route-1` sends comes back to it";
    let out = told(&a, &[], false).unwrap();
    assert!(!out.contains(circle) && out.contains("no remote is known to be shared: `--same SITE=HOST:PORT`"), "{out}");
    let out = told(&a, &[("b", "b.example:1883"), ("A.example:1883", "a")], false).unwrap();
    assert!(out.contains(circle) && out.contains("\nthe broker of b: a (out)\n"), "{out}");
    let Err(CheckError::Untied(name)) = told(&a, &[("c", "b.example:1883")], false) else { panic!() };
    assert_eq!(name, "c");
    assert!(matches!(told(&a, &[("b", "b.example:1884")], false), Err(CheckError::Untied(_))));
    // Loopback is another machine in each file, unless all run on one.
    a = site("a", "mqtt://localhost:1884");
    let out = told(&a, &[("a", "a.example:1883")], false).unwrap();
    assert!(!out.contains(circle), "{out}");
}

#[test]
fn of_many_circles_the_first_are_shown_and_what_was_not_followed_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routes.yaml");
    let told = |routes: &str| {
        std::fs::write(&file, format!("site: x\nroutes:\n{routes}")).unwrap();
        checked(file.to_str().unwrap(), &env()).1
    };
    let pair = |at: usize| {
        format!(
            "  - {{ from: broker/a{at}/#, to: \"broker/b{at}/{{rest}}\" }}\n  - {{ from: broker/b{at}/#, to: \"broker/a{at}/{{rest}}\" }}\n"
        )
    };
    let out = told(&(0..12).map(pair).collect::<String>());
    assert_eq!(out.matches(" writes to the broker comes back to it").count(), 10, "{out}");
    assert!(out.contains(": warning: there are more than 10 such circles: the others are not shown\n"), "{out}");
    let hop = |at: usize| format!("  - {{ from: broker/a{at}/#, to: \"broker/a{}/{{rest}}\" }}\n", (at + 1) % 60);
    let out = told(&(0..60).map(hop).collect::<String>());
    assert_eq!((out.matches(" comes back to it").count(), out.matches(" sends `a").count()), (1, 60), "{out}");
    let chain = told(&(0..59).map(hop).collect::<String>());
    assert!(chain.contains(": ok, 0 links, 59 routes"), "{chain}");
    // What grows is followed until it says nothing new.
    let out = told(
        "  - { from: broker/a/#, to: \"broker/b/{rest}\" }\n  - { from: broker/b/#, to: \"broker/c/x/{rest}\" }\n  - { from: broker/c/#, to: \"broker/b/{rest}\" }\n",
    );
    assert_eq!((out.matches(" comes back to it").count(), out.contains("in more ways")), (1, false), "{out}");
    let leaf = |at: usize| format!("  - {{ from: \"broker/b/#\", to: broker/c/{at} }}\n");
    let out = told(&format!("  - {{ from: broker/a, to: broker/b/x }}\n{}", (0..4_200).map(leaf).collect::<String>()));
    assert!(
        out.contains(
            ": warning: routes lead to routes in more ways than were followed: some may lead back and are not shown\n"
        ),
        "{out}"
    );
}

#[test]
fn r3_buffers_without_a_size_have_to_fit_on_the_disk_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routes.yaml");
    let text = "site: x\nlinks: { a: { mqtt: { url: \"mqtt://h\" } }, b: { mqtt: { url: \"mqtt://i\" } } }\nroutes: [ { from: broker/a, to: [ a/x, b/x ] } ]\n";
    std::fs::write(&file, text).unwrap();
    let (code, out) = checked(file.to_str().unwrap(), &Env { disk_bytes: Box::new(|_| Some(3 << 29)), ..env() });
    assert_eq!(code, 65);
    assert!(out.contains("may grow to 2GiB together, and the disk of `data_dir` holds 1.5GiB"), "{out}");
    assert!(out.contains("set `buffer: { max_size: .. }`; without the key it is 1GiB a link"), "{out}");
}

#[test]
fn on_one_machine_loopback_is_the_same_in_all_files() {
    let sites = ["../../../examples/two-sites/edge.yaml", "../../../examples/two-sites/cloud.yaml"];
    let (code, out) = checked_together(&sites, &env(), &Ties::default(), Options::default());
    assert_eq!((code, out.contains("the broker of hq")), (0, false), "{out}");
    let one_machine = Ties { one_machine: true, ..Ties::default() };
    let (code, out) = checked_together(&sites, &env(), &one_machine, Options::default());
    assert_eq!(code, 0);
    assert!(out.ends_with("\nthe broker of hq: plant-7 (hq)\n2 sites together: ok\n"), "{out}");
}

#[test]
fn r30_no_secrets_checks_the_rest_of_a_file_that_needs_them() {
    let strict = Env { no_secrets: true, file: Box::new(|_| panic!("a secret was read")), ..env() };
    let (code, out) = checked("tests/config/good/full.yaml", &strict);
    assert_eq!((code, out.lines().count()), (0, 1), "{out}");
    let (code, out) = checked("tests/config/bad/secrets.yaml", &strict);
    assert_eq!(code, 65);
    assert!(out.contains("`${vault:x}` is neither") && !out.contains("NOT_SET` is not set"), "{out}");
    assert!(config::load(Path::new("tests/config/good/full.yaml"), &strict).is_err(), "it cannot be run");
}

#[test]
fn logins_that_others_vouch_for_are_all_resolved_and_show_no_secret() {
    let auth = loaded("tests/config/good/identity.yaml").broker.auth;
    let (jwt, http, ldap) = (auth.jwt.unwrap(), auth.http.unwrap(), auth.ldap.unwrap());
    let KeySource::JwksUrl { url, ca, timeout, refresh } = &jwt.keys else { panic!("{:?}", jwt.keys) };
    assert_eq!(url.to_string(), "https://id.example/realms/plant/keys");
    assert!(ca.as_ref().unwrap().ends_with("tls/ca.pem"));
    assert_eq!((timeout.as_secs(), refresh.as_secs(), jwt.terms.leeway.as_secs()), (2, 600, 5));
    assert_eq!(jwt.terms.algorithms, [Algorithm::Rs256, Algorithm::Es256]);
    assert_eq!(
        (jwt.terms.issuer.as_deref(), &*jwt.terms.user_claim),
        (Some("https://id.example/realms/plant"), "preferred_username")
    );
    assert!(jwt.terms.require_expiry);
    assert_eq!((http.cache.as_secs(), http.requests_max, http.headers.len()), (60, 8, 1));
    assert_eq!(http.headers[0].1.to_str().unwrap(), "Bearer hunter2");
    let Find::BySearch { account, filter, .. } = &ldap.find else { panic!("{:?}", ldap.find) };
    assert_eq!(
        (account.password.reveal(), filter.filled("a*", "").as_str()),
        ("hunter2", "(&(objectClass=person)(uid=a\\2a))")
    );
    assert!(ldap.starttls && ldap.groups.is_some());
    assert_eq!((ldap.timeout.as_secs(), ldap.cache.as_secs(), ldap.connections_max), (3, 30, 4));
    let shown = format!("{http:?}{ldap:?}{jwt:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn r30_without_a_broker_section_it_listens_on_loopback_and_paths_are_relative_to_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routes.yaml");
    std::fs::write(&file, "# nothing yet\n").unwrap();
    let config = loaded(file.to_str().unwrap());
    assert_eq!(config.broker, tidegate::broker::Config::default());
    assert_eq!(config.data_dir, folder.path().join("tidegate-data"));
    assert_eq!(&*config.site, "host");
    assert!(config.links.is_empty() && config.routes.is_empty() && config.admin.is_none());
}

#[test]
fn queues_that_a_link_declares_arrive_with_their_arguments_and_bindings() {
    let config = loaded("tests/config/good/full.yaml");
    let Kind::Rabbitmq(cloud) = &link(&config, "cloud").kind else { panic!() };
    let argument = |name: &str, value| (name.to_owned(), value);
    let names: Vec<_> = cloud.queues.iter().map(|queue| (&*queue.name, queue.kind, queue.durable)).collect();
    let [classic, quorum, stream] =
        [rabbitmq::QueueKind::Classic, rabbitmq::QueueKind::Quorum, rabbitmq::QueueKind::Stream].map(Some);
    let streams = ["events", "e2", "e3"].map(|name| (name, stream, true));
    let others = [("orders", quorum, true), ("dead", classic, false), ("all", None, true)];
    assert_eq!(names, [streams, others].concat());
    let [age, press, any] = ["7D", "press", "any"].map(|text| rabbitmq::Argument::Text(text.to_owned()));
    assert_eq!(
        cloud.queues[3].arguments[0],
        argument("x-dead-letter-exchange", rabbitmq::Argument::Text(String::new()))
    );
    assert_eq!(cloud.queues[0].arguments, [argument("x-max-age", age)]);
    let bindings = [
        rabbitmq::QueueBinding { exchange: "telemetry".to_owned(), key: "factory.#".to_owned(), arguments: Vec::new() },
        rabbitmq::QueueBinding {
            exchange: "by-kind".to_owned(),
            key: String::new(),
            arguments: vec![argument("x-match", any), argument("kind", press)],
        },
    ];
    assert_eq!(cloud.queues[5].bindings, bindings);
}

#[test]
fn every_key_arrives_where_it_belongs() {
    let config = loaded("tests/config/good/full.yaml");
    insta::assert_debug_snapshot!("full", config);

    // What Debug rightly hides.
    let Kind::Mqtt(hq) = &link(&config, "hq").kind else { panic!() };
    assert_eq!((hq.user.as_deref(), &hq.password), (Some("plant/7"), &links::Secret::Text("hunter2".to_owned())));
    assert_eq!((hq.version, hq.qos, hq.fail_back.as_secs()), (mqtt::Version::V4, Qos::ExactlyOnce, 300));
    let address = |host: &str, port, websocket: Option<&str>| mqtt::Address {
        host: host.to_owned(),
        port,
        tls: true,
        websocket: websocket.map(str::to_owned),
    };
    assert_eq!(hq.addresses, [address("::1", 8883, None), address("hq.example", 443, Some("/iot?a=b"))]);
    assert_eq!(hq.state_topic.as_deref(), Some("gateways/plant-7"));
    let Kind::Mqtt(tokens) = &link(&config, "tokens").kind else { panic!() };
    assert_eq!(tokens.password, links::Secret::File("tests/config/good/secret.txt".into()));
    assert_eq!((hq.keep_alive_s, hq.max_packet_size.0), (60, 256 << 10));
    let file = |name: &str| Path::new("tests/config/good/../tls").join(name);
    let tls = links::Tls {
        ca: Some(file("ca.pem")),
        identity: Some((file("server.pem"), file("server.key"))),
        server_name: Some("hq.example".to_owned()),
        alpn: vec!["mqtt".to_owned(), "x-amzn-mqtt-ca".to_owned()],
    };
    assert_eq!(hq.tls, tls);

    let Kind::Rabbitmq(cloud) = &link(&config, "cloud").kind else { panic!() };
    assert_eq!(cloud.url, "amqps://us%3Aer:p%2Fw%20d@rmq.example:5671/%2f");
    assert!(!cloud.mandatory && cloud.topic_escape && cloud.prefetch == 100);
    let declare = cloud.declare.as_ref().unwrap();
    assert!(declare.kind == "topic" && !declare.durable);
    let argument = |name: &str, value| (name.to_owned(), value);
    let spare = rabbitmq::Argument::Text("spare".to_owned());
    let [n, b] = [rabbitmq::Argument::Int(5), rabbitmq::Argument::Bool(true)];
    assert_eq!(declare.arguments, [argument("alternate-exchange", spare), argument("x-n", n), argument("x-b", b)]);
    assert_eq!(cloud.tls.server_name.as_deref(), Some("rmq.example"));
    let starts: Vec<_> = cloud.streams.values().cloned().collect();
    let time = rabbitmq::StreamStart::Time(1_795_759_200);
    assert_eq!(starts, [rabbitmq::StreamStart::Offset(7), time, rabbitmq::StreamStart::First]);
    assert!(cloud.positions.as_ref().is_some_and(|path| path.ends_with("streams/cloud.json")));

    assert_eq!(link(&config, "hq").lanes, [Lane::High]);
    assert_eq!(
        (config.max_memory.0, loaded("tests/config/good/identity.yaml").max_memory.0),
        (300 << 20, 2 << 30),
        "R36"
    );
    let share = |name| link(&config, name).drain;
    assert_eq!((share("hq"), share("cloud")), (links::Drain::Fifo, links::Drain::LiveFirst { share: 25 }));
    assert_eq!(share("queues"), links::Drain::LiveFirst { share: 10 });
    let rate = link(&config, "hq").rate.unwrap();
    assert_eq!(rate.messages.unwrap().time_of(1), Duration::from_micros(500));
    assert_eq!((rate.bytes.unwrap().time_of(1 << 20), rate.burst), (Duration::from_secs(1), Duration::from_secs(10)));
    let rate = link(&config, "cloud").rate.unwrap();
    assert_eq!((rate.messages, rate.burst), (None, Duration::from_secs(1)));
    let active = |name| link(&config, name).active.as_ref().map(ToString::to_string);
    assert_eq!(active("hq").as_deref(), Some("22:00-06:00, sat,sun, mon-fri 12:00-13:30 UTC"));
    assert_eq!((active("cloud").as_deref(), active("lake")), (Some("fri 22:00-06:00"), None));
    assert_eq!(link(&config, "lake").rate, None);
    assert!(link(&config, "hq").takes_copies && !link(&config, "lake").takes_copies);

    let Kind::Kafka(lake) = &link(&config, "lake").kind else { panic!() };
    assert_eq!(lake.options.get("sasl.password").map(String::as_str), Some("hunter2"));
    assert_eq!((lake.compression.as_deref(), lake.group.as_deref()), (Some("zstd"), Some("plant-7")));
    assert_eq!(lake.message_bytes_max, 5 << 20);
    assert_eq!((lake.tombstones, lake.start), (true, kafka::Start::Time(1_795_759_200_000)));
    assert_eq!(lake.token, links::Secret::Command(vec!["token".to_owned(), "lake".to_owned()]));
    assert_eq!((lake.exactly_once, lake.transactional_id.as_deref()), (true, Some("plant-7-lake")));
}

#[test]
fn sources_consume_what_routes_begin_with_and_no_filter_twice() {
    let config = loaded("tests/config/good/full.yaml");
    assert_eq!(link(&config, "hq").sources, ["cmd/plant-7/+/#", "$share/plants/broadcast/#"]);
    assert_eq!(link(&config, "cloud").sources, ["orders", "bills"]);
    assert_eq!(link(&config, "lake").sources, ["orders"]);
    assert!(link(&config, "queues").has_sink && link(&config, "queues").sources.is_empty());
}

fn message(topic: &str) -> Message {
    Message {
        id: MessageId { site: "plant-7".into(), run: 1, counter: 1 },
        topic: TopicName::new(topic).unwrap(),
        payload: Vec::new().into(),
        qos: Qos::AtLeastOnce,
        retain: false,
        time: WallMs(0),
        time_unsync: false,
        expiry_s: None,
        accepted: Moment::default(),
        origin: Origin::default(),
        properties: Properties::default(),
    }
}

#[test]
fn routing_keys_are_levels_and_queue_names_are_not() {
    let config = loaded("tests/config/good/full.yaml");
    let table = Table::new(config.routes);
    let topic = "factory/line.1/press/telemetry";
    let message = message(topic);
    let subject = Subject::new(&message);
    let mut destinations = Vec::new();
    table.route(&Arrival { from: &Endpoint::Broker, channel: None, topic, subject: &subject }, |told| {
        let Told::Taken(taken) = told else { panic!("{told:?}") };
        let view = View::new(&subject, &taken.captures);
        destinations.extend(taken.route.to.iter().map(|to| to.template.fill(view).unwrap().into_owned()));
    });
    assert_eq!(destinations, ["line.1/press", "telemetry", "my.queue", "up/factory/line.1/press/telemetry", "up"]);
}

#[test]
fn r3_the_page_of_limits_has_the_defaults_of_the_code() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routes.yaml");
    let text = "links:
  m: { mqtt: { url: \"mqtt://127.0.0.1\" } }
  r: { rabbitmq: { url: \"amqp://127.0.0.1\" } }
  k: { kafka: { brokers: \"127.0.0.1:9092\" } }
";
    std::fs::write(&file, text).unwrap();
    let config = loaded(file.to_str().unwrap());
    let (broker, buffer, timing) = (&config.broker, &link(&config, "m").buffer, link(&config, "m").timing);
    let (Kind::Mqtt(mqtt), Kind::Rabbitmq(rabbitmq), Kind::Kafka(kafka)) =
        (&link(&config, "m").kind, &link(&config, "r").kind, &link(&config, "k").kind)
    else {
        panic!()
    };
    let size = |bytes: u64| ByteSize(bytes).to_string();
    let defaults = [
        ("broker.max_packet_size", broker.max_packet_size.to_string()),
        ("broker.receive_maximum", broker.receive_maximum.to_string()),
        ("broker.in_flight", broker.in_flight.to_string()),
        ("broker.in_flight_bytes", broker.in_flight_bytes.to_string()),
        ("broker.session_expiry_max", show_duration(broker.session_expiry_max)),
        ("broker.session_messages_max", broker.session_messages_max.to_string()),
        ("broker.retained_messages_max", broker.retained_messages_max.to_string()),
        ("broker.connect_timeout", show_duration(broker.connect_timeout)),
        ("broker.connections_max", broker.connections_max.to_string()),
        ("broker.sessions_max", broker.sessions_max.to_string()),
        ("broker.handshakes_max", broker.handshakes_max.to_string()),
        ("broker.auth.failed_logins_max", broker.auth.failed_logins_max.unwrap().to_string()),
        ("buffer.max_size", buffer.max_size.to_string()),
        ("links.NAME.connect_timeout", show_duration(timing.connect_timeout)),
        ("links.NAME.stall_after", show_duration(timing.stall_after)),
        ("links.NAME.drain.live_first.share", format!("{}%", links::Drain::SHARE_DEFAULT)),
        ("links.NAME.rate.burst", show_duration(links::RateLimit::BURST_DEFAULT)),
        ("links.NAME.retry.min", show_duration(timing.retry_delay_min)),
        ("links.NAME.retry.max", show_duration(timing.retry_delay_max)),
        ("mqtt.keep_alive", format!("{}s", mqtt.keep_alive_s)),
        ("mqtt.max_packet_size", mqtt.max_packet_size.to_string()),
        ("mqtt.qos", mqtt.qos.bits().to_string()),
        ("rabbitmq.prefetch", rabbitmq.prefetch.to_string()),
        ("rabbitmq.mandatory", rabbitmq.mandatory.to_string()),
        ("kafka.acks", kafka.acks.clone()),
        ("kafka.max_message", size(u64::from(kafka.message_bytes_max))),
    ];
    let page = std::fs::read_to_string("docs/limits.md").unwrap();
    for (key, default) in defaults {
        assert!(page.contains(&format!("| `{key}` | `{default}` |")), "docs/limits.md: `{key}` is {default}");
    }
    assert_eq!(broker.retained_bytes_max, ByteSize(256 << 20), "an eighth of a `max_memory` of 2GiB");
    assert_eq!((buffer.max_age, buffer.min_free, buffer.keep_delivered), (None, None, None));
    assert_eq!(buffer.compress, Compression::None);
    assert_eq!((buffer.when_full, buffer.sync), (WhenFull::DropOldest, SyncMode::Group));
}

/// `check` of a file of these lines, and what `retained_bytes_max` is by them.
fn retained_bytes(lines: &str) -> (String, ByteSize) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routes.yaml");
    std::fs::write(&file, lines).unwrap();
    let (code, out) = checked(file.to_str().unwrap(), &env());
    assert_eq!(code, 0, "{out}");
    (out, loaded(file.to_str().unwrap()).broker.retained_bytes_max)
}

#[test]
fn r36_what_may_be_retained_goes_by_max_memory_and_check_warns_of_more_than_fits() {
    for (lines, bytes) in [
        ("max_memory: 64MiB\n", 8 << 20),
        ("max_memory: 256MiB\n", 32 << 20),
        ("max_memory: 256MiB\nbroker: { in_flight: 9 }\n", 32 << 20),
        ("max_memory: 7GiB\n", 256 << 20),
        ("max_memory: 256MiB\nbroker: { retained_bytes_max: 124MiB }\n", 124 << 20),
    ] {
        let (out, found) = retained_bytes(lines);
        assert!(found == ByteSize(bytes) && !out.contains("retained"), "{lines}{found} {out}");
    }
    let (out, found) = retained_bytes("max_memory: 256MiB\nbroker: { retained_bytes_max: 256MiB }\n");
    let told = "warning: 256MiB of retained messages do not fit into a `max_memory` of 256MiB: once there are so many memory is short for good, and no client is let in";
    assert!(out.contains(told), "{out}");
    assert!(out.contains("at most 124MiB, or a larger `max_memory`; without the key it is 32MiB"), "{out}");
    assert_eq!(found, ByteSize(256 << 20));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// A good file with some of its characters changed: whatever comes of it is a report, and no secret is in it.
    #[test]
    fn a_damaged_file_gives_a_report_and_no_secret(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..4, "[{}\\[\\]:#&*!|>'\"%@`$,/+ \n\té-]"), 1..6),
    ) {
        let good = std::fs::read_to_string("tests/config/good/full.yaml").unwrap();
        let mut text: Vec<char> = good.chars().collect();
        for (at, len, inserted) in changes {
            let at = at.index(text.len());
            text.splice(at..(at + len).min(text.len()), inserted.chars());
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("full.yaml");
        std::fs::write(&file, text.into_iter().collect::<String>()).unwrap();
        std::fs::write(folder.path().join("secret.txt"), "hunter2").unwrap();
        let (code, out) = checked(file.to_str().unwrap(), &env());
        prop_assert!(code == 0 || code == 65);
        prop_assert!(!out.contains("hunter2"), "{}", out);
        prop_assert_eq!(out.contains(": error: "), code == 65, "{}", out);
    }
}

#[test]
fn many_thousand_routes_are_read() {
    let mut text = String::from("links: { hq: { mqtt: { url: \"mqtt://127.0.0.1:2883\" } } }\nroutes:\n");
    for at in 0..30_000 {
        text.push_str(&format!("  - {{ name: r{at}, from: broker/a/{at}/#, to: \"hq/up/{at}/{{rest}}\" }}\n"));
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routes.yaml");
    std::fs::write(&file, text).unwrap();
    assert_eq!(loaded(file.to_str().unwrap()).routes.len(), 30_000);
}

#[test]
fn r34_check_says_where_the_old_name_s_buffer_was_made_for_another_kind_of_link() {
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("data/links/old");
    std::fs::create_dir_all(&old).unwrap();
    let file = folder.path().join("routes.yaml");
    let text = "data_dir: data\nlinks: { new: { mqtt: { url: \"mqtt://127.0.0.1:2883\" }, renamed_from: old } }\n\
                routes: [ { from: broker/a, to: new/a } ]\n";
    std::fs::write(&file, text).unwrap();
    for (kind, told) in [("mqtt", false), ("kafka", true)] {
        std::fs::write(old.join("kind"), kind).unwrap();
        let (code, out) = checked(file.to_str().unwrap(), &env());
        assert_eq!(code, 0, "{out}");
        let warned = "routes.yaml:2:71: warning: the buffer of `old` was made for a kafka link, and this one is mqtt: what is in it is \
                      not taken over";
        assert_eq!(out.contains(warned), told, "{out}");
        assert_eq!(out.contains("`tidegate replay old --into new` sends copies by their topics"), told, "{out}");
    }
}
