//! Every numbered statement of the MQTT specifications has something that covers it: a case of bytes, a test, or a reason why it is
//! not the server's. The tables are `tests/conformance/mqtt-*.tsv`; `src/broker/tests/conformance.rs` runs the cases.

#![expect(clippy::unwrap_used, reason = "a check that panics has failed, which is its purpose")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Section and how many statements it has, where they are numbered from 1.
const V5: &str = "1.5.4:3 1.5.5:1 1.5.7:1 2.1.3:1 2.2.1:2-6 2.2.2:1 3.1.0:2 3.1.2:30 3.1.3:12 3.1.4:6 3.2.0:2 3.2.2:22 3.3.1:13 3.3.2:20
    3.3.4:10 3.4.2:3 3.5.2:3 3.6.1:1 3.6.2:3 3.7.2:3 3.8.1:1 3.8.3:5 3.8.4:8 3.9.2:2 3.9.3:2 3.10.1:1 3.10.3:2 3.10.4:6 3.11.2:2
    3.11.3:2 3.12.4:1 3.14.0:1 3.14.1:1 3.14.2:4 3.14.4:3 3.15.1:1 3.15.2:3 4.1.0:2 4.2.0:1 4.3.1:1 4.3.2:5 4.3.3:13 4.4.0:2 4.5.0:2
    4.6.0:6 4.7.0:1 4.7.1:2 4.7.2:1 4.7.3:4 4.8.2:6 4.9.0:3 4.12.0:7 4.12.1:2 4.13.1:1 4.13.2:1 6.0.0:4";

const V311: &str = "1.5.3:3 2.2.2:2 2.3.1:7 3.1.0:2 3.1.2:24 3.1.3:11 3.1.4:5 3.2.0:1 3.2.2:6 3.3.1:12 3.3.2:3 3.3.4:1 3.3.5:2 3.6.1:1
    3.8.1:1 3.8.3:4 3.8.4:6 3.9.3:2 3.10.1:1 3.10.3:2 3.10.4:6 3.12.4:1 3.14.1:1 3.14.4:3 4.1.0:2 4.3.1:1 4.3.2:2 4.3.3:2 4.4.0:1 4.5.0:2
    4.6.0:6 4.7.1:3 4.7.2:1 4.7.3:4 4.8.0:2 6.0.0:4 7.0.0:2 7.1.1:1 7.1.2:1";

fn statements(sections: &str) -> Vec<String> {
    let mut all = Vec::new();
    for section in sections.split_whitespace() {
        let (section, numbers) = section.split_once(':').unwrap();
        let (first, last) = numbers.split_once('-').unwrap_or(("1", numbers));
        let numbers = first.parse::<u32>().unwrap()..=last.parse().unwrap();
        all.extend(numbers.map(|number| format!("MQTT-{section}-{number}")));
    }
    all
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The functions that are tests: those behind `#[test]` or `#[tokio::test]`, as a line of its own.
fn tests(code: &str) -> BTreeSet<&str> {
    let (mut tests, mut is_test) = (BTreeSet::new(), false);
    for line in code.lines().map(str::trim_start) {
        let words = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        match words.and_then(|words| words.split_once('(')) {
            Some((name, _)) if is_test => {
                tests.insert(name);
                is_test = false;
            }
            // A helper in between would be taken for it.
            Some(_) => is_test = false,
            None => is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test"),
        }
    }
    tests
}

fn sources(dir: &Path, into: &mut String) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

/// What is wrong with a table.
fn faults(table: &str, sections: &str, cases: &str, tests: &BTreeSet<&str>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut seen = Vec::new();
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<&str> = line.split('\t').collect();
        let [id, words, kind, what] = *columns else {
            faults.push(format!("not four columns: {line}"));
            continue;
        };
        seen.push(id.to_owned());
        let is_covered = !words.is_empty()
            && match kind {
                "case" => cases.lines().any(|line| line.strip_prefix("== ") == Some(what)),
                "test" => tests.contains(what),
                "n/a" => !what.is_empty(),
                _ => false,
            };
        if !is_covered {
            faults.push(format!("{id}: there is no {kind} `{what}`"));
        }
    }
    let wanted = statements(sections);
    faults.extend(wanted.iter().filter(|id| !seen.contains(id)).map(|id| format!("{id} is missing")));
    faults.extend(seen.iter().filter(|id| !wanted.contains(id)).map(|id| format!("{id} is no statement")));
    if seen.iter().collect::<BTreeSet<_>>().len() != seen.len() {
        faults.push("a statement is there twice".to_owned());
    }
    faults
}

#[test]
fn every_statement_is_covered_by_something_that_exists() {
    let cases = read("tests/conformance/cases.txt");
    let mut code = String::new();
    for dir in ["src", "tests"] {
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), &mut code);
    }
    for (table, sections, count) in
        [("tests/conformance/mqtt-5.0.tsv", V5, 251), ("tests/conformance/mqtt-3.1.1.tsv", V311, 141)]
    {
        assert_eq!(statements(sections).len(), count, "the numbers of the specification's own appendix");
        let found = faults(&read(table), sections, &cases, &tests(&code));
        assert!(found.is_empty(), "{table}:\n{}", found.join("\n"));
    }
}

#[test]
fn every_case_covers_a_statement() {
    let tables = read("tests/conformance/mqtt-5.0.tsv") + &read("tests/conformance/mqtt-3.1.1.tsv");
    for case in read("tests/conformance/cases.txt").lines().filter_map(|line| line.strip_prefix("== ")) {
        assert!(tables.contains(&format!("\tcase\t{case}\n")), "{case}");
    }
}

#[test]
fn every_class_of_bugs_has_a_test() {
    let mut code = String::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut code);
    let table = read("tests/conformance/bugs.tsv");
    let tests = tests(&code);
    let rows: Vec<_> = table.lines().filter_map(|line| line.split_once('\t')).collect();
    assert_eq!(rows.len(), 15);
    for (class, test) in rows {
        assert!(tests.contains(test), "{class}: there is no test {test}");
    }
}

#[test]
fn a_table_that_is_wrong_is_found_out() {
    // What is no test counts for nothing, whatever its name.
    let code = "#[test]\n#[expect(dead_code)]\nfn two() {}\nfn three() {}\n    #[tokio::test(flavor = \"multi_thread\")]\n    async fn four() {}\n";
    let (cases, tests) = ("== one\n", tests(code));
    assert_eq!(tests, BTreeSet::from(["two", "four"]));
    let good = "MQTT-1.0.0-1\tw\tcase\tone\nMQTT-1.0.0-2\tw\ttest\ttwo\n";
    assert_eq!(faults(good, "1.0.0:2", cases, &tests), Vec::<String>::new());
    for (bad, fault) in [
        ("MQTT-1.0.0-1\tw\tcase\tone\n", "MQTT-1.0.0-2 is missing"),
        ("MQTT-1.0.0-1\tw\tcase\tone\nMQTT-1.0.0-2\tw\ttest\tthree\n", "MQTT-1.0.0-2: there is no test `three`"),
        ("MQTT-1.0.0-1\tw\tcase\tone\nMQTT-1.0.0-2\tw\tn/a\t\n", "MQTT-1.0.0-2: there is no n/a ``"),
    ] {
        assert_eq!(faults(bad, "1.0.0:2", cases, &tests), [fault]);
    }
    let twice = format!("{good}MQTT-1.0.0-1\tw\tcase\tone\n");
    assert_eq!(faults(&twice, "1.0.0:2", cases, &tests), ["a statement is there twice"]);
}
