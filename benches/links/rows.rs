//! What is measured, and what issue 6 asks for.

use super::far::Kind;

/// When the far server is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From the start: publishers, broker, buffer and link work at once.
    EndToEnd,
    /// After all messages are in the buffer.
    Drain,
}

/// One kind of work.
pub(super) struct Row {
    /// Also what `row=` is searched in.
    pub(super) name: &'static str,
    pub(super) far: Kind,
    pub(super) way: Way,
    /// Of a round, unless told otherwise: a second or some.
    pub(super) messages: u64,
    /// So many may be published and not yet arrived: bounds the backlog end to end, so that it is what all parts carry at once.
    pub(super) open_max: u64,
    /// At least this part of the direct rate.
    pub(super) of_direct: Option<f64>,
    /// At least so many times the other way's rate.
    pub(super) of_other: Option<f64>,
}

const fn row(name: &'static str, far: Kind, way: Way, messages: u64, targets: (Option<f64>, Option<f64>)) -> Row {
    let open_max = match far {
        Kind::RabbitMq | Kind::Mosquitto => 8_192,
        Kind::Kafka => 32_768,
    };
    Row { name, far, way, messages, open_max, of_direct: targets.0, of_other: targets.1 }
}

pub(super) const ROWS: &[Row] = &[
    row("RabbitMQ end to end", Kind::RabbitMq, Way::EndToEnd, 60_000, (Some(0.75), Some(2.0))),
    row("RabbitMQ drain", Kind::RabbitMq, Way::Drain, 60_000, (Some(0.9), None)),
    row("Kafka end to end", Kind::Kafka, Way::EndToEnd, 400_000, (Some(0.7), None)),
    row("Kafka drain", Kind::Kafka, Way::Drain, 400_000, (Some(0.9), None)),
    row("Mosquitto end to end", Kind::Mosquitto, Way::EndToEnd, 100_000, (None, Some(2.0))),
    row("Mosquitto drain", Kind::Mosquitto, Way::Drain, 100_000, (Some(0.9), None)),
];
