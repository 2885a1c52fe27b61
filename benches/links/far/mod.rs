//! The far servers: started, looked at, read back; and what their clients do without a gateway.

mod kafka;
mod mosquitto;
mod rabbitmq;

use std::path::Path;
use std::thread::JoinHandle;

use super::load::{self, PUBLISHERS};
use super::process::free_port;

/// Which server is far away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    RabbitMq,
    Kafka,
    Mosquitto,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::RabbitMq, Self::Kafka, Self::Mosquitto];
}

/// What a server must be able to do here.
trait Server {
    /// An empty place for the messages of one round.
    fn begin(&mut self);

    /// How many are there.
    fn arrived(&mut self) -> u64;

    /// Reads them all.
    fn read(&mut self, seen: &mut Seen);

    /// Publishes so many by the client library that our link uses, each confirmed; `stamped`: with headers as our link's.
    fn direct(&mut self, messages: u64, stamped: bool) -> JoinHandle<()>;

    /// The link of `routes.yaml` to a port, and what a route sends to on it.
    fn link(&self, port: u16) -> (String, String);
}

/// A running server.
pub(super) struct Far {
    pub(super) port: u16,
    server: Box<dyn Server>,
}

impl Far {
    pub(super) fn start(kind: Kind, dir: &Path) -> Self {
        let port = free_port();
        let dir = dir.join(format!("{kind:?}"));
        std::fs::create_dir(&dir).unwrap();
        let server: Box<dyn Server> = match kind {
            Kind::RabbitMq => Box::new(rabbitmq::RabbitMq::start(port, &dir)),
            Kind::Kafka => Box::new(kafka::Kafka::start(port, &dir)),
            Kind::Mosquitto => Box::new(mosquitto::Mosquitto::start(port, &dir)),
        };
        Self { port, server }
    }

    /// A new round.
    pub(super) fn begin(&mut self) {
        self.server.begin();
    }

    pub(super) fn arrived(&mut self) -> u64 {
        self.server.arrived()
    }

    /// What is not there of so many messages, and what is there twice.
    pub(super) fn count(&mut self, messages: u64) -> Count {
        let share = usize::try_from(messages / PUBLISHERS).unwrap();
        let mut seen = Seen { marks: vec![vec![false; share]; usize::try_from(PUBLISHERS).unwrap()], twice: 0 };
        self.server.read(&mut seen);
        let lost = seen.marks.iter().flatten().filter(|is_there| !**is_there).count();
        Count { lost: lost as u64, twice: seen.twice }
    }

    pub(super) fn direct(&mut self, messages: u64, stamped: bool) -> JoinHandle<()> {
        self.server.direct(messages, stamped)
    }

    /// Link and route of `routes.yaml`.
    pub(super) fn link(&self) -> String {
        self.link_at(self.port)
    }

    /// The same link where nobody listens.
    pub(super) fn link_to_nowhere(&self) -> String {
        self.link_at(free_port())
    }

    fn link_at(&self, port: u16) -> String {
        let (link, to) = self.server.link(port);
        format!(
            "links:\n  far:\n    {link}\n    buffer: {{ max_size: 8GiB, min_free: 64MiB, sync: group }}\nroutes:\n  - {{ from: \"broker/bench/{{n}}/{{what}}\", to: \"far/{to}\" }}\n"
        )
    }
}

/// What our links write beside the message itself; such texts as this gateway has here.
const STAMPS: [(&str, &str); 7] = [
    ("tg-id", "bench-0123456789abcdef-123456"),
    ("tg-seq", "0123456789abcdef-1-123456"),
    ("tg-site", "bench"),
    ("tg-time", "1795000000000"),
    ("tg-path", "bench"),
    ("tg-hops", "1"),
    ("tg-client", "pub-0"),
];

/// What a round has lost and doubled.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    pub(super) lost: u64,
    pub(super) twice: u64,
}

/// Which messages were read back.
pub(super) struct Seen {
    marks: Vec<Vec<bool>>,
    twice: u64,
}

impl Seen {
    fn note(&mut self, payload: &[u8]) {
        let (publisher, nth) = load::mark(payload);
        let mark = &mut self.marks[publisher as usize][nth as usize];
        self.twice += u64::from(std::mem::replace(mark, true));
    }
}
