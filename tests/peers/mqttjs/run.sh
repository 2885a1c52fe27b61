#!/bin/bash
# run.sh URL         the checks of interop.js with MQTT.js, against the broker at URL (mqtt://127.0.0.1:PORT, ws://127.0.0.1:PORT/mqtt)
# run.sh --fetch     only installs MQTT.js
# Standard output: a line `ok NAME` for each check that passed. Exit code 0: all of them did.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${TIDEGATE_PEERS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tidegate-peers}/mqttjs
home=$cache/modules-$(cksum <"$here/package-lock.json" | cut -d' ' -f1)

fetch() { # safe when several start at once
  [ ! -d "$home" ] || return 0
  command -v npm >/dev/null || { echo "run.sh: npm not found: apt-get install --no-install-recommends nodejs npm" >&2; exit 64; }
  mkdir -p "$cache"
  {
    flock 9
    [ ! -d "$home" ] || return 0
    local work
    work=$(mktemp -d "$cache/tmp.XXXXXX")
    cp "$here/package.json" "$here/package-lock.json" "$work"
    (cd "$work" && npm ci --ignore-scripts --no-audit --no-fund --silent >&2)
    mv -T "$work" "$home"
  } 9>"$cache/lock"
}

fetch
case ${1:-} in
  --fetch) echo "$home" ;;
  *://*) NODE_PATH=$home/node_modules exec node "$here/interop.js" "$1" ;;
  *) sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 64 ;;
esac
