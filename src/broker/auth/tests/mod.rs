//! Rules against tables and against naive readings of both formats; the authenticator against files that change.

mod authenticator;
mod rules;
mod vouched;
