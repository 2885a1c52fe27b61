//! Rules for topics that come with an identity: a token's claim, or a program's answer.
//!
//! `{"publish": ["factory/{client_id}/#"], "subscribe": ["cmd/{user}/+"], "deny_publish": [..], "deny_subscribe": [..]}`, each
//! list optional, a single text for a list of one. PURE.

use serde_json::Value;

use super::acl::{Acl, Asks, Grants, Pattern, Rule, Who, Whom};

/// The rules in `value`, for whoever they came with. What is not understood is an error, never left out: a rule that denies
/// would be lost with it.
///
/// # Errors
/// What is wrong, in words that show nothing but the place.
pub(super) fn acl_of(value: &Value) -> Result<Acl, String> {
    let Value::Object(lists) = value else {
        return Err("it has to be an object with `publish` and `subscribe`".to_owned());
    };
    let (mut publish, mut subscribe) = (Grants::default(), Grants::default());
    for (name, list) in lists {
        let into = match name.as_str() {
            "publish" => &mut publish.allow,
            "deny_publish" => &mut publish.deny,
            "subscribe" => &mut subscribe.allow,
            "deny_subscribe" => &mut subscribe.deny,
            _ => {
                return Err(
                    "it has another key than `publish`, `subscribe`, `deny_publish`, `deny_subscribe`".to_owned()
                );
            }
        };
        *into = patterns(list).map_err(|wrong| format!("`{name}`: {wrong}"))?;
    }
    let who = Who { user: Whom::Everyone, client: None, group: None };
    Ok(Acl::new(vec![Rule { who, publish, subscribe }], Asks::First))
}

fn patterns(list: &Value) -> Result<Vec<Pattern>, String> {
    let texts = match list {
        Value::Array(texts) => texts.iter().collect(),
        Value::String(_) => vec![list],
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Vec::from([list]),
    };
    let pattern = |text: &Value| {
        let text = text.as_str().ok_or("it has to be a list of topic filters")?;
        Pattern::parse(text).map_err(|error| error.to_string())
    };
    texts.into_iter().map(pattern).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::broker::auth::acl::Subject;

    #[test]
    fn rules_of_an_identity_are_its_own_alone() {
        let acl = acl_of(&json!({
            "publish": ["factory/{client_id}/#"],
            "deny_publish": "factory/{client_id}/secret",
            "subscribe": ["cmd/{user}/+", "all"],
        }));
        let rights = acl.unwrap().rights(Subject { user: Some("anna"), client_id: "press-7", groups: &[] });
        let topic = |text: &str| crate::topic::TopicName::new(text).unwrap();
        for (name, may_publish, may_read) in [
            ("factory/press-7/temp", true, false),
            ("factory/press-8/temp", false, false),
            ("factory/press-7/secret", false, false),
            ("cmd/anna/x", false, true),
            ("cmd/ben/x", false, false),
            ("all", false, true),
        ] {
            assert_eq!(rights.may_publish(&topic(name)), may_publish, "{name}");
            assert_eq!(rights.may_read(&topic(name)), may_read, "{name}");
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for (value, wrong) in [
            (json!([]), "an object"),
            (json!("a/#"), "an object"),
            (json!({ "publish": 7 }), "`publish`: it has to be a list"),
            (json!({ "subscribe": ["a", 7] }), "`subscribe`: it has to be a list"),
            (json!({ "subscribe": ["a/#/b"] }), "`subscribe`: "),
            (json!({ "publish": ["a/{machine}"] }), "{machine}"),
            (json!({ "deny": ["a"] }), "another key"),
        ] {
            let error = acl_of(&value).unwrap_err();
            assert!(error.contains(wrong), "{value}: {error}");
        }
    }
}
