#!/bin/bash
# tests/run.sh [--without NAME]... [-- CARGO_TEST_ARGUMENTS]      all tests, with real brokers
#   NAME   mosquitto, hivemq, rabbitmq, kafka, ldap, paho-mqtt or mqttjs: the tests that need it are left out, and named at the end
#   such as: tests/run.sh --without kafka -- --test e2e outage
# Installs what is missing (Debian, as root or by sudo), fetches Kafka's and HiveMQ's jars, and runs `cargo test`. The tests start the brokers
# themselves, on free loopback ports in throw-away folders; nothing of them is left, also when the tests fail or are interrupted.
# Exit code: 0 if all tests passed; otherwise not, also where a broker could not be had and --without did not name it.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 70
help() { sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
usage() { printf 'tests/run.sh: %s\n' "$*" >&2; help >&2; exit 64; }

brokers=(mosquitto hivemq rabbitmq kafka ldap paho-mqtt mqttjs)
without=()
while [ $# -gt 0 ]; do
  case $1 in
    --without)
      case ${2:-} in
        mosquitto|hivemq|rabbitmq|kafka|ldap|paho-mqtt|mqttjs) without+=("$2") ;;
        *) usage "--without takes mosquitto, hivemq, rabbitmq, kafka, ldap, paho-mqtt or mqttjs, not '${2:-}'" ;;
      esac
      shift 2 ;;
    --without=*) set -- --without "${1#*=}" "${@:2}" ;;
    --) shift; break ;;
    -h|--help) help; exit 0 ;;
    *) usage "unknown argument '$1' (arguments of cargo test come behind --)" ;;
  esac
done
say() { printf 'tests/run.sh: %s\n' "$*" >&2; }
named() { local name; for name in "${without[@]}"; do [ "$name" != "$1" ] || return 0; done; return 1; }

PATH=$PATH:/usr/sbin:$HOME/.cargo/bin
command -v cargo >/dev/null || { say "there is no cargo here: install Rust from https://rustup.rs"; exit 69; }
work=$(mktemp -d) || exit 74
child=
policy=
finish() {
  trap - EXIT INT TERM HUP
  [ -z "$child" ] || kill -- "-$child" 2>/dev/null
  [ -z "$policy" ] || rm_policy
  rm -rf "$work"
}
trap finish EXIT
trap 'finish; exit 130' INT
trap 'finish; exit 143' TERM HUP

# ---- What is missing, by the program that shows it.
packages=()
want() { command -v "$1" >/dev/null || packages+=("${@:2}"); }
want cc build-essential
want make build-essential
want pkg-config pkg-config
want openssl openssl
want setpriv util-linux
want strace strace
pkg-config --exists libssl 2>/dev/null || packages+=(libssl-dev)
[ -e /usr/include/zlib.h ] || packages+=(zlib1g-dev)
[ -e /etc/ssl/certs/ca-certificates.crt ] || packages+=(ca-certificates)
if ! named mosquitto; then want mosquitto mosquitto; want mosquitto_pub mosquitto-clients; fi
named rabbitmq || want rabbitmq-server rabbitmq-server
named ldap || want slapd slapd
if ! named kafka; then want mvn maven; want java openjdk-17-jdk-headless; want kcat kcat; fi
if ! named hivemq; then want mvn maven; want javac openjdk-17-jdk-headless; fi

if ! named paho-mqtt; then python3 -c 'import venv, ensurepip' 2>/dev/null || packages+=(python3-venv); fi
if ! named mqttjs; then want node nodejs; want npm npm; fi

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@" 2>/dev/null || sudo "$@"; fi; }
rm_policy() { as_root rm -f "$policy"; policy=; }
install_missing() {
  [ "${#packages[@]}" -gt 0 ] || return 0
  say "installing ${packages[*]}"
  if ! command -v apt-get >/dev/null; then say "there is no apt-get here"; return 1; fi
  if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then say "neither root nor sudo"; return 1; fi
  # The packages of brokers start their services: this policy forbids it while they are installed.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    policy=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null && as_root chmod +x "$policy" || return 1
  fi
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -y -q --no-install-recommends)
  as_root "${apt[@]}" update >"$work/apt" 2>&1 || { tail -n 5 "$work/apt" >&2; say "apt-get update failed; trying on"; }
  local package status=0
  if ! as_root "${apt[@]}" install "${packages[@]}" >"$work/apt" 2>&1; then
    # One that cannot be had must not take the others with it.
    for package in "${packages[@]}"; do
      as_root "${apt[@]}" install "$package" >"$work/apt" 2>&1 || { tail -n 3 "$work/apt" >&2; say "cannot install $package"; status=1; }
    done
  fi
  [ -z "$policy" ] || rm_policy
  return "$status"
}
install_missing

# ---- Which brokers, and which clients that others wrote, there are.
missing=()
have() {
  case $1 in
    mosquitto) command -v mosquitto >/dev/null && command -v mosquitto_pub >/dev/null ;;
    rabbitmq) [ -x /usr/sbin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null ;;
    ldap) command -v slapd >/dev/null && command -v slappasswd >/dev/null ;;
    kafka) command -v java >/dev/null && tests/peers/kafka/start.sh --fetch >"$work/kafka" 2>"$work/kafka.err" ||
      { tail -n 5 "$work/kafka.err" >&2; false; } ;;
    hivemq) command -v javac >/dev/null && tests/peers/hivemq/start.sh --fetch >"$work/hivemq" 2>"$work/hivemq.err" ||
      { tail -n 5 "$work/hivemq.err" >&2; false; } ;;
    paho-mqtt|mqttjs) "tests/peers/$1/run.sh" --fetch >"$work/client" 2>"$work/client.err" || { tail -n 5 "$work/client.err" >&2; false; } ;;
  esac
}
for broker in "${brokers[@]}"; do
  named "$broker" && continue
  have "$broker" || { say "$broker cannot be had here"; missing+=("$broker"); }
done

# ---- The tests, in a process group of their own, so that an interrupt ends all of it.
out=("${without[@]}" "${missing[@]}")
TIDEGATE_WITHOUT=$(IFS=,; echo "${out[*]}")
export TIDEGATE_WITHOUT TIDEGATE_TESTS_LEFT_OUT=$work/left-out TMPDIR=${TMPDIR:-/tmp}
: >"$TIDEGATE_TESTS_LEFT_OUT"
# Many random runs of the buffer against its reference; a plain `cargo test` has few.
export TIDEGATE_MODEL_RUNS=${TIDEGATE_MODEL_RUNS:-100000}
# The same of the broker's sessions: each run has a real broker, and starts it anew some times.
export TIDEGATE_SESSIONS_RUNS=${TIDEGATE_SESSIONS_RUNS:-500}
# The properties' cases are the same in every run, so that a red run says something of the change; a plain `cargo test` has others each time.
export PROPTEST_RNG_SEED=${PROPTEST_RNG_SEED:-1}
set -m
cargo test --locked --no-fail-fast "$@" </dev/null &
child=$!
set +m
wait "$child"
status=$?
child=

# ---- The last lines.
if [ -s "$TIDEGATE_TESTS_LEFT_OUT" ]; then
  say "did not run:"
  sort -u "$TIDEGATE_TESTS_LEFT_OUT" | sed 's/^/  /' >&2
fi
if [ "${#missing[@]}" -gt 0 ]; then
  say "not available: ${missing[*]}; the tests above did not run (leave them out on purpose: ${missing[*]/#/--without })"
  [ "$status" != 0 ] || status=69
fi
if [ "$status" = 0 ]; then say "all tests that ran passed"; else say "failed"; fi
exit "$status"
