//! Who wants a topic, and which retained messages a filter asks for: [`Subscriptions`] and [`Retained`].
//!
//! Both are trees of topic levels. Invariants: what they find is what [`crate::topic::matches`] finds one by one; no
//! step, and not the drop either, recurses with the depth of a topic; branches that hold nothing are gone.
//!
//! PURE: this module knows no packet, session or store, takes no lock and reads no clock. Keys and values are its
//! user's, and so are merging overlapping subscriptions and choosing who gets a shared one ([`Wanted`] tells them apart).

mod retained;
mod share;
mod subscriptions;
mod tree;

pub use retained::{Place, Retained, RetainedMatches};
pub use share::{FilterError, Share, Wanted};
pub use subscriptions::{SubscriptionMatches, Subscriptions};
pub(super) use tree::NODE_BYTES;
