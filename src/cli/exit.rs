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
}

impl Failure {
    /// With one of the documented codes.
    pub(crate) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { code: exit.code(), error: error.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The chain on one line: "failed to ...: ...: ...".
        write!(f, "tidegate: {:#}", self.error)
    }
}

/// What a command gives back.
pub(crate) type Outcome = Result<Exit, Failure>;
