//! What answers mean, and which of them are remembered.

use super::answer::Grant;
use super::*;
use crate::clock::{WallMs, now};

const NOW: WallMs = WallMs(1_000_000);

fn read(status: u16, body: &str) -> Answer {
    Answer::read(hyper::StatusCode::from_u16(status).unwrap(), body.as_bytes(), NOW)
}

#[test]
fn an_answer_decides_only_where_it_is_clear() {
    for (status, body, kind) in [
        (200, r#"{"allow": true}"#, "allow"),
        (
            200,
            r#"{"allow": true, "groups": ["a"], "acl": {"publish": ["a/#"]}, "expires_in": 60, "user": "b"}"#,
            "allow",
        ),
        (200, r#"{"allow": true, "user": "", "acl": null}"#, "allow"),
        (200, r#"{"allow": false}"#, "deny"),
        (200, r#"{"allow": false, "reason": "locked"}"#, "deny"),
        (401, "", "deny"),
        (403, "<html>", "deny"),
        (400, "", "deny"),
        (404, r#"{"allow": true}"#, "unknown"),
        (200, "", "away"),
        (200, "yes", "away"),
        (200, r#"{"allow": "true"}"#, "away"),
        (200, r#"{"groups": ["admins"]}"#, "away"),
        (200, r#"{"allow": true, "alow": true}"#, "away"),
        (200, r#"{"allow": true, "acl": {"publsh": []}}"#, "away"),
        (200, r#"{"allow": true, "acl": ["a/#"]}"#, "away"),
        (200, r#"{"allow": true, "expires_in": -1}"#, "away"),
        (200, r#"{"allow": true, "user": "a\u0000"}"#, "away"),
        (204, "", "away"),
        (302, "", "away"),
        (408, "", "away"),
        (429, "", "away"),
        (500, "", "away"),
        (503, r#"{"allow": true}"#, "away"),
    ] {
        let meant = match read(status, body) {
            Answer::Allow(_) => "allow",
            Answer::Deny(_) => "deny",
            Answer::Unknown => "unknown",
            Answer::Away(_) => "away",
        };
        assert_eq!(meant, kind, "{status} {body}");
    }
}

#[test]
fn a_grant_carries_all_that_the_answer_gives() {
    let Answer::Allow(grant) = read(
        200,
        r#"{"allow": true, "groups": ["a", "b"], "acl": {"publish": "a/#"}, "expires_in": 60, "user": "ben"}"#,
    ) else {
        panic!("not allowed")
    };
    assert_eq!((grant.user.as_deref(), grant.groups.len(), grant.rules.is_some()), (Some("ben"), 2, true));
    assert_eq!(grant.expires, Some(WallMs(NOW.0 + 60_000)));
    let Answer::Allow(grant) = read(200, &format!(r#"{{"allow": true, "expires_in": {}}}"#, u64::MAX)) else {
        panic!("not allowed")
    };
    assert_eq!(grant.expires, Some(WallMs(u64::MAX)));
    assert_eq!(
        read(200, "{\"allow\": false, \"reason\": \"a\\nb\"}"),
        Answer::Deny("ab".to_owned()),
        "one line of the log"
    );
}

#[test]
fn a_question_is_json_and_shows_no_password() {
    let of = |password| Question {
        client_id: "press-7",
        user: Some("anna"),
        password: PasswordText::of(password),
        address: Some("192.0.2.7:51234".to_owned()),
        listener: "0.0.0.0:8883".to_owned(),
        certificate: None,
        protocol: "5.0".to_owned(),
    };
    let json = |password| serde_json::to_value(of(password)).unwrap();
    assert_eq!(
        json(Some(b"hunter2")),
        serde_json::json!({
            "client_id": "press-7", "user": "anna", "password": "hunter2", "address": "192.0.2.7:51234",
            "listener": "0.0.0.0:8883", "certificate": null, "protocol": "5.0",
        })
    );
    assert_eq!(json(Some(b"\xFF"))["password_base64"], "/w==");
    assert_eq!(json(None)["password"], serde_json::Value::Null);
    assert!(!format!("{:?}", of(Some(b"hunter2"))).contains("hunter2"));
    assert_eq!(cached_part(&of(None)), cached_part(&Question { address: Some("192.0.2.7:9".to_owned()), ..of(None) }));
    assert_ne!(cached_part(&of(None)), cached_part(&Question { address: Some("192.0.2.8:9".to_owned()), ..of(None) }));
    assert_ne!(cached_part(&of(None)), cached_part(&of(Some(b""))));
}

#[test]
fn an_answer_is_remembered_for_its_time_and_no_longer() {
    let (cache, begun) = (Cache::new(Duration::from_secs(60)), now());
    let later = |seconds| begun + Duration::from_secs(seconds);
    let (yes, no) = (cache.key(b"right").unwrap(), cache.key(b"wrong").unwrap());
    assert_ne!(yes, no);
    cache.put(yes, &Answer::Allow(Grant { expires: Some(WallMs(NOW.0 + 30_000)), ..Grant::default() }), begun);
    cache.put(no, &Answer::Deny(String::new()), begun);
    cache.put(cache.key(b"away").unwrap(), &Answer::Away(String::new()), begun);
    assert!(matches!(cache.get(&yes, later(29), WallMs(NOW.0 + 29_000)), Some(Answer::Allow(_))));
    assert_eq!(cache.get(&yes, later(30), WallMs(NOW.0 + 30_000)), None, "its own expiry goes first");
    assert_eq!(cache.get(&no, later(59), NOW), Some(Answer::Deny(String::new())));
    assert_eq!(cache.get(&no, later(60), NOW), None);
    assert_eq!(cache.get(&cache.key(b"away").unwrap(), begun, NOW), None, "who is away is asked again");
    assert_ne!(Cache::<Answer>::new(Duration::from_secs(60)).key(b"right"), Some(yes), "each process has its own salt");
    assert_eq!(Cache::<Answer>::new(Duration::ZERO).key(b"right"), None);
}

#[test]
fn a_flood_of_wrong_passwords_pushes_out_no_right_one() {
    let (cache, begun) = (Cache::new(Duration::from_secs(60)), now());
    let yes = cache.key(b"right").unwrap();
    cache.put(yes, &Answer::Allow(Grant::default()), begun);
    for n in 0..10_100_u32 {
        cache.put(cache.key(&n.to_le_bytes()).unwrap(), &Answer::Deny(String::new()), begun);
    }
    assert!(cache.get(&yes, begun, NOW).is_some());
    assert!(cache.get(&cache.key(&10_099_u32.to_le_bytes()).unwrap(), begun, NOW).is_some(), "the last is there");
    assert_eq!(cache.len(), 10_001);
    cache.put(yes, &Answer::Deny(String::new()), begun);
    assert_eq!(cache.get(&yes, begun, NOW), Some(Answer::Deny(String::new())), "a newer answer takes the place");
}

#[test]
fn long_rules_for_many_clients_are_bounded_r36() {
    let (cache, begun) = (Cache::new(Duration::from_secs(60)), now());
    let pattern = "x/".repeat(100);
    let allow = vec![pattern.as_str(); 50];
    let body = serde_json::json!({"allow": true, "acl": {"publish": allow, "subscribe": allow}}).to_string();
    let Answer::Allow(grant) = read(200, &body) else { panic!("{:?}", read(200, &body)) };
    let own = grant.bytes();
    assert!(own > body.len(), "{own}: levels cost more than their letters");
    for n in 0..500_u32 {
        cache.put(cache.key(&n.to_le_bytes()).unwrap(), &Answer::Allow(grant.clone()), begun);
    }
    assert!(cache.len() > 10 && cache.len() * own <= 32 << 20, "{} of {own}", cache.len());
    assert!(cache.get(&cache.key(&499_u32.to_le_bytes()).unwrap(), begun, NOW).is_some(), "the last is there");
    for n in 0..500_u32 {
        cache.put(cache.key(&n.to_le_bytes()).unwrap(), &Answer::Unknown, begun);
    }
    assert_eq!((cache.len(), cache.bytes()), (500, 500 * 256), "what takes their place counts for itself");
}

#[test]
fn a_header_keeps_its_value_to_itself() {
    let (_, value) = header("Authorization", "Bearer hunter2").unwrap();
    assert!(!format!("{value:?}").contains("hunter2"));
    assert!(header("a b", "x").is_none() && header("a", "x\ny").is_none() && header("", "x").is_none());
}
