//! Logins that others vouch for, as the authenticator takes them.

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde_json::json;

use crate::broker::Listener;
use crate::broker::auth::jwt::tests::{named_token, public_jwk};
use crate::broker::auth::server::{Request, Server};
use crate::broker::auth::services::Hand;
use crate::broker::auth::{Authenticator, Config, Granted, Login, OwnSecret, Verdict, http, jwt};
use crate::broker::transport::Peer;
use crate::clock::Clock;
use crate::wire::{ReasonCode, Version};

static PEER: LazyLock<Peer> = LazyLock::new(|| Peer {
    address: None,
    listener: Arc::new(Listener::tcp(([127, 0, 0, 1], 1883).into())),
    certificate: None,
    is_secure: false,
});

fn login(user: &str) -> Login<'_> {
    let (peer, version) = (&*PEER, Version::V5);
    let (user, password) = (Some(user), Some(&b"secret"[..]));
    Login { client_id: "c", user, password, certificate_user: None, address: None, anonymous: false, peer, version }
}

async fn granted(auth: &Authenticator, login: Login<'_>, hand: &Hand) -> Result<Granted, ReasonCode> {
    match auth.authenticate(&login, hand.now()).await {
        Verdict::Granted(granted) => Ok(granted),
        Verdict::Refused { code, .. } => Err(code),
    }
}

fn hook(server: &Server, cache: Duration) -> http::Config {
    http::Config {
        url: format!("http://{}/", server.address).parse().unwrap(),
        timeout: Duration::from_secs(20),
        headers: Vec::new(),
        ca: None,
        cache,
        requests_max: 2,
    }
}

#[tokio::test]
async fn a_login_by_others_ends_by_their_word_or_by_login_max_whichever_is_first() {
    let server = Server::start(None, |request: &Request| {
        let soon = request.body.contains("soon").then_some(60);
        Some((200, json!({ "allow": true, "expires_in": soon }).to_string()))
    });
    let (hand, hour) = (Hand::new(), Duration::from_secs(3_600));
    let open = |login_max| {
        let config = Config { http: Some(hook(&server, Duration::ZERO)), login_max, ..Config::default() };
        let clock = Arc::<Hand>::clone(&hand);
        Authenticator::open(config, true, OwnSecret::open(Path::new("/nowhere")), clock)
    };
    let certificate = || Login { certificate_user: Some("anna"), ..login("anna") };
    let (bounded, endless, now) = (open(Some(hour)), open(None), hand.now());
    for login in [login("anna"), certificate()] {
        assert_eq!(granted(&endless, login, &hand).await.unwrap().expires, None);
        let mut ends = Vec::new();
        for _ in 0..20 {
            ends.push(granted(&bounded, login, &hand).await.unwrap().expires.unwrap() - now);
        }
        assert!(ends.iter().all(|end| *end <= hour && *end >= hour.mul_f64(0.9)), "{ends:?}");
        assert!(ends.iter().any(|end| *end != ends[0]), "they do not all end together");
    }
    let minute = Some(now + Duration::from_secs(60));
    for auth in [bounded, endless] {
        assert_eq!(granted(&auth, login("soon"), &hand).await.unwrap().expires, minute);
    }
}

#[tokio::test]
async fn a_successor_has_the_keys_and_answers_of_methods_that_are_as_they_were() {
    let keys = Server::start(None, |_: &Request| Some((200, json!({ "keys": [public_jwk("one")] }).to_string())));
    let program = Server::start(None, |_: &Request| Some((200, json!({ "allow": true }).to_string())));
    let hand = Hand::new();
    let config = Config {
        jwt: Some(jwt::Config {
            keys: jwt::KeySource::JwksUrl {
                url: format!("http://{}/", keys.address).parse().unwrap(),
                ca: None,
                timeout: Duration::from_secs(20),
                refresh: Duration::from_secs(3_600),
            },
            terms: jwt::Terms::default(),
        }),
        http: Some(hook(&program, Duration::from_secs(60))),
        ..Config::default()
    };
    let secret = OwnSecret::open(Path::new("/nowhere"));
    let first = Authenticator::open(config.clone(), false, secret, Arc::<Hand>::clone(&hand));
    let token = named_token("one");
    let asked = async |auth: &Authenticator| {
        granted(auth, Login { user: None, password: Some(token.as_bytes()), ..login("") }, &hand).await.unwrap();
        granted(auth, login("anna"), &hand).await.unwrap();
        (keys.requests().len(), program.requests().len())
    };
    assert_eq!(asked(&first).await, (1, 1));
    let other_groups = Config { groups: [("anna".into(), vec!["night".into()])].into(), ..config.clone() };
    let second = first.successor(other_groups, false);
    second.succeed(&first);
    assert_eq!(asked(&second).await, (1, 1));
    let other_hook = Config { http: Some(hook(&program, Duration::from_secs(90))), ..config };
    let third = second.successor(other_hook, false);
    assert_eq!(asked(&third).await, (1, 2), "what was said by other settings is not taken");
}
