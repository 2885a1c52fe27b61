#!/bin/bash
# start.sh DATA_DIR AMQP_PORT [mgmt=PORT] [amqps=PORT certs=DIR] [plugins=A,B] [epmd=PORT dist=PORT] [conf=FILE]     a private RabbitMQ node on 127.0.0.1, in the foreground
#   mgmt=PORT            the management API (guest:guest), and its plugin
#   amqps=PORT certs=DIR AMQP over TLS by DIR/ca.pem, server.pem, server.key; a client's certificate is asked for, has to be that
#                        authority's where there is one, and can log in with its common name (SASL EXTERNAL)
#   plugins=A,B          more of them, such as rabbitmq_mqtt,rabbitmq_shovel
#   epmd=PORT dist=PORT  Erlang's own two ports (default: free ones, found by trying; pass them if several start at once)
#   conf=FILE            further lines for rabbitmq.conf
# The process keeps its pid, becomes the Erlang VM, and takes its epmd with it however it dies. Log: DATA_DIR/rabbit.log
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
usage() { sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 64; }
[ $# -ge 2 ] || usage
mkdir -p "$1"; data=$(cd "$1" && pwd); port=$2; shift 2
declare -A o=()
for kv; do
  case $kv in
    mgmt=*|amqps=*|certs=*|plugins=*|epmd=*|dist=*|conf=*) o[${kv%%=*}]=${kv#*=} ;;
    *) echo "start.sh: unknown argument '$kv'" >&2; usage ;;
  esac
done
listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
free_port() { local p; while p=$((10000 + RANDOM % 20000)); listens "$p"; do :; done; echo "$p"; }   # below the ephemeral range
epmd_port=${o[epmd]:-$(free_port)}; dist_port=${o[dist]:-$(free_port)}

# The node's name is its identity on disk: made once, kept, so that a restart may use other ports.
[ -s "$data/node" ] || echo "peer-$(od -An -N4 -tx1 /dev/urandom | tr -d ' ')@localhost" >"$data/node"

IFS=, read -r -a plugins <<<"${o[plugins]:-}"
[ -z "${o[mgmt]:-}" ] || plugins+=(rabbitmq_management)
[ -z "${o[amqps]:-}" ] || plugins+=(rabbitmq_auth_mechanism_ssl)
echo "[$(IFS=,; echo "${plugins[*]}")]." >"$data/enabled_plugins"
{
  cat "$here/rabbitmq.conf"
  echo "listeners.tcp.1 = 127.0.0.1:$port"
  [ -z "${o[mgmt]:-}" ] || echo "management.tcp.port = ${o[mgmt]}"
  if [ -n "${o[amqps]:-}" ]; then
    c=$(realpath "${o[certs]}")
    echo "listeners.ssl.1 = 127.0.0.1:${o[amqps]}"
    printf 'ssl_options.cacertfile = %s\nssl_options.certfile = %s\nssl_options.keyfile = %s\n' "$c/ca.pem" "$c/server.pem" "$c/server.key"
    printf 'ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = false\n'
    printf 'ssl_cert_login_from = common_name\nauth_mechanisms.1 = EXTERNAL\nauth_mechanisms.2 = PLAIN\n'
  fi
  [ -z "${o[conf]:-}" ] || cat "${o[conf]}"
} >"$data/rabbitmq.conf"

sbin=$(echo /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin)
export HOME=$data ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT=$epmd_port ERL_CRASH_DUMP=$data/erl_crash.dump
RABBITMQ_NODENAME=$(cat "$data/node")
export RABBITMQ_NODENAME RABBITMQ_CONF_ENV_FILE=/dev/null
export RABBITMQ_CONFIG_FILE=$data/rabbitmq.conf RABBITMQ_CONFIG_FILES=$data/conf.d RABBITMQ_ADVANCED_CONFIG_FILE=$data/advanced.config
export RABBITMQ_ENABLED_PLUGINS_FILE=$data/enabled_plugins RABBITMQ_MNESIA_BASE=$data/mnesia RABBITMQ_LOG_BASE=$data
export RABBITMQ_LOGS=$data/rabbit.log RABBITMQ_DIST_PORT=$dist_port RABBITMQ_PID_FILE=$data/pid
unset NOTIFY_SOCKET
export RUNNING_UNDER_SYSTEMD=true           # the only effect: the script execs the VM, with no shell in between
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false +B i"
# An epmd of its own. As a child of this pid, which the VM takes over, it gets SIGKILL from the kernel when the VM ends.
setpriv --pdeathsig KILL epmd -address 127.0.0.1 -port "$epmd_port" </dev/null >/dev/null 2>&1 &
for _ in $(seq 200); do listens "$epmd_port" && break; sleep 0.01; done
exec "$sbin/rabbitmq-server"
