#!/bin/bash
# start.sh DATA_DIR PORT [key=value ...]     a private Mosquitto on 127.0.0.1, in the foreground; log on standard error
#   persist=on     keep sessions, queued and retained messages in DATA_DIR/mosquitto.db, saved every second
#   users=FILE     password file (mosquitto_passwd -b -c FILE NAME PASSWORD); nobody gets in without
#   conf=FILE      further lines of configuration
# The configuration is written anew to DATA_DIR/mosquitto.conf at each start.
set -euo pipefail
usage() { sed -n '2,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 64; }
[ $# -ge 2 ] || usage
mkdir -p "$1"; data=$(cd "$1" && pwd); port=$2; shift 2
declare -A o=()
for kv; do
  case $kv in
    persist=*|users=*|conf=*) o[${kv%%=*}]=${kv#*=} ;;
    *) echo "start.sh: unknown argument '$kv'" >&2; usage ;;
  esac
done
{
  echo "user $(id -un)"                                  # as root it would become user mosquitto, who may not write here
  echo "log_dest stderr"
  echo "max_queued_messages 0"; echo "max_queued_bytes 0"   # by default a session silently loses what it has queued beyond 1,000
  echo "max_inflight_messages 100"
  if [ -n "${o[users]:-}" ]; then echo "allow_anonymous false"; echo "password_file $(realpath "${o[users]}")"
  else echo "allow_anonymous true"; fi
  if [ "${o[persist]:-off}" = on ]; then echo "persistence true"; echo "persistence_location $data/"; echo "autosave_interval 1"; fi
  echo "listener $port 127.0.0.1"
  [ -z "${o[conf]:-}" ] || cat "${o[conf]}"
} >"$data/mosquitto.conf"
PATH=$PATH:/usr/sbin
exec mosquitto -c "$data/mosquitto.conf"
