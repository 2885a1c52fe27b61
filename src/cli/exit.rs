//! Exit codes: what a script learns of how a command ended (DESIGN.md section 5; the numbers are those of sysexits.h).

use std::fmt;
use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// The answer is "no": lost messages, an unbalanced ledger, a failed probe.
    No,
    /// Wrong usage.
    Usage,
    /// Wrong configuration.
    Config,
    /// A remote or the gateway is not there.
    Unavailable,
    /// Our bug.
    Bug,
    /// Input or output failed.
    Io,
    /// Not permitted.
    NotPermitted,
}

impl Exit {
    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::No => 1,
            Self::Usage => 64,
            Self::Config => 65,
            Self::Unavailable => 69,
            Self::Bug => 70,
            Self::Io => 74,
            Self::NotPermitted => 77,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command failed, and with which code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub code: u8,
    pub error: anyhow::Error,
    /// What else the operator may want to know: lines of their own.
    notes: Vec<String>,
}

impl Failure {
    /// With one of the documented codes.
    pub(crate) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self::with_code(exit.code(), error)
    }

    /// With the code that another part decided on.
    pub(crate) fn with_code(code: u8, error: impl Into<anyhow::Error>) -> Self {
        Self { code, error: error.into(), notes: Vec::new() }
    }

    /// Adds a line.
    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The chain on one line: "failed to ...: ...: ...".
        write!(f, "tidegate: {:#}", self.error)?;
        self.notes.iter().try_for_each(|note| write!(f, "\ntidegate: {note}"))
    }
}

/// What a command gives back.
pub(crate) type Outcome = Result<Exit, Failure>;
