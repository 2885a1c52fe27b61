//! Deciding where a message goes allocates nothing: not for the patterns of ten thousand routes, not for a condition on a
//! JSON payload, not for a destination that is one part. A file of its own, since it counts the whole process's memory.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is its purpose")]

use std::borrow::Cow;
use std::hint::black_box;

use peak_alloc::PeakAlloc;
use tidegate::clock::{Moment, WallMs};
use tidegate::message::{Message, MessageId, Origin, Properties, Qos};
use tidegate::router::{Arrival, Endpoint, Filter, Form, From, Route, Subject, Table, To, Told, View};
use tidegate::topic::TopicName;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

fn message(topic: &str, payload: &str) -> Message {
    Message {
        id: MessageId { site: "plant-7".into(), run: 1, counter: 1 },
        topic: TopicName::new(topic).unwrap(),
        payload: payload.as_bytes().to_vec().into(),
        qos: Qos::AtLeastOnce,
        retain: false,
        time: WallMs(1_796_083_200_000),
        time_unsync: false,
        expiry_s: None,
        accepted: Moment::default(),
        origin: Origin::default(),
        properties: Properties::default(),
    }
}

fn route(name: &str, from: &str, to: &str, condition: Option<&str>) -> Route {
    let from = From::parse(from, Form::Topic).unwrap();
    let filter = condition.map(|text| Filter::parse(text).unwrap());
    Route { filter, ..Route::new(name, vec![from], vec![To::parse(to).unwrap()]) }
}

#[test]
fn a_decision_allocates_nothing() {
    let condition = "payload.temp > 80 && payload.state.startsWith('r') && line != 'b' && qos >= 1";
    let mut routes: Vec<_> =
        (0..10_000).map(|n| route(&n.to_string(), &format!("broker/site/{n}/{{line}}/#"), "lake/t", None)).collect();
    routes.push(route("all", "broker/#", "hq/{topic}", None));
    routes.push(route("hot", "broker/factory/{line}/{machine}/#", "lake/{machine}", Some(condition)));
    routes.push(route("fixed", "broker/factory/+/press/temp", "lake/press", Some("!has(payload.alarm)")));
    let table = Table::new(routes);
    let message =
        message("factory/a/press/temp", r#"{"temp":81.5,"state":"run","tags":["a","b"],"deep":{"x":null,"y":true}}"#);
    let mut owned = 0;
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let mut taken = 0;
    let subject = Subject::new(&message);
    let arrival = Arrival { from: &Endpoint::Broker, channel: None, topic: message.topic.as_str(), subject: &subject };
    table.route(&arrival, |told| {
        let Told::Taken(route) = told else { return };
        taken += 1;
        for to in &route.route.to {
            let destination = to.template.fill(View::new(&subject, &route.captures)).unwrap();
            owned += usize::from(matches!(destination, Cow::Owned(_)));
            black_box(&destination);
        }
    });
    let (after, peak) = (MEMORY.current_usage(), MEMORY.peak_usage());
    drop(subject);
    assert_eq!((taken, owned), (3, 0));
    assert_eq!((after, peak), (before, before), "bytes in use before and after, and at most in between");
    // The measure itself is not blind.
    let some = black_box(vec![0_u8; 10]);
    assert_eq!(MEMORY.peak_usage(), before + some.len());
}
