//! The JSON Schema of `routes.yaml`, for editors. The keys are those of [`keys`]; what each is, its default and its example are what
//! `docs/routes.md` says of it, where a test sees to it that every key stands. So there is no second list that could disagree.
//!
//! It is made to help with writing, not to judge: `tidegate check` does that. What it does not know for certain it lets pass.

use serde_json::{Map, Value, json};

use super::keys::{self, Keys};

/// The reference.
const REFERENCE: &str = include_str!("../../docs/routes.md");

/// What values with a unit look like, by the words that their kind begins with: as [`crate::units`] reads them.
const UNITS: [(&str, &str); 5] = [
    ("size and time", r"^\s*[0-9]+(\.[0-9]{1,3})?\s*([KMGT]i?)?B\s*/\s*(s|m|min|h)\s*$"),
    ("size", r"^\s*[0-9]+(\.[0-9]{1,3})?\s*([KMGT]i?)?B\s*$"),
    ("duration", r"^\s*[0-9]+(\.[0-9]{1,3})?\s*(ms|s|m|h|d|w)\s*$"),
    ("rate", r"^\s*\+?0*[1-9][0-9]*\s*/\s*(s|m|min|h)\s*$"),
    ("1% to", r"^\+?0*[1-9][0-9]?\s*%$"),
];
/// What a link may be called.
const LINK_NAME: &str = "^[A-Za-z0-9_-]+$";
/// What a site may be called.
const SITE: &str = "^[A-Za-z0-9._-]{1,64}$";
/// What a link is one of.
const REMOTES: [&str; 3] = ["mqtt", "rabbitmq", "kafka"];
/// A number as people write long ones, and as YAML 1.2 reads as text.
const GROUPED: &str = "^[0-9][0-9_]*$";
/// A value that is filled in when the file is read.
const REFERENCED: &str = r"\$\{(env|file):";

/// A row of the reference.
struct Row<'r> {
    key: &'r str,
    kind: &'r str,
    default: &'r str,
    example: &'r str,
}

/// The schema, draft 2020-12.
#[must_use]
pub fn schema() -> Value {
    let sections = keys::ALL.iter().map(|keys| (name_of(keys.section).to_owned(), section(keys)));
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tidegate: routes.yaml",
        "$ref": format!("#/$defs/{}", name_of("")),
    });
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("$defs".to_owned(), Value::Object(sections.collect()));
    }
    schema
}

/// As it stands in `$defs`.
const fn name_of(section: &str) -> &str {
    if section.is_empty() { "file" } else { section }
}

fn section(keys: &Keys) -> Value {
    let text = text_of(keys.section);
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for key in keys.accepted {
        let row = rows(text).find(|row| row.key == *key);
        let row = row.unwrap_or(Row { key, kind: "", default: "", example: "" });
        if row.default == "needed" {
            required.push(*key);
        }
        properties.insert((*key).to_owned(), property(keys, &row, text));
    }
    // An empty section is `nothing` to YAML.
    let mut section = json!({ "type": ["object", "null"], "properties": properties, "required": required, "additionalProperties": false });
    if let Some(section) = section.as_object_mut().filter(|_| keys.section == "links.NAME") {
        let one = REMOTES.map(|remote| json!({ "required": [remote] }));
        section.insert("oneOf".to_owned(), json!(one));
    }
    section
}

fn property(keys: &Keys, row: &Row<'_>, text: &str) -> Value {
    let mut property = kind(keys, row);
    let Some(object) = property.as_object_mut() else { return property };
    object.insert("description".to_owned(), Value::String(description(row, text)));
    if let Some(default) = code(row.default).filter(|_| !row.kind.contains("section")) {
        object.insert("default".to_owned(), value_of(default));
    }
    if let Some(example) = code(row.example).filter(|example| !example.starts_with(['[', '{'])) {
        object.insert("examples".to_owned(), json!([value_of(example)]));
    }
    property
}

/// What a value may be.
fn kind(keys: &Keys, row: &Row<'_>) -> Value {
    let own = if keys.section.is_empty() { row.key.to_owned() } else { format!("{}.{}", keys.section, row.key) };
    if own == "links" {
        let link = json!({ "$ref": "#/$defs/links.NAME" });
        let name = json!({ "pattern": LINK_NAME, "not": { "enum": ["broker"] } });
        return json!({ "type": ["object", "null"], "propertyNames": name, "additionalProperties": link });
    }
    let named = format!("{own}.NAME");
    if keys::ALL.iter().any(|keys| keys.section == named) {
        let name = json!({ "pattern": "^.", "not": { "pattern": r"^amq\." } });
        let each = json!({ "$ref": format!("#/$defs/{named}") });
        return json!({ "type": ["object", "null"], "propertyNames": name, "additionalProperties": each });
    }
    match own.as_str() {
        "site" => return text_like(SITE),
        "links.NAME.renamed_from" => return text_like(LINK_NAME),
        _ => {}
    }
    let nested = keys::ALL.iter().any(|keys| keys.section == own).then(|| json!({ "$ref": format!("#/$defs/{own}") }));
    let Some(nested) = nested else { return plain(row.kind) };
    if row.kind.starts_with("list") {
        return json!({ "type": ["array", "null"], "items": nested });
    }
    match row.kind.strip_suffix("section").or_else(|| row.kind.strip_suffix("section (below)")) {
        Some("") | None => json!({ "anyOf": [nested] }),
        Some(rest) => json!({ "anyOf": [plain(rest.trim_end_matches("or a ").trim_end_matches(", ")), nested] }),
    }
}

/// What is no section of its own.
fn plain(kind: &str) -> Value {
    if kind.starts_with("section") {
        return json!({ "type": "object" });
    }
    if kind.contains("one or a list") || kind.contains("or a list") {
        let one = any_scalar();
        return json!({ "anyOf": [one, { "type": "array", "items": any_scalar() }] });
    }
    let reference = json!({ "type": "string", "pattern": REFERENCED });
    if let Some(words) = choices(kind) {
        let values: Vec<Value> = words.into_iter().flat_map(spellings).collect();
        return json!({ "anyOf": [{ "enum": values }, reference] });
    }
    if let Some((least, most)) = range(kind) {
        let number = json!({ "type": "integer", "minimum": least, "maximum": most });
        return json!({ "anyOf": [number, { "type": "string", "pattern": GROUPED }, reference] });
    }
    if kind.starts_with("number") {
        let number = json!({ "type": "integer", "minimum": 0 });
        return json!({ "anyOf": [number, { "type": "string", "pattern": GROUPED }, reference] });
    }
    if let Some((_, pattern)) = UNITS.iter().find(|(words, _)| kind.starts_with(words)) {
        return json!({ "anyOf": [{ "type": "string", "pattern": pattern }, reference] });
    }
    any_scalar()
}

/// Text of a form, which may be a number to YAML.
fn text_like(pattern: &str) -> Value {
    json!({ "anyOf": [{ "type": "string", "pattern": pattern }, { "type": ["number", "boolean"] }, { "type": "string", "pattern": REFERENCED }] })
}

/// Text, and what YAML takes for something else where quotes are left out.
fn any_scalar() -> Value {
    json!({ "type": ["string", "number", "boolean"] })
}

/// `` `a`, `b` or `c` ``: nothing but these.
fn choices(kind: &str) -> Option<Vec<&str>> {
    let kind = kind.rsplit_once(": ").filter(|(before, _)| !before.contains('`')).map_or(kind, |(_, after)| after);
    let mut words = Vec::new();
    for (at, part) in kind.split('`').enumerate() {
        match at % 2 {
            1 => words.push(part.trim_matches('"')),
            _ if ["", ", ", " or ", ", or "].contains(&part) => {}
            _ => return None,
        }
    }
    (!words.is_empty()).then_some(words)
}

/// As text, and as what YAML makes of it without quotes.
fn spellings(word: &str) -> Vec<Value> {
    match serde_json::from_str::<Value>(word) {
        Ok(value) => vec![value, Value::String(word.to_owned())],
        Err(_text) => vec![Value::String(word.to_owned())],
    }
}

/// `1 to 65535`, perhaps with words behind it.
fn range(kind: &str) -> Option<(u64, u64)> {
    let (least, rest) = kind.split_once(" to ")?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (most, rest) = rest.split_at_checked(end)?;
    let is_number = rest.is_empty() || rest.starts_with([';', ' ']);
    // `1 to 64 letters` is a length.
    let is_length = rest.starts_with(" letters");
    (is_number && !is_length).then_some((least.parse().ok()?, most.parse().ok()?))
}

/// A key's type and default in words, and what the reference says of it.
fn description(row: &Row<'_>, text: &str) -> String {
    let mut words = plain_words(row.kind);
    match row.default.strip_prefix("needed") {
        Some(of) => words.push_str(&format!(". Needed{of}")),
        None if row.default.is_empty() => {}
        None => words.push_str(&format!(". Default: {}", row.default)),
    }
    let mut told = format!("{}.", plain_words(&words));
    let code = format!("`{}`", row.key);
    for sentence in sentences(text).filter(|sentence| sentence.contains(&code)).take(3) {
        told.push(' ');
        told.push_str(&plain_words(&sentence));
    }
    told
}

/// Without the marks of Markdown.
fn plain_words(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        let (before, after) = rest.split_at_checked(open).unwrap_or((rest, ""));
        plain.push_str(before);
        match after.split_once("](") {
            Some((words, link)) if !words.contains(['\n', ' ']) || words.len() < 80 => {
                plain.push_str(words.trim_start_matches('['));
                rest = link.split_once(')').map_or("", |(_, rest)| rest);
            }
            _ => {
                plain.push_str(after);
                rest = "";
            }
        }
    }
    plain.push_str(rest);
    plain.replace("**", "")
}

/// Of the prose of a section.
fn sentences(text: &str) -> impl Iterator<Item = String> {
    let mut blocks: Vec<String> = vec![String::new()];
    let mut is_code = false;
    for line in text.lines() {
        is_code ^= line.trim_start().starts_with("```");
        let begins = line.trim().is_empty() || line.starts_with("- ");
        if begins {
            blocks.push(String::new());
        }
        let is_prose =
            !is_code && !line.trim_start().starts_with(['|', '`']) || line.starts_with('`') && !line.starts_with("```");
        if let Some(block) = blocks.last_mut().filter(|_| is_prose && !is_code) {
            block.push_str(line.trim_start_matches("- ").trim());
            block.push(' ');
        }
    }
    let split = |block: String| {
        let sentences: Vec<String> = block.split(". ").map(|sentence| sentence.trim().to_owned()).collect();
        sentences.into_iter().filter(|sentence| !sentence.is_empty()).map(|s| format!("{}.", s.trim_end_matches('.')))
    };
    blocks.into_iter().flat_map(split)
}

/// The reference's text of one section, its table included.
fn text_of(section: &str) -> &'static str {
    let heading = if section.is_empty() { "## Top level\n".to_owned() } else { format!("# `{section}`\n") };
    let text = REFERENCE.split_once(&heading).map_or("", |(_, text)| text);
    text.split("\n#").next().unwrap_or_default()
}

fn rows(text: &str) -> impl Iterator<Item = Row<'_>> {
    text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let key = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
        let mut cell = || cells.next().map_or("", |cell| cell.trim_end_matches('|').trim());
        Some(Row { key, kind: cell(), default: cell(), example: cell() })
    })
}

/// What stands in backticks, if that is all.
fn code(text: &str) -> Option<&str> {
    let code = text.strip_prefix('`')?.strip_suffix('`')?;
    (!code.contains('`')).then(|| code.trim_matches('"'))
}

/// As YAML would read it.
fn value_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_text| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_names_every_key_with_words_of_its_own_and_no_other() {
        let schema = schema();
        for keys in keys::ALL {
            let section = &schema["$defs"][name_of(keys.section)];
            let mut named: Vec<_> = section["properties"].as_object().unwrap().keys().map(String::as_str).collect();
            let mut accepted = keys.accepted.to_vec();
            named.sort_unstable();
            accepted.sort_unstable();
            assert_eq!(named, accepted, "{}", keys.section);
            for key in keys.accepted {
                let told = section["properties"][key]["description"].as_str().unwrap();
                assert!(told.len() > 3 && !told.starts_with('.'), "{}.{key}: {told}", keys.section);
            }
        }
    }

    #[test]
    fn what_the_reference_says_of_a_value_becomes_its_type() {
        let reference = || json!({ "type": "string", "pattern": REFERENCED });
        for (kind, expected) in [
            ("`a`, `b` or `c`", json!({ "anyOf": [{ "enum": ["a", "b", "c"] }, reference()] })),
            ("the lowest version: `\"1.2\"`", json!({ "anyOf": [{ "enum": [1.2, "1.2"] }, reference()] })),
            ("`true` or `false`", json!({ "anyOf": [{ "enum": [true, "true", false, "false"] }, reference()] })),
            ("`group`, an interval, `never`", any_scalar()),
            ("1 to 64 letters", any_scalar()),
            ("section of properties", json!({ "type": "object" })),
        ] {
            assert_eq!(plain(kind), expected, "{kind}");
        }
        assert_eq!(range("1 to 65535 (RabbitMQ: 4096)"), Some((1, 65_535)));
        assert_eq!(range("0 to 1000000; `0`: no end"), Some((0, 1_000_000)));
        for ((words, pattern), kind) in
            UNITS.into_iter().zip(["size and time", "size, 1MiB or more", "duration, 1s to 1d", "rate", "1% to 99%"])
        {
            assert_eq!(plain(kind)["anyOf"][0]["pattern"], pattern, "{words}");
        }
    }

    #[test]
    fn a_description_says_type_default_and_what_the_reference_tells() {
        let schema = schema();
        let told = &schema["$defs"]["links.NAME.buffer"]["properties"]["when_full"];
        let words = told["description"].as_str().unwrap();
        assert!(
            words.starts_with("`drop_oldest`, `drop_newest`, `reject`, `block`. Default: `drop_oldest`."),
            "{words}"
        );
        assert!(words.contains("lets its publisher wait") || words.contains("drop and count"), "{words}");
        assert_eq!(told["default"], "drop_oldest");
        let retain = &schema["$defs"]["links.NAME"]["properties"]["in_flight"]["description"];
        assert!(retain.as_str().unwrap().contains("may be sent ahead of their confirmations"), "{retain}");
    }
}
