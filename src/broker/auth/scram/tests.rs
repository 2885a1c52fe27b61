//! RFC 7677's own exchange, and what must not get through.

use proptest::prelude::*;

use super::*;

const USER: &str = "user";
const PASSWORD: &str = "pencil";
const CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
const OURS: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
const CLIENT_FINAL: &str =
    "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

fn entry() -> Entry {
    Entry::of_password(PASSWORD, &STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(), 4_096).unwrap()
}

fn challenge(first: &str, entry: Option<Entry>) -> (String, Challenge) {
    Begun::parse(first.as_bytes()).unwrap().challenge(entry, || fake_entry(b"secret", USER, 4_096), OURS)
}

/// What a client that knows `password` answers.
pub(in crate::broker) fn answer(password: &str, first: &str, server_first: &str) -> String {
    let (header, bare) = first.split_once(",n=").map(|(head, rest)| (format!("{head},"), format!("n={rest}"))).unwrap();
    let attribute = |mark: &str| server_first.split(',').find_map(|part| part.strip_prefix(mark)).unwrap();
    let salt = STANDARD.decode(attribute("s=")).unwrap();
    let rounds = std::num::NonZeroU32::new(attribute("i=").parse().unwrap()).unwrap();
    let mut salted = [0; 32];
    ring::pbkdf2::derive(ring::pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &mut salted);
    let sign = |key: &[u8], message: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    let client_key = sign(&salted, b"Client Key");
    let stored = digest::digest(&digest::SHA256, client_key.as_ref());
    let before = format!("c={},r={}", STANDARD.encode(header), attribute("r="));
    let signature = sign(stored.as_ref(), format!("{bare},{server_first},{before}").as_bytes());
    let proof: Vec<u8> = client_key.as_ref().iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
    format!("{before},p={}", STANDARD.encode(proof))
}

#[test]
fn the_exchange_of_rfc_7677_goes_as_it_says() {
    let begun = Begun::parse(CLIENT_FIRST.as_bytes()).unwrap();
    assert_eq!(begun.user(), USER);
    let (first, challenge) = challenge(CLIENT_FIRST, Some(entry()));
    assert_eq!(first, SERVER_FIRST);
    assert_eq!(answer(PASSWORD, CLIENT_FIRST, &first), CLIENT_FINAL);
    assert_eq!(challenge.finish(CLIENT_FINAL.as_bytes()), Ok(SERVER_FINAL.to_owned()));
}

#[test]
fn an_entry_is_read_back_from_its_text_and_shows_nothing() {
    let text = entry().to_text();
    assert!(Entry::is_one(&text) && !Entry::is_one("$argon2id$v=19$"));
    assert_eq!(Entry::parse(&text), Ok(entry()));
    assert!(entry().is_of(PASSWORD) && !entry().is_of("pencils"));
    assert_eq!(format!("{:?}", entry()), "Entry { iterations: 4096, .. }");
}

#[test]
fn an_entry_that_is_damaged_is_told_apart() {
    let good = entry().to_text();
    for (text, wrong) in [
        (good.replace("$4096$", "$4095$"), EntryError::Iterations),
        (good.replace("$4096$", "$many$"), EntryError::Iterations),
        (good.replace("$4096$", "$10000001$"), EntryError::Iterations),
        (good.replace("W22Z", "W2"), EntryError::Salt),
        (format!("{good}$"), EntryError::Form),
        (good.rsplit_once('$').unwrap().0.to_owned(), EntryError::Form),
        (format!("{}AA==", good.trim_end_matches('=')), EntryError::Key),
        ("$7$101$x$y".to_owned(), EntryError::Form),
    ] {
        assert_eq!(Entry::parse(&text), Err(wrong), "{text}");
    }
}

#[test]
fn passwords_are_prepared_as_rfc_4013_says() {
    let made = |password| Entry::of_password(password, b"saltsalt", ITERATIONS_MIN);
    // RFC 4013 section 3: a soft hyphen goes, a Roman numeral becomes letters, a bell is forbidden.
    assert_eq!(made("I\u{AD}X"), made("IX"));
    assert_eq!(made("\u{2168}"), made("IX"));
    assert_eq!(made("\u{7}"), Err(EntryError::Password));
}

#[test]
fn a_first_message_that_is_not_right_is_refused() {
    for (message, wrong) in [
        ("", "no GS2 header"),
        ("n", "no GS2 header"),
        ("n,", "no end"),
        ("x,,n=user,r=a", "neither n, y nor p"),
        ("n,,r=a", "names no user"),
        ("n,,m=x,n=user,r=a", "names no user"),
        ("n,,n=,r=a", "empty"),
        ("n,,n=a=41,r=a", "neither =2C nor =3D"),
        ("n,,n=user", "no nonce"),
        ("n,,n=user,r=", "printable"),
        ("n,,n=user,r=a\u{e9}", "printable"),
    ] {
        let Err(ScramError::Malformed(text)) = Begun::parse(message.as_bytes()) else { panic!("{message}") };
        assert!(text.contains(wrong), "{message}: {text}");
    }
    assert_eq!(Begun::parse(b"p=tls-exporter,,n=user,r=a"), Err(ScramError::ChannelBinding));
    assert_eq!(Begun::parse(b"n,a=admin,n=user,r=a"), Err(ScramError::ActAs));
    assert_eq!(Begun::parse(b"n,a=user,n=user,r=a").unwrap().user(), "user");
    assert_eq!(Begun::parse(b"y,,n=a=2Cb=3Dc,r=a,x=more").unwrap().user(), "a,b=c");
    assert_eq!(Begun::parse(b"n,,n=\xFF,r=a"), Err(ScramError::Malformed("it is no text")));
    assert!(Begun::parse(format!("n,,n=user,r={}", "a".repeat(4_096)).as_bytes()).is_err());
}

#[test]
fn a_last_message_that_is_not_right_is_refused() {
    for (message, wrong) in [
        (CLIENT_FINAL.replace("c=biws", "c=eSws"), "not the header"),
        (CLIENT_FINAL.replace("c=biws,", ""), "no c="),
        (CLIENT_FINAL.replace("hvYD", "hvYE"), "not the one of this exchange"),
        (CLIENT_FINAL.replace(",p=", ",q="), "no proof"),
        (CLIENT_FINAL.replace("dHzb", "d*zb"), "not base64"),
    ] {
        let Err(ScramError::Malformed(text)) = challenge(CLIENT_FIRST, Some(entry())).1.finish(message.as_bytes())
        else {
            panic!("{message}")
        };
        assert!(text.contains(wrong), "{message}: {text}");
    }
    for proof in ["dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVU=", "dHzb", ""] {
        let message = format!("{}{proof}", CLIENT_FINAL.split_once("dHzb").unwrap().0);
        assert_eq!(
            challenge(CLIENT_FIRST, Some(entry())).1.finish(message.as_bytes()),
            Err(ScramError::Proof),
            "{proof}"
        );
    }
}

#[test]
fn who_does_not_exist_gets_a_challenge_like_any_other_and_fails() {
    let salt_of = |user: &str| fake_entry(b"secret", user, 4_096).salt().to_vec();
    assert_eq!(salt_of("eve"), salt_of("eve"));
    assert_ne!(salt_of("eve"), salt_of("mallory"));
    assert_ne!(salt_of("eve"), fake_entry(b"another", "eve", 4_096).salt());
    let (first, challenge) = challenge(CLIENT_FIRST, None);
    assert_eq!(first.len(), SERVER_FIRST.len());
    let message = answer("", CLIENT_FIRST, &first);
    assert_eq!(challenge.finish(message.as_bytes()), Err(ScramError::Proof));
}

proptest! {
    #[test]
    fn whoever_knows_the_password_gets_in_and_nobody_else(
        user in "[^\0]{1,20}", password in "[ -~]{1,20}", other in "[ -~]{1,20}",
    ) {
        let escaped = user.replace('=', "=3D").replace(',', "=2C");
        let first = format!("n,,n={escaped},r=abc");
        // Not every text is a name (RFC 4013).
        let Ok(name) = prepared(&user) else {
            prop_assert!(Begun::parse(first.as_bytes()).is_err());
            return Ok(());
        };
        let begun = Begun::parse(first.as_bytes()).unwrap();
        prop_assert_eq!(begun.user(), &*name);
        // Few iterations: an entry that a file could not hold.
        let made = Entry::quick(&password);
        for (given, is_right) in [(&password, true), (&other, other == password)] {
            let (server_first, challenge) = begun.clone().challenge(Some(made.clone()), || unreachable!(), "xyz");
            let end = challenge.finish(answer_of(given, &escaped, &server_first).as_bytes());
            prop_assert_eq!(end.is_ok(), is_right);
        }
    }

    #[test]
    fn no_message_makes_it_panic(first: Vec<u8>, last: Vec<u8>, text in ".{0,60}") {
        for first in [first.as_slice(), text.as_bytes(), format!("n,,n={text}").as_bytes()] {
            drop(Begun::parse(first));
        }
        for last in [last.as_slice(), text.as_bytes(), format!("c=biws,r=rOprNGfwEbeRWgbNEkqO{OURS},p={text}").as_bytes()] {
            prop_assert!(challenge(CLIENT_FIRST, Some(Entry::quick("a"))).1.finish(last).is_err());
        }
    }
}

fn answer_of(password: &str, escaped: &str, server_first: &str) -> String {
    answer(password, &format!("n,,n={escaped},r=abc"), server_first)
}

/// RFC 4013 section 3 has the examples.
#[test]
fn names_are_compared_as_saslprep_makes_them_and_those_that_it_prohibits_are_refused() {
    for (name, user) in [
        ("I\u{AD}X", Some("IX")),
        ("user", Some("user")),
        ("USER", Some("USER")),
        ("\u{AA}", Some("a")),
        ("\u{2168}", Some("IX")),
        ("m\u{75}\u{308}ller", Some("m\u{FC}ller")),
        ("a\u{A0}b", Some("a b")),
        ("a=2Cb=3D", Some("a,b=")),
        ("\u{7}", None),
        ("\u{627}1", None),
        ("\u{AD}", None),
        ("", None),
    ] {
        let begun = Begun::parse(format!("n,,n={name},r=abc").as_bytes());
        assert_eq!(begun.as_ref().ok().map(Begun::user), user, "{name:?}");
    }
}
