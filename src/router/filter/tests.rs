//! The language by tables: what conditions say of one message, and what is wrong with those that are none.

use proptest::prelude::*;

use super::*;
use crate::clock::WallMs;
use crate::message::Message;
use crate::message::tests_support::message;
use crate::router::{FIELDS, Pattern, Subject};

fn press() -> Message {
    let payload = br#"{"temp":81.5,"n":7,"big":18446744073709551615,"ok":true,"state":"run","none":null,
        "tags":["a","b",3],"deep":{"a b":{"x":1}},"text":"12"}"#;
    let mut message = message("factory/a/press-7", payload);
    message.origin.client_id = Some("press-7".into());
    message.properties.user = vec![("shift".into(), "early".into()), ("a.b".into(), "dotted".into())];
    // A Tuesday, 09:30 UTC.
    message.time = WallMs(1_796_117_400_000);
    message
}

fn takes(condition: &str, message: &Message) -> bool {
    let filter = Filter::parse(condition).unwrap_or_else(|error| panic!("{condition}: {error}"));
    let pattern = Pattern::parse("factory/{line}/{machine}").unwrap();
    let (subject, captures) = (Subject::new(message), pattern.captures(message.topic.as_str()).unwrap());
    filter.takes(View::new(&subject, &captures))
}

#[test]
fn conditions_over_every_part_of_a_message() {
    for (condition, expected) in [
        ("true", true),
        ("payload.temp > 80", true),
        ("payload.temp > 80 && qos >= 1", true),
        ("payload.temp > 80 && qos >= 2", false),
        ("payload.temp == 81.5", true),
        ("payload.n == 7.0", true),
        ("payload.big > 18446744073709551614.0", false),
        ("payload.big > 9223372036854775807", true),
        ("payload.ok", true),
        ("!payload.ok", false),
        ("payload.state == 'run'", true),
        ("payload.state in [\"run\", \"idle\"]", true),
        ("'b' in payload.tags && 3 in payload.tags && !('c' in payload.tags)", true),
        ("'a b' in payload.deep", true),
        ("payload.none == null", true),
        ("payload.temp == null", false),
        ("payload.deep[\"a b\"].x == 1", true),
        ("payload.tags[1] == 'b' && payload.tags[0] != 'b'", true),
        ("payload[\"temp\"] >= 81.5", true),
        ("machine == 'press-7' && line < 'b'", true),
        ("topic.startsWith('factory/') && topic.endsWith('-7') && topic.contains('/a/')", true),
        ("client_id == machine", true),
        ("property.shift == 'early' && property[\"a.b\"] == 'dotted'", true),
        ("retain || size > 100", true),
        ("time.getHours() == 9 && time.getMinutes() == 30 && time.getDayOfWeek() == 2", true),
        ("time > 1796083200000", true),
        ("size(payload.tags) == 3 && size(payload.state) == 3 && size([1, 2]) == 2 && size('é') == 1", true),
        ("int(payload.text) + 1 == 13 && double(payload.text) / 5 == 2.4", true),
        ("int(payload.temp) == 81 && int(-1.9) == -1", true),
        ("string(payload.n) == '7' && string(qos) == '1'", true),
        ("7 / 2 == 3 && 7 % 2 == 1 && 7.0 / 2 == 3.5 && 2 + 3 * 4 - 1 == 13", true),
        ("-payload.n < -6 && - -1 == 1", true),
        ("payload.n > 5 ? payload.ok : false", true),
        ("'a' + 'b' == 'ab'", true),
        ("1 < 2 == true", true),
        ("true || false && false", true),
        ("(true || false) && false", false),
    ] {
        assert_eq!(takes(condition, &press()), expected, "{condition}");
    }
}

#[test]
fn what_a_message_lacks_is_no_match_unless_the_other_side_decides() {
    for (condition, expected) in [
        ("payload.none.x == 1", false),
        ("payload.other == 1", false),
        ("payload.other != 1", false),
        ("!(payload.other == 1)", false),
        ("payload.other == 1 || payload.ok", true),
        ("payload.ok || payload.other == 1", true),
        ("payload.other == 1 && payload.ok", false),
        ("!(payload.other == 1 && false)", true),
        ("has(payload.other)", false),
        ("has(payload.temp) && has(payload.none) && !has(property.x) && has(client_id)", true),
        ("user == 'x'", false),
        // Types that do not go together have no order, and are never equal.
        ("payload.state > 5", false),
        ("payload.state == 5", false),
        ("payload.state != 5", true),
        ("payload.temp", false),
        ("payload.tags == payload.tags", false),
        ("payload.n / 0 == 1", false),
        ("int(payload.state) == 0", false),
        ("payload.tags[9] == 1", false),
    ] {
        assert_eq!(takes(condition, &press()), expected, "{condition}");
    }
}

#[test]
fn a_payload_that_is_no_json_has_no_fields_and_is_a_text() {
    for (payload, condition, expected) in [
        (&b"on"[..], "string(payload) == 'on'", true),
        (b"on", "payload.x == 1 || payload == 'on'", false),
        (b"\xff", "string(payload) == 'on'", false),
        (b"21.5", "payload > 20 && double(payload) < 22", true),
        (b"[1,2]", "payload[1] == 2 && size(payload) == 2", true),
        (b"", "has(payload)", false),
        (b"{\"x\":1", "has(payload.x)", false),
    ] {
        let mut message = press();
        message.payload = payload.to_vec().into();
        assert_eq!(takes(condition, &message), expected, "{condition} of {payload:?}");
    }
}

#[test]
fn mistakes_carry_their_place_and_say_what_would_be_right() {
    for (condition, span, words) in [
        ("", 0..0, "the condition ends where a value is expected"),
        ("qos >", 5..5, "the condition ends where a value is expected"),
        ("qos = 1", 4..5, "`=` is written `==` here"),
        ("qos == 1 and retain", 9..12, "`and` is written `&&` here"),
        ("qos == 1 or retain", 9..11, "`or` is written `||` here"),
        ("not retain", 0..3, "`not` is written `!` here"),
        ("retain & retain", 7..8, "`&` is written `&&` here"),
        ("é == 1", 0..2, "a value or an operator is expected here, not `é`"),
        ("'é' == 'x", 8..10, "this text has no closing quote"),
        ("'a\\q'", 2..3, "behind `\\` one of `n`, `t`, `r`, `\\`, `\"`, `'` is expected"),
        ("qos == 1.2.3", 7..12, "`1.2.3` is no number"),
        ("(qos == 1", 9..9, "the condition ends where `)` is expected"),
        ("qos == 1)", 8..9, "`&&`, `||` or the end is expected here, not `)`"),
        ("qos in [1 2]", 10..11, "`]` is expected here, not `2`"),
        (
            "topic.matches('x')",
            6..13,
            "there is no function `matches`; there are `has`, `size`, `startsWith`, `endsWith`, `contains`, `string`, `double`, `int`, `getHours`, `getMinutes`, `getDayOfWeek`",
        ),
        ("size(topic, 1) == 1", 0..14, "`size` takes one value"),
        ("has(1)", 0..6, "`has` takes one field, such as `has(payload.temp)`"),
        ("qos.x == 1", 4..5, "only `payload` and `property` have fields"),
        ("payload[topic] == 1", 8..13, "between `[ ]` a name in quotes or a place is expected"),
        ("property.a.b == ''", 11..12, "a property is a text: `property.NAME`, or `property[\"a.b\"]`"),
        ("a ? b", 5..5, "the condition ends where `:` is expected"),
    ] {
        let error = Filter::parse(condition).unwrap_err();
        assert_eq!((error.span.clone(), error.to_string().as_str()), (span, words), "{condition}");
    }
    for deep in [format!("{}true{}", "(".repeat(100), ")".repeat(100)), format!("{}true", "!".repeat(100))] {
        assert_eq!(Filter::parse(&deep).unwrap_err().problem, FilterProblem::TooDeep);
    }
    let chain = |terms: usize| format!("{}1 > 0", "1 + ".repeat(terms - 1));
    assert!(takes(&chain(499), &press()), "the longest one is asked on a small stack");
    assert_eq!(Filter::parse(&chain(500)).unwrap_err().problem, FilterProblem::TooLong);
}

#[test]
fn names_that_nothing_has_and_types_that_never_fit_are_found() {
    let known = |name: &str| match name {
        "line" => Known::Captured,
        _ if FIELDS.contains(&name) => Known::Field,
        _ => Known::No,
    };
    for (condition, expected) in [
        ("payload.temp > 80 && line == 'a' && qos > 0 && retain && property.x == 'y'", vec![]),
        (
            "lin == 'a' || machine == 'b'",
            vec![(0..3, "nothing is called `lin`"), (14..21, "nothing is called `machine`")],
        ),
        ("qos", vec![(0..3, "`where` needs a condition, and this is a number")]),
        ("qos && retain", vec![(0..3, "`&&` needs a condition, and this is a number")]),
        ("topic > 5", vec![(0..9, "a text and a number do not go together here")]),
        ("line == 5", vec![(0..9, "a text and a number do not go together here")]),
        ("topic == null", vec![]),
        ("qos + topic == 5", vec![(0..11, "a number and a text do not go together here")]),
        ("size(qos) == 1", vec![(5..8, "size needs a text or a list, and this is a number")]),
        ("qos in 5", vec![(7..8, "`in` needs a list, and this is a number")]),
        ("property == 'x'", vec![(0..8, "nothing is called `property`")]),
        (
            "time.getHours() > 8 && topic.getHours() == 1",
            vec![(23..28, "getHours needs a time, such as `time`, and this is a text")],
        ),
    ] {
        let mistakes = Filter::parse(condition).unwrap().mistakes(known);
        let told: Vec<_> = mistakes.iter().map(|mistake| (mistake.span().clone(), mistake.to_string())).collect();
        let expected: Vec<_> = expected.into_iter().map(|(span, words)| (span, words.to_owned())).collect();
        assert_eq!(told, expected, "{condition}");
    }
}

#[test]
fn what_a_condition_looks_at_is_told_with_its_values() {
    let message = press();
    let (subject, pattern) = (Subject::new(&message), Pattern::parse("#").unwrap());
    let captures = pattern.captures(message.topic.as_str()).unwrap();
    let filter =
        Filter::parse("payload.temp > 80 && payload.tags[1] == 'x' || has(property.none) || payload.temp < 3").unwrap();
    let told = filter.looks_at(View::new(&subject, &captures));
    let told: Vec<_> = told.iter().map(|(name, value)| (&**name, value.as_deref())).collect();
    assert_eq!(told, [("payload.temp", Some("81.5")), ("payload.tags[1]", Some("\"b\"")), ("property.none", None)]);
}

/// A condition on the fields `a` (81), `b` (missing) and `c` (true), and what three-valued logic says of it.
fn logic() -> impl Strategy<Value = (String, Option<bool>)> {
    let leaf = prop_oneof![
        Just(("payload.a > 80".to_owned(), Some(true))),
        Just(("payload.a > 90".to_owned(), Some(false))),
        Just(("payload.b > 80".to_owned(), None)),
        Just(("payload.c".to_owned(), Some(true))),
        Just(("has(payload.b)".to_owned(), Some(false))),
    ];
    leaf.prop_recursive(4, 32, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|(text, value)| (format!("!({text})"), value.map(|value: bool| !value))),
            (inner.clone(), inner.clone()).prop_map(|((a, left), (b, right))| {
                let value = match (left, right) {
                    (Some(false), _) | (_, Some(false)) => Some(false),
                    (Some(true), Some(true)) => Some(true),
                    _ => None,
                };
                (format!("({a}) && ({b})"), value)
            }),
            (inner.clone(), inner).prop_map(|((a, left), (b, right))| {
                let value = match (left, right) {
                    (Some(true), _) | (_, Some(true)) => Some(true),
                    (Some(false), Some(false)) => Some(false),
                    _ => None,
                };
                (format!("({a}) || ({b})"), value)
            }),
        ]
    })
}

proptest! {
    #[test]
    fn logic_has_three_values((condition, expected) in logic()) {
        let mut message = press();
        message.payload = br#"{"a":81,"c":true}"#.to_vec().into();
        prop_assert_eq!(takes(&condition, &message), expected == Some(true), "{}", condition);
        let negated = format!("!({condition})");
        if condition.matches('(').count() < 20 {
            prop_assert_eq!(takes(&negated, &message), expected == Some(false), "{}", negated);
        }
    }

    #[test]
    fn no_text_panics_and_places_are_within_it(text in "[a-z0-9 .()\\[\\]<>=!&|+*/%?:,'\"\\\\é-]{0,40}") {
        match Filter::parse(&text) {
            Ok(filter) => {
                takes(filter.as_str(), &press());
                for mistake in filter.mistakes(|_| Known::No) {
                    prop_assert!(text.get(mistake.span().clone()).is_some(), "{}", text);
                }
            }
            Err(error) => prop_assert!(text.get(error.span.clone()).is_some(), "{} {:?}", text, error),
        }
    }
}

#[test]
fn a_condition_that_says_the_same_of_every_message_is_known() {
    for (condition, expected) in [
        ("false", Some(false)),
        ("true || payload.x > 1", Some(true)),
        ("payload.x > 1 && false", Some(false)),
        ("!(payload.x > 1 && false)", Some(true)),
        ("1 > 2", Some(false)),
        ("'a' == 'a'", Some(true)),
        ("qos > 2", Some(false)),
        ("qos >= 0", Some(true)),
        ("0 > qos || 3 <= qos", Some(false)),
        ("qos != 7", Some(true)),
        ("qos == 1 || qos == 2", None),
        ("size < 0", Some(false)),
        ("size >= -1", Some(true)),
        ("size > 0", None),
        ("payload.temp > 80 && payload.temp < 20", Some(false)),
        ("payload.temp > 80 && qos > 0 && 80 >= payload.temp", Some(false)),
        ("payload.temp >= 80 && payload.temp <= 80", None),
        ("payload.temp > 80 && payload.hum < 20", None),
        ("payload.state == 'run' && payload.state == 'stop'", Some(false)),
        ("payload.state == 'run' && payload.state != 'run'", Some(false)),
        ("payload.state == 'run' && payload.state != 'stop'", None),
        ("payload.state == 'run' && payload.state > 5", Some(false)),
        ("payload.state == 'run' || payload.state == 'stop'", None),
        ("payload.x == null && payload.x == 5", Some(false)),
        ("payload.x > 5 || payload.x <= 5", None),
        ("has(payload.x) ? false : 1 > 2", Some(false)),
        ("line == 'a' && line == 'b'", Some(false)),
        ("retain", None),
    ] {
        let filter = Filter::parse(condition).unwrap();
        assert_eq!(filter.verdict(|name| name == "line"), expected, "{condition}");
    }
    // A capture may have the name of a part of the message: then it is any text.
    assert_eq!(Filter::parse("qos != 7").unwrap().verdict(|name| name == "qos"), None);
}

/// A comparison of a few values, so that some exclude each other.
fn comparison() -> impl Strategy<Value = String> {
    let side = prop::sample::select(vec!["qos", "payload.n", "size", "0", "1", "2", "-1", "1.5", "'a'", "null"]);
    let sign = prop::sample::select(vec!["<", "<=", ">", ">=", "==", "!="]);
    (side.clone(), sign, side).prop_map(|(left, sign, right)| format!("{left} {sign} {right}"))
}

proptest! {
    #[test]
    fn what_is_said_of_every_message_is_true_of_each(
        (a, b, c) in (comparison(), comparison(), comparison()),
        form in 0_usize..6,
        (qos, n) in (0_u8..3, prop::sample::select(vec!["0", "1", "1.5", "2", "-1", "\"a\"", "null", "[]"])),
        is_json in any::<bool>(),
    ) {
        let condition = match form {
            0 => format!("{a} && {b} && {c}"),
            1 => format!("{a} || {b} && {c}"),
            2 => format!("!({a}) && {b} || {c}"),
            3 => format!("{a} ? {b} : {c}"),
            4 => format!("!({a} || {b}) && {c}"),
            _ => format!("!({a} && {b}) || !({c})"),
        };
        let Some(verdict) = Filter::parse(&condition).unwrap().verdict(|_| false) else { return Ok(()) };
        let mut message = press();
        message.qos = crate::message::Qos::from_bits(qos).unwrap();
        message.payload = if is_json { format!("{{\"n\":{n}}}").into_bytes().into() } else { Vec::new().into() };
        prop_assert_eq!(takes(&condition, &message), verdict, "{}", condition);
    }
}

#[test]
fn r21_what_deletes_a_retained_message_passes_where_only_its_payload_could_decide() {
    let mut delete = message("factory/a/press-7", b"");
    delete.retain = true;
    let pattern = Pattern::parse("factory/{line}/{machine}").unwrap();
    let (subject, captures) = (Subject::new(&delete), pattern.captures("factory/a/press-7").unwrap());
    let view = View::new(&subject, &captures);
    for (condition, expected) in [
        ("payload.temp > 80", true),
        ("payload.temp > 80 && qos >= 1", true),
        ("payload.temp > 80 && qos >= 2", false),
        ("has(payload.alarm)", true),
        ("!has(payload.alarm)", true),
        ("string(payload) == 'ON'", true),
        ("size > 0 || payload.temp > 80", true),
        ("size > 0", false),
        ("size > 0 && payload.temp > 80", false),
        ("property.kind == 'x'", false),
        ("qos >= 1", true),
    ] {
        let filter = Filter::parse(condition).unwrap();
        assert_eq!(filter.takes(view.deleting(true)), expected, "{condition}");
        let as_others = ["qos >= 1", "!has(payload.alarm)"].contains(&condition);
        assert_eq!(filter.takes(view), as_others, "{condition}, and it deletes nothing");
    }
}
