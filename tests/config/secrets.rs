//! Secrets that stand in a file are not shown, however they are written.

use tidegate::config::{self, Env};

use super::env;

/// Ways to write the value of a secret key, some of which YAML takes for something else, or not at all.
const SECRET_FORMS: [&str; 24] = [
    ": hunter2",
    ": 'hunter2'",
    ": \"hunter2\"",
    ": !hunter2",
    ": !!hunter2 x",
    ": !x hunter2",
    ": &hunter2 x",
    ": &x hunter2",
    ": *hunter2",
    ": &&hunter2",
    ": @hunter2",
    ": %hunter2",
    ": `hunter2`",
    ": {hunter2}",
    ": {hunter2",
    ": [hunter2",
    ": [ a, hunter2 ]",
    ": { a: hunter2 }",
    ": 'a' hunter2",
    ": \"a\\hunter2\"",
    ": a: hunter2",
    ": x${env:SITE}hunter2",
    " hunter2",
    " = hunter2",
];

/// The same over several lines, `~` being how far the key is to the right.
const SECRET_BLOCKS: [&str; 9] = [
    ":\n~  hunter2",
    ": >-\n~  hunter2",
    ": |\n~  a\n~  hunter2",
    ": |2-\n~  hunter2\n~  b",
    ": a\n~  hunter2",
    ": 'a\n~  hunter2'",
    ": \"a\n\n~  hunter2\"",
    ":\n~  - hunter2\n~  - a",
    ":\n~  # why\n~  \"hunter2\"",
];

#[test]
fn a_secret_is_not_shown_however_it_is_written() {
    // Each a key, how far it is to the right, and what stands before it and after.
    let places = [
        ("links:\n  a:\n    kafka:\n      options:\n", 8, "sasl.password"),
        ("links:\n  a:\n    kafka:\n      options:\n", 8, "ssl.key.pem"),
        ("links:\n  a:\n    mqtt:\n", 6, "password"),
        ("links:\n  a:\n    rabbitmq:\n", 6, "token"),
        ("broker:\n  auth:\n    jwt:\n", 6, "secret"),
        ("links:\n  a:\n    kafka:\n      options:\n", 8, "sasl.oauthbearer.config"),
        ("broker:\n  auth:\n    http:\n      headers:\n", 8, "Authorization"),
        ("broker:\n  auth:\n    http:\n      headers:\n", 8, "X-Auth"),
        ("broker:\n  auth:\n    http:\n      header:\n", 8, "X-Site"),
        ("broker:\n  auth:\n    ldap:\n      search:\n", 8, "password"),
        ("admin:\n", 2, "token"),
        ("", 0, "password"),
        ("routes:\n  - from: broker/a\n", 4, "secret"),
    ];
    let shown = std::thread::scope(|threads| {
        let threads = places.map(|place| threads.spawn(move || masked_at(place)));
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
    });
    assert!(shown > 500, "{shown}");
}

/// How often something is masked in what is said of files with a secret at one place, which is never shown.
fn masked_at((before, indent, key): (&str, usize, &str)) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routes.yaml");
    // What is wrong elsewhere, so that each file has mistakes and some are no YAML.
    let elsewhere = ["", "\nx: [1, 2\ny: 3\n", "\n\tx: 1\n"];
    let mut shown = 0;
    let margin = " ".repeat(indent);
    let forms = SECRET_FORMS.iter().chain(&SECRET_BLOCKS).map(|form| form.replace('~', &margin));
    for (form, more) in forms.flat_map(|form| elsewhere.map(|more| (form.clone(), more))) {
        for key in [key.to_owned(), format!("\"{key}\"")] {
            let text = format!("{before}{margin}{key}{form}\n{more}");
            std::fs::write(&file, &text).unwrap();
            for no_secrets in [false, true] {
                let env = Env { no_secrets, ..env() };
                let report = config::check(&file, &env);
                let told = config::render(&report.diagnostics);
                assert!(!told.contains("hunter2"), "{text}\n{told}");
                shown += usize::from(told.contains("***"));
            }
        }
    }
    shown
}

#[test]
fn a_password_in_a_url_is_not_shown_however_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routes.yaml");
    for url in
        ["u:hunter2@h", "mqtt://u:hunter2@h", "x://u:hunter2@h:99999/a", "mqtt://u:a/b@hunter2@h", "://u:hunter2@"]
    {
        for form in [
            "URL",
            "\"URL\"",
            "!URL",
            "{URL}",
            "[ URL ]",
            ">-\n  URL",
            "&x URL",
            "a: URL",
            "'a' URL",
            "{URL",
            "\n  URL",
        ] {
            for before in [
                "links: { a: { mqtt: { url: FORM } } }",
                "links: { a: { rabbitmq: { url: FORM, exchange: x } } }",
                "links: { a: { kafka: { brokers: FORM } } }",
                "links: { a: FORM }",
                "links:\n a:\n  mqtt:\n   url: FORM",
                "broker: { auth: { http: { url: FORM } } }",
                "broker: { auth: { jwt: { jwks: FORM } } }",
                "broker: { auth: { ldap: { url: FORM } } }",
                "broker: { listeners: [ { bind: FORM, allow: FORM } ] }",
                "admin: { bind: FORM }",
                "site: FORM",
                "data_dir: FORM\nlinks: FORM",
                "routes: [ { from: FORM, to: FORM, rate: FORM } ]",
            ] {
                let text = before.replace("FORM", &form.replace("URL", url));
                std::fs::write(&file, &text).unwrap();
                let told = config::render(&config::check(&file, &env()).diagnostics);
                assert!(!told.contains("hunter2"), "{text}\n{told}");
            }
        }
    }
}

#[test]
fn a_secret_in_the_query_of_a_url_is_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routes.yaml");
    for name in ["token", "access_token", "api_key", "sig", "X-Functions-Key", "sas", "bearer", "to%6ben", "st", "x"] {
        for url in [
            "http://auth.example/login?site=7&NAME=hunter2",
            "https://x/?NAME=hunter2&v=1#a",
            "x://h:99999?NAME=a/hunter2",
            "https://x/a?site=7#NAME=hunter2",
            "https://x/#hunter2",
            "https://x/?hunter2==&v=1",
        ] {
            for before in [
                "broker: { auth: { http: { url: \"FORM\" } } }",
                "broker:\n  auth:\n    http:\n      url: FORM",
                "broker: { auth: { jwt: { jwks: \"FORM\", refresh: x } } }",
                "broker: { auth: { ldap: { url: \"FORM\" } } }",
                "links: { a: { mqtt: { url: \"FORM\" } } }",
                "links: { a: { mqtt: { url: \"FORM\", FORM } } }",
                "site: \"FORM\"",
                "# FORM\nsite: FORM\nx: 1 # FORM",
            ] {
                let text = before.replace("FORM", &url.replace("NAME", name));
                std::fs::write(&file, &text).unwrap();
                let report = config::check(&file, &env());
                let told = config::render(&report.diagnostics);
                assert!(!told.contains("hunter2"), "{text}\n{told}");
            }
        }
    }
    std::fs::write(&file, "broker: { auth: { http: { url: \"http://h.example/a?site=7\" } } }").unwrap();
    let told = config::render(&config::check(&file, &env()).diagnostics);
    assert!(told.contains("http://h.example/a?site=7"), "what is no secret is shown: {told}");
}

#[test]
fn a_secret_is_not_shown_between_braces_or_without_a_scheme() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routes.yaml");
    for text in [
        "links: { a: { mqtt: { url: \"h/mqtt?x=hunter2\", FORM } } }",
        "broker: { auth: { http: { headers: { X-A: a, X-B: hunter2 }, FORM } } }",
        "broker: { auth: { http: { headers: [ { X-A: a, X-B: hunter2 } ], FORM } } }",
        "broker: { auth: { http: { headers: \"X-A: hunter2\", FORM } } }",
        "broker: { auth: { http: { headers: { X-A: { a: hunter2 } }, FORM } } }",
    ] {
        for form in ["x: 1", "x: [", "x: }", "x 1"] {
            let text = text.replace("FORM", form);
            std::fs::write(&file, &text).unwrap();
            let told = config::render(&config::check(&file, &env()).diagnostics);
            assert!(told.contains("error") && !told.contains("hunter2"), "{text}\n{told}");
        }
    }
}

#[test]
fn a_secret_that_is_spelled_out_is_warned_of_and_a_reference_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routes.yaml");
    let listeners = "listeners: [ { bind: \"127.0.0.1:1883\" } ]";
    let link = |url: &str| format!("links: {{ a: {{ mqtt: {{ url: \"{url}\" }} }} }}\n");
    let http = |more: &str| format!("broker: {{ {listeners}, auth: {{ http: {{ {more} }} }} }}\n");
    let header = |name: &str, value: &str| http(&format!("url: \"https://h/\", headers: {{ {name}: \"{value}\" }}"));
    let kafka = |key: &str, value: &str| {
        format!("links: {{ a: {{ kafka: {{ brokers: \"h:1\", options: {{ {key}: \"{value}\" }} }} }} }}\n")
    };
    let set = |key: &str, value: &str| {
        let set = format!("{{ from: broker/a, to: a/b, set: {{ {key}: {value} }} }}");
        format!("{}routes: [ {set} ]\n", link("mqtt://h"))
    };
    for (text, warned) in [
        (link("ws://h/mqtt?access_token=hunter2&p=2"), 1),
        (link("ws://h/mqtt?to%6ben=hunter2#sig=hunter2"), 2),
        (link("ws://u:hunter2@h/mqtt?session=hunter2"), 2),
        (link("ws://h/mqtt?access_token=${env:PASSWORD}&p=2"), 0),
        (link("ws://h/mqtt?p=2#top"), 0),
        (http("url: \"https://h/x?site=a&sig=hunter2\""), 1),
        (http("url: \"https://h/x?site=a&sig=${env:PASSWORD}\""), 0),
        (header("X-Auth", "hunter2"), 1),
        (header("X-Site", "Bearer hunter2"), 1),
        (header("X-Site", "plant 7"), 0),
        (header("Authorization", "Bearer ${env:PASSWORD}"), 0),
        (kafka("sasl.password", "hunter2"), 1),
        (kafka("sasl.oauthbearer.config", "secret=hunter2"), 1),
        (kafka("sasl.oauthbearer.config", "${env:PASSWORD}"), 0),
        (set("property.authorization", "\"Bearer hunter2\""), 1),
        (set("payload.password", "hunter2"), 1),
        (set("payload.password", "\"{payload.pw}\""), 0),
        (set("property.authorization", "\"Bearer ${env:PASSWORD}\""), 0),
        (set("payload.tokens", "7"), 0),
        (set("property.shift", "early"), 0),
    ] {
        for no_secrets in [false, true] {
            std::fs::write(&file, &text).unwrap();
            let report = config::check(&file, &Env { no_secrets, ..env() });
            let told = config::render(&report.diagnostics);
            assert_eq!(told.matches(" stands in the file for everyone to read\n").count(), warned, "{text}\n{told}");
            assert!(!told.contains("hunter2") && (no_secrets || !report.has_errors()), "{text}\n{told}");
        }
    }
}
