#!/bin/bash
# acls.sh PORT [ARGUMENT ...]     adds rules (ACLs) at the Kafka whose plain listener is PORT, as `kafka-acls --add ARGUMENT ...` does, such as
#   acls.sh 9092 --allow-principal User:reader --operation Read --group plant-7
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ $# -ge 2 ] || { sed -n '2,3s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 64; }
port=$1; shift
libs=$("$here/start.sh" --fetch)
exec java -cp "$libs/*" -Dlog4j2.configurationFile="$here/log4j2.properties" -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
  org.apache.kafka.tools.AclCommand --bootstrap-server "127.0.0.1:$port" --add "$@"
