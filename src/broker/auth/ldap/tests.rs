//! What a client says stays a value, whatever it is: names and filters are read back by readers of our own.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[test]
fn a_template_has_places_for_what_it_may_hold() {
    let name = Template::name("uid={user},ou=people,dc=plant").unwrap();
    assert_eq!(name.filled("anna", ""), "uid=anna,ou=people,dc=plant");
    assert_eq!(name.to_string(), "uid={user},ou=people,dc=plant");
    assert_eq!(Template::name("{user}@plant.example").unwrap().filled("anna", ""), "anna@plant.example");
    let filter = Template::group_filter("(|(member={dn})(memberUid={user}))").unwrap();
    assert_eq!(filter.filled("a*", "uid=a(b),dc=x"), r"(|(member=uid=a\28b\29,dc=x)(memberUid=a\2a))");
    for (made, wrong) in [
        (Template::name("uid=anna,dc=plant"), TemplateError::NoUser),
        (Template::name("uid={user"), TemplateError::Open),
        (Template::name("uid={user},ou={group}"), TemplateError::Unknown("group".to_owned(), "`{user}` does")),
        (Template::name("uid={dn}"), TemplateError::Unknown("dn".to_owned(), "`{user}` does")),
        (Template::user_filter("(uid=anna)"), TemplateError::NoUser),
        (Template::user_filter("(uid={user}"), TemplateError::Filter),
        (Template::user_filter("uid:{user})"), TemplateError::Filter),
        (Template::group_filter("(cn=admins)"), TemplateError::NoUser),
        (Template::group_filter("(m={x})"), TemplateError::Unknown("x".to_owned(), "`{user}` and `{dn}` do")),
    ] {
        assert_eq!(made, Err(wrong));
    }
}

#[test]
fn an_injection_stays_within_its_place() {
    let name = Template::name("uid={user},ou=people,dc=plant").unwrap();
    assert_eq!(name.filled("anna,ou=admins", ""), r"uid=anna\2cou\3dadmins,ou=people,dc=plant");
    assert_eq!(name.filled(" #a ", ""), r"uid=\20#a\20,ou=people,dc=plant");
    let filter = Template::user_filter("(&(objectClass=person)(uid={user}))").unwrap();
    assert_eq!(filter.filled("*)(uid=*", ""), r"(&(objectClass=person)(uid=\2a\29\28uid=\2a))");
}

/// The values of a name's parts, by RFC 4514 section 3.
fn read_name(name: &str) -> Vec<(String, Vec<u8>)> {
    let (mut parts, mut key, mut value, mut in_value) = (Vec::new(), String::new(), Vec::new(), false);
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => {
                let hex = std::str::from_utf8(&bytes[at + 1..at + 3]).unwrap();
                value.push(u8::from_str_radix(hex, 16).unwrap());
                at += 2;
            }
            b'=' if !in_value => in_value = true,
            b',' => {
                parts.push((std::mem::take(&mut key), std::mem::take(&mut value)));
                in_value = false;
            }
            byte @ (b'+' | b';' | b'<' | b'>' | b'"' | 0) => panic!("{byte} unescaped in {name}"),
            byte if in_value => value.push(byte),
            byte => key.push(char::from(byte)),
        }
        at += 1;
    }
    parts.push((key, value));
    parts
}

/// The value in `(uid=VALUE)`, by RFC 4515 section 3.
fn read_filter(filter: &str) -> Vec<u8> {
    let inner = filter.strip_prefix("(uid=").and_then(|rest| rest.strip_suffix(')')).unwrap();
    let (mut value, mut bytes) = (Vec::new(), inner.bytes());
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                let hex = [bytes.next().unwrap(), bytes.next().unwrap()];
                value.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
            }
            b'(' | b')' | b'*' | 0 => panic!("{byte} unescaped in {filter}"),
            byte => value.push(byte),
        }
    }
    value
}

proptest! {
    #[test]
    fn whatever_a_client_calls_itself_is_one_value_of_a_name(user in "(?s).{0,40}|[,=+<>;\"\\\\# \0]{1,9}") {
        let name = Template::name("uid={user},ou=people").unwrap().filled(&user, "");
        let expected = vec![("uid".to_owned(), user.clone().into_bytes()), ("ou".to_owned(), b"people".to_vec())];
        prop_assert_eq!(read_name(&name), expected);
        let value = name.strip_prefix("uid=").unwrap().strip_suffix(",ou=people").unwrap();
        prop_assert!(!value.starts_with([' ', '#']) && !value.ends_with(' '), "{}", name);
    }

    #[test]
    fn whatever_a_client_calls_itself_is_one_value_of_a_filter(user in "(?s).{0,40}|[()*&|!\\\\\0]{1,9}") {
        let filter = Template::user_filter("(uid={user})").unwrap().filled(&user, "");
        prop_assert_eq!(read_filter(&filter), user.into_bytes());
        prop_assert!(ldap3::parse_filter(&filter).is_ok(), "{}", filter);
    }
}

#[test]
fn one_spelling_of_a_name_may_log_in() {
    for user in ["anna", "anna.b-1", "press 7", "anna@plant.example", "plant\\anna"] {
        assert!(ask::is_spelt_plainly(user), "{user}");
    }
    for user in [
        "Anna",
        "ANNA",
        " anna",
        "anna ",
        "press  7",
        "m\u{fc}ller",
        "stra\u{df}e",
        "\u{ff41}nna",
        "an\u{ad}na",
        "an\tna",
    ] {
        assert!(!ask::is_spelt_plainly(user), "{user:?}");
    }
}

#[tokio::test]
async fn an_empty_password_never_reaches_the_directory() {
    // Nobody listens there: asking would say that the directory is away.
    let config = Config {
        url: "ldap://127.0.0.1:1".parse().unwrap(),
        starttls: false,
        ca: None,
        timeout: Duration::from_secs(5),
        connections_max: 1,
        cache: Duration::ZERO,
        find: Find::ByName(Template::name("uid={user}").unwrap()),
        groups: None,
    };
    let ldap = std::sync::Arc::new(Ldap::open(&config, crate::clock::system()));
    let check = async |user: &str, password: &[u8]| ldap.check(user, password).await;
    assert_eq!(check("anna", b"").await, Verdict::Bad("the password is empty".to_owned()));
    assert!(matches!(check("anna", b"\xFF").await, Verdict::Bad(_)));
    assert!(matches!(check("", b"secret").await, Verdict::Bad(_)));
    assert!(matches!(check(&"a".repeat(300), b"secret").await, Verdict::Bad(_)));
    assert_eq!(check("ANNA", b"secret").await, Verdict::Bad(ask::PLAINLY.to_owned()));
    assert!(matches!(check("anna", b"secret").await, Verdict::Away(_)));
}

/// A directory that says yes to whoever's bind holds `secret`, and counts the binds.
async fn directory() -> (std::net::SocketAddr, std::sync::Arc<AtomicUsize>, tokio::task::JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, binds) = (listener.local_addr().unwrap(), std::sync::Arc::new(AtomicUsize::new(0)));
    let count = std::sync::Arc::clone(&binds);
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(async move {
        // A login at a time, as the test makes them.
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut message = [0; 512];
            while let Ok(bytes @ 7..) = stream.read(&mut message).await {
                // BindRequest is [APPLICATION 0] (RFC 4511 section 4.2); an answer repeats the message's id.
                let (id, kind) = (message[4], message[5]);
                if kind != 0x60 {
                    break;
                }
                count.fetch_add(1, Ordering::Relaxed);
                let is_right = message[..bytes].windows(6).any(|part| part == b"secret");
                let code = if is_right { 0 } else { 49 };
                let answer = [0x30, 0x0c, 0x02, 0x01, id, 0x61, 0x07, 0x0a, 0x01, code, 0x04, 0x00, 0x04, 0x00];
                stream.write_all(&answer).await.unwrap();
            }
        }
    });
    (address, binds, serving)
}

#[tokio::test]
async fn what_the_directory_said_is_remembered_for_that_user_and_password_alone() {
    let (address, binds, serving) = directory().await;
    let config = |cache| Config {
        url: format!("ldap://{address}").parse().unwrap(),
        starttls: false,
        ca: None,
        timeout: Duration::from_secs(20),
        cache,
        connections_max: 1,
        find: Find::ByName(Template::name("uid={user}").unwrap()),
        groups: None,
    };
    let open = |cache| std::sync::Arc::new(Ldap::open(&config(cache), crate::clock::system()));
    let forgetful = open(Duration::ZERO);
    for _ in 0..2 {
        assert_eq!(forgetful.check("anna", b"secret").await, Verdict::Good(Vec::new()));
    }
    assert_eq!(binds.load(Ordering::Relaxed), 2);
    let ldap = open(Duration::from_secs(3_600));
    for _ in 0..3 {
        assert_eq!(ldap.check("anna", b"secret").await, Verdict::Good(Vec::new()));
        assert!(matches!(ldap.check("anna", b"wrong").await, Verdict::Bad(_)));
        assert_eq!(ldap.check("ann", b"asecret").await, Verdict::Good(Vec::new()), "another user, asked for itself");
    }
    assert_eq!(binds.load(Ordering::Relaxed), 2 + 3);
    drop(serving);
    assert_eq!(ldap.check("anna", b"secret").await, Verdict::Good(Vec::new()), "remembered while it is away");
    assert!(matches!(ldap.check("ben", b"secret").await, Verdict::Away(_)));
    assert!(matches!(ldap.check("ben", b"secret").await, Verdict::Away(_)), "an absence is not remembered");
}
