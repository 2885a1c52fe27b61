//! The cases of `tests/conformance/cases.txt`: bytes in, bytes out, each against a broker of its own. `tests/conformance.rs` says
//! which statement of which specification each of them covers.

use std::collections::HashMap;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::{Rig, soon};

const CASES: &str = include_str!("../../../tests/conformance/cases.txt");

#[tokio::test]
async fn every_case_of_the_specifications_has_its_bytes() {
    let cases: Vec<&str> = CASES.split("\n== ").skip(1).collect();
    let count = cases.len();
    assert!(count > 70);
    let runs = cases.into_iter().map(async |case| {
        let (name, steps) = case.split_once('\n').unwrap();
        run(steps).await.map_err(|why| format!("== {name}\n{why}"))
    });
    // Each begins a store, which waits for the disk: they wait together.
    let failed: Vec<_> = stream::iter(runs).buffer_unordered(16).filter_map(async |end| end.err()).collect().await;
    assert!(failed.is_empty(), "{} of {count} cases failed\n{}", failed.len(), failed.join("\n"));
}

async fn run(steps: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut peers = HashMap::new();
    for step in steps.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, what) = step.split_once(' ').unwrap();
        if !peers.contains_key(name) {
            peers.insert(name, TcpStream::connect(rig.address).await.unwrap());
        }
        let peer = peers.get_mut(name).unwrap();
        take(peer, name, what).await.map_err(|why| format!("{step}\n    {why}"))?;
    }
    drop(peers);
    rig.stop().await;
    Ok(())
}

async fn take(peer: &mut TcpStream, name: &str, what: &str) -> Result<(), String> {
    let (verb, bytes) = what.split_once(' ').unwrap_or((what, ""));
    let (connect, connack) = match verb {
        ">" => return send(peer, bytes).await,
        "<" => return expect(peer, bytes).await,
        "." => return end(peer).await,
        "?" => {
            send(peer, "C0 00").await?;
            return expect(peer, "D0 00").await;
        }
        "x" => {
            // A reset, as when a machine goes: nothing is left to be read.
            *peer = TcpStream::connect(peer.peer_addr().unwrap()).await.unwrap();
            return Ok(());
        }
        "connect31" => (format!("10( \"MQIsdp\" 03 02 003C \"{name}\" )"), "20( 00 00 )"),
        "connect4" => (format!("10( \"MQTT\" 04 02 003C \"{name}\" )"), "20( 00 00 )"),
        "connect5" => (format!("10( \"MQTT\" 05 02 003C 00 \"{name}\" )"), "20( 00 00 .. )"),
        "kept4" => (format!("10( \"MQTT\" 04 00 003C \"{name}\" )"), "20( 00 00 )"),
        "kept5" => (format!("10( \"MQTT\" 05 00 003C [ 11 00000E10 ] \"{name}\" )"), "20( 00 00 .. )"),
        _ => panic!("no step {what}"),
    };
    send(peer, &connect).await?;
    expect(peer, connack).await
}

async fn send(peer: &mut TcpStream, text: &str) -> Result<(), String> {
    let bytes: Vec<u8> = parse(&mut tokens(text).into_iter()).into_iter().map(|byte| byte.expect("no `..`")).collect();
    peer.write_all(&bytes).await.map_err(|error| error.to_string())
}

async fn expect(peer: &mut TcpStream, text: &str) -> Result<(), String> {
    let wanted = parse(&mut tokens(text).into_iter());
    let got = packet(peer).await?;
    // A packet that is open at its end has a length that is not known either.
    let (head, wanted) = match wanted.iter().position(Option::is_none) {
        None => (got.len(), wanted),
        Some(at) => (at, wanted),
    };
    let is_open = head != got.len() || wanted.last() == Some(&None);
    let body = |bytes: &[u8]| bytes.iter().skip(1).position(|byte| byte & 0x80 == 0).unwrap() + 2;
    let fits = if is_open {
        let wanted: Vec<u8> = wanted.iter().map_while(|byte| *byte).collect();
        got[0] == wanted[0] && got[body(&got)..].starts_with(&wanted[body(&wanted)..])
    } else {
        wanted == got.iter().map(|byte| Some(*byte)).collect::<Vec<_>>()
    };
    if fits { Ok(()) } else { Err(format!("got {got:02X?}")) }
}

/// One packet, as it is on the wire.
async fn packet(peer: &mut TcpStream) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut left = 2;
    let mut len = 0;
    while left > 0 {
        let byte = soon(peer.read_u8()).await.map_err(|error| format!("got {bytes:02X?} and then: {error}"))?;
        bytes.push(byte);
        left -= 1;
        if bytes.len() >= 2 && len < usize::MAX {
            len += usize::from(byte & 0x7F) << (7 * (bytes.len() - 2));
            left = if byte & 0x80 == 0 { std::mem::replace(&mut len, usize::MAX) } else { 1 };
        }
    }
    Ok(bytes)
}

async fn end(peer: &mut TcpStream) -> Result<(), String> {
    let mut rest = Vec::new();
    match soon(peer.read_to_end(&mut rest)).await {
        Ok(_) if !rest.is_empty() => Err(format!("got {rest:02X?}")),
        // A reset ends it too: the broker did not wait for what was still coming.
        Ok(_) | Err(_) => Ok(()),
    }
}

fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let len = match first {
            '"' | '\'' => rest.match_indices(first).nth(1).expect("the quote ends").0 + 1,
            _ => rest.find(' ').unwrap_or(rest.len()),
        };
        let (token, after) = rest.split_at(len);
        tokens.push(token.to_owned());
        rest = after.trim_start();
    }
    tokens
}

/// Up to the end or the bracket that closes; `None` stands for `..`.
fn parse(tokens: &mut impl Iterator<Item = String>) -> Vec<Option<u8>> {
    let mut bytes = Vec::new();
    while let Some(token) = tokens.next() {
        if token == ")" || token == "]" {
            return bytes;
        } else if token == ".." {
            bytes.push(None);
        } else if token == "[" || token.ends_with('(') {
            bytes.extend(hex(token.trim_end_matches(['(', '['])));
            let inner = parse(tokens);
            bytes.extend(varint(inner.len()));
            bytes.extend(inner);
        } else if let Some(text) = token.strip_prefix('"') {
            let text = text.trim_end_matches('"').as_bytes();
            bytes.extend(u16::try_from(text.len()).unwrap().to_be_bytes().map(Some));
            bytes.extend(text.iter().map(|byte| Some(*byte)));
        } else if let Some(text) = token.strip_prefix('\'') {
            bytes.extend(text.trim_end_matches('\'').bytes().map(Some));
        } else {
            bytes.extend(hex(&token));
        }
    }
    bytes
}

fn hex(text: &str) -> Vec<Option<u8>> {
    assert!(text.len().is_multiple_of(2), "{text} is half a byte");
    let digits: Vec<u32> = text.chars().map(|digit| digit.to_digit(16).unwrap_or_else(|| panic!("{text}?"))).collect();
    digits.as_chunks::<2>().0.iter().map(|[high, low]| u8::try_from(high * 16 + low).ok()).collect()
}

fn varint(mut value: usize) -> Vec<Option<u8>> {
    let mut bytes = Vec::new();
    loop {
        let byte = u8::try_from(value & 0x7F).unwrap();
        value >>= 7;
        bytes.push(Some(if value == 0 { byte } else { byte | 0x80 }));
        if value == 0 {
            return bytes;
        }
    }
}
