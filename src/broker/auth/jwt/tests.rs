//! Tokens of every algorithm, the RFCs' own among them; and what must not get in.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::{hmac, signature};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::keys::{self, Key, KeyError};
use super::token::{Token, TokenError, looks_like_one};
use super::*;

const NOW: WallMs = WallMs(1_700_000_000_000);
pub(in crate::broker) const NOW_S: u64 = NOW.0 / 1_000;
const SECRET: &[u8] = b"a secret of more than thirty-two bytes";

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("../../../../tests/fixtures/jwt/", $name))
    };
}

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn der(pem: &str) -> Vec<u8> {
    PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).unwrap().secret_pkcs8_der().to_vec()
}

/// Signs as a provider would.
fn signed(algorithm: Algorithm, message: &[u8]) -> Vec<u8> {
    let random = SystemRandom::new();
    let rsa = |padding: &'static dyn signature::RsaEncoding| {
        let pair = signature::RsaKeyPair::from_pkcs8(&der(fixture!("rsa.key"))).unwrap();
        let mut signature = vec![0; pair.public().modulus_len()];
        pair.sign(padding, &random, message, &mut signature).unwrap();
        signature
    };
    let ec = |with: &'static signature::EcdsaSigningAlgorithm, pem| {
        let pair = signature::EcdsaKeyPair::from_pkcs8(with, &der(pem), &random).unwrap();
        pair.sign(&random, message).unwrap().as_ref().to_vec()
    };
    let mac = |with| hmac::sign(&hmac::Key::new(with, SECRET), message).as_ref().to_vec();
    match algorithm {
        Algorithm::Hs256 => mac(hmac::HMAC_SHA256),
        Algorithm::Hs384 => mac(hmac::HMAC_SHA384),
        Algorithm::Hs512 => mac(hmac::HMAC_SHA512),
        Algorithm::Rs256 => rsa(&signature::RSA_PKCS1_SHA256),
        Algorithm::Rs384 => rsa(&signature::RSA_PKCS1_SHA384),
        Algorithm::Rs512 => rsa(&signature::RSA_PKCS1_SHA512),
        Algorithm::Ps256 => rsa(&signature::RSA_PSS_SHA256),
        Algorithm::Ps384 => rsa(&signature::RSA_PSS_SHA384),
        Algorithm::Ps512 => rsa(&signature::RSA_PSS_SHA512),
        Algorithm::Es256 => ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, fixture!("p256.key")),
        Algorithm::Es384 => ec(&signature::ECDSA_P384_SHA384_FIXED_SIGNING, fixture!("p384.key")),
        Algorithm::EdDsa => {
            let pair = signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der(fixture!("ed25519.key"))).unwrap();
            pair.sign(message).as_ref().to_vec()
        }
    }
}

fn token_with(header: &Value, algorithm: Algorithm, payload: &Value) -> String {
    let signed_part = format!("{}.{}", encoded(header.to_string()), encoded(payload.to_string()));
    format!("{signed_part}.{}", encoded(signed(algorithm, signed_part.as_bytes())))
}

/// A token for anna that is good for an hour.
pub(in crate::broker) fn token(algorithm: Algorithm) -> String {
    token_of(&json!({ "sub": "anna", "exp": NOW_S + 3_600 }), algorithm)
}

fn token_of(payload: &Value, algorithm: Algorithm) -> String {
    token_with(&json!({ "alg": algorithm.name(), "typ": "JWT" }), algorithm, payload)
}

/// The same, with the name of a key that [`public_jwk`] has.
pub(in crate::broker) fn named_token(key: &str) -> String {
    named_token_until(key, NOW_S + 3_600)
}

/// Good until then, in seconds since 1970.
pub(in crate::broker) fn named_token_until(key: &str, until_s: u64) -> String {
    let header = json!({ "alg": "ES256", "kid": key });
    token_with(&header, Algorithm::Es256, &json!({ "sub": "anna", "exp": until_s }))
}

/// The public key of [`named_token`], under a name.
pub(in crate::broker) fn public_jwk(name: &str) -> Value {
    let spki = rustls_pki_types::SubjectPublicKeyInfoDer::from_pem_slice(fixture!("p256.pub").as_bytes()).unwrap();
    // Behind the algorithm and the mark of an uncompressed point.
    let (x, y) = spki[27..].split_at(32);
    json!({ "kty": "EC", "crv": "P-256", "kid": name, "use": "sig", "x": encoded(x), "y": encoded(y) })
}

fn key_for(algorithm: Algorithm) -> Vec<Key> {
    let pem = |text: &str| keys::of_pem(text.as_bytes()).unwrap();
    match algorithm {
        Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => keys::of_secret(SECRET).unwrap(),
        Algorithm::Es256 => pem(fixture!("p256.pub")),
        Algorithm::Es384 => pem(fixture!("p384.pub")),
        Algorithm::EdDsa => pem(fixture!("ed25519.pub")),
        Algorithm::Rs256
        | Algorithm::Rs384
        | Algorithm::Rs512
        | Algorithm::Ps256
        | Algorithm::Ps384
        | Algorithm::Ps512 => pem(fixture!("rsa.pub")),
    }
}

fn check(token: &str, keys: &[Key], terms: &Terms, user: Option<&str>) -> Result<Claims, TokenError> {
    let token = Token::parse(token.as_bytes())?;
    token.verify(keys, terms)?;
    token.claims(terms, NOW, user)
}

#[test]
fn a_token_of_each_algorithm_is_taken_by_its_own_kind_of_key_alone() {
    for (name, algorithm) in Algorithm::ALL {
        let token = token(algorithm);
        let claims = check(&token, &key_for(algorithm), &Terms::default(), None).unwrap();
        assert_eq!((&*claims.user, claims.groups.len(), claims.rules), ("anna", 0, None), "{name}");
        assert_eq!(claims.expires, Some(WallMs(NOW.0 + 3_630_000)), "the leeway is part of it");
        for (_, other) in Algorithm::ALL {
            let keys = key_for(other);
            if !keys[0].fits(None, algorithm) {
                let error = check(&token, &keys, &Terms::default(), None).unwrap_err();
                assert_eq!(error, TokenError::Algorithm(name.to_owned()), "a key for {other:?}");
            }
        }
    }
}

#[test]
fn the_tokens_of_the_rfcs_are_verified() {
    const JOE: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    for (name, key, token) in [
        (
            "RFC 7515 A.1",
            json!({ "kty": "oct", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow" }),
            format!("eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{JOE}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
        ),
        (
            "RFC 7515 A.3",
            json!({ "kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
                "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0" }),
            format!("eyJhbGciOiJFUzI1NiJ9.{JOE}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"),
        ),
        (
            "RFC 8037 A.4",
            json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" }),
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg".to_owned(),
        ),
    ] {
        let keys = keys::of_jwks(json!({ "keys": [key] }).to_string().as_bytes(), true).unwrap();
        let token = Token::parse(token.as_bytes()).unwrap();
        assert_eq!(token.verify(&keys, &Terms::default()), Ok(()), "{name}");
    }
}

#[test]
fn a_token_that_says_none_or_that_nobody_signed_is_refused() {
    let payload = json!({ "sub": "anna", "exp": NOW_S + 3_600 });
    let keys = key_for(Algorithm::Rs256);
    for name in ["none", "None", "NONE", "", "RS257", "rs256", "HS256 "] {
        let parts = format!("{}.{}.", encoded(json!({ "alg": name }).to_string()), encoded(payload.to_string()));
        assert_eq!(check(&parts, &keys, &Terms::default(), None), Err(TokenError::Algorithm(name.to_owned())));
    }
    let parts = format!("{}.{}.", encoded(r#"{"alg":"RS256"}"#), encoded(payload.to_string()));
    assert_eq!(check(&parts, &keys, &Terms::default(), None), Err(TokenError::Signature));
    // The classic: the public key's text as the secret of an HMAC.
    let signed_part = format!("{}.{}", encoded(r#"{"alg":"HS256"}"#), encoded(payload.to_string()));
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, fixture!("rsa.pub").as_bytes()), signed_part.as_bytes());
    let confused = format!("{signed_part}.{}", encoded(mac));
    assert_eq!(check(&confused, &keys, &Terms::default(), None), Err(TokenError::Algorithm("HS256".to_owned())));
}

#[test]
fn the_header_is_read_with_care() {
    let (payload, keys) = (json!({ "sub": "anna", "exp": NOW_S + 3_600 }), key_for(Algorithm::Es256));
    let with = |header: Value| check(&token_with(&header, Algorithm::Es256, &payload), &keys, &Terms::default(), None);
    assert!(with(json!({ "alg": "ES256", "kid": "any" })).is_ok(), "a PEM key has no name");
    assert_eq!(with(json!({ "alg": "ES256", "crit": ["exp"] })), Err(TokenError::Critical));
    assert_eq!(with(json!({ "alg": "ES256", "kid": 7 })), Err(TokenError::Malformed("its `kid` is no text")));
    assert_eq!(with(json!({ "alg": ["ES256"] })), Err(TokenError::Algorithm(String::new())));
    let only = Terms { algorithms: vec![Algorithm::Es384], ..Terms::default() };
    assert_eq!(check(&token(Algorithm::Es256), &keys, &only, None), Err(TokenError::Algorithm("ES256".to_owned())));
}

#[test]
fn a_key_of_a_set_is_found_by_its_name_and_held_to_its_algorithm() {
    let point = |key: &str| {
        let [one] = &keys::of_pem(key.as_bytes()).unwrap()[..] else { panic!("one key") };
        assert!(format!("{one:?}").contains("P-256"), "its kind alone is shown");
    };
    point(fixture!("p256.crt"));
    let public = |name: &str, alg: Option<&str>| {
        let mut key = public_jwk(name);
        key["alg"] = json!(alg);
        key
    };
    let other =
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": "old", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" });
    let unknown = json!({ "kty": "AKP", "kid": "future" });
    let set = json!({ "keys": [unknown, other, public("new", Some("ES256"))] }).to_string();
    let keys = keys::of_jwks(set.as_bytes(), false).unwrap();
    let with = |header: Value| {
        check(
            &token_with(&header, Algorithm::Es256, &json!({ "sub": "a", "exp": NOW_S + 9 })),
            &keys,
            &Terms::default(),
            None,
        )
    };
    assert!(with(json!({ "alg": "ES256", "kid": "new" })).is_ok());
    assert!(with(json!({ "alg": "ES256" })).is_ok());
    assert_eq!(with(json!({ "alg": "ES256", "kid": "old" })), Err(TokenError::Algorithm("ES256".to_owned())));
    assert_eq!(with(json!({ "alg": "ES256", "kid": "newer" })), Err(TokenError::UnknownKey(Some("newer".to_owned()))));
    for (key, wrong) in [
        (public("a", Some("RS256")), "another kind"),
        (public("a", Some("ES512")), "unknown algorithm"),
        (json!({ "kty": "EC", "crv": "P-256", "use": "enc", "x": "", "y": "" }), "not for signatures"),
        (json!({ "kty": "EC", "crv": "P-256", "key_ops": ["sign"], "x": "", "y": "" }), "not for signatures"),
        (json!({ "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA" }), "P-256 and P-384"),
        (json!({ "kty": "EC", "crv": "P-256", "x": "AA" }), "not complete"),
        (json!({ "kty": "RSA", "n": "AQAB", "e": "AQAB" }), "17 bits"),
        (json!({ "kty": "OKP", "crv": "Ed25519", "x": "*" }), "base64url"),
        (json!({ "kty": "oct", "k": encoded(SECRET) }), "a secret"),
        (json!({ "kid": "a" }), "kty"),
    ] {
        let error = keys::of_jwks(json!({ "keys": [key] }).to_string().as_bytes(), false).unwrap_err().to_string();
        assert!(error.contains(wrong), "{error}");
    }
    assert!(matches!(keys::of_jwks(b"<html>", false), Err(KeyError::NoJwks(_))));
    assert!(matches!(keys::of_jwks(b"{\"keys\": []}", false), Err(KeyError::NoUsableJwk(_))));
}

#[test]
fn a_file_that_holds_no_usable_key_is_told_apart() {
    let of = |text: &str| keys::of_pem(text.as_bytes()).map(|keys| keys.len());
    assert_eq!(of(fixture!("p256.crt")), Ok(1));
    assert_eq!(of(&[fixture!("p256.pub"), fixture!("rsa.pub"), fixture!("ed25519.pub")].concat()), Ok(3));
    assert_eq!(of(fixture!("rsa.key")), Err(KeyError::PrivateKey));
    assert_eq!(of(fixture!("short-rsa.pub")), Err(KeyError::ShortRsa(1_024)));
    assert!(matches!(of(fixture!("p521.pub")), Err(KeyError::Unsupported(_))));
    assert_eq!(of("secret"), Err(KeyError::NoPem));
    assert!(of(&fixture!("p256.pub").replace("MFkw", "MFkx")).is_err());
    assert_eq!(keys::of_secret(b"short").map(drop), Err(KeyError::ShortSecret(5)));
}

#[test]
fn times_count_with_the_leeway() {
    let terms = Terms { leeway: Duration::from_secs(30), ..Terms::default() };
    let at = |payload: Value| check(&token_of(&payload, Algorithm::EdDsa), &key_for(Algorithm::EdDsa), &terms, None);
    let claims = |more: Value| {
        let mut payload = json!({ "sub": "anna", "exp": NOW_S + 60 });
        payload.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        at(payload)
    };
    assert!(claims(json!({ "exp": NOW_S - 29 })).is_ok());
    assert_eq!(claims(json!({ "exp": NOW_S - 30 })), Err(TokenError::Expired(Duration::from_secs(30))));
    assert!(claims(json!({ "nbf": NOW_S + 30, "iat": NOW_S + 30 })).is_ok());
    assert_eq!(claims(json!({ "nbf": NOW_S + 31 })), Err(TokenError::NotYet(Duration::from_secs(31))));
    assert_eq!(claims(json!({ "iat": NOW_S + 31 })), Err(TokenError::NotYet(Duration::from_secs(31))));
    assert_eq!(
        claims(json!({ "exp": 1.5e9 + 0.5 })).unwrap_err(),
        TokenError::Expired(Duration::from_millis(199_999_999_500))
    );
    for wrong in [json!("soon"), json!(-1), json!(1e300), json!([1])] {
        assert!(matches!(claims(json!({ "exp": wrong })), Err(TokenError::Claim(..))), "{wrong}");
    }
    assert_eq!(claims(json!({ "exp": u64::MAX })).unwrap().expires, Some(WallMs(u64::MAX)));
    assert_eq!(at(json!({ "sub": "anna" })), Err(TokenError::NoExpiry));
    let lax = Terms { require_expiry: false, ..terms.clone() };
    let claims = check(&token_of(&json!({ "sub": "anna" }), Algorithm::EdDsa), &key_for(Algorithm::EdDsa), &lax, None);
    assert_eq!(claims.unwrap().expires, None);
}

#[test]
fn issuer_audience_and_user_have_to_fit() {
    let terms = Terms {
        issuer: Some("https://id.example".into()),
        audience: vec!["mqtt".into(), "edge".into()],
        user_claim: "preferred_username".into(),
        ..Terms::default()
    };
    let good =
        json!({ "iss": "https://id.example", "aud": ["web", "edge"], "preferred_username": "anna", "exp": NOW_S + 9 });
    let with = |terms: &Terms, user, changes: Value| {
        let mut payload = good.clone();
        payload.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        check(&token_of(&payload, Algorithm::EdDsa), &key_for(Algorithm::EdDsa), terms, user)
    };
    assert_eq!(&*with(&terms, None, json!({})).unwrap().user, "anna");
    assert!(with(&terms, Some("anna"), json!({ "aud": "mqtt" })).is_ok());
    assert_eq!(with(&terms, Some("ben"), json!({})), Err(TokenError::OtherUser));
    assert_eq!(
        with(&terms, None, json!({ "iss": "https://id.example/" })).unwrap_err().to_string(),
        "the token's issuer is `https://id.example/`, not the one of `issuer`"
    );
    assert!(matches!(with(&terms, None, json!({ "iss": null })), Err(TokenError::Issuer(_))));
    assert!(matches!(with(&terms, None, json!({ "aud": ["web", 7] })), Err(TokenError::Audience(_))));
    assert!(matches!(with(&terms, None, json!({ "aud": 7 })), Err(TokenError::Claim(..))));
    let nobody = Terms { audience: Vec::new(), ..terms.clone() };
    assert!(matches!(with(&nobody, None, json!({})), Err(TokenError::Audience(_))), "a token for somebody else");
    for wrong in [json!(""), json!(7), json!("a\u{0}b"), json!(null)] {
        assert!(
            matches!(with(&terms, None, json!({ "preferred_username": wrong })), Err(TokenError::Claim(..))),
            "{wrong}"
        );
    }
}

#[test]
fn groups_and_rules_come_from_the_claims_that_are_named() {
    let terms =
        Terms { groups_claim: Some("realm_access.roles".into()), acl_claim: Some("mqtt".into()), ..Terms::default() };
    let with = |more: Value| {
        let mut payload = json!({ "sub": "anna", "exp": NOW_S + 9 });
        payload.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        check(&token_of(&payload, Algorithm::EdDsa), &key_for(Algorithm::EdDsa), &terms, None)
    };
    let groups = |more| with(more).unwrap().groups;
    assert_eq!(groups(json!({ "realm_access": { "roles": ["a", "b"] } })), ["a".into(), "b".into()]);
    assert_eq!(groups(json!({ "realm_access.roles": "a b" })), ["a".into(), "b".into()]);
    assert!(groups(json!({ "realm_access": {} })).is_empty());
    assert!(matches!(with(json!({ "realm_access": { "roles": [1] } })), Err(TokenError::Claim(..))));
    assert!(with(json!({ "mqtt": { "publish": ["a/#"] } })).unwrap().rules.is_some());
    assert!(with(json!({})).unwrap().rules.is_none());
    // Rules that are not understood might have denied something.
    assert!(matches!(with(json!({ "mqtt": { "publishes": ["a/#"] } })), Err(TokenError::Claim(..))));
    assert!(matches!(with(json!({ "mqtt": "a/#" })), Err(TokenError::Claim(..))));
}

#[test]
fn only_what_has_the_form_of_a_token_is_judged_as_one() {
    for (password, is_one) in [
        (token(Algorithm::Hs256), true),
        (format!("{}..", encoded("{}")), true),
        ("a.b.c".to_owned(), false),
        ("secret".to_owned(), false),
        (format!("{}.a", encoded("{}")), false),
        (format!("{}.a.b.c", encoded("{}")), false),
        (String::new(), false),
    ] {
        assert_eq!(looks_like_one(password.as_bytes()), is_one, "{password}");
    }
    assert!(!looks_like_one(b"\xFF.a.b"));
    assert!(matches!(Token::parse(&vec![b'a'; 20_000]), Err(TokenError::Malformed(_))));
}

proptest! {
    #[test]
    fn no_password_makes_it_panic_or_gets_in(bytes: Vec<u8>, header in ".{0,40}", payload in ".{0,40}", tail in "[a-zA-Z0-9_.-]{0,20}") {
        let keys = key_for(Algorithm::EdDsa);
        let texts = [format!("{}.{}.{tail}", encoded(&header), encoded(&payload)), format!("{}.{}.{tail}", encoded(r#"{"alg":"EdDSA"}"#), encoded(&payload))];
        for password in [bytes.as_slice(), texts[0].as_bytes(), texts[1].as_bytes()] {
            looks_like_one(password);
            if let Ok(token) = Token::parse(password) {
                prop_assert!(token.verify(&keys, &Terms::default()).is_err());
                drop(token.claims(&Terms::default(), NOW, None));
            }
        }
    }

    #[test]
    fn a_token_that_was_changed_anywhere_is_refused(at: prop::sample::Index, letter in "[a-zA-Z0-9_-]") {
        let good = token(Algorithm::EdDsa);
        let at = at.index(good.len());
        let mut changed = good.clone();
        changed.replace_range(at..=at, &letter);
        let is_other = |a: &str, b: &str| a.split('.').map(|part| URL_SAFE_NO_PAD.decode(part)).ne(b.split('.').map(|part| URL_SAFE_NO_PAD.decode(part)));
        if changed != good && is_other(&good, &changed) {
            prop_assert!(check(&changed, &key_for(Algorithm::EdDsa), &Terms::default(), None).is_err());
        }
    }
}
