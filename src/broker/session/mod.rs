//! What one session owes and is owed, as the protocol sees it: packet ids, windows, the two QoS 2 exchanges, and the
//! order of acknowledgements. PURE: no tokio, no files, no sockets; time and durable positions are arguments.
//!
//! - [`Outbound`]: messages to the client: a queue that waits for the window, and what is in flight.
//! - [`Inbound`]: QoS 2 exchanges that the client began. A map of its own: the two directions share no ids.
//! - [`Acks`]: acknowledgements that are held until what they promise is true, released in order of receipt.
//!
//! Each has getters, `handle_*` for what arrives, and `poll_*` for what must go out.

mod acks;
mod inbound;
mod outbound;

pub(super) use acks::Acks;
pub(super) use inbound::{Arrived, Inbound};
pub(super) use outbound::{Assigned, Entry, Outbound, Pubrec, Row, Transmit, Window};
