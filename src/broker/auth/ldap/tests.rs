//! What a client says stays a value, whatever it is: names and filters are read back by readers of our own.

use proptest::prelude::*;

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
        find: Find::ByName(Template::name("uid={user}").unwrap()),
        groups: None,
    };
    let ldap = std::sync::Arc::new(Ldap::open(&config));
    let check = async |user: &str, password: &[u8]| ldap.check(user, password).await;
    assert_eq!(check("anna", b"").await, Verdict::Bad("the password is empty".to_owned()));
    assert!(matches!(check("anna", b"\xFF").await, Verdict::Bad(_)));
    assert!(matches!(check("", b"secret").await, Verdict::Bad(_)));
    assert!(matches!(check(&"a".repeat(300), b"secret").await, Verdict::Bad(_)));
    assert_eq!(check("ANNA", b"secret").await, Verdict::Bad(ask::PLAINLY.to_owned()));
    assert!(matches!(check("anna", b"secret").await, Verdict::Away(_)));
}
