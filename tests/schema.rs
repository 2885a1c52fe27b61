//! The JSON Schema of `routes.yaml`: what an editor that goes by it takes and what it calls wrong.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is its purpose")]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;
use regex_automata::nfa::thompson::pikevm::PikeVM;
use serde_json::{Map, Value};
use tidegate::config::{self, Env};
use tidegate::units::{ByteSize, Rate, parse_duration};

/// Whether a value is as a schema says, as far as ours goes; where not.
fn conforms(schema: &Value, rule: &Value, value: &Value, at: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("{at}: {why}: {value}"));
    if let Some(name) = rule["$ref"].as_str() {
        let Some(rule) = schema.pointer(name.trim_start_matches('#')) else { return wrong("no such definition") };
        return conforms(schema, rule, value, at);
    }
    if let Some(any) = rule["anyOf"].as_array() {
        let tried: Vec<_> = any.iter().map(|rule| conforms(schema, rule, value, at)).collect();
        return if tried.iter().any(Result::is_ok) { Ok(()) } else { tried.into_iter().next().unwrap_or(Ok(())) };
    }
    if let Some(each) = rule["oneOf"].as_array() {
        let fits = each.iter().filter(|rule| conforms(schema, rule, value, at).is_ok()).count();
        if fits != 1 {
            return wrong(&format!("{fits} of oneOf fit"));
        }
    }
    if !rule["not"].is_null() && conforms(schema, &rule["not"], value, at).is_ok() {
        return wrong("what it must not be");
    }
    let types: Vec<&str> =
        rule["type"].as_array().into_iter().flatten().chain([&rule["type"]]).filter_map(Value::as_str).collect();
    let is_of = |kind: &&str| match *kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("{at}: the type {other}"),
    };
    if !types.is_empty() && !types.iter().any(is_of) {
        return wrong(&format!("no {types:?}"));
    }
    if rule["enum"].as_array().is_some_and(|all| !all.contains(value)) {
        return wrong("none of the choices");
    }
    if let (Some(number), Some(least)) = (value.as_u64(), rule["minimum"].as_u64())
        && (number < least || rule["maximum"].as_u64().is_some_and(|most| number > most))
    {
        return wrong("out of range");
    }
    if let (Some(text), Some(pattern)) = (value.as_str(), rule["pattern"].as_str()) {
        let regex = PikeVM::new(pattern).unwrap_or_else(|error| panic!("{at}: {pattern}: {error}"));
        let fits = regex.is_match(&mut regex.create_cache(), text);
        if !fits {
            return wrong("not of that form");
        }
    }
    for (at_item, item) in value.as_array().into_iter().flatten().enumerate() {
        if !rule["items"].is_null() {
            conforms(schema, &rule["items"], item, &format!("{at}[{at_item}]"))?;
        }
    }
    value.as_object().map_or(Ok(()), |object| has_its_keys(schema, rule, object, at))
}

fn has_its_keys(schema: &Value, rule: &Value, object: &Map<String, Value>, at: &str) -> Result<(), String> {
    for key in rule["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !object.contains_key(key) {
            return Err(format!("{at}: `{key}` is missing"));
        }
    }
    for (key, value) in object {
        let at = format!("{at}.{key}");
        if !rule["propertyNames"].is_null() {
            conforms(schema, &rule["propertyNames"], &Value::String(key.clone()), &at)?;
        }
        match (rule["properties"].get(key).unwrap_or(&Value::Null), &rule["additionalProperties"]) {
            (Value::Null, Value::Bool(false)) => return Err(format!("{at}: no such key")),
            (Value::Null, Value::Null) => {}
            (Value::Null, rule) | (rule, _) => conforms(schema, rule, value, &at)?,
        }
    }
    Ok(())
}

fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|end| end == "yaml")).collect()
}

static SCHEMA: LazyLock<Value> = LazyLock::new(config::schema);

fn judged(text: &str) -> Result<(), String> {
    let value: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    conforms(&SCHEMA, &SCHEMA, &value, "")
}

/// Each rule of a schema, with what it is for.
fn rules<'s>(rule: &'s Value, at: &str, out: &mut Vec<(String, &'s Value)>) {
    out.push((at.to_owned(), rule));
    for (name, part) in ["$defs", "properties"].into_iter().filter_map(|name| rule[name].as_object()).flatten() {
        rules(part, &format!("{at}.{name}"), out);
    }
    let parts = rule["anyOf"].as_array().into_iter().flatten().chain([&rule["items"], &rule["additionalProperties"]]);
    parts.filter(|part| part.is_object()).for_each(|part| rules(part, at, out));
}

/// As far as our schema goes: the meta schema of draft 2020-12 asks for these.
#[test]
fn the_schema_is_one_and_its_defaults_and_examples_are_right_by_it() {
    let schema = config::schema();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let mut all = Vec::new();
    rules(&schema, "", &mut all);
    assert!(all.len() > 300, "{}", all.len());
    let known = [
        "$schema",
        "$ref",
        "$defs",
        "title",
        "description",
        "default",
        "examples",
        "type",
        "enum",
        "anyOf",
        "oneOf",
        "not",
        "propertyNames",
        "items",
        "pattern",
        "minimum",
        "maximum",
        "properties",
        "required",
        "additionalProperties",
    ];
    for (at, rule) in all {
        let object = rule.as_object().unwrap();
        let strange: Vec<_> = object.keys().filter(|key| !known.contains(&key.as_str())).collect();
        assert!(strange.is_empty(), "{at}: {strange:?}");
        for (name, is_right) in [
            ("description", rule["description"].is_string()),
            ("examples", rule["examples"].is_array()),
            ("enum", rule["enum"].as_array().is_some_and(|all| !all.is_empty())),
            ("anyOf", rule["anyOf"].as_array().is_some_and(|all| !all.is_empty())),
            ("required", rule["required"].as_array().is_some_and(|all| all.iter().all(Value::is_string))),
            ("minimum", rule["minimum"].as_u64() <= rule["maximum"].as_u64() || rule["maximum"].is_null()),
        ] {
            assert!(!object.contains_key(name) || is_right, "{at}: {name}: {rule}");
        }
        for value in rule["examples"].as_array().into_iter().flatten().chain(object.get("default")) {
            assert_eq!(conforms(&schema, rule, value, &at), Ok(()));
        }
    }
}

#[test]
fn the_schema_takes_every_good_file_and_finds_what_is_plainly_wrong() {
    let mut files = yaml_files(Path::new("tests/config/good"));
    files.extend(yaml_files(Path::new("routes")));
    for folder in std::fs::read_dir("examples").unwrap() {
        files.extend(yaml_files(&folder.unwrap().path()));
    }
    assert!(files.len() >= 8, "{files:?}");
    for file in files {
        let judgement = judged(&std::fs::read_to_string(&file).unwrap());
        assert_eq!(judgement, Ok(()), "{}", file.display());
    }
    for (text, wrong) in [
        ("linkz: {}", ".linkz: no such key"),
        ("links: { a: { mqtt: { urll: x } } }", "`url` is missing"),
        ("links: { a: { mqtt: { url: x }, in_flight: 0 } }", ".links.a.in_flight: out of range"),
        ("links: { a: { mqtt: { url: x }, stall_after: 10 } }", ".links.a.stall_after"),
        (
            "links: { a: { mqtt: { url: x }, buffer: { when_full: drop } } }",
            ".links.a.buffer.when_full: none of the choices",
        ),
        ("routes: { from: a, to: b }", ".routes: no"),
        ("routes: [ { from: broker/a } ]", "`to` is missing"),
        ("links: { a: { mqtt: { url: x }, rate: { messages: 2000 } } }", ".links.a.rate.messages: no"),
        ("links: { a: { mqtt: { url: x }, rate: { messages: 2000/ } } }", ".links.a.rate.messages: not of that form"),
        ("broker: { listeners: [ { bind: x, anonymous: maybe } ] }", ".anonymous: none of the choices"),
        ("links: { a: { mqtt: { url: x }, kafka: { brokers: [ x ] } } }", ".links.a: 2 of oneOf fit"),
        ("links: { a: { in_flight: 7 } }", ".links.a: 0 of oneOf fit"),
        ("links: { a b: { mqtt: { url: x } } }", ".links.a b: not of that form"),
        ("links: { broker: { mqtt: { url: x } } }", ".links.broker: what it must not be"),
        ("links: { a: { mqtt: { url: x }, renamed_from: a/b } }", ".renamed_from: not of that form"),
        ("site: plant 7", ".site: not of that form"),
    ] {
        let told = judged(text).unwrap_err();
        assert!(told.contains(wrong), "{text}: {told}");
    }
    for text in ["site: 7", "site: ${env:SITE}", "links: { a: { mqtt: { url: x }, renamed_from: 7 } }"] {
        assert_eq!(judged(text), Ok(()), "{text}");
    }
}

/// Of each kind of unit a key that has it, and what reads it.
#[expect(clippy::type_complexity, reason = "a table")]
const UNITS: [(&str, fn(&str) -> bool); 5] = [
    ("links: { a: { mqtt: { url: x }, buffer: { max_size: VALUE } } }", |text| ByteSize::parse(text).is_ok()),
    ("links: { a: { mqtt: { url: x }, buffer: { max_age: VALUE } } }", |text| parse_duration(text).is_ok()),
    ("links: { a: { mqtt: { url: x }, rate: { messages: VALUE } } }", |text| Rate::parse_count(text).is_ok()),
    ("links: { a: { mqtt: { url: x }, rate: { bytes: VALUE } } }", |text| Rate::parse_bytes(text).is_ok()),
    ("links: { a: { mqtt: { url: x }, drain: { live_first: { share: VALUE } } } }", |text| {
        text.strip_suffix('%')
            .and_then(|number| number.trim_end().parse::<u8>().ok())
            .is_some_and(|n| (1..100).contains(&n))
    }),
];

/// Whether the schema takes it where a key of that kind stands.
fn fits(file: &str, value: &str) -> bool {
    judged(&file.replace("VALUE", &serde_json::to_string(value).unwrap())).is_ok()
}

#[test]
fn the_schema_takes_a_value_with_a_unit_where_the_program_takes_it_and_nowhere_else() {
    let values = [
        "256M",
        "7days",
        "7MiB",
        "1MB",
        "1.5GB",
        "10 GiB",
        "64K",
        "512B",
        "512b",
        "1.GiB",
        "1.2345s",
        "7d",
        "200ms",
        "5min",
        "2w",
        "1y",
        "10",
        "100/s",
        "600/m",
        "60 / min",
        "1/h",
        "1/d",
        "0/s",
        "1.5/s",
        "1MiB/s",
        "1.5 MB / min",
        "1MiB/d",
        "/s",
        "25%",
        "99 %",
        "0%",
        "100%",
        "1.5%",
        "",
    ];
    for (file, reads) in UNITS {
        for value in values {
            assert_eq!(fits(file, value), reads(value), "{file}: {value}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// An editor must not call wrong what the program takes.
    #[test]
    fn the_schema_refuses_no_value_with_a_unit_that_the_program_takes(
        value in "[+]?[0-9]{1,5}([.][0-9]{1,3})? {0,2}([KMGT]?i?B|ms|[smhdw]|%)?( {0,2}/ {0,2}(s|m|min|h))?",
    ) {
        for (file, reads) in UNITS {
            prop_assert!(!reads(&value) || fits(file, &value), "{file}: {value}");
        }
    }
}

/// The YAML of a document, each block with its line.
fn blocks(text: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut block: Option<(usize, String)> = None;
    for (at, line) in text.lines().enumerate() {
        match &mut block {
            None if matches!(line.trim(), "```yaml" | "```yml") => block = Some((at + 2, String::new())),
            None => {}
            Some(_) if line.trim() == "```" => blocks.extend(block.take()),
            Some((_, text)) => *text += &format!("{line}\n"),
        }
    }
    blocks
}

/// The file of routes that a block is, or stands in by how far it is to the right; `None`: it is a file of tests, or a comment.
fn whole(block: &str) -> Option<String> {
    let first = block.lines().find(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))?;
    let key = first.trim_start().split(':').next().unwrap_or_default();
    let before = match (first.len() - first.trim_start().len(), key) {
        (0, "config" | "tests") => return None,
        (0, _) => "",
        (4, "- bind") => "broker:\n  listeners:\n",
        (4, "jwt" | "http" | "ldap" | "users") => "broker:\n  auth:\n",
        other => panic!("where does it stand? {other:?}\n{block}"),
    };
    Some(format!("{before}{block}"))
}

#[test]
fn the_routes_that_documents_show_are_right_by_the_schema_and_by_check() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let documents = docs.filter(|path| path.extension().is_some_and(|end| end == "md")).chain([root.join("README.md")]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routes.yaml");
    let (mut judged_blocks, mut wrong) = (0, String::new());
    for document in documents {
        for (line, block) in blocks(&std::fs::read_to_string(&document).unwrap()) {
            let Some(text) = whole(&block) else { continue };
            judged_blocks += 1;
            let place = format!("{}:{line}", document.display());
            if let Err(why) = judged(&text) {
                wrong += &format!("{place}: {why}\n");
            }
            std::fs::write(&file, &text).unwrap();
            let env = Env { no_secrets: true, ..Env::real() };
            let told = config::render(&config::check(&file, &env).diagnostics);
            // A part of a file needs what stands in others.
            let lacks = |line: &&str| ["cannot be read", "there is no link"].iter().any(|words| line.contains(words));
            let errors = told.lines().filter(|line| line.contains(": error: ")).filter(|line| !lacks(line));
            errors.for_each(|error| wrong += &format!("{place}: {error}\n"));
        }
    }
    assert!(judged_blocks >= 18, "{judged_blocks}");
    assert!(wrong.is_empty(), "{wrong}");
}
