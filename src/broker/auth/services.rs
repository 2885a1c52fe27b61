//! Keys and answers that come over the network, from a real server: when they are asked for, and what holds while it is away.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use super::http::{self, Answer, Hook, PasswordText, Question};
use super::jwt::tests::{NOW_S, named_token, public_jwk, token};
use super::jwt::{self, Algorithm, Jwt, KeySource, Terms, Verdict};
use super::server::{self, Server};
use crate::clock::{self, Clock, Moment, WallMs};

/// A clock that goes as a test says.
#[derive(Debug)]
pub(super) struct Hand {
    begun: Instant,
    passed_ms: AtomicU64,
}

impl Hand {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { begun: clock::now(), passed_ms: AtomicU64::new(0) })
    }

    pub(super) fn pass(&self, time: Duration) {
        self.passed_ms.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::Relaxed);
    }
}

impl Clock for Hand {
    fn now(&self) -> Instant {
        self.begun + Duration::from_millis(self.passed_ms.load(Ordering::Relaxed))
    }

    fn moment(&self) -> Moment {
        let passed_ms = self.passed_ms.load(Ordering::Relaxed);
        Moment { wall: WallMs(NOW_S * 1_000 + passed_ms), up_ms: passed_ms, boot: 1, synced: true }
    }
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name)
}

fn tls() -> Option<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(fixture("server.pem")).unwrap().collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(fixture("server.key")).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    Some(Arc::new(builder.with_single_cert(chain, key).unwrap()))
}

/// A server of keys that can be changed, and can be told to fail.
fn key_server(set: &Arc<Mutex<(u16, Value)>>) -> Server {
    let set = Arc::clone(set);
    Server::start(tls(), move |_: &server::Request| {
        let (code, keys) = &*set.lock();
        Some((*code, json!({ "keys": keys }).to_string()))
    })
}

fn method(server: &Server, ca: &str, hand: &Arc<Hand>) -> Jwt {
    let keys = KeySource::JwksUrl {
        url: format!("https://localhost:{}/keys.json", server.address.port()).parse().unwrap(),
        ca: Some(fixture(ca)),
        timeout: Duration::from_secs(10),
        refresh: Duration::from_secs(3_600),
    };
    Jwt::open(&jwt::Config { keys, terms: Terms::default() }, Arc::<Hand>::clone(hand))
}

async fn kind(method: &Jwt, token: &str) -> &'static str {
    match method.check(None, token.as_bytes()).await {
        Verdict::NotMine => "not mine",
        Verdict::Good(_) => "good",
        Verdict::Bad(_) => "bad",
        Verdict::NoKeys(_) => "no keys",
    }
}

#[tokio::test]
async fn keys_behind_an_address_are_fetched_when_needed_and_not_more_often() {
    let set = Arc::new(Mutex::new((200, json!([public_jwk("one")]))));
    let (server, hand) = (key_server(&set), Hand::new());
    let method = method(&server, "ca.pem", &hand);
    assert_eq!(kind(&method, "secret").await, "not mine");
    assert_eq!(server.requests().len(), 0, "nothing is fetched before a token comes");
    let (one, two) = (named_token("one"), named_token("two"));
    for _ in 0..3 {
        assert_eq!(kind(&method, &one).await, "good");
    }
    assert_eq!(server.requests().len(), 1);
    // A token with a new key: fetched at once after the floor, and then not again.
    assert_eq!(kind(&method, &two).await, "bad");
    assert_eq!(server.requests().len(), 1, "too soon after the last fetch");
    hand.pass(Duration::from_secs(10));
    assert_eq!(kind(&method, &two).await, "bad");
    assert_eq!(kind(&method, &two).await, "bad");
    assert_eq!(server.requests().len(), 2);
    set.lock().1 = json!([public_jwk("two")]);
    hand.pass(Duration::from_secs(10));
    assert_eq!(kind(&method, &two).await, "good");
    assert_eq!(kind(&method, &one).await, "bad", "the old key is not good any more");
    assert_eq!(server.requests().len(), 3);
    hand.pass(Duration::from_secs(3_599));
    assert_eq!(kind(&method, &token_for(&hand, "two")).await, "good");
    assert_eq!(server.requests().len(), 3);
    hand.pass(Duration::from_secs(1));
    assert_eq!(kind(&method, &token_for(&hand, "two")).await, "good");
    assert_eq!((server.requests().len(), server.connections()), (4, 1), "on one connection");
}

/// A token that is good at the hand's time.
fn token_for(hand: &Hand, name: &str) -> String {
    jwt::tests::named_token_until(name, hand.wall().0 / 1_000 + 60)
}

#[tokio::test]
async fn the_last_good_keys_hold_while_their_address_is_down() {
    let set = Arc::new(Mutex::new((500, json!([public_jwk("one")]))));
    let (server, hand) = (key_server(&set), Hand::new());
    let method = method(&server, "ca.pem", &hand);
    assert_eq!(kind(&method, &named_token("one")).await, "no keys");
    assert_eq!(kind(&method, &named_token("one")).await, "no keys");
    assert_eq!(server.requests().len(), 1, "an address that fails is not hammered");
    set.lock().0 = 200;
    hand.pass(Duration::from_secs(10));
    assert_eq!(kind(&method, &named_token("one")).await, "good");
    drop(server);
    hand.pass(Duration::from_secs(7_200));
    assert_eq!(kind(&method, &token_for(&hand, "one")).await, "good");
    hand.pass(Duration::from_secs(10));
    assert_eq!(kind(&method, &token_for(&hand, "two")).await, "no keys", "nobody can tell: not refused for good");
    assert_eq!(kind(&method, &token_for(&hand, "one")).await, "good");
}

#[tokio::test]
async fn keys_from_a_server_that_is_not_trusted_are_not_taken() {
    let set = Arc::new(Mutex::new((200, json!([public_jwk("one")]))));
    let (server, hand) = (key_server(&set), Hand::new());
    let verdict = method(&server, "stranger.pem", &hand).check(None, named_token("one").as_bytes()).await;
    assert!(matches!(&verdict, Verdict::NoKeys(why) if why.contains("certificate")), "{verdict:?}");
    assert_eq!(server.requests().len(), 0);
}

#[tokio::test]
async fn many_tokens_at_once_fetch_the_keys_once() {
    let set = Arc::new(Mutex::new((200, json!([public_jwk("one")]))));
    let (server, hand) = (key_server(&set), Hand::new());
    let method = Arc::new(method(&server, "ca.pem", &hand));
    let checks = (0..50).map(|_| {
        let method = Arc::clone(&method);
        async move { kind(&method, &named_token("one")).await }
    });
    let verdicts = futures_util::future::join_all(checks).await;
    assert!(verdicts.iter().all(|verdict| *verdict == "good"));
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn keys_in_a_file_are_read_again_when_it_changes() {
    let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let file = dir.path().join("keys.json");
    let write = |keys: &str| {
        let new = dir.path().join("new");
        std::fs::write(&new, keys).unwrap();
        std::fs::rename(new, &file).unwrap();
    };
    write(&json!({ "keys": [public_jwk("one")] }).to_string());
    let config = jwt::Config { keys: KeySource::JwksFile(file.clone()), terms: Terms::default() };
    let method = Jwt::open(&config, Arc::<Hand>::clone(&hand));
    method.reload(true);
    // What has changed is read when it stands still at the second look.
    let look_twice = || [false, false].into_iter().for_each(|always| method.reload(always));
    assert_eq!(kind(&method, &named_token("one")).await, "good");
    write("{ \"keys\": [");
    look_twice();
    assert_eq!(kind(&method, &named_token("one")).await, "good", "a damaged file changes nothing");
    assert!(method.file().unwrap().error().is_some(), "and `status` shows it");
    write(&json!({ "keys": [public_jwk("two"), public_jwk("three")] }).to_string());
    look_twice();
    assert_eq!(kind(&method, &named_token("one")).await, "bad");
    assert_eq!(kind(&method, &named_token("two")).await, "good");
    let nowhere = jwt::Config { keys: KeySource::Pem(dir.path().join("none")), terms: Terms::default() };
    let nowhere = Jwt::open(&nowhere, hand);
    nowhere.reload(true);
    assert_eq!(kind(&nowhere, &token(Algorithm::Es256)).await, "no keys");
}

fn question(password: &str) -> Question<'_> {
    Question {
        client_id: "press-7",
        user: Some("anna"),
        password: PasswordText::of(Some(password.as_bytes())),
        address: Some("192.0.2.7:51234".to_owned()),
        listener: "127.0.0.1:1883".to_owned(),
        certificate: Some("press-7"),
        protocol: "5.0".to_owned(),
    }
}

fn hook(server: &Server, scheme: &str, cache: Duration, timeout: Duration, hand: &Arc<Hand>) -> Hook {
    let config = http::Config {
        url: format!("{scheme}://localhost:{}/login?site=7", server.address.port()).parse().unwrap(),
        timeout,
        headers: vec![http::header("Authorization", "Bearer t0ken").unwrap()],
        ca: Some(fixture("ca.pem")),
        cache,
        requests_max: 2,
    };
    Hook::open(&config, Arc::<Hand>::clone(hand))
}

/// Lets in whoever says `secret`.
fn porter(request: &server::Request) -> server::Answer {
    let asked: Value = serde_json::from_str(&request.body).unwrap();
    Some((200, json!({ "allow": asked["password"] == "secret", "groups": ["a"] }).to_string()))
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_program_is_asked_over_tls_on_connections_that_are_kept() {
    let (server, hand) = (Server::start(tls(), porter), Hand::new());
    let hook = hook(&server, "https", Duration::ZERO, LONG, &hand);
    assert!(matches!(hook.check(&question("secret")).await, Answer::Allow(grant) if grant.groups == ["a".into()]));
    assert!(matches!(hook.check(&question("wrong")).await, Answer::Deny(_)));
    assert!(matches!(hook.check(&question("secret")).await, Answer::Allow(_)));
    let requests = server.requests();
    assert_eq!((requests.len(), server.connections()), (3, 1));
    assert_eq!(requests[0].line, "POST /login?site=7");
    let header =
        |name: &str| requests[0].headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    assert_eq!(header("authorization"), Some("Bearer t0ken"));
    assert_eq!(header("content-type"), Some("application/json"));
    let asked: Value = serde_json::from_str(&requests[0].body).unwrap();
    assert_eq!(asked["certificate"], "press-7");
    assert_eq!(asked["client_id"], "press-7");
}

#[tokio::test]
async fn answers_are_remembered_for_a_while_and_an_absence_is_not() {
    let (server, hand) = (Server::start(None, porter), Hand::new());
    let address = server.address;
    let hook = hook(&server, "http", Duration::from_secs(60), LONG, &hand);
    for _ in 0..3 {
        assert!(matches!(hook.check(&question("secret")).await, Answer::Allow(_)));
        assert!(matches!(hook.check(&question("wrong")).await, Answer::Deny(_)));
    }
    assert_eq!(server.requests().len(), 2);
    drop(server);
    assert!(matches!(hook.check(&question("secret")).await, Answer::Allow(_)), "remembered while it is away");
    assert!(matches!(hook.check(&question("other")).await, Answer::Away(_)));
    let server = Server::start_at(address, None, porter);
    assert!(matches!(hook.check(&question("other")).await, Answer::Deny(_)), "asked again at once");
    hand.pass(Duration::from_secs(60));
    assert!(matches!(hook.check(&question("secret")).await, Answer::Allow(_)));
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn a_program_that_does_not_answer_lets_nobody_in() {
    let hand = Hand::new();
    let silent = Server::start(None, |_: &server::Request| None);
    let mute = hook(&silent, "http", LONG, Duration::from_millis(50), &hand);
    // Two are asked and two wait for their turn: all get their answer in time.
    let asked = question("secret");
    let mut asking: FuturesUnordered<_> = (0..4).map(|_| mute.check(&asked)).collect();
    let first = asking.next().await.unwrap();
    // From now on one that waited may have the place of the first for what is left of its time.
    assert!(silent.requests().len() <= 2, "no more than may be open");
    let answers: Vec<_> = asking.chain(futures_util::stream::once(async { first })).collect().await;
    assert_eq!(answers.len(), 4);
    assert!(
        answers.iter().all(|answer| matches!(answer, Answer::Away(why) if why.contains("no answer within"))),
        "{answers:?}"
    );
    let endless = Server::start(None, |_: &server::Request| Some((200, " ".repeat(100_000))));
    let answer = hook(&endless, "http", LONG, LONG, &hand).check(&question("secret")).await;
    assert!(matches!(&answer, Answer::Away(why) if why.contains("longer than")), "{answer:?}");
    let elsewhere = Server::start(None, |_: &server::Request| Some((302, String::new())));
    assert!(matches!(hook(&elsewhere, "http", LONG, LONG, &hand).check(&question("secret")).await, Answer::Away(_)));
    let gone = endless.address;
    drop(endless);
    let config = http::Config {
        url: format!("http://{gone}/").parse().unwrap(),
        timeout: LONG,
        headers: Vec::new(),
        ca: Some(fixture("none.pem")),
        cache: Duration::ZERO,
        requests_max: 1,
    };
    let answer = Hook::open(&config, hand).check(&question("secret")).await;
    assert!(
        matches!(&answer, Answer::Away(why) if why.contains("none.pem")),
        "a missing authority is told: {answer:?}"
    );
}

#[tokio::test]
async fn an_authority_s_file_is_read_again_when_it_changes_and_when_that_is_asked_for() {
    let (server, hand, dir) = (Server::start(tls(), porter), Hand::new(), tempfile::tempdir().unwrap());
    let ca = dir.path().join("ca.pem");
    let put = |name: &str| std::fs::copy(fixture(name), &ca).map(drop).unwrap();
    put("stranger.pem");
    let config = http::Config {
        url: format!("https://localhost:{}/", server.address.port()).parse().unwrap(),
        timeout: LONG,
        headers: Vec::new(),
        ca: Some(ca.clone()),
        cache: Duration::ZERO,
        requests_max: 1,
    };
    let hook = Hook::open(&config, hand);
    assert!(matches!(hook.check(&question("secret")).await, Answer::Away(why) if why.contains("certificate")));
    put("ca.pem");
    assert!(matches!(hook.check(&question("secret")).await, Answer::Away(_)), "nobody has looked yet");
    // It stands still at the second look.
    [false, false].into_iter().for_each(|always| hook.reload(always));
    assert!(matches!(hook.check(&question("secret")).await, Answer::Allow(_)));
    assert_eq!([hook.take_news(), hook.take_news()], [true, false], "and it is told, once");
    // The connection that is open is not used any more either.
    put("stranger.pem");
    hook.reload(true);
    assert!(matches!(hook.check(&question("secret")).await, Answer::Away(_)));
}
