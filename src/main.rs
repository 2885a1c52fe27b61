//! The thin binary: allocator, cryptography, command line.

use std::process::ExitCode;

/// Returns memory to the system after a burst, and is faster than the system's for many small messages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Before anything may open a TLS connection. It fails only if a provider is installed already, and this is the first line.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return tidegate::cli::Exit::Bug.into();
    }
    tidegate::cli::main()
}
