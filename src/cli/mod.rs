//! What the operator types.

pub mod check;
