//! The runner against a scripted kind.
