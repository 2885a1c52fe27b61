//! **Tidegate** is an edge message gateway: one binary at a site's edge that takes messages from machines through its
//! built-in MQTT broker, routes them by a declarative `routes.yaml`, and carries them to and from remote MQTT brokers,
//! RabbitMQ exchanges and Kafka topics over links that fail, with a store-and-forward buffer on disk for every link.
//!
//! # Lexicon: one word, one meaning
//!
//! | word | meaning |
//! | --- | --- |
//! | message | what travels: topic, payload, properties, and the id that it keeps on every hop ([`message`]) |
//! | topic | the name that a message is published to ([`topic`]) |
//! | broker | the built-in MQTT broker ([`broker`]); any other is a *remote* |
//! | session | one MQTT client's state; *kept* if it outlives the connection |
//! | link | one remote system ([`links`]) |
//! | source, sink | a link's inbound half, its outbound half |
//! | route | from → to, with what happens between ([`router`]) |
//! | hub | where an accepted message is routed and offered to buffers ([`hub`]) |
//! | buffer | a link's log on disk ([`buffer`]) |
//! | record, segment, offset | an entry of that log, a file of it, a record's place in it |
//! | cursor | how far the remote has confirmed |
//! | receipt | settles when a message is durable everywhere it must be ([`hub::Receipt`]) |
//! | dead letter | a record that the remote refused for good |
//! | replay | sending delivered records again |
//!
//! "Queue" only ever means a bounded channel in memory.
//!
//! # Two loops that meet in the buffer
//!
//! ```text
//! FRONT LOOP: the publisher's acknowledgement             | BACK LOOP: the remote's acknowledgement
//! client --PUBLISH--> broker::connection --+              |
//!                                          +--> hub.offer --> buffer.append | buffer.read --> links::sink --> remote
//! remote --record---> links::source -------+      |   ^         |           |     ^                       |
//!                                          router.route |      group        |     |                       | confirm
//!                         PUBACK / source commit <- receipt <- commit       |     +--- cursor.advance <---+
//! ```
//!
//! The front loop ends at the disk: a publisher is acknowledged when its message is synced in the buffer of every link that a
//! route sends it to, and in the store of every kept session that is owed it. The back loop begins there: a link's sink
//! reads in order, keeps a window in flight, and moves the cursor over what the remote has confirmed. Neither loop waits
//! for the other.
//!
//! # Module map
//!
//! | module | what it is | what it must not know |
//! | --- | --- | --- |
//! | [`cli`] | what the operator types | protocols |
//! | [`config`] | `routes.yaml`: raw → resolved, all mistakes at once | anything that runs |
//! | [`gateway`] | builds, runs and ends all parts; the only one that knows them all | file formats, protocols |
//! | [`hub`] | offer, receipt, outlets | protocols, disks, tasks |
//! | [`router`] | which routes match, and what they make of a topic; pure | I/O, time |
//! | [`buffer`] | the log of one link | what a message is |
//! | [`broker`] | the built-in MQTT broker; `session` and `index` are pure | links |
//! | [`wire`] | MQTT packets, bytes in and out; pure | sessions, sockets |
//! | [`links`] | the contract of a link kind, its runner, and the kinds | the broker |
//! | [`admin`] | status socket, health, metrics page | what it serves |
//! | [`telemetry`] | logs, metric names, the status board | who writes to it |
//! | [`message`], [`topic`], [`clock`], [`units`] | vocabulary | everything above |
//!
//! `tests/architecture.rs` holds the allowed arrows as data and fails on any other.
//!
//! # Invariants
//!
//! 1. Nothing is acknowledged before it is durable everywhere it must be; a receipt that is dropped undecided counts as
//!    rejected.
//! 2. Nothing is deleted before the remote has confirmed it, but for what the operator's own limits drop, each counted.
//! 3. `accepted = delivered + buffered + dropped + expired + dead_lettered`, per link, across restarts and kills.
//! 4. Order per source topic; a resend begins at the first unconfirmed record.
//! 5. Every channel, window, buffer and delay has a limit. Memory does not grow with the backlog.
//! 6. No lock is held across an `.await`; the data path has no actor in the middle.
//! 7. Only [`clock`] reads a clock; only `cli` prints; only [`gateway`] knows all parts.
pub mod admin;
pub mod broker;
pub mod buffer;
pub mod cli;
pub mod clock;
pub mod config;
pub mod gateway;
pub mod hub;
pub mod links;
pub mod message;
pub mod router;
pub mod telemetry;
pub mod topic;
pub mod units;
pub mod wire;
