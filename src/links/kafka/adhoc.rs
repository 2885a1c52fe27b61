use std::time::Duration;
use super::Config;
use super::*;
use crate::links::{Answer, Identity, LinkError, Outgoing, Sent, Sink, SinkConnection, Source, SourceConnection};
use crate::buffer::Offset;
use crate::message::{Envelope, tests_support::message};
use crate::router::LinkId;
use bytes::Bytes;
use rdkafka::admin::*;

fn config() -> Config {
    Config { brokers: vec!["127.0.0.1:26092".into()], acks: "all".into(), compression: Some("zstd".into()), group: None, options: Default::default(), message_bytes_max: 1 << 20 }
}
fn identity() -> Identity { Identity { site: "s".into(), link: LinkId::new("l") } }
fn record(n: u64, dest: &str, size: usize) -> Outgoing {
    let mut m = message("a/b", b"");
    m.id.counter = n + 1;
    let mut p = format!("{n:08}").into_bytes(); p.resize(size.max(8), b'x');
    m.payload = Bytes::from(p);
    Outgoing { offset: Offset(n), seq: format!("b-0-{n}"), envelope: Envelope { destination: dest.into(), key: None, ordinal: 0, message: m }, expiry_left_s: None }
}
async fn pump(conn: &mut KafkaSinkConnection, total: u64, dest: &str) -> Vec<Answer> {
    let mut answers = vec![]; let mut next = 0;
    while (answers.len() as u64) < total {
        while next < total && next - (answers.len() as u64) < 4096 { match conn.send(record(next, dest, 8)).unwrap() { Sent::Queued => next += 1, other => { println!("{other:?}"); break } } }
        match tokio::time::timeout(Duration::from_secs(20), conn.answer()).await { Ok(a) => answers.push(a.unwrap()), Err(_) => panic!("stuck at {}", answers.len()) }
    }
    answers
}
#[tokio::test(flavor = "multi_thread")]
async fn kafka() {
    let admin: AdminClient<rdkafka::client::DefaultClientContext> = rdkafka::ClientConfig::new().set("bootstrap.servers", "127.0.0.1:26092").create().unwrap();
    let topic = format!("t{}", std::process::id());
    let small = format!("small{}", std::process::id());
    admin.create_topics(&[NewTopic::new(&topic, 2, TopicReplication::Fixed(1)), NewTopic::new(&small, 1, TopicReplication::Fixed(1)).set("max.message.bytes", "2000")], &AdminOptions::new()).await.unwrap();
    let t = std::time::Instant::now();
    let mut conn = KafkaSink::new(&config(), &identity()).connect().await.unwrap();
    println!("connected in {:?}", t.elapsed());
    let t = std::time::Instant::now();
    let answers = pump(&mut conn, 20_000, &topic).await;
    let mut in_order = true;
    for (n, a) in answers.iter().enumerate() { in_order &= *a == Answer::Confirmed(Offset(n as u64)); }
    println!("published 20000 in {:?} in order {in_order}", t.elapsed());
    // too large: local
    println!("{:?}", conn.send(record(1, &topic, 1 << 20)));
    println!("{:?}", conn.send(record(1, "a/b", 8)));
    // too large at the broker, amid others
    for n in 0..5 { assert!(matches!(conn.send(record(n, &small, if n == 2 { 60_000 } else { 8 })).unwrap(), Sent::Queued)); }
    for _ in 0..5 { println!("  {:?}", conn.answer().await); }
    for n in 0..5 { loop { match conn.send(record(n, &small, if n == 2 { 60_000 } else { 8 })).unwrap() { Sent::Queued => break, Sent::Full(_) => println!("  {:?}", conn.answer().await), o => println!("{o:?}") } } }
    println!("  {:?}", conn.answer().await);
    let t = std::time::Instant::now();
    conn.send(record(7, "missing", 8)).unwrap();
    println!("missing: {:?} after {:?}", conn.answer().await, t.elapsed());
    let t = std::time::Instant::now(); drop(conn); println!("drop {:?}", t.elapsed());
    let conn = KafkaSink::new(&config(), &identity()).connect().await.unwrap();
    let t = std::time::Instant::now(); conn.close().await; println!("close {:?}", t.elapsed());
    // errors
    let t = std::time::Instant::now();
    let mut bad = config(); bad.brokers = vec!["127.0.0.1:1".into()];
    println!("{:?} {:?}", KafkaSink::new(&bad, &identity()).connect().await.err(), t.elapsed());
    let t = std::time::Instant::now();
    println!("{:?} {:?}", KafkaSource::new(&bad, vec!["x".into()], &identity()).connect().await.err(), t.elapsed());
    let t = std::time::Instant::now();
    let mut sasl = config(); sasl.brokers = vec!["127.0.0.1:26094".into()];
    for (k, v) in [("security.protocol", "sasl_plaintext"), ("sasl.mechanism", "SCRAM-SHA-512"), ("sasl.username", "edge-1"), ("sasl.password", "wrong")] { sasl.options.insert(k.into(), v.into()); }
    println!("{:?} {:?}", KafkaSink::new(&sasl, &identity()).connect().await.err(), t.elapsed());
    let t = std::time::Instant::now();
    println!("{:?} {:?}", KafkaSource::new(&sasl, vec![topic.clone()], &identity()).connect().await.err(), t.elapsed());
    sasl.options.insert("sasl.password".into(), "secret".into());
    println!("right password: {:?}", KafkaSink::new(&sasl, &identity()).connect().await.err());
    sasl.options.insert("no.such".into(), "secret".into());
    println!("{:?}", KafkaSink::new(&sasl, &identity()).connect().await.err());
    sasl.options.remove("no.such"); sasl.options.insert("linger.ms".into(), "secret".into());
    println!("{:?}", KafkaSink::new(&sasl, &identity()).connect().await.err());
    // source
    let t = std::time::Instant::now();
    println!("{:?} {:?}", KafkaSource::new(&config(), vec!["missing".into()], &identity()).connect().await.err(), t.elapsed());
    let mut source = KafkaSource::new(&config(), vec![topic.clone()], &Identity { site: topic.as_str().into(), link: LinkId::new("l") });
    let t = std::time::Instant::now();
    let mut conn = source.connect().await.unwrap();
    println!("source connected in {:?}", t.elapsed());
    let mut got = vec![]; let mut held = vec![]; let t = std::time::Instant::now();
    while got.len() < 20_000 {
        let batch = tokio::time::timeout(Duration::from_secs(10), conn.receive()).await.unwrap_or_else(|_| panic!("stuck at {}", got.len())).unwrap();
        for r in batch { got.push(r.publication); held.push(r.token); if held.len() >= 51 { for t in held.drain(..50).rev() { conn.settled(t).unwrap(); } } }
    }
    println!("consumed {} in {:?}; left unsettled {}; {:?}", got.len(), t.elapsed(), held.len(), got[0]);
    for (n, p) in got.iter().enumerate() { assert_eq!(p.payload, format!("{n:08}").as_bytes()); }
    let t = std::time::Instant::now(); conn.close().await; println!("close {:?}", t.elapsed());
    let mut conn = source.connect().await.unwrap();
    let mut again = 0; let first = conn.receive().await.unwrap(); let f = first[0].publication.payload.clone();
    again += first.len(); for r in first { conn.settled(r.token).unwrap(); }
    while let Ok(b) = tokio::time::timeout(Duration::from_millis(500), conn.receive()).await { for r in b.unwrap() { again += 1; conn.settled(r.token).unwrap(); } }
    println!("again {again}, expected {} first {f:?}", held.len());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let t = std::time::Instant::now(); drop(conn); println!("drop {:?}", t.elapsed());
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let mut conn = source.connect().await.unwrap();
    println!("nothing again: {:?}", tokio::time::timeout(Duration::from_millis(2500), conn.receive()).await.is_err());
    // two in the group: rebalance
    let mut other = source.connect().await.unwrap();
    println!("rebalance: {:?} {:?}", tokio::time::timeout(Duration::from_millis(1500), other.receive()).await.is_err(), tokio::time::timeout(Duration::from_millis(1500), conn.receive()).await.is_err());
    other.close().await; conn.close().await;
    println!("threads {}", std::fs::read_dir("/proc/self/task").unwrap().count());
    let e: Result<(), LinkError> = Ok(()); e.unwrap();
}
