//! Logins that others vouch for, through the real program: tokens with keys from a real HTTPS server, a program that decides, a real LDAP
//! directory, and SCRAM. The clients are an independent library's (rumqttc).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use ring::{digest, hmac, pbkdf2, rand::SystemRandom, signature};
use rumqttc_v5::{
    AsyncClient, AuthAction, AuthContext, AuthError, AuthProperties, Authenticator, ConnectReturnCode, ConnectionError,
    DisconnectReasonCode, Event, EventLoop, Incoming, MqttOptions, PublishOptions, QoS, StateError,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::gateway::{Gateway, run};
use crate::support::remote::{Directory, left_out};
use crate::support::server::{Request, Server};
use crate::support::wait::PATIENCE;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn options(port: u16, user: &str, password: &str) -> MqttOptions {
    let mut options = MqttOptions::new("press-7", ("127.0.0.1", port));
    options.set_keep_alive(30).set_credentials(user, Bytes::copy_from_slice(password.as_bytes()));
    options
}

/// A connection that was let in, or the reason why it was not.
async fn connect(options: MqttOptions) -> Result<(AsyncClient, EventLoop), ConnectReturnCode> {
    connect_with_proof(options).await.map(|(client, events, _)| (client, events))
}

/// The same, with the broker's own proof.
async fn connect_with_proof(
    options: MqttOptions,
) -> Result<(AsyncClient, EventLoop, Option<Bytes>), ConnectReturnCode> {
    let (client, mut events) = AsyncClient::builder(options).capacity(16).build();
    loop {
        match timeout(PATIENCE, events.poll()).await.expect("the broker answers") {
            Ok(Event::Incoming(Incoming::ConnAck(connack))) => {
                let proof = connack.properties.and_then(|properties| properties.authentication_data);
                return Ok((client, events, proof));
            }
            Ok(_) => {}
            Err(ConnectionError::ConnectionRefused(code)) => return Err(code),
            Err(error) => panic!("{error}"),
        }
    }
}

async fn log_in(port: u16, user: &str, password: &str) -> Result<(), ConnectReturnCode> {
    connect(options(port, user, password)).await.map(drop)
}

/// Whether a QoS 1 message is taken.
async fn may_publish(client: &AsyncClient, events: &mut EventLoop, topic: &str) -> bool {
    let notice = client.publish_tracked(topic, "x", PublishOptions::new(QoS::AtLeastOnce)).await.unwrap();
    let end = notice.wait_completion_async();
    tokio::pin!(end);
    loop {
        tokio::select! {
            end = &mut end => return end.is_ok(),
            event = timeout(PATIENCE, events.poll()) => drop(event.expect("the broker answers").unwrap()),
        }
    }
}

/// The connection is ended since its login has.
async fn expect_its_login_to_end(events: &mut EventLoop) {
    let end = timeout(PATIENCE, async {
        loop {
            if let Err(error) = events.poll().await {
                break error;
            }
        }
    });
    let end = end.await.expect("the login's end is the connection's");
    assert!(
        matches!(&end, ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. })
            if *reason_code == DisconnectReasonCode::MaximumConnectTime),
        "{end:?}"
    );
}

fn now_s() -> u64 {
    tidegate::clock::wall().0 / 1_000
}

/// As an identity provider makes it.
fn token(claims: &Value) -> String {
    let pem = std::fs::read(fixture("jwt/p256.key")).unwrap();
    let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).unwrap();
    let random = SystemRandom::new();
    let with = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
    let key = signature::EcdsaKeyPair::from_pkcs8(with, der.secret_pkcs8_der(), &random).unwrap();
    let encoded = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let header = json!({ "alg": "ES256", "kid": "2026", "typ": "JWT" }).to_string();
    let signed = format!("{}.{}", encoded(header.as_bytes()), encoded(claims.to_string().as_bytes()));
    let signature = key.sign(&random, signed.as_bytes()).unwrap();
    format!("{signed}.{}", encoded(signature.as_ref()))
}

/// The provider's public keys behind https.
fn provider() -> Server {
    let spki = SubjectPublicKeyInfoDer::from_pem_file(fixture("jwt/p256.pub")).unwrap();
    let (x, y) = spki[27..].split_at(32);
    let [x, y] = [x, y].map(|half| URL_SAFE_NO_PAD.encode(half));
    let set =
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "2026", "use": "sig", "x": x, "y": y }] }).to_string();
    let chain = CertificateDer::pem_file_iter(fixture("tls/server.pem")).unwrap().collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(fixture("tls/server.key")).unwrap();
    let builder = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let tls = builder.with_single_cert(chain, key).unwrap();
    Server::start(Some(Arc::new(tls)), move |_: &Request| Some((200, set.clone())))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_in_says_what_its_client_may_and_ends_the_connection() {
    let provider = provider();
    let gateway = Gateway::start(&format!(
        "  auth:\n    jwt: {{ jwks: \"https://localhost:{}/keys\", ca: {}, issuer: id, audience: mqtt, acl_claim: mqtt, leeway: 0s }}\n",
        provider.address.port(),
        fixture("tls/ca.pem").display(),
    ))
    .await;
    let claims = |lives_s: u64| {
        json!({ "iss": "id", "aud": ["mqtt"], "sub": "anna", "exp": now_s() + lives_s,
            "mqtt": { "publish": ["factory/{client_id}/#"] } })
    };
    let refused = Err(ConnectReturnCode::BadUserNamePassword);
    assert_eq!(log_in(gateway.port, "ben", &token(&claims(600))).await, refused, "another's token");
    let mut other = claims(600);
    other["iss"] = json!("elsewhere");
    assert_eq!(log_in(gateway.port, "anna", &token(&other)).await, refused);
    let mut forged = token(&claims(600));
    forged.replace_range(forged.len() - 8.., "AAAAAAAA");
    assert_eq!(log_in(gateway.port, "anna", &forged).await, refused);

    let (client, mut events) = connect(options(gateway.port, "anna", &token(&claims(3)))).await.unwrap();
    assert!(may_publish(&client, &mut events, "factory/press-7/temp").await);
    assert!(!may_publish(&client, &mut events, "factory/press-8/temp").await);
    expect_its_login_to_end(&mut events).await;
    assert_eq!(provider.requests().len(), 1, "the keys were fetched once");
    assert!(!gateway.log().contains(&forged), "no password stands in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_decides_and_while_it_fails_nobody_gets_in() {
    let failing = Arc::new(AtomicUsize::new(0));
    let fails = Arc::clone(&failing);
    let program = Server::start(None, move |request: &Request| {
        let asked: Value = serde_json::from_str(&request.body).unwrap();
        Some(match (fails.load(Ordering::Relaxed), asked["user"].as_str(), asked["password"].as_str()) {
            (1, ..) => (503, String::new()),
            (_, Some("anna"), Some("secret")) => (200, json!({ "allow": true, "groups": ["operators"] }).to_string()),
            (_, Some("guest"), _) => (200, json!({ "allow": true, "acl": { "subscribe": ["public/#"] } }).to_string()),
            (_, Some("nobody"), _) => (404, String::new()),
            _ => (403, String::new()),
        })
    });
    let gateway = Gateway::start(&format!(
        "  auth:\n    http: {{ url: \"http://{}/login\", headers: {{ X-Site: edge }} }}\n    acl: [ {{ group: operators, publish: [ \"cmd/#\" ] }} ]\n",
        program.address,
    ))
    .await;
    let (client, mut events) = connect(options(gateway.port, "anna", "secret")).await.unwrap();
    assert!(may_publish(&client, &mut events, "cmd/a").await, "by its group");
    assert!(!may_publish(&client, &mut events, "factory/a").await);
    drop((client, events));
    assert_eq!(log_in(gateway.port, "anna", "wrong").await, Err(ConnectReturnCode::BadUserNamePassword));
    assert_eq!(log_in(gateway.port, "nobody", "x").await, Err(ConnectReturnCode::BadUserNamePassword));
    failing.store(1, Ordering::Relaxed);
    assert_eq!(log_in(gateway.port, "anna", "secret").await, Err(ConnectReturnCode::ServerUnavailable));
    failing.store(0, Ordering::Relaxed);
    assert_eq!(log_in(gateway.port, "anna", "secret").await, Ok(()));
    let first = &program.requests()[0];
    assert_eq!(first.line, "POST /login");
    assert_eq!(program.connections(), 1, "one connection for all of them");
    assert!(first.headers.contains(&("x-site".to_owned(), "edge".to_owned())));
    let asked: Value = serde_json::from_str(&first.body).unwrap();
    assert_eq!((&asked["client_id"], &asked["protocol"]), (&json!("press-7"), &json!("5.0")));
    assert!(asked["address"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(!gateway.log().contains("secret"), "no password stands in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_known_any_more_stays_connected_no_longer_than_login_max() {
    let knows = Arc::new(AtomicBool::new(true));
    let known = Arc::clone(&knows);
    let program = Server::start(None, move |_: &Request| {
        Some((200, json!({ "allow": known.load(Ordering::Relaxed) }).to_string()))
    });
    let auth = format!("  auth: {{ login_max: 1s, http: {{ url: \"http://{}/\" }} }}\n", program.address);
    let gateway = Gateway::start(&auth).await;
    let (_client, mut events) = connect(options(gateway.port, "anna", "secret")).await.unwrap();
    expect_its_login_to_end(&mut events).await;
    assert_eq!(log_in(gateway.port, "anna", "secret").await, Ok(()), "as long as it is known it comes again");
    knows.store(false, Ordering::Relaxed);
    assert_eq!(log_in(gateway.port, "anna", "secret").await, Err(ConnectReturnCode::BadUserNamePassword));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_knows_who_may_come_in_and_their_groups() {
    if left_out(&["ldap"]) {
        return;
    }
    let directory = Directory::start().await;
    let [plain, tls, ca] =
        [directory.port.to_string(), directory.tls_port.to_string(), directory.ca().display().to_string()];
    let acl = "    acl: [ { group: operators, publish: [ \"cmd/#\" ] }, { group: night, publish: [ \"night/#\" ] } ]\n";
    let people = "ou=people,dc=plant,dc=example";
    let by_name = Gateway::start(&format!(
        "  auth:\n    ldap:\n      url: ldaps://localhost:{tls}\n      ca: {ca}\n      bind_dn: \"uid={{user}},{people}\"\n      groups: {{ base: \"dc=plant,dc=example\", filter: \"(member={{dn}})\" }}\n{acl}"
    ))
    .await;
    let by_search = Gateway::start(&format!(
        "  auth:\n    ldap:\n      url: ldap://localhost:{plain}\n      starttls: true\n      ca: {ca}\n      search: {{ base: \"{people}\", filter: \"(&(objectClass=person)(uid={{user}}))\", bind_dn: \"cn=gateway,dc=plant,dc=example\", password: \"${{env:HOME}}\" }}\n      groups: {{ base: \"dc=plant,dc=example\", filter: \"(|(member={{dn}})(memberUid={{user}}))\" }}\n{acl}"
    )
    .replace("${env:HOME}", "gateway-secret"))
    .await;
    let refused = Err(ConnectReturnCode::BadUserNamePassword);
    for gateway in [&by_name, &by_search] {
        let (client, mut events) = connect(options(gateway.port, "anna", "anna-secret")).await.unwrap();
        assert!(may_publish(&client, &mut events, "cmd/a").await);
        assert!(!may_publish(&client, &mut events, "night/a").await);
        drop((client, events));
        assert_eq!(log_in(gateway.port, "a,b*(c)", "odd-secret").await, Ok(()), "escaped on its way");
        for (user, password) in [
            ("anna", "wrong"),
            ("anna", ""),
            ("nobody", "secret"),
            ("*", "anna-secret"),
            ("anna,ou=people", "anna-secret"),
            ("anna)(uid=*", "anna-secret"),
        ] {
            assert_eq!(log_in(gateway.port, user, password).await, refused, "{user} {password}");
        }
        assert!(!gateway.log().contains("anna-secret"), "no password stands in the log");
    }
    let (client, mut events) = connect(options(by_search.port, "ben", "ben-secret")).await.unwrap();
    assert!(may_publish(&client, &mut events, "night/a").await, "a group by the user's name");
    drop((client, events));
    drop(directory);
    for gateway in [&by_name, &by_search] {
        assert_eq!(log_in(gateway.port, "anna", "anna-secret").await, Err(ConnectReturnCode::ServerUnavailable));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_method_that_knows_the_user_decides_and_no_weaker_one_stands_in() {
    let program = Server::start(None, |request: &Request| {
        let asked: Value = serde_json::from_str(&request.body).unwrap();
        Some((200, json!({ "allow": asked["password"] == "from-program" }).to_string()))
    });
    let dir = tempfile::tempdir().unwrap();
    let users = dir.path().join("users.passwd");
    let made = passwd(&["--stdin", users.to_str().unwrap(), "alice"], "from-file").await;
    assert!(made.status.success(), "{made:?}");
    let nowhere = crate::support::process::free_port();
    let gateway = Gateway::start(&format!(
        "  auth:\n    users: {}\n    jwt: {{ jwks: \"https://localhost:{nowhere}/\" }}\n    http: {{ url: \"http://{}/\" }}\n",
        users.display(),
        program.address,
    ))
    .await;
    let refused = Err(ConnectReturnCode::BadUserNamePassword);
    assert_eq!(log_in(gateway.port, "alice", "from-file").await, Ok(()));
    assert_eq!(log_in(gateway.port, "alice", "from-program").await, refused, "the file knows her");
    assert_eq!(program.requests().len(), 0);
    assert_eq!(log_in(gateway.port, "bob", "from-program").await, Ok(()));
    assert_eq!(log_in(gateway.port, "bob", "wrong").await, refused);
    let asked = program.requests().len();
    let token = token(&json!({ "sub": "bob", "exp": now_s() + 60 }));
    assert_eq!(
        log_in(gateway.port, "bob", &token).await,
        Err(ConnectReturnCode::ServerUnavailable),
        "there are no keys"
    );
    assert_eq!(program.requests().len(), asked, "and the program is not asked in their place");
}

/// `tidegate passwd`, with a password on its standard input.
async fn passwd(arguments: &[&str], password: &str) -> std::process::Output {
    use tokio::io::AsyncWriteExt;
    let mut command = tokio::process::Command::new(crate::support::gateway::PROGRAM);
    command.arg("passwd").args(arguments).kill_on_drop(true);
    command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(password.as_bytes()).await.unwrap();
    timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").unwrap()
}

/// A client's side of SCRAM-SHA-256, by the RFCs.
#[derive(Debug)]
struct Scram {
    password: String,
    /// The broker's proof that it knows the password too.
    expected: Option<String>,
}

const BARE: &str = "n=anna,r=fyko+d2lbbFgONRv9qkxdawL";

impl Authenticator for Scram {
    fn start(&mut self, _: AuthContext<'_>) -> Result<Option<AuthProperties>, AuthError> {
        Ok(Some(data(format!("n,,{BARE}"))))
    }

    fn continue_auth(&mut self, _: AuthContext<'_>, incoming: Option<AuthProperties>) -> Result<AuthAction, AuthError> {
        let incoming = incoming.and_then(|properties| properties.data).ok_or("no challenge")?;
        let first = std::str::from_utf8(&incoming).map_err(|error| error.to_string())?;
        Ok(AuthAction::Send(self.answer(first)))
    }

    fn success(&mut self, _: AuthContext<'_>, _: Option<AuthProperties>) -> Result<(), AuthError> {
        Ok(())
    }

    fn failure(&mut self, _: AuthContext<'_>, _: AuthError) {}
}

impl Scram {
    fn answer(&mut self, first: &str) -> AuthProperties {
        let attribute = |mark: &str| first.split(',').find_map(|part| part.strip_prefix(mark)).unwrap();
        let rounds = std::num::NonZeroU32::new(attribute("i=").parse().unwrap()).unwrap();
        let mut salted = [0; 32];
        let salt = STANDARD.decode(attribute("s=")).unwrap();
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, self.password.as_bytes(), &mut salted);
        let sign = |key: &[u8], message: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
        let client_key = sign(&salted, b"Client Key");
        let stored = digest::digest(&digest::SHA256, client_key.as_ref());
        let last = format!("c=biws,r={}", attribute("r="));
        let messages = format!("{BARE},{first},{last}");
        let signature = sign(stored.as_ref(), messages.as_bytes());
        let proof: Vec<u8> = client_key.as_ref().iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
        let server_key = sign(&salted, b"Server Key");
        self.expected = Some(format!("v={}", STANDARD.encode(sign(server_key.as_ref(), messages.as_bytes()))));
        data(format!("{last},p={}", STANDARD.encode(proof)))
    }
}

fn data(text: String) -> AuthProperties {
    AuthProperties {
        method: Some("SCRAM-SHA-256".into()),
        data: Some(text.into_bytes().into()),
        reason: None,
        user_properties: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scram_proves_a_password_that_tidegate_passwd_has_set() {
    let dir = tempfile::tempdir().unwrap();
    let users = dir.path().join("users.passwd");
    let file = users.to_str().unwrap();
    for arguments in [&["--stdin", file, "anna"][..], &["--stdin", "--scram", file, "anna"]] {
        let made = passwd(arguments, "first secret").await;
        assert!(made.status.success(), "{made:?}");
    }
    let written = std::fs::read_to_string(&users).unwrap();
    assert_eq!(written.lines().filter(|line| line.starts_with("anna:$argon2id$")).count(), 1, "{written}");
    assert_eq!(written.lines().filter(|line| line.starts_with("anna:$scram-sha-256$")).count(), 1, "{written}");
    assert_eq!(run(&["check", "--help"]).await.status.code(), Some(0));
    let gateway = Gateway::start(&format!("  auth: {{ users: {file} }}\n")).await;
    assert_eq!(log_in(gateway.port, "anna", "first secret").await, Ok(()), "those who send it still can");
    for (password, is_right) in [("first secret", true), ("another", false)] {
        let scram = Arc::new(Mutex::new(Scram { password: password.into(), expected: None }));
        let mut options = MqttOptions::new("press-7", ("127.0.0.1", gateway.port));
        options.set_authentication_method(Some("SCRAM-SHA-256".into()));
        options.set_authenticator(Arc::<Mutex<Scram>>::clone(&scram));
        options.set_keep_alive(30);
        match connect_with_proof(options).await {
            Ok((client, mut events, proof)) => {
                let expected = scram.lock().unwrap().expected.clone().map(Bytes::from);
                assert!(is_right && expected.is_some());
                assert_eq!(proof, expected);
                assert!(may_publish(&client, &mut events, "a").await);
            }
            Err(code) => assert_eq!((code, is_right), (ConnectReturnCode::NotAuthorized, false)),
        }
    }
}
