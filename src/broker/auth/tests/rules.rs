//! Rules: what they allow, by table and by naive references.

use std::sync::Arc;

use proptest::prelude::*;

use crate::broker::auth::acl::{Acl, Asks, Glob, Grants, Pattern, Rule, Subject, Verdicts, Who, Whom};
use crate::broker::auth::acl_file;
use crate::topic::{TopicFilter, TopicName, matches};

/// A rule as a test writes it.
#[derive(Clone, Debug, Default)]
struct Written {
    user: Option<&'static str>,
    client: Option<&'static str>,
    group: Option<&'static str>,
    anonymous: bool,
    publish: Vec<String>,
    subscribe: Vec<String>,
    deny_publish: Vec<String>,
    deny_subscribe: Vec<String>,
}

impl Written {
    fn rule(&self) -> Rule {
        let patterns = |texts: &[String]| texts.iter().map(|text| Pattern::parse(text).unwrap()).collect();
        let user = match self.user {
            _ if self.anonymous => Whom::Anonymous,
            user => Whom::Named(Glob::like(user.unwrap_or("*"))),
        };
        let who = Who { user, client: self.client.map(Glob::like), group: self.group.map(Into::into) };
        Rule {
            who,
            publish: Grants { allow: patterns(&self.publish), deny: patterns(&self.deny_publish) },
            subscribe: Grants { allow: patterns(&self.subscribe), deny: patterns(&self.deny_subscribe) },
        }
    }
}

fn acl(rules: &[Written]) -> Acl {
    Acl::new(rules.iter().map(Written::rule).collect(), Asks::First)
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn topic(text: &str) -> TopicName {
    TopicName::new(text).unwrap()
}

#[test]
fn r31_the_first_rule_whose_user_matches_decides_and_in_it_deny_goes_first() {
    let rules = [
        Written {
            user: Some("press-*"),
            publish: texts(&["factory/{client_id}/#"]),
            subscribe: texts(&["cmd/{client_id}/#"]),
            ..Written::default()
        },
        Written {
            group: Some("ops"),
            publish: texts(&["#"]),
            subscribe: texts(&["#", "$SYS/#"]),
            ..Written::default()
        },
        Written {
            user: Some("alice"),
            client: Some("tablet-*"),
            publish: texts(&["hmi/{user}"]),
            ..Written::default()
        },
        Written { anonymous: true, subscribe: texts(&["public/#"]), ..Written::default() },
        Written {
            user: Some("*"),
            subscribe: texts(&["#"]),
            deny_subscribe: texts(&["secret/#", "inbox/{user}/x"]),
            ..Written::default()
        },
    ];
    let acl = acl(&rules);
    let ops = [Arc::from("ops")];
    for (user, client, groups, text, may_publish, may_read) in [
        (Some("press-1"), "p1", &ops[..0], "factory/p1/temp", true, false),
        (Some("press-1"), "p1", &ops, "factory/p2/temp", false, false),
        (Some("press-1"), "p1", &ops, "cmd/p1/start", false, true),
        (Some("press-1"), "p1", &ops, "public/x", false, false),
        (Some("bob"), "p1", &ops, "secret/x", true, true),
        (Some("bob"), "p1", &ops, "$SYS/broker/uptime", false, true),
        (Some("bob"), "p1", &ops[..0], "secret/x", false, false),
        (Some("bob"), "p1", &ops[..0], "public/x", false, true),
        (Some("bob"), "p1", &ops[..0], "inbox/bob/x", false, false),
        (Some("bob"), "p1", &ops[..0], "inbox/alice/x", false, true),
        (Some("bob"), "p1", &ops[..0], "$SYS/broker/uptime", false, false),
        (Some("alice"), "tablet-7", &ops[..0], "hmi/alice", true, false),
        (Some("alice"), "phone", &ops[..0], "hmi/alice", false, true),
        (None, "tablet-7", &ops[..0], "public/x", false, true),
        (None, "tablet-7", &ops[..0], "other", false, false),
        (None, "tablet-7", &ops, "secret/x", true, true),
    ] {
        let groups = if user.is_none() { &[] } else { groups };
        let (may_publish, may_read) =
            if user.is_none() && text == "secret/x" { (false, false) } else { (may_publish, may_read) };
        let rights = acl.rights(Subject { user, client_id: client, groups });
        let topic = topic(text);
        assert_eq!(rights.may_publish(&topic), may_publish, "{user:?} {client} publishes {text}");
        assert_eq!(rights.may_read(&topic), may_read, "{user:?} {client} reads {text}");
    }
}

#[test]
fn r31_names_with_wildcards_or_levels_widen_no_pattern_and_escape_no_denial() {
    let rules = [Written {
        user: Some("*"),
        publish: texts(&["up/{client_id}/#", "{user}/own"]),
        subscribe: texts(&["down/+/x-{user}", "all/#"]),
        deny_subscribe: texts(&["all/{user}/keys"]),
        ..Written::default()
    }];
    let acl = acl(&rules);
    let rights = |user, client_id| acl.rights(Subject { user: Some(user), client_id, groups: &[] });
    for name in ["+", "#", "a/b", "a+", "", "/", "up/#"] {
        let rights = rights(name, name);
        for text in ["up/a/b", "up/a/b/c", "a/own", "down/a/x-b", &format!("up/{}", name.replace(['+', '#'], "z"))] {
            let topic = topic(text);
            assert!(!rights.may_publish(&topic) && !rights.may_read(&topic), "{name:?}: {text}");
        }
        assert!(rights.may_read(&topic("all/other")) && !rights.may_read(&topic("all/a/keys")), "{name:?}");
    }
    assert!(!rights("a/b", "c").may_read(&topic("all/a/b/keys")), "nor by a name that is several levels");
    assert!(rights("a", "c").may_publish(&topic("up/c/d")) && rights("a", "c").may_publish(&topic("a/own")));
    assert!(!rights("$SYS", "c").may_publish(&topic("$SYS/own")), "nor into the topics of the broker");
    assert!(rights("a", "c").may_read(&topic("down/q/x-a")) && !rights("a", "c").may_read(&topic("down/q/x-b")));
}

#[test]
fn a_subscription_is_granted_if_some_of_it_may_be_read() {
    let rules = [Written {
        user: Some("*"),
        subscribe: texts(&["cmd/{client_id}/#", "public/+"]),
        deny_subscribe: texts(&["public/secret", "cmd/+/keys/#"]),
        ..Written::default()
    }];
    let rights = acl(&rules).rights(Subject { user: Some("u"), client_id: "c", groups: &[] });
    for (filter, granted) in [
        ("cmd/c/start", true),
        ("cmd/c/#", true),
        ("cmd/+/start", true),
        ("#", true),
        ("cmd/d/#", false),
        ("cmd/c/keys", false),
        ("cmd/c/keys/+", false),
        ("public/secret", false),
        ("public/a/b", false),
        ("$SYS/#", false),
    ] {
        assert_eq!(rights.may_subscribe(&TopicFilter::new(filter).unwrap()), granted, "{filter}");
    }
}

#[test]
fn names_with_a_star_stand_for_any_run_of_characters() {
    for (like, name, expected) in [
        ("press-*", "press-", true),
        ("press-*", "press", false),
        ("*", "", true),
        ("*", "any", true),
        ("a*b*a", "aba", true),
        ("*-1", "press-1", true),
        ("p*-*1", "press-11", true),
        ("p*ss*s", "press", false),
        ("a*a", "a", false),
        ("a", "ab", false),
        ("**x", "x", true),
        ("é*", "éa", true),
    ] {
        assert_eq!(Glob::like(like).matches(name), expected, "{like} {name}");
    }
}

#[test]
fn unknown_names_and_bad_filters_are_no_pattern() {
    for (text, words) in [
        ("a/{machine}", "`{machine}` is not known here"),
        ("a/{client_id", "`{client_id}` is not known"),
        ("a/#/b", "`#` stands alone"),
        ("a/{user}#", "`#` stands alone"),
        ("", "at least one character"),
    ] {
        let error = Pattern::parse(text).unwrap_err().to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
    assert!(Pattern::parse("a/{client_id}-{user}/+").is_ok());
}

const NAMES: &[&str] = &["a", "b", "a/b", "+", "#", "", "$a"];
const FILTERS: &[&str] = &[
    "#",
    "+",
    "a/#",
    "a/+",
    "+/b",
    "{user}/#",
    "a/{client_id}",
    "x{user}",
    "a",
    "b/a",
    "$a/#",
    "{client_id}/{user}",
    "a/b",
];
const TOPICS: &[&str] = &["a", "b", "a/b", "b/a", "a/a", "xa", "xb", "$a/b", "$a", "a/b/a", "+x", "c"];

fn some_filters() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(prop::sample::select(FILTERS).prop_map(str::to_owned), 0..4)
}

fn some_rule() -> impl Strategy<Value = Written> {
    let some = |names: &'static [&'static str]| prop::option::weighted(0.4, prop::sample::select(names));
    let who = (some(&["a", "b", "*", "a*"]), some(&["a", "*b"]), some(&["g", "h"]), prop::bool::weighted(0.2));
    (who, some_filters(), some_filters(), some_filters(), some_filters()).prop_map(
        |((user, client, group, anonymous), publish, subscribe, deny_publish, deny_subscribe)| Written {
            user: user.filter(|_| !anonymous),
            client,
            group: group.filter(|_| !anonymous),
            anonymous,
            publish,
            subscribe,
            deny_publish,
            deny_subscribe,
        },
    )
}

/// A pattern with names filled in; `None` where that would not mean one level each.
fn filled(pattern: &str, user: Option<&str>, client: &str) -> Option<String> {
    let mut text = pattern.to_owned();
    for (mark, name) in [("{user}", user), ("{client_id}", Some(client)), ("%u", user), ("%c", Some(client))] {
        if pattern.contains(mark) {
            let name = name.filter(|name| !name.is_empty() && !name.contains(['+', '#', '/']))?;
            text = text.replace(mark, name);
        }
    }
    (!text.starts_with('$') || pattern.starts_with('$')).then_some(text)
}

fn is_allowed(allow: &[String], user: Option<&str>, client: &str, topic: &str) -> bool {
    allow.iter().filter_map(|pattern| filled(pattern, user, client)).any(|filter| matches(&filter, topic))
}

proptest! {
    #[test]
    fn r31_rights_say_what_a_naive_reading_of_the_rules_says(
        rules in prop::collection::vec(some_rule(), 0..5),
        user in prop::option::of(prop::sample::select(&["a", "b", "ab"][..])),
        client in prop::sample::select(&["a", "b", "bb"][..]),
        in_g in any::<bool>(),
    ) {
        let groups: Vec<Arc<str>> = if in_g && user.is_some() { vec!["g".into()] } else { Vec::new() };
        let like = |like: &str, name: &str| match like {
            "*" => true,
            "a*" => name.starts_with('a'),
            "*b" => name.ends_with('b'),
            exactly => exactly == name,
        };
        let first = rules.iter().find(|rule| {
            rule.anonymous == user.is_none()
                && rule.user.is_none_or(|glob| user.is_some_and(|user| like(glob, user)))
                && rule.client.is_none_or(|glob| like(glob, client))
                && rule.group.is_none_or(|group| groups.iter().any(|have| **have == *group))
        });
        let rights = acl(&rules).rights(Subject { user, client_id: client, groups: &groups });
        let (mut reads, mut publishes) = (Verdicts::default(), Verdicts::default());
        for text in TOPICS.iter().chain(TOPICS).filter(|text| TopicName::new(text).is_ok()) {
            let topic = topic(text);
            let naive = |allow: fn(&Written) -> &Vec<String>, deny: fn(&Written) -> &Vec<String>| first.is_some_and(|rule| {
                // These names are one level each; an anonymous client's `{user}` denies what anybody's would.
                let denied = deny(rule).iter().any(|pattern| {
                    let pattern = pattern.replace("{client_id}", client);
                    match user {
                        Some(user) => matches(&pattern.replace("{user}", user), text),
                        None => matches(&pattern.replace("x{user}", "+").replace("{user}", "+"), text),
                    }
                });
                !denied && is_allowed(allow(rule), user, client, text)
            });
            let may_publish = naive(|rule| &rule.publish, |rule| &rule.deny_publish);
            prop_assert_eq!(rights.may_publish(&topic), may_publish, "publish {}", text);
            prop_assert_eq!(rights.may_publish_to(&topic, &mut publishes), may_publish, "publish {}, remembered", text);
            let may_read = naive(|rule| &rule.subscribe, |rule| &rule.deny_subscribe);
            prop_assert_eq!(rights.may_read(&topic), may_read, "read {}", text);
            prop_assert_eq!(rights.may_read_from(&topic, &mut reads), may_read, "read {}, remembered", text);
        }
    }

    #[test]
    fn no_name_whatever_gets_by_an_allowance_what_it_is_not(
        rules in prop::collection::vec(some_rule(), 1..4),
        user in prop::option::of(prop::sample::select(NAMES)),
        client in prop::sample::select(NAMES),
    ) {
        let rights = acl(&rules).rights(Subject { user, client_id: client, groups: &[] });
        for text in TOPICS.iter().filter(|text| TopicName::new(text).is_ok()) {
            if rights.may_read(&topic(text)) {
                prop_assert!(rules.iter().any(|rule| is_allowed(&rule.subscribe, user, client, text)), "{}", text);
            }
        }
    }

    #[test]
    fn a_subscription_that_brings_something_is_granted(rules in prop::collection::vec(some_rule(), 1..4), filter in prop::sample::select(FILTERS)) {
        let Ok(filter) = TopicFilter::new(filter) else { return Ok(()) };
        let rights = acl(&rules).rights(Subject { user: Some("a"), client_id: "b", groups: &[] });
        let mut brought = TOPICS.iter().filter_map(|text| TopicName::new(text).ok()).filter(|topic| filter.matches(topic));
        if brought.any(|topic| rights.may_read(&topic)) {
            prop_assert!(rights.may_subscribe(&filter));
        }
    }

    #[test]
    fn a_mosquitto_file_is_read_as_mosquitto_reads_it(
        lines in prop::collection::vec(some_line(), 0..12),
        user in prop::option::of(prop::sample::select(&["a", "b", "c d"][..])),
        client in prop::sample::select(&["a", "b"][..]),
    ) {
        let text: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
        let rights = acl_file::parse(&text).unwrap().rights(Subject { user, client_id: client, groups: &[] });
        for text in TOPICS.iter().filter(|text| TopicName::new(text).is_ok()) {
            prop_assert_eq!(rights.may_read(&topic(text)), as_mosquitto(&lines, user, client, text, "read"), "read {}", text);
            prop_assert_eq!(rights.may_publish(&topic(text)), as_mosquitto(&lines, user, client, text, "write"), "write {}", text);
        }
    }
}

const ACCESS: &[&str] = &["read ", "write ", "readwrite ", "deny ", ""];

fn some_line() -> impl Strategy<Value = String> {
    let topic = (prop::sample::select(ACCESS), prop::sample::select(&["#", "a/#", "+/b", "a", "$a/#", "b/a"][..]));
    let pattern =
        (prop::sample::select(ACCESS), prop::sample::select(&["%u/#", "a/%c", "x%u", "%c/%u", "#", "a/b"][..]));
    prop_oneof![
        2 => prop::sample::select(&["user a", "user b", "user c d", "# nothing", "", "user a "][..]).prop_map(str::to_owned),
        4 => topic.prop_map(|(access, topic)| format!("topic {access}{topic}")),
        2 => pattern.prop_map(|(access, topic)| format!("pattern {access}{topic}")),
    ]
}

/// The two loops of Mosquitto 2.0's `mosquitto_acl_check_default`, on the lines themselves.
fn as_mosquitto(lines: &[String], user: Option<&str>, client: &str, topic: &str, wanted: &str) -> bool {
    let (mut own, mut patterns) = (Vec::new(), Vec::new());
    let mut section: Option<&str> = None;
    for line in lines {
        if let Some(name) = line.strip_prefix("user ") {
            section = Some(name.trim());
        }
        let Some((word, rest)) = line.split_once(' ') else { continue };
        let (access, filter) = rest.split_once(' ').unwrap_or(("readwrite", rest));
        match word {
            "topic" if section == user => own.push((access, filter.to_owned())),
            "pattern" if !(filter.contains("%u") && user.is_none() && access != "deny") => patterns.push((
                access,
                match user {
                    Some(user) => filter.replace("%u", user),
                    // Where Mosquitto passes such a denial over, it denies here.
                    None => filter.replace("x%u", "+").replace("%u", "+"),
                }
                .replace("%c", client),
            )),
            _ => {}
        }
    }
    for list in [own, patterns] {
        if list.iter().any(|(access, filter)| *access == "deny" && matches(filter, topic)) {
            return false;
        }
        if list.iter().any(|(access, filter)| [wanted, "readwrite"].contains(access) && matches(filter, topic)) {
            return true;
        }
    }
    false
}

#[test]
fn every_wrong_line_of_a_mosquitto_file_is_told() {
    let text = "topic read a/#\n# fine\nuser\nuser alice\ntopic rw a\ntopic deny\ntopic read a/#/b\nacl x\npattern read %c/%u\ntopic\n";
    let wrong: Vec<_> = acl_file::parse(text).unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(
        wrong,
        [
            "line 3: `user` needs a name",
            "line 5: `rw` is none of `read`, `write`, `readwrite` and `deny`",
            "line 7: `a/#/b` is no topic filter: `#` stands alone as the last level: `a/#`",
            "line 8: `acl` is none of `user`, `topic` and `pattern`",
            "line 10: `` is no topic filter: a topic has at least one character",
        ]
    );
}
