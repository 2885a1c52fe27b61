//! `routes.yaml` changes while the gateway runs: what is the same is not touched, what is new counts at once, and what cannot be used
//! changes nothing.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use rand::RngExt as _;
use rand::rngs::StdRng;
use rumqttc_v5::QoS;
use tidegate::telemetry::board::{LinkState, Status};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::client::{Publishers, Subscriber, Work, publish_once};
use crate::support::dice::dice;
use crate::support::gateway::{Gateway, link, run};
use crate::support::ledger::{Ledger, Mark};
use crate::support::pki::{Authority, Identity};
use crate::support::process::{Room, free_port};
use crate::support::proxy::{Mode, Proxy};
use crate::support::remote::{Mosquitto, left_out};
use crate::support::wait::{PATIENCE, until_true};

/// A client that says nothing: what becomes of its connection is seen at once.
struct Held(TcpStream);

impl Held {
    async fn connect(port: u16, id: &str) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut connect = vec![0x10, 12 + u8::try_from(id.len()).unwrap(), 0, 4];
        connect.extend(b"MQTT\x04\x02\x00\x00\x00");
        connect.push(u8::try_from(id.len()).unwrap());
        connect.extend(id.as_bytes());
        stream.write_all(&connect).await.unwrap();
        let mut connack = [0; 4];
        stream.read_exact(&mut connack).await.unwrap();
        assert_eq!(connack, [0x20, 2, 0, 0]);
        Self(stream)
    }

    /// Whether it is connected still: the same connection.
    async fn lives(&mut self) -> bool {
        let mut answer = [0; 2];
        let ping = async {
            self.0.write_all(&[0xc0, 0]).await?;
            self.0.read_exact(&mut answer).await
        };
        tokio::time::timeout(PATIENCE, ping).await.expect("an answer or an end").is_ok() && answer == [0xd0, 0]
    }
}

fn connects(status: &Status, name: &str) -> u64 {
    link(status, name).sink.as_ref().unwrap().connects
}

#[tokio::test(flavor = "multi_thread")]
async fn r34_a_reload_touches_what_differs_and_says_what_that_is() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let (mosquitto, nowhere) = (Mosquitto::start().await, free_port());
    let text = |links: &str, routes: &str| {
        format!(
            "links:\n  far: {{ mqtt: {{ url: \"mqtt://127.0.0.1:{}\" }} }}\n{links}routes:\n  - {{ name: far, from: broker/a/#, to: \"far/{{rest}}\" }}\n{routes}",
            mosquitto.port
        )
    };
    let away = |name: &str, more: &str| {
        format!("  {name}: {{ mqtt: {{ url: \"mqtt://u:hunter2@127.0.0.1:{nowhere}\" }}{more} }}\n")
    };
    let gateway = Gateway::start(&text("", "")).await;
    let mut held = Held::connect(gateway.port, "held").await;
    gateway.wait_for_state("far", LinkState::Online).await;
    assert_eq!(gateway.reload().await, (0, "reloaded: nothing has changed\n".to_owned()));

    // A link and a route more.
    let route = |link: &str| format!("  - {{ name: away, from: broker/b, to: {link}/b }}\n");
    let said = gateway.reload_to(&text(&away("away", ""), &route("away"))).await;
    assert_eq!(said, "+ link away\n+ route away\nreloaded: 2 changes\n");
    publish_once(gateway.port, "one", "b", b"1".to_vec()).await.unwrap();
    assert_eq!(gateway.wait_for_link("away", "it has it", |link| link.depth == 1).await.ledger["accepted"], 1);

    // It changes: its buffer is kept.
    let said = gateway.reload_to(&text(&away("away", ", buffer: { max_size: 2GiB }"), &route("away"))).await;
    assert_eq!(said, "~ link away: buffer.max_size default -> 2GiB\nreloaded: 1 change\n");
    assert_eq!(link(&gateway.status().await, "away").depth, 1);

    // It gets another name, and takes its buffer with it.
    let said = gateway.reload_to(&text(&away("there", ", renamed_from: away"), &route("there"))).await;
    let told = "> link away is link there now: buffer.max_size 2GiB -> default, its buffer comes along: 1 record waits in it\n~ route away: to away/b -> there/b\n";
    assert_eq!(said, format!("{told}reloaded: 2 changes\n"));
    let status = gateway.status().await;
    assert_eq!(link(&status, "there").depth, 1);
    assert!(status.links.iter().all(|link| link.name != "away"), "{status:?}");

    // It goes: its data is orphaned, and waits for who takes it up.
    let said = gateway.reload_to(&text("", "")).await;
    let left = "- link there: its buffer is kept: 1 record waits in it; `renamed_from: there` on LINK takes it over; ";
    assert!(said.starts_with(left) && said.ends_with("\n- route away\nreloaded: 2 changes\n"), "{said}");
    let status = gateway.status().await;
    assert_eq!((link(&status, "there").kind.as_str(), link(&status, "there").depth), ("orphaned", 1));
    let here = format!("  there: {{ mqtt: {{ url: \"mqtt://127.0.0.1:{}\" }} }}\n", mosquitto.port);
    assert!(
        gateway
            .reload_to(&text(&here, ""))
            .await
            .starts_with("+ link there: takes up the buffer that is there under its name: 1 record waits in it\n")
    );
    let done = gateway.wait_until_drained("there").await;
    assert_eq!(done.ledger["delivered"], 1, "it is delivered also where no route leads");

    // Nobody else has noticed.
    assert!(held.lives().await);
    assert_eq!(connects(&gateway.status().await, "far"), 1);
    let log = gateway.log();
    assert!(log.contains("> link away is link there now") && !log.contains("hunter2"), "{log}");
}

/// What files hold is no part of `routes.yaml`, and whoever has put new ones there wants to know whether they count.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_were_read_again_are_told_by_what_they_are() {
    let (room, port, ca) = (Room::new("files"), free_port(), Authority::new("plant"));
    let [cert, key, users, acl, secret] = ["cert", "key", "users", "acl", "secret"].map(|name| room.file(name));
    let serve = |identity: &Identity| {
        fs::write(&cert, &identity.cert).unwrap();
        fs::write(&key, &identity.key).unwrap();
    };
    let user = |name: &str| format!("{name}:$7$101${}${}==\n", "A".repeat(16), "A".repeat(86));
    serve(&ca.server());
    fs::write(&users, "").unwrap();
    fs::write(&acl, "topic read a\n").unwrap();
    fs::write(&secret, "one").unwrap();
    let shown = |path: &Path| path.display().to_string();
    let gateway = Gateway::start(&format!(
        "    - {{ bind: \"127.0.0.1:{port}\", tls: {{ cert: {}, key: {} }} }}\n  auth: {{ users: {}, acl_file: {} }}\nlinks:\n  hq: {{ mqtt: {{ url: \"mqtt://u:${{file:{}}}@127.0.0.1:{}\" }} }}\n",
        shown(&cert),
        shown(&key),
        shown(&users),
        shown(&acl),
        shown(&secret),
        free_port()
    ))
    .await;
    let nothing = (0, "reloaded: nothing has changed\n".to_owned());
    assert_eq!(gateway.reload().await, nothing);

    serve(&ca.server());
    let line = format!("~ listener 127.0.0.1:{port}: certificates read again\nreloaded: 1 change\n");
    assert_eq!(gateway.reload().await, (0, line.clone()));
    assert_eq!(gateway.reload().await, nothing, "it is told once");

    // Also what the gateway has found by itself before it was asked.
    let times = || gateway.log().matches("have been read again").count();
    let before = times();
    serve(&ca.server());
    until_true("the certificates are read again", PATIENCE, || times() > before).await;
    assert_eq!(gateway.reload().await, (0, line));

    fs::write(&users, user("alice")).unwrap();
    fs::write(&acl, "topic read b\n").unwrap();
    fs::write(&secret, "two").unwrap();
    let lines =
        "~ broker: users read again, rules read again\n~ link hq: mqtt.url: another secret\nreloaded: 2 changes\n";
    assert_eq!(gateway.reload().await, (0, lines.to_owned()));

    // What cannot be used is a mistake, and no change.
    fs::write(&key, &ca.server().key).unwrap();
    let (code, said) = gateway.reload().await;
    assert!(code == 65 && said.contains("does not belong"), "{said}");
    let log = gateway.log();
    assert!(log.contains("~ link hq: mqtt.url: another secret") && !log.contains("two@"), "{log}");
}

/// A file that is no YAML still tells where its gateway is.
#[tokio::test(flavor = "multi_thread")]
async fn a_slip_in_the_file_hides_no_running_gateway() {
    let gateway = Gateway::start("").await;
    let good = fs::read_to_string(gateway.config()).unwrap();
    fs::write(gateway.config(), format!("{good}routes:\n  - {{ name: x, from: [ broker/a\n")).unwrap();
    let config = gateway.config();
    let ended = run(&["status", "-c", config.to_str().unwrap()]).await;
    assert!(ended.status.success() && ended.stdout.starts_with(b"site edge "), "{ended:?}");
    let (code, said) = gateway.reload().await;
    assert!(code == 65 && said.contains("not reloaded\n"), "the gateway says it: {said}");
    let ended = run(&["status", "-c", config.to_str().unwrap()]).await;
    assert!(String::from_utf8_lossy(&ended.stdout).contains("reload failed at"), "{ended:?}");
    let ended = run(&["audit", "-c", config.to_str().unwrap()]).await;
    assert!(ended.status.success(), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_changes_nothing_and_says_so() {
    let routes = |to: &str| {
        format!(
            "links:\n  far: {{ mqtt: {{ url: \"mqtt://127.0.0.1:1\" }} }}\nroutes:\n  - {{ from: broker/a, to: {to} }}\n"
        )
    };
    let mut gateway = Gateway::start(&routes("far/a")).await;
    let mut held = Held::connect(gateway.port, "held").await;
    let good = fs::read_to_string(gateway.config()).unwrap();

    // Every mistake is told, as `check` tells it, and `status` keeps saying that the file is not in force.
    gateway.configure(&format!("{}linkz: {{}}\n", routes("fear/a")));
    let (code, said) = gateway.reload().await;
    assert_eq!(code, 65, "{said}");
    assert!(said.contains("not reloaded\n") && said.contains("2 errors, 0 warnings"), "{said}");
    assert!(said.contains("unknown key `linkz`") && said.contains("did you mean `far`?"), "{said}");
    let status = gateway.status().await;
    assert!(status.reload.error.as_ref().is_some_and(|error| error.contains("`linkz`")), "{status:?}");
    let shown = run(&["status", "-c", gateway.config().to_str().unwrap()]).await;
    assert!(String::from_utf8_lossy(&shown.stdout).contains("reload failed at "), "{shown:?}");
    publish_once(gateway.port, "one", "a", b"1".to_vec()).await.unwrap();
    gateway.wait_for_link("far", "its route is there", |link| link.depth == 1).await;

    // What needs a restart is named, and nothing else of that file counts either.
    fs::write(gateway.config(), good.replace("site: edge", "site: ledge").replace("far/a", "far/b")).unwrap();
    let (code, said) = gateway.reload().await;
    assert_eq!(code, 65, "{said}");
    assert!(said.contains("`site` is `edge` and would be `ledge`: that needs a restart"), "{said}");

    // A certificate of a link that is none is found before the link uses it.
    let garbage = gateway.config().with_file_name("garbage.pem");
    fs::write(&garbage, "no PEM").unwrap();
    let tls = format!("mqtts://127.0.0.1:1\", ca: \"{}\"", garbage.display());
    fs::write(gateway.config(), good.replace("mqtt://127.0.0.1:1\"", &tls)).unwrap();
    let (code, said) = gateway.reload().await;
    assert_eq!(code, 65, "{said}");
    assert!(said.contains("holds no certificate in PEM") && said.contains("1 error, 0 warnings"), "{said}");

    // Neither does a file with a listener that cannot be had.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = format!("admin: {{ bind: \"{}\" }}\n", taken.local_addr().unwrap());
    gateway.configure(&format!("{admin}{}", routes("far/b")));
    let (code, said) = gateway.reload().await;
    assert_eq!(code, 69, "{said}");
    assert!(said.contains("admin: cannot listen on 127.0.0.1:"), "{said}");
    assert_eq!(gateway.status().await.reload.refused, 4);

    // Once it can be had, all of it does; by SIGHUP as well.
    drop(taken);
    gateway.hang_up();
    let status = gateway.wait_for("the file is in force", |status| status.reload.error.is_none()).await;
    assert!(status.admin.is_some() && held.lives().await);
    assert_eq!(gateway.terminate().await.code(), Some(0));
    assert_eq!(gateway.reload().await.0, 69, "there is nobody to ask");
}

#[tokio::test(flavor = "multi_thread")]
async fn r22_a_buffer_that_a_failed_reload_cannot_open_again_is_said_to_have_failed_until_one_can() {
    let text = |size: &str| {
        format!(
            "links:\n  far: {{ mqtt: {{ url: \"mqtt://127.0.0.1:1\" }}, buffer: {{ max_size: {size} }} }}\n  near: {{ mqtt: {{ url: \"mqtt://127.0.0.1:1\" }} }}\n\
             routes:\n  - {{ from: broker/a, to: far/a }}\n  - {{ from: broker/b, to: near/b }}\n"
        )
    };
    let gateway = Gateway::start(&text("64MiB")).await;
    let mut held = Held::connect(gateway.port, "held").await;
    let publish = async |topic: &str| publish_once(gateway.port, "one", topic, b"1".to_vec()).await.is_ok();
    assert!(publish("a").await);
    // Something is in the place of its file: neither the new buffer nor the old one can be opened.
    let (meta, aside) = (gateway.data().join("links/far/meta"), gateway.data().join("meta.aside"));
    fs::rename(&meta, &aside).unwrap();
    fs::create_dir(&meta).unwrap();
    gateway.configure(&text("96MiB"));
    let (code, said) = gateway.reload().await;
    assert_eq!(code, 74, "{said}");
    assert!(said.contains("the buffer of link `far`") && said.contains("nothing was changed"), "{said}");
    let status = gateway.status().await;
    let (far, near) = (link(&status, "far"), link(&status, "near"));
    assert_eq!(far.state, LinkState::BufferFailed, "{far:?}");
    assert!(far.note.as_ref().is_some_and(|note| note.contains("until a reload or a restart can open it")), "{far:?}");
    assert_ne!(near.state, LinkState::BufferFailed);
    assert_eq!((publish("a").await, publish("b").await), (false, true));

    // Whoever mends it reloads, and has what it held.
    fs::remove_dir(&meta).unwrap();
    fs::rename(&aside, &meta).unwrap();
    gateway.reload_to(&text("96MiB")).await;
    assert!(publish("a").await);
    let far = gateway.wait_for_link("far", "it takes records", |link| link.depth == 2).await;
    assert_ne!(far.state, LinkState::BufferFailed, "{far:?}");
    assert!(far.sink.is_some() && far.balanced && held.lives().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_reload_watch_a_change_of_the_file_is_enough() {
    let text = |watch: &str, link: &str| {
        format!(
            "reload: {watch}\nlinks:\n  {link}: {{ mqtt: {{ url: \"mqtt://127.0.0.1:1\" }} }}\nroutes:\n  - {{ from: broker/a, to: {link}/a }}\n"
        )
    };
    let gateway = Gateway::start(&text("watch", "one")).await;
    let mut held = Held::connect(gateway.port, "held").await;
    gateway.configure(&text("watch", "two"));
    gateway.wait_for("link two", |status| status.links.iter().any(|link| link.name == "two")).await;
    gateway.configure("links: [\n");
    gateway.wait_for("the mistake is shown", |status| status.reload.error.is_some()).await;
    gateway.configure(&text("manual", "three"));
    gateway.wait_for("link three", |status| status.links.iter().any(|link| link.name == "three")).await;
    let status = gateway.status().await;
    assert_eq!((status.reload.error, status.reload.taken, status.reload.refused), (None, 2, 1));
    assert!(held.lives().await);
}

/// Both buffers hold what is owed; once the link's own is delivered, the file is taken as it stands, and nobody has asked.
#[tokio::test(flavor = "multi_thread")]
async fn r34_with_reload_watch_a_conflict_is_tried_again_until_it_has_passed() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let far = Subscriber::start(mosquitto.port, "far", "line/#", QoS::AtLeastOnce).await;
    let (mut line, nowhere) = (Proxy::start(mosquitto.port).await, free_port());
    line.set(Mode::Refuse).await;
    let text = |name: &str, port: u16, more: &str| {
        format!(
            "reload: watch\nlinks:\n  {name}: {{ mqtt: {{ url: \"mqtt://127.0.0.1:{port}\" }}, retry: {{ min: 10ms, max: 100ms }}{more} }}\n\
             routes:\n  - {{ from: broker/line/#, to: \"{name}/line/{{rest}}\" }}\n"
        )
    };
    let gateway = Gateway::start(&text("old", nowhere, "")).await;
    let publish = async |publisher: usize| {
        let mark = Mark { publisher, number: 0 };
        publish_once(gateway.port, "machine", "line/1", mark.payload(64)).await.unwrap();
        mark
    };
    let first = publish(1).await;
    gateway.reload_to(&text("new", line.port(), "")).await;
    let second = publish(2).await;
    gateway.configure(&text("new", line.port(), ", renamed_from: old"));
    let status = gateway.wait_for("it is refused", |status| status.reload.error.is_some()).await;
    let error = status.reload.error.unwrap();
    assert!(error.contains("both hold what is not delivered"), "{error}");
    line.set(Mode::Pass).await;
    let third = publish(3).await;
    gateway.wait_for("it is in force", |status| status.reload.error.is_none()).await;
    assert!(gateway.log().contains("another try"), "{}", gateway.log());
    let drained = gateway.wait_until_drained("new").await;
    assert_eq!(drained.ledger["delivered"], 1, "by the old one's buffer");
    let all = [first, second, third];
    Ledger::compare(all, &far.receive(&all).await).assert_exact("of both buffers");
}

/// What a round of the loop has.
struct Scene {
    port: u16,
    /// Where the link comes from that brings messages in.
    feed: u16,
    /// How often that link has begun anew.
    feeds: usize,
    main: usize,
    /// How often the route to `main` has got another name.
    route: usize,
    next: usize,
    extras: BTreeSet<usize>,
    /// Of `main` and extras: by what name they went in the round before.
    renamed: Vec<(usize, usize)>,
    big: bool,
    live_first: bool,
    copies: bool,
}

impl Scene {
    /// Something else than in the round before.
    fn change(&mut self, random: &mut StdRng) {
        self.renamed.clear();
        let fresh = self.next;
        match random.random_range(0..8) {
            0 => {
                self.renamed.push((self.main, fresh));
                (self.main, self.next) = (fresh, fresh + 1);
            }
            1 | 2 => {
                self.extras.insert(fresh);
                self.next += 1;
            }
            3 => drop(self.extras.pop_first()),
            4 => {
                if let Some(old) = self.extras.pop_last() {
                    self.renamed.push((old, fresh));
                    self.extras.insert(fresh);
                    self.next += 1;
                }
            }
            5 => self.big = !self.big,
            6 => self.live_first = !self.live_first,
            _ => self.copies = !self.copies,
        }
    }

    fn text(&self) -> String {
        let mut text = "links:\n".to_owned();
        let (size, drain) =
            (if self.big { "96MiB" } else { "64MiB" }, if self.live_first { "live_first" } else { "fifo" });
        for number in self.extras.iter().chain([&self.main]) {
            let old = self.renamed.iter().find(|(_, new)| new == number);
            let old = old.map_or_else(String::new, |(old, _)| format!(", renamed_from: l{old}"));
            // Of the main one the order is looked at.
            let drain = if *number == self.main { "fifo" } else { drain };
            writeln!(
                text,
                "  l{number}: {{ mqtt: {{ url: \"mqtt://127.0.0.1:{}\" }}, retry: {{ min: 10ms, max: 100ms }}, buffer: {{ max_size: {size} }}, drain: {drain}{old} }}",
                self.port
            )
            .unwrap();
        }
        let Self { feed, feeds, route, main, .. } = self;
        write!(
            text,
            r#"  feed: {{ mqtt: {{ url: "mqtt://127.0.0.1:{feed}", qos: 2 }}, retry: {{ min: 10ms, max: {}ms }} }}
routes:
  - {{ name: main{route}, from: broker/line/#, to: "l{main}/line/{{rest}}" }}
  - {{ name: exact, from: broker/exact/#, to: "l{main}/exact/{{rest}}" }}
  - {{ name: feed, from: feed/up/#, to: "broker/down/{{rest}}" }}
"#,
            100 + feeds
        )
        .unwrap();
        for number in &self.extras {
            writeln!(text, "  - {{ from: broker/line/#, to: \"l{number}/extra/{number}/{{rest}}\" }}").unwrap();
        }
        if self.copies {
            text.push_str("  - { name: copies, from: broker/line/#, to: \"broker/copy/{rest}\" }\n");
        }
        text
    }
}

/// Publishers at QoS 1, others at QoS 2, and at QoS 2 at a remote whose messages a link brings in.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_reloads_under_load_lose_nothing_and_disconnect_nobody() {
    const ROUNDS: usize = 100;
    const EACH: usize = 160;
    const EACH_EXACT: usize = 20;
    if left_out(&["mosquitto"]) {
        return;
    }
    let mut random = dice("TIDEGATE_RELOAD_SEED");
    let (mosquitto, feed) = (Mosquitto::start().await, Mosquitto::start().await);
    let far = Subscriber::start(mosquitto.port, "far", "line/#", QoS::AtLeastOnce).await;
    let far_exact = Subscriber::start(mosquitto.port, "far-exact", "exact/#", QoS::AtLeastOnce).await;
    let (extras, renamed) = (BTreeSet::from([1, 2]), Vec::new());
    let (port, big, live_first, copies) = (mosquitto.port, false, false, false);
    let (main, route, next, feeds) = (0, 0, 3, 0);
    let mut scene = Scene { port, feed: feed.port, feeds, main, route, next, extras, renamed, big, live_first, copies };
    let gateway = Gateway::start(&scene.text()).await;
    let mut held = Held::connect(gateway.port, "held").await;
    let local = Subscriber::start(gateway.port, "local", "line/#", QoS::AtLeastOnce).await;
    let exact = Subscriber::start(gateway.port, "exact", "exact/#", QoS::ExactlyOnce).await;
    let down = Subscriber::start(gateway.port, "down", "down/#", QoS::ExactlyOnce).await;
    gateway.wait_for_state("feed", LinkState::Online).await;
    let start = |port: u16, topic: &str, publishers: usize, qos: QoS, each: usize| {
        let messages = (ROUNDS + 1) * each;
        Publishers::start(Work { port, publishers, messages, qos, window: 20, topic: topic.into() })
    };
    let publishers = start(gateway.port, "line", 4, QoS::AtLeastOnce, EACH);
    let twos = [gateway.port, feed.port].map(|port| {
        let topic = if port == feed.port { "up" } else { "exact" };
        start(port, topic, 2, QoS::ExactlyOnce, EACH_EXACT)
    });
    for round in 1..=ROUNDS {
        publishers.allow(round * EACH);
        twos.iter().for_each(|two| two.allow(round * EACH_EXACT));
        scene.change(&mut random);
        // Along with whatever else changes: of its link the losses and the order are looked at.
        let is_renamed = round % 5 == 0;
        scene.route += usize::from(is_renamed);
        scene.feeds += usize::from(round % 7 == 0);
        let said = gateway.reload_to(&scene.text()).await;
        assert_eq!(said.contains(&format!("+ route main{}\n", scene.route)), is_renamed, "{said}");
    }
    let acknowledged = publishers.finish().await;
    let [two, fed] = twos;
    let (two, fed) = (two.finish().await, fed.finish().await);
    let main = gateway.wait_until_drained(&format!("l{}", scene.main)).await;
    let ledger = Ledger::compare(acknowledged.iter().copied(), &far.receive(&acknowledged).await);
    ledger.assert_kept("after a hundred reloads", 0);
    assert_eq!(ledger.published_again, 0, "no publisher has lost its connection");
    Ledger::compare(two.iter().copied(), &far_exact.receive(&two).await).assert_exact("QoS 2, at the remote");
    assert_eq!(main.ledger["accepted"], (acknowledged.len() + two.len()) as u64, "{:?}", main.ledger);
    Ledger::compare(acknowledged.iter().copied(), &local.receive(&acknowledged).await).assert_exact("local");
    Ledger::compare(two.iter().copied(), &exact.receive(&two).await).assert_exact("QoS 2, local");
    Ledger::compare(fed.iter().copied(), &down.receive(&fed).await).assert_exact("QoS 2, from the other remote");
    let sessions = [&local, &exact, &down].map(Subscriber::sessions);
    assert_eq!((held.lives().await, sessions), (true, [1, 1, 1]));
    let status = gateway.status().await;
    assert_eq!((status.reload.taken, status.reload.refused, &status.reload.error), (ROUNDS as u64, 0, &None));
    assert!(status.links.iter().all(|link| link.balanced), "{status:?}");
    let audit = run(&["audit", "-c", gateway.config().to_str().unwrap()]).await;
    assert!(audit.status.success(), "{}", String::from_utf8_lossy(&audit.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn r34_listeners_come_go_and_change_and_the_others_keep_their_clients() {
    let gateway = Gateway::start("").await;
    let mut held = Held::connect(gateway.port, "held").await;
    let (second, third) = (free_port(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let at = |port: u16, more: &str| format!("    - {{ bind: \"127.0.0.1:{port}\", anonymous: true{more} }}\n");

    let said = gateway.reload_to(&at(second, "")).await;
    assert_eq!(said, format!("+ listener 127.0.0.1:{second}\nreloaded: 1 change\n"));
    assert_eq!(gateway.status().await.broker.listeners.len(), 2);
    let mut other = Held::connect(second, "other").await;

    // One that cannot be had: nothing of the file is in force, nobody has noticed.
    let taken = third.local_addr().unwrap().port();
    gateway.configure(&format!(
        "{}{}  connections_max: 1\n",
        at(second, ", limits: { connections: 5 }"),
        at(taken, "")
    ));
    let (code, said) = gateway.reload().await;
    assert_eq!(code, 69, "{said}");
    assert!(
        said.contains(&format!("cannot listen on 127.0.0.1:{taken}")) && said.contains("nothing was changed"),
        "{said}"
    );
    assert!(held.lives().await && other.lives().await);
    assert_eq!(gateway.status().await.broker.listeners.len(), 2);

    // It changes on its socket: its clients come again.
    let said = gateway.reload_to(&at(second, ", limits: { connections: 5 }")).await;
    assert_eq!(said, format!("~ listener 127.0.0.1:{second}: limits.connections default -> 5\nreloaded: 1 change\n"));
    assert!(held.lives().await && !other.lives().await);
    let mut other = Held::connect(second, "other").await;

    // Rules where there were none: who came without any comes again; and other rules hold at once, for those who are there.
    let rules = |topic: &str| {
        format!(
            "{}  auth: {{ acl: [ {{ anonymous: true, publish: [ \"{topic}\" ] }} ] }}\n",
            at(second, ", limits: { connections: 5 }")
        )
    };
    let said = gateway.reload_to(&rules("a")).await;
    assert!(said.starts_with("~ broker: auth.acl default -> { anonymous: true, publish: a }\n"), "{said}");
    assert!(!held.lives().await && !other.lives().await);
    let mut held = Held::connect(gateway.port, "held").await;
    let publish = async |topic: &str| publish_once(gateway.port, "one", topic, b"1".to_vec()).await.is_ok();
    assert_eq!((publish("a").await, publish("b").await), (true, false));
    gateway.reload_to(&rules("b")).await;
    assert_eq!((publish("a").await, publish("b").await), (false, true));

    // It goes.
    assert!(gateway.reload_to("").await.contains(&format!("- listener 127.0.0.1:{second}\n")));
    assert!(TcpStream::connect(("127.0.0.1", second)).await.is_err());
    assert!(held.lives().await);
    gateway.reload_to(&at(second, "")).await;
    Held::connect(second, "other").await;
}
