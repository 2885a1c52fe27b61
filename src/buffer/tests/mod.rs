//! The buffer through its public face, on a real folder.

mod face;
