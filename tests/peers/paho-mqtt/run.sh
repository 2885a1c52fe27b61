#!/bin/bash
# run.sh PORT [tcp|websockets]     the checks of interop.py with Eclipse Paho's Python client, against the broker on 127.0.0.1:PORT
# run.sh --fetch                   only installs the client, into a virtual environment of its own
# Standard output: a line `ok NAME` for each check that passed. Exit code 0: all of them did.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${TIDEGATE_PEERS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tidegate-peers}/paho-mqtt
home=$cache/venv-$(cksum <"$here/requirements.txt" | cut -d' ' -f1)

fetch() { # safe when several start at once
  [ ! -d "$home" ] || return 0
  command -v python3 >/dev/null || { echo "run.sh: python3 not found: apt-get install --no-install-recommends python3-venv" >&2; exit 64; }
  mkdir -p "$cache"
  {
    flock 9
    [ ! -d "$home" ] || return 0
    local work
    work=$(mktemp -d "$cache/tmp.XXXXXX")
    python3 -m venv "$work" >&2
    # A virtual environment knows where it is, so only the packages move: the interpreter is the system's.
    "$work/bin/python3" -m pip install -q --disable-pip-version-check --require-hashes --target "$work/packages" -r "$here/requirements.txt" >&2
    mv -T "$work/packages" "$home"
    rm -rf "$work"
  } 9>"$cache/lock"
}

fetch
case ${1:-} in
  --fetch) echo "$home" ;;
  [0-9]*) PYTHONPATH=$home PYTHONDONTWRITEBYTECODE=1 exec python3 "$here/interop.py" "$1" "${2:-tcp}" ;;
  *) sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 64 ;;
esac
