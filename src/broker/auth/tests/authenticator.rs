//! Who is let in, by what files say at the time.

use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::broker::Listener;
use crate::broker::auth::{
    AclSource, Authenticator, By, Config, Granted, Login, OwnSecret, Verdict, http, jwt, ldap, users,
};
use crate::broker::reload::Reread;
use crate::broker::transport::Peer;
use crate::clock;
use crate::topic::TopicName;
use crate::wire::{ReasonCode, Version};

/// Made by mosquitto_passwd 2.0.11: `secret` and `hunter2`.
const ALICE: &str =
    "$7$101$G+xQxOwZnuzij+by$jlIN16SxIEBFbr2hmqGghB2JlKt0FfU53FgbKE/VquuB6BDe8fIaoA/ItkZ25UnzZxHbHkvoTOYk+xpxL3NyBQ==";
const BOB: &str =
    "$6$v5qDkQxHL3qpNS6B$PQxvmdCXyaKBYsDUKG3aJj1s2xDvSeApZJPsvJ9FuLZpVrcctvfNEhFMR/t2ULOBmHkgLjcksGfZ1ZB9RFGZHA==";

fn login<'a>(user: Option<&'a str>, password: Option<&'a str>, anonymous: bool) -> Login<'a> {
    let password = password.map(str::as_bytes);
    let (peer, version) = (&*PEER, Version::V5);
    Login { client_id: "c", user, password, certificate_user: None, address: None, anonymous, peer, version }
}

static PEER: LazyLock<Peer> = LazyLock::new(|| Peer {
    address: None,
    listener: Arc::new(Listener::tcp(([127, 0, 0, 1], 1883).into())),
    certificate: None,
    is_secure: false,
});

fn open(config: Config, names_count: bool) -> Authenticator {
    Authenticator::open(config, names_count, OwnSecret::open(Path::new("/nowhere")), clock::system())
}

fn with_users(folder: &Path) -> Config {
    let path = folder.join("users");
    fs::write(&path, users::edited(&format!("alice:{ALICE}\n"), "bob", Some(BOB))).unwrap();
    Config { users: Some(path), ..Config::default() }
}

async fn ask(auth: &Authenticator, login: Login<'_>) -> Result<Granted, ReasonCode> {
    match auth.authenticate(&login, clock::now()).await {
        Verdict::Granted(granted) => Ok(granted),
        Verdict::Refused { code, .. } => Err(code),
    }
}

#[tokio::test]
async fn users_come_in_by_their_password_and_nobody_else_does() {
    let folder = tempfile::tempdir().unwrap();
    let auth = open(with_users(folder.path()), false);
    let wrong = Err(ReasonCode::BadUserNameOrPassword);
    let refused = Err(ReasonCode::NotAuthorized);
    let mut address = 0;
    for (user, password, anonymous, expected) in [
        (Some("alice"), Some("secret"), false, Ok((Some("alice"), By::Users))),
        (Some("bob"), Some("hunter2"), true, Ok((Some("bob"), By::Users))),
        (Some("alice"), Some("hunter2"), true, wrong),
        (Some("carol"), Some("secret"), true, wrong),
        (Some("alice"), None, true, wrong),
        (Some("alice"), Some(""), false, wrong),
        (None, Some("secret"), true, wrong),
        (None, None, true, Ok((None, By::Nobody))),
        (None, None, false, refused),
    ] {
        // Each from an address of its own: the answers to failures of one wait.
        address += 1;
        let address = Some(std::net::IpAddr::from([10, 0, 0, address]));
        let answer = ask(&auth, Login { address, ..login(user, password, anonymous) }).await;
        let answer = answer.as_ref().map(|granted| (granted.user.as_deref(), granted.by)).map_err(|code| *code);
        assert_eq!(answer, expected, "{user:?} {password:?} anonymous {anonymous}");
    }
}

#[tokio::test]
async fn a_certificate_s_user_needs_no_password_and_a_claimed_name_is_never_taken_for_one() {
    let shown = |user, certificate_user, anonymous| Login { certificate_user, ..login(user, None, anonymous) };
    let auth = open(Config::default(), true);
    let granted = ask(&auth, shown(Some("other"), Some("press-1"), false)).await.unwrap();
    assert_eq!((granted.user.as_deref(), granted.by), (Some("press-1"), By::Certificate));
    let granted = ask(&auth, shown(Some("press-1"), None, true)).await.unwrap();
    assert_eq!(granted.user, None, "its name was not checked");
    assert_eq!(ask(&auth, shown(Some("press-1"), None, false)).await, Err(ReasonCode::NotAuthorized));
    let auth = open(Config::default(), false);
    let granted = ask(&auth, shown(Some("press-1"), None, true)).await.unwrap();
    assert_eq!(granted.user.as_deref(), Some("press-1"), "where nothing hangs on names they are passed on");
}

#[tokio::test]
async fn who_guesses_much_is_not_heard_for_a_while_and_others_are() {
    let folder = tempfile::tempdir().unwrap();
    let auth = open(with_users(folder.path()), false);
    let now = clock::now();
    for _ in 0..100 {
        auth.attempts.note_failure(None, now);
    }
    let right = login(Some("alice"), Some("secret"), false);
    let answer = auth.authenticate(&right, now).await;
    assert!(matches!(answer, Verdict::Refused { code: ReasonCode::ServerBusy, .. }), "{answer:?}");
    let elsewhere = Login { address: "10.0.0.9".parse().ok(), ..right };
    assert!(matches!(auth.authenticate(&elsewhere, now).await, Verdict::Granted(_)));
}

#[tokio::test]
async fn files_are_read_again_and_one_with_a_mistake_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let acl = folder.path().join("acl");
    fs::write(&acl, "user alice\ntopic read a\n").unwrap();
    let config = Config { acl: AclSource::File(acl.clone()), ..with_users(folder.path()) };
    let users = config.users.clone().unwrap();
    let auth = open(config, false);
    let alice = ask(&auth, login(Some("alice"), Some("secret"), false)).await.unwrap();
    let reads = |text: &str| auth.rights(&alice, "c").unwrap().may_read(&TopicName::new(text).unwrap());
    assert!(reads("a") && !reads("b"));

    fs::write(&acl, "user alice\ntopic read a\ntopic read b\n").unwrap();
    fs::write(&users, format!("alice:{BOB}\n")).unwrap();
    let changes = auth.reload(true);
    let mut changed: Vec<_> = changes.users.iter().map(|name| &**name).collect();
    changed.sort_unstable();
    assert_eq!((changes.acl, changed), (true, vec!["alice", "bob"]));
    assert!(reads("b"));
    assert!(ask(&auth, login(Some("alice"), Some("hunter2"), false)).await.is_ok());

    fs::write(&acl, "user alice\ntopic reed b\n").unwrap();
    fs::write(&users, "alice:plain\n").unwrap();
    let changes = auth.reload(true);
    assert!(!changes.acl && changes.users.is_empty());
    let errors = auth.errors();
    let [of_users, of_rules] = &errors[..] else { panic!("{errors:?}") };
    assert!(
        of_users.starts_with(&format!("the users of {} are as they were: line 1: ", users.display())),
        "{of_users}"
    );
    assert!(of_rules.starts_with(&format!("the rules of {} are as they were: line 2: ", acl.display())), "{of_rules}");
    assert!(reads("b") && ask(&auth, login(Some("alice"), Some("hunter2"), false)).await.is_ok());
    fs::remove_file(&users).unwrap();
    assert!(auth.reload(true).users.is_empty());
    assert!(ask(&auth, login(Some("alice"), Some("hunter2"), false)).await.is_ok(), "nor does one that is gone");
    fs::write(&users, format!("alice:{BOB}\n")).unwrap();
    fs::write(&acl, "user alice\ntopic read b\n").unwrap();
    auth.reload(true);
    assert!(auth.errors().is_empty());
}

#[tokio::test]
async fn files_that_cannot_be_read_at_the_start_let_nobody_in_until_they_can() {
    let folder = tempfile::tempdir().unwrap();
    let (users, acl) = (folder.path().join("users"), folder.path().join("acl"));
    let config = Config { users: Some(users.clone()), acl: AclSource::File(acl.clone()), ..Config::default() };
    let auth = open(config, false);
    assert!(ask(&auth, login(Some("alice"), Some("secret"), true)).await.is_err());
    let anonymous = ask(&auth, login(None, None, true)).await.unwrap();
    let may = |auth: &Authenticator| auth.rights(&anonymous, "c").unwrap().may_read(&TopicName::new("a").unwrap());
    assert!(!may(&auth));
    fs::write(&users, format!("alice:{ALICE}\n")).unwrap();
    fs::write(&acl, "topic a\n").unwrap();
    assert!(auth.reload(true).acl);
    assert!(may(&auth) && ask(&auth, login(Some("alice"), Some("secret"), true)).await.is_ok());
}

#[tokio::test]
async fn the_authority_of_each_service_is_told_when_it_was_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls");
    let put = |name: &str, from: &str| fs::copy(fixtures.join(from), at(name)).map(drop).unwrap();
    ["jwt", "http", "ldap"].into_iter().for_each(|name| put(name, "ca.pem"));
    let (timeout, url) = (Duration::from_secs(1), "https://localhost:1/");
    let config = Config {
        jwt: Some(jwt::Config {
            keys: jwt::KeySource::JwksUrl {
                url: url.parse().unwrap(),
                ca: Some(at("jwt")),
                timeout,
                refresh: Duration::from_secs(3_600),
            },
            terms: jwt::Terms::default(),
        }),
        http: Some(http::Config {
            url: url.parse().unwrap(),
            timeout,
            headers: Vec::new(),
            ca: Some(at("http")),
            cache: Duration::ZERO,
            requests_max: 1,
        }),
        ldap: Some(ldap::Config {
            url: "ldaps://localhost:1".parse().unwrap(),
            starttls: false,
            ca: Some(at("ldap")),
            timeout,
            connections_max: 1,
            cache: Duration::ZERO,
            find: ldap::Find::ByName(ldap::Template::name("uid={user},dc=plant").unwrap()),
            groups: None,
        }),
        ..Config::default()
    };
    let auth = open(config, false);
    let told = || {
        auth.reload(true);
        auth.take_news()
    };
    assert_eq!(told(), [], "they are as they were");
    for (name, key) in [("jwt", "auth.jwt.ca"), ("http", "auth.http.ca"), ("ldap", "auth.ldap.ca")] {
        put(name, "stranger.pem");
        assert_eq!((told(), told()), (vec![Reread::Logins(key)], vec![]));
        fs::write(at(name), "no certificate").unwrap();
        assert_eq!(told(), [], "{name}: it cannot be used");
    }
}
