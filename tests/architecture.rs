//! The house rules that a compiler cannot check: which module may name which (DESIGN.md, section 4), what the pure ones may
//! not name at all, how long a file and a function may be, which markers and shortcuts are banned, and that every diagnostic is in a
//! snapshot or a test. Each rule is a function over source text and has a test beside it that shows it failing.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a check that panics has failed, which is its purpose"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Who may name whom. An entry is a path: `router::LinkId` allows only that, `router` all of it. A module may always name itself.
const ARROWS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    ("cli", &["config", "gateway", "router", "buffer", "broker", "links", "admin", "topic"]),
    (
        "config",
        &[
            "gateway::Config",
            "gateway::Outline",
            "gateway::Entry",
            "gateway::ReloadWhen",
            "router",
            "buffer",
            "broker",
            "links",
            "message",
            "topic",
        ],
    ),
    ("gateway", &["broker", "links", "hub", "buffer", "admin", "router", "message"]),
    ("broker", &["wire", "hub", "message", "topic", "router::Endpoint"]),
    ("links", &["hub", "buffer", "message", "topic", "wire", "router::LinkId", "router::Endpoint"]),
    ("hub", &["router", "buffer", "message", "topic"]),
    ("router", &["message", "topic"]),
    ("message", &["topic"]),
    ("admin", &[]),
    ("buffer", &[]),
    // The vocabulary that packets and messages share, so that neither is translated into the other's on a message's way.
    ("wire", &["message::Qos", "message::Properties"]),
    ("telemetry", &[]),
    ("topic", &[]),
    ("clock", &[]),
    ("units", &[]),
];

/// What everyone may name.
const EVERYONE: &[&str] = &["telemetry", "units", "clock"];

/// Folders and files beneath `src/` that decide without doing: bytes and time come in as arguments.
const PURE: &[&str] = &[
    "wire",
    "router",
    "broker/session",
    "broker/index",
    "broker/auth/acl",
    "broker/auth/acl_file",
    "hub/copies/seen",
    "links/active",
    "links/mqtt/arrivals",
    "links/mqtt/exchanges",
    "topic",
    "message",
    "broker/auth/enhanced",
    "broker/auth/http/answer",
    "broker/auth/jwt/keys",
    "broker/auth/jwt/token",
    "broker/auth/ldap/template",
    "broker/auth/rules",
    "broker/auth/scram",
];

/// What a pure module may not name: the runtime, files, sockets, clocks, chance.
const IMPURE: &[&str] = &[
    "tokio",
    "tokio_util",
    "std::fs",
    "std::net",
    "std::thread",
    "std::process",
    "std::env",
    "std::time::SystemTime",
    "std::time::Instant::now",
    "Instant::now",
    "SystemTime",
    "rand",
    "crate::clock::now",
    "crate::clock::wall",
    "crate::clock::system",
    "crate::clock::SystemClock",
    "clock::now",
    "clock::wall",
];

/// Where the texts of `tidegate check` are: those of a `routes.yaml`, and of what stands in it.
const DIAGNOSTICS: &[&str] = &[
    "src/config/",
    "src/units.rs",
    "src/topic/",
    "src/router/filter/",
    "src/router/pattern.rs",
    "src/broker/auth/acl_file.rs",
    "src/broker/auth/ldap/template.rs",
];

/// Texts among them that are no diagnostics, and why: a file, and how they begin.
const NO_DIAGNOSTICS: &[(&str, &str)] = &[
    // The reference; docs/routes.md is compared with it.
    ("src/config/schema.rs", ""),
    // Words of the YAML library, which are looked for.
    ("src/config/raw.rs", "budget breached: "),
    ("src/config/raw.rs", "non-finite float "),
    ("src/config/raw.rs", " rejected by "),
    // What cannot be, but that the types do not say so.
    ("src/config/resolve/value.rs", "`{key}` is missing in config::keys"),
    ("src/config/resolve/value.rs", "no value with a unit"),
];

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;

#[test]
fn modules_name_only_whom_the_design_allows() {
    assert_none(product_sources().iter().flat_map(|file| arrow_violations(&file.path, &file.text)));
}

#[test]
fn pure_modules_name_no_runtime_no_files_no_sockets_no_clock_and_no_chance() {
    assert_none(product_sources().iter().flat_map(|file| impurities(&file.path, &file.text)));
}

#[test]
fn every_top_level_module_has_a_row_in_the_table() {
    let unknown = sources("src").into_iter().map(|file| top_module(&file.path)).filter(|module| module != "lib");
    assert_none(unknown.filter(|module| row(module).is_none()).map(|module| format!("src/{module}: no row in ARROWS")));
}

#[test]
fn files_and_functions_stay_short() {
    assert_none(everything().iter().flat_map(|file| lengths(&file.path, &file.text)));
}

#[test]
fn nothing_is_left_unfinished_excused_ignored_or_slept_through() {
    assert_none(everything().iter().flat_map(|file| markers(&file.path, &file.text)));
}

#[test]
fn every_diagnostic_is_in_a_snapshot_or_a_test() {
    let told = told();
    let files = product_sources().into_iter().filter(|file| DIAGNOSTICS.iter().any(|part| file.path.starts_with(part)));
    assert_none(files.flat_map(|file| untold(&file.path, &file.text, &told)));
}

// ---- The rules, as functions over text.

/// Arrows in a file of `src/` that the table does not have.
fn arrow_violations(path: &str, text: &str) -> Vec<String> {
    let module = top_module(path);
    if module == "lib" {
        return Vec::new();
    }
    let Some((_, allowed)) = row(&module) else { return vec![format!("{path}: no row in ARROWS for `{module}`")] };
    let tokens = without_tests(tokens(text));
    let named = paths(&tokens).into_iter().filter_map(|(line, named)| Some((line, from_root(path, &named)?)));
    let refused = named.filter(|(_, named)| {
        let own = named.first().is_some_and(|first| *first == module);
        // `crate::Name` of an item in lib.rs itself, or a glob over the root, is not an arrow to a module we know.
        let known = named.first().is_some_and(|first| row(first).is_some());
        let may = |rule: &&str| covers(rule, named);
        known && !own && !allowed.iter().any(may) && !EVERYONE.iter().any(may)
    });
    refused.map(|(line, named)| format!("{path}:{line}: `{module}` may not name `{}`", named.join("::"))).collect()
}

/// What a pure file names and may not.
fn impurities(path: &str, text: &str) -> Vec<String> {
    let inside = |folder: &&str| {
        let path = path.trim_start_matches("src/");
        path.strip_prefix(*folder).is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
    };
    if !PURE.iter().any(inside) {
        return Vec::new();
    }
    let named = paths(&without_tests(tokens(text)));
    let bad = named.into_iter().filter(|(_, named)| IMPURE.iter().any(|rule| covers(rule, named)));
    bad.map(|(line, named)| format!("{path}:{line}: a pure module names `{}`", named.join("::"))).collect()
}

/// Files and functions over the limit. Comments and blank lines of a function do not count.
fn lengths(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        found.push(format!("{path}: {lines} lines, more than {FILE_LINES_MAX}"));
    }
    for (line, name, length) in functions(&tokens(text)) {
        if length > FUNCTION_LINES_MAX {
            found.push(format!("{path}:{line}: fn {name} has {length} lines, more than {FUNCTION_LINES_MAX}"));
        }
    }
    found
}

/// Files that may hold unsafe code, each a call of some lines that the compiler cannot check (Cargo.toml denies it elsewhere).
const UNSAFE: &[&str] = &["src/clock.rs"];

/// Markers of unfinished work, lints silenced without a checked reason, tests that never run, tests that wait for time to pass.
fn markers(path: &str, text: &str) -> Vec<String> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    // Comments are no tokens: these two words are looked for in the raw text. They are spelt apart so that this file passes.
    for word in [concat!("FIX", "ME"), concat!("X", "XX")] {
        found.extend(lines_with(path, text, word));
    }
    for (at, window) in tokens.windows(3).enumerate() {
        let [first, second, third] = [&*window[0].text, &*window[1].text, &*window[2].text];
        let line = window[0].line;
        let attribute = at > 0 && matches!(&*tokens[at - 1].text, "#" | "!");
        match (first, second, third) {
            ("unsafe", _, _) if !UNSAFE.contains(&path) => found.push(format!("{path}:{line}: unsafe code")),
            ("todo" | "unimplemented", "!", _) => found.push(format!("{path}:{line}: {first}!")),
            ("[", "allow", "(") if attribute => found.push(format!("{path}:{line}: allow: use expect with a reason")),
            ("[", "ignore", _) if attribute => found.push(format!("{path}:{line}: a test that never runs")),
            ("sleep", "(", _) if path.starts_with("tests/") => found.push(format!("{path}:{line}: a sleep in a test")),
            _ => {}
        }
    }
    found
}

fn lines_with(path: &str, text: &str, word: &str) -> Vec<String> {
    let lines = text.lines().enumerate().filter(|(_, line)| line.contains(word));
    lines.map(|(at, _)| format!("{path}:{}: {word}", at + 1)).collect()
}

/// Texts of a file that `told` does not hold, by their longest part that is always the same. Single words are no diagnostics.
fn untold(path: &str, text: &str, told: &str) -> Vec<String> {
    let tokens = without_tests(tokens(text));
    let is_reason = |at: usize| at > 1 && tokens[at - 1].text == "=" && tokens[at - 2].text == "reason";
    let mut found = Vec::new();
    let texts = tokens.iter().enumerate().filter(|(at, token)| token.text.contains('"') && !is_reason(*at));
    for (_, token) in texts {
        let written = unescaped(&token.text);
        let is_none = NO_DIAGNOSTICS.iter().any(|(file, start)| *file == path && written.starts_with(start));
        let part = longest_part(&written);
        if written.trim().contains(' ') && !is_none && !told.contains(&*part) {
            found.push(format!("{path}:{}: no snapshot and no test has {part:?}", token.line));
        }
    }
    found
}

/// What a literal says, without its quotes.
fn unescaped(literal: &str) -> String {
    let raw = literal.starts_with('r');
    let inner = literal.trim_start_matches(['r', 'b', 'c', '#']).trim_end_matches('#');
    let inner = inner.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(inner);
    let (mut out, mut rest) = (String::new(), inner.chars().peekable());
    while let Some(c) = rest.next() {
        match (c, if raw { None } else { rest.peek() }) {
            // A line that goes on in the next.
            ('\\', Some('\n')) => while rest.next_if(|c| c.is_whitespace()).is_some() {},
            ('\\', Some(_)) => out.extend(rest.next().map(|c| if c == 'n' { '\n' } else { c })),
            _ => out.push(c),
        }
    }
    out
}

/// Of the parts between `{..}`; `{{` is a brace.
fn longest_part(text: &str) -> String {
    let text = text.replace("{{", "\u{1}").replace("}}", "\u{2}");
    let parts = text
        .split('{')
        .enumerate()
        .map(|(n, part)| if n == 0 { part } else { part.split_once('}').map_or(part, |(_, rest)| rest) });
    let longest = parts.map(str::trim).max_by_key(|part| part.len()).unwrap_or_default();
    longest.replace('\u{1}', "{").replace('\u{2}', "}")
}

// ---- Where things are.

#[derive(Debug)]
struct Source {
    path: String,
    text: String,
}

fn everything() -> Vec<Source> {
    ["src", "tests", "benches"].into_iter().flat_map(sources).collect()
}

/// The files of `src/` that are compiled into the product.
fn product_sources() -> Vec<Source> {
    let all = sources("src");
    let only_tests: Vec<bool> = all.iter().map(|file| is_only_for_tests(&file.path, &all)).collect();
    all.into_iter().zip(only_tests).filter(|(_, only_tests)| !only_tests).map(|(file, _)| file).collect()
}

/// Whether a file is `tests.rs` or lies in a folder `tests` whose parent declares it behind `#[cfg(test)]`.
fn is_only_for_tests(path: &str, all: &[Source]) -> bool {
    let Some((folder, _)) = path.split_once("/tests/").or_else(|| path.split_once("/tests.rs")) else { return false };
    let parents = [format!("{folder}/mod.rs"), format!("{folder}.rs")];
    let declares = |text: &str| {
        let (all, product) = (tokens(text), without_tests(tokens(text)));
        let declared =
            |tokens: &[Token]| tokens.windows(2).any(|pair| pair[0].text == "mod" && pair[1].text == "tests");
        declared(&all) && !declared(&product)
    };
    all.iter().any(|file| parents.contains(&file.path) && declares(&file.text))
}

/// All snapshots, and what the tests spell out; but for this file, which spells out what is in none.
fn told() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots");
    let snapshots = fs::read_dir(root).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
    let tests = sources("tests").into_iter().filter(|file| file.path != "tests/architecture.rs");
    let tests = tests.flat_map(|file| tokens(&file.text)).filter(|token| token.text.contains('"'));
    snapshots.chain(tests.map(|token| unescaped(&token.text))).collect::<Vec<_>>().join("\n")
}

/// All `.rs` files beneath a folder of the project.
fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join(folder)];
    let mut files: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                files.push(entry);
            }
        }
    }
    files.sort();
    let relative = |file: &Path| file.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    files.iter().map(|file| Source { path: relative(file), text: fs::read_to_string(file).unwrap() }).collect()
}

fn row(module: &str) -> Option<&'static (&'static str, &'static [&'static str])> {
    ARROWS.iter().find(|(name, _)| *name == module)
}

/// `src/links/mqtt/sink.rs` and `src/links/mod.rs` are `links`; `src/clock.rs` is `clock`.
fn top_module(path: &str) -> String {
    let inside = path.trim_start_matches("src/");
    inside.split('/').next().unwrap_or_default().trim_end_matches(".rs").to_owned()
}

/// How many modules deep a file is below the crate's root.
fn depth(path: &str) -> usize {
    let inside = path.trim_start_matches("src/");
    let parts = inside.split('/').count();
    if inside.ends_with("/mod.rs") { parts - 1 } else { parts }
}

/// A path as it reads from the crate's root, if that is where it leads; `super::` may climb there too.
fn from_root(path: &str, named: &[String]) -> Option<Vec<String>> {
    match named.first()?.as_str() {
        "crate" | "tidegate" => Some(named[1..].to_vec()),
        "super" => {
            let climbs = named.iter().take_while(|part| *part == "super").count();
            (climbs >= depth(path)).then(|| named[climbs..].to_vec())
        }
        _ => None,
    }
}

/// Whether `rule` is the path itself or a beginning of it.
fn covers(rule: &str, named: &[String]) -> bool {
    let rule: Vec<&str> = rule.split("::").collect();
    named.len() >= rule.len() && rule.iter().zip(named).all(|(want, have)| want == have)
}

fn assert_none(found: impl IntoIterator<Item = String>) {
    let found: Vec<String> = found.into_iter().collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

// ---- Just enough of Rust's grammar.

#[derive(Clone, Debug)]
struct Token {
    line: usize,
    text: String,
}

/// Words, texts with their quotes, and single characters of punctuation (`::` is one). Comments are left out, characters become `""`.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let (mut at, mut line, mut out) = (0, 1, Vec::new());
    while at < chars.len() {
        let (length, word) = token(&chars[at..]);
        if let Some(text) = word {
            out.push(Token { line, text });
        }
        line += chars[at..at + length].iter().filter(|c| **c == '\n').count();
        at += length;
    }
    out
}

/// The length of what stands at the beginning, and its token if it is one.
fn token(rest: &[char]) -> (usize, Option<String>) {
    let word = |c: &char| c.is_alphanumeric() || *c == '_';
    let starts = |text: &str| text.chars().enumerate().all(|(at, c)| rest.get(at) == Some(&c));
    if rest[0].is_whitespace() {
        (1, None)
    } else if starts("//") {
        (rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()), None)
    } else if starts("/*") {
        (block_comment(rest), None)
    } else if let Some(length) = string(rest) {
        (length, Some(rest[..length].iter().collect()))
    } else if rest[0] == '\'' {
        character_or_lifetime(rest)
    } else if word(&rest[0]) {
        let length = rest.iter().take_while(|c| word(c)).count();
        (length, Some(rest[..length].iter().collect()))
    } else if starts("::") {
        (2, Some("::".to_owned()))
    } else {
        (1, Some(rest[0].to_string()))
    }
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        match (rest[at], rest.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of a string literal of any kind at the beginning: `".."`, `b".."`, `c".."`, `r#".."#`, `br".."`.
fn string(rest: &[char]) -> Option<usize> {
    let prefix = rest.iter().take(2).take_while(|c| matches!(c, 'r' | 'b' | 'c')).count();
    let raw = rest[..prefix].contains(&'r');
    let hashes = if raw { rest[prefix..].iter().take_while(|c| **c == '#').count() } else { 0 };
    let mut at = prefix + hashes;
    if rest.get(at) != Some(&'"') {
        return None;
    }
    at += 1;
    while at < rest.len() {
        match rest[at] {
            '\\' if !raw => at += 2,
            '"' if rest[at + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes => {
                return Some(at + 1 + hashes);
            }
            _ => at += 1,
        }
    }
    Some(rest.len())
}

fn character_or_lifetime(rest: &[char]) -> (usize, Option<String>) {
    if rest.get(1) == Some(&'\\') {
        let end = rest.iter().skip(3).position(|c| *c == '\'').map_or(rest.len(), |at| at + 4);
        (end, Some("\"\"".to_owned()))
    } else if rest.get(2) == Some(&'\'') {
        (3, Some("\"\"".to_owned()))
    } else {
        (1, None)
    }
}

/// Without items behind `#[cfg(test)]`: a block is skipped, and so is `mod tests;`.
fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let marks = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut out, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let marked = marks.iter().enumerate().all(|(n, mark)| tokens.get(at + n).is_some_and(|t| t.text == *mark));
        if marked {
            at = end_of_item(&tokens, at + marks.len());
        } else {
            out.push(tokens[at].clone());
            at += 1;
        }
    }
    out
}

/// Behind the item that begins at `at`: its `;`, or the brace that closes its block.
fn end_of_item(tokens: &[Token], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while at < tokens.len() {
        match &*tokens[at].text {
            "{" => depth += 1,
            "}" if depth <= 1 => return at + 1,
            "}" => depth -= 1,
            ";" if depth == 0 => return at + 1,
            _ => {}
        }
        at += 1;
    }
    at
}

/// Every path of two parts or more, and what each group of braces in a `use` stands for, with its line.
fn paths(tokens: &[Token]) -> Vec<(usize, Vec<String>)> {
    let (mut out, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let begins = is_word(&tokens[at]) && tokens.get(at + 1).is_some_and(|next| next.text == "::");
        if begins && !(at > 0 && tokens[at - 1].text == "::") {
            at = tree(tokens, at, &[], &mut out);
        } else {
            at += 1;
        }
    }
    out
}

fn is_word(token: &Token) -> bool {
    token.text.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// Reads one path or tree of paths; returns where it ends.
fn tree(tokens: &[Token], mut at: usize, prefix: &[String], out: &mut Vec<(usize, Vec<String>)>) -> usize {
    let line = tokens[at].line;
    let mut path = prefix.to_vec();
    loop {
        match tokens.get(at).map(|token| &*token.text) {
            Some("{") => return group(tokens, at + 1, &path, out),
            Some("*") => at += 1,
            Some(word) if is_word(&tokens[at]) => {
                path.push(word.to_owned());
                at += 1;
                if tokens.get(at).is_some_and(|next| next.text == "::") {
                    at += 1;
                    continue;
                }
            }
            _ => {}
        }
        out.push((line, path));
        return at;
    }
}

fn group(tokens: &[Token], mut at: usize, prefix: &[String], out: &mut Vec<(usize, Vec<String>)>) -> usize {
    while at < tokens.len() && tokens[at].text != "}" {
        let renamed = tokens[at].text == "as";
        at = if renamed {
            at + 2
        } else if is_word(&tokens[at]) || tokens[at].text == "*" {
            tree(tokens, at, prefix, out)
        } else {
            at + 1
        };
    }
    at + 1
}

/// Name, line and length of each function's body.
fn functions(tokens: &[Token]) -> Vec<(usize, String, usize)> {
    let mut out = Vec::new();
    for (at, pair) in tokens.windows(2).enumerate() {
        if pair[0].text != "fn" || !is_word(&pair[1]) {
            continue;
        }
        let end = end_of_item(tokens, at);
        let body = tokens[at..end].iter().position(|token| token.text == "{");
        if let Some(begin) = body {
            let mut lines: Vec<usize> = tokens[at + begin + 1..end - 1].iter().map(|token| token.line).collect();
            lines.dedup();
            out.push((pair[0].line, pair[1].text.clone(), lines.len()));
        }
    }
    out
}

// ---- Each rule shown failing.

#[test]
fn an_arrow_that_is_not_allowed_is_found_however_it_is_written() {
    for bad in [
        "use crate::links::Config;",
        "use crate::{message::Message, links::{self, Kind}};",
        "pub fn f() { let x = crate::gateway::run(); }",
        "fn f(x: &super::super::links::Config) {}",
        "use tidegate::config;",
        "use crate::router::{Endpoint, Table};",
        "type A = crate::router::LinkId;",
    ] {
        let found = arrow_violations("src/broker/session/mod.rs", bad);
        assert!(!found.is_empty(), "{bad}");
    }
    assert_eq!(arrow_violations("src/links/mqtt/sink.rs", "use crate::broker::Config;").len(), 1);
    assert_eq!(arrow_violations("src/hub/mod.rs", "use crate::config::load;").len(), 1);
    assert_eq!(arrow_violations("src/config/mod.rs", "use crate::gateway::run;").len(), 1);
    assert_eq!(arrow_violations("src/stranger/mod.rs", "").len(), 1);
}

#[test]
fn allowed_arrows_comments_strings_and_tests_are_left_alone() {
    for good in [
        "use crate::router::Endpoint; use crate::clock::WallMs;",
        "// crate::links::Config",
        "/* crate::links /* nested */ crate::links */",
        "const A: &str = \"crate::links::Config\"; const B: &str = r#\"use crate::links;\"#;",
        "#[cfg(test)]\nmod tests { use crate::links::Config; fn f() { {} } }",
        "#[cfg(test)] use crate::links::Config; fn f<'a>(x: &'a str) -> char { '\"' }",
        "use super::index::Index; use crate::broker::session;",
    ] {
        let found = arrow_violations("src/broker/session/mod.rs", good);
        assert!(found.is_empty(), "{good}: {found:?}");
    }
    let behind = "#[cfg(test)] mod tests { fn f() {} } use crate::links::Config;";
    assert_eq!(arrow_violations("src/broker/mod.rs", behind).len(), 1, "what follows a test module counts again");
}

#[test]
fn files_of_tests_are_left_alone_only_behind_a_cfg() {
    let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
    let hidden = [source("src/wire/mod.rs", "#[cfg(test)]\nmod tests;"), source("src/wire/tests/bytes.rs", "")];
    assert!(is_only_for_tests("src/wire/tests/bytes.rs", &hidden));
    assert!(!is_only_for_tests("src/wire/decode.rs", &hidden));
    let shipped = [source("src/wire/mod.rs", "mod tests;"), source("src/wire/tests.rs", "")];
    assert!(!is_only_for_tests("src/wire/tests.rs", &shipped));
}

#[test]
fn an_impure_pure_module_is_found() {
    for bad in [
        "use std::{fmt, fs};",
        "use tokio::sync::mpsc;",
        "fn f() -> u64 { rand::random() }",
        "use std::net::SocketAddr;",
        "fn f() { let at = Instant::now(); }",
        "use crate::clock::{WallMs, wall};",
        "use std::time::{Duration, SystemTime};",
    ] {
        let found = impurities("src/router/table.rs", bad);
        assert_eq!(found.len(), 1, "{bad}: {found:?}");
    }
    assert_eq!(impurities("src/broker/index/trie.rs", "use tokio::time;").len(), 1);
    assert_eq!(impurities("src/broker/session.rs", "use tokio::time;").len(), 1);
    assert!(impurities("src/broker/listener.rs", "use tokio::net::TcpListener;").is_empty());
    assert!(
        impurities("src/router/table.rs", "use std::time::{Duration, Instant}; use crate::clock::WallMs;").is_empty()
    );
}

#[test]
fn long_files_and_functions_are_found() {
    let body = |lines: usize| format!("fn long() {{\n{}}}\n", "call();\n\n// why\n".repeat(lines));
    assert!(lengths("src/a.rs", &body(FUNCTION_LINES_MAX)).is_empty());
    assert_eq!(lengths("src/a.rs", &body(FUNCTION_LINES_MAX + 1)).len(), 1);
    assert_eq!(lengths("src/a.rs", &"\n".repeat(FILE_LINES_MAX + 1)).len(), 1);
}

#[test]
fn markers_and_shortcuts_are_found() {
    // Spelt apart, so that a plain search through the house does not stop here.
    let bad = [
        ["fn f() { to", "do!() }"],
        ["fn f() { unimple", "mented!(\"later\") }"],
        ["#[al", "low(dead_code)] fn f() {}"],
        ["#![al", "low(dead_code)] fn f() {}"],
        ["#[ig", "nore] fn f() {}"],
        ["#[ig", "nore = \"slow\"] fn f() {}"],
        ["fn f() { std::thread::sl", "eep(x); }"],
        ["async fn f() { sl", "eep(x).await }"],
        ["fn f() { uns", "afe { g() } }"],
    ];
    for bad in bad.map(|halves| halves.concat()) {
        assert_eq!(markers("tests/a.rs", &bad).len(), 1, "{bad}");
    }
    for word in [["FIX", "ME"], ["X", "XX"]] {
        assert_eq!(markers("src/a.rs", &format!("// {}: later", word.concat())).len(), 1);
    }
    let good = "#[expect(dead_code, reason = \"seen\")] fn f() { let allow = [allow(1)]; asleep(); }";
    assert!(markers("tests/a.rs", good).is_empty());
}

#[test]
fn a_diagnostic_that_nothing_shows_is_found() {
    let text = r##"fn f() { error(format!("`{name}` needs \"{wanted}\": one of {{a, b}}, \
        or none"), "such as this", r#"or "that""#); "word"; #[expect(x, reason = "not told")] let x = '"'; }
        #[cfg(test)] mod tests { const X: &str = "of a test"; }"##;
    let told = ["\": one of {a, b}, or none", "such as this", "or \"that\""];
    assert_eq!(untold("src/config/a.rs", text, &told.join("\n")), Vec::<String>::new());
    for (at, part) in told.iter().enumerate() {
        let others: Vec<&str> = told.iter().enumerate().filter(|(n, _)| *n != at).map(|(_, part)| *part).collect();
        let found = untold("src/config/a.rs", text, &others.join("\n"));
        assert!(found.len() == 1 && found[0].ends_with(&format!("{part:?}")), "{found:?}");
    }
    assert_eq!(untold("src/config/schema.rs", text, ""), Vec::<String>::new());
}
