//! What a decision of the router costs: `cargo bench --bench router`. No test asks for a time; this program only prints.
//! `docs/performance.md` says how to read it.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a program that prints figures of a real clock"
)]
#![expect(clippy::cast_precision_loss, reason = "nanoseconds")]

use std::hint::black_box;
use std::time::Instant;

use tidegate::clock::{Moment, WallMs};
use tidegate::message::{Message, MessageId, Origin, Properties, Qos};
use tidegate::router::{Arrival, Endpoint, Filter, Form, From, Route, Subject, Table, To, Told, View};
use tidegate::topic::TopicName;

/// As the product has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 15;
const MESSAGES: usize = 20_000;

/// 256 bytes, as machines send them.
const PAYLOAD: &str = r#"{"machine":"press-7","line":"a","temp":81.5,"pressure":12.25,"speed":1480,"state":"running","alarm":false,"shift":"early","order":"A-2026-001187","good":18233,"bad":12,"cycle_ms":3120,"tool":"T-44","axis":{"x":10.5,"y":-3.25,"z":0.0},"seq":123456789,"v":2}"#;

fn main() {
    println!("payload bytes {}", PAYLOAD.len());
    let ten = |n: usize| route(&format!("hit-{n}"), "broker/factory/{line}/+/telemetry", "lake/t", None);
    let table = Table::new(others(10_000).into_iter().chain((0..10).map(ten)).collect());
    measure("10,000 routes, 10 match: decision", &table, 10, false);
    measure("10,000 routes, 10 match: decision and destinations", &table, 10, true);
    let condition = Some("payload.temp > 80 && payload.axis.z < 1 && qos >= 1");
    let hot = route("hot", "broker/factory/{line}/{machine}/telemetry", "cloud/{line}.{machine}", condition);
    let table = Table::new(others(10_000).into_iter().chain([hot]).collect());
    measure("where on a JSON payload: decision", &table, 1, false);
    let conditions = (0..10).map(|n| {
        let condition = format!("payload.temp > {n} && payload.state == 'running'");
        route(&format!("c-{n}"), "broker/factory/{line}/{machine}/telemetry", "lake/t", Some(&condition))
    });
    measure("ten routes with where on one payload: decision", &Table::new(conditions.collect()), 10, false);
}

fn others(count: usize) -> Vec<Route> {
    (0..count).map(|n| route(&n.to_string(), &format!("broker/site/{n}/{{line}}/#"), "lake/t", None)).collect()
}

fn route(name: &str, from: &str, to: &str, condition: Option<&str>) -> Route {
    let from = From::parse(from, Form::Topic).unwrap();
    let filter = condition.map(|text| Filter::parse(text).unwrap());
    Route { filter, ..Route::new(name, vec![from], vec![To::parse(to).unwrap()]) }
}

/// The median round, in nanoseconds a message.
fn measure(what: &str, table: &Table, taken: usize, destinations: bool) {
    let message = Message {
        id: MessageId { site: "plant-7".into(), run: 1, counter: 1 },
        topic: TopicName::new("factory/a/press-7/telemetry").unwrap(),
        payload: PAYLOAD.as_bytes().to_vec().into(),
        qos: Qos::AtLeastOnce,
        retain: false,
        time: WallMs(0),
        time_unsync: false,
        expiry_s: None,
        accepted: Moment::default(),
        origin: Origin::default(),
        properties: Properties::default(),
    };
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..MESSAGES {
                assert_eq!(decide(table, black_box(&message), destinations), taken);
            }
            start.elapsed().as_nanos() as f64 / MESSAGES as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    let at = |place: usize| rounds.get(place).copied().unwrap_or_default();
    println!("{what}: {:.0} ns (fastest {:.0}, slowest {:.0})", at(ROUNDS / 2), at(0), at(ROUNDS - 1));
}

fn decide(table: &Table, message: &Message, destinations: bool) -> usize {
    let subject = Subject::new(message);
    let arrival = Arrival { from: &Endpoint::Broker, channel: None, topic: message.topic.as_str(), subject: &subject };
    let mut taken = 0;
    table.route(&arrival, |told| {
        let Told::Taken(route) = told else { return };
        taken += 1;
        if destinations {
            for to in &route.route.to {
                drop(black_box(to.template.fill(View::new(&subject, &route.captures))));
            }
        }
    });
    taken
}
