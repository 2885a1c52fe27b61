#!/bin/bash
# packaging/demo.sh [DEMO_ARGUMENTS]      builds Tidegate and shows what it does: `tidegate demo`
# Installs what the build needs where it is missing (Debian, as root or by sudo). Needs Rust; says how to get it.
# Exit code: the demo's (0: nothing acknowledged was lost), or that of the step that failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
say() { printf 'packaging/demo.sh: %s\n' "$*" >&2; }

# What is missing, by the thing that shows it.
packages=()
want() { command -v "$1" >/dev/null || packages+=("$2"); }
want cc build-essential
want c++ build-essential
want make build-essential
want pkg-config pkg-config
[ -e /usr/include/openssl/ssl.h ] || packages+=(libssl-dev)
[ -e /usr/include/zlib.h ] || packages+=(zlib1g-dev)
[ -e /etc/ssl/certs/ca-certificates.crt ] || packages+=(ca-certificates)

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else return 1; fi
}
if [ "${#packages[@]}" -gt 0 ]; then
  say "installing ${packages[*]}"
  command -v apt-get >/dev/null || { say "there is no apt-get here: install a C and C++ compiler, make, pkg-config, and the headers of OpenSSL and zlib"; exit 69; }
  as_root apt-get update -qq || { say "cannot install packages: run this as root, or install sudo; missing: ${packages[*]}"; exit 77; }
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >&2
fi

if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then PATH=$HOME/.cargo/bin:$PATH; fi
if ! command -v cargo >/dev/null; then
  say "there is no cargo here; get Rust (https://rustup.rs), then run this again:"
  say "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal"
  exit 69
fi

say "building (some minutes the first time)"
cargo build --release --locked --quiet
exec "${CARGO_TARGET_DIR:-target}/release/tidegate" demo "$@"
