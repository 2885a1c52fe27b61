#!/bin/bash
# start.sh DATA_DIR PORT     HiveMQ Community Edition (embedded) on 127.0.0.1, in the foreground
# start.sh --fetch           only downloads and compiles what it needs, and prints the folder of the jars
# Sessions and what they are owed lie in DATA_DIR/data; anyone may do anything. JAVA_OPTS replaces the default -Xmx512m. Its log, and a
# line READY, on standard output.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
die() { echo "start.sh: $*" >&2; exit 64; }
usage() { sed -n '2,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 64; }

fetch() { # sets libs to the folder of the jars that pom.xml pins, and classes to our own; safe when several start at once
  local cache=${TIDEGATE_PEERS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tidegate-peers}/hivemq work
  libs=$cache/libs-$(cksum <"$here/pom.xml" | cut -d' ' -f1)
  classes=$cache/classes-$(cat "$here/pom.xml" "$here/HiveMain.java" | cksum | cut -d' ' -f1)
  mkdir -p "$cache"
  {
    flock 9
    if [ ! -d "$libs" ]; then
      command -v mvn >/dev/null || die "mvn not found: apt-get install --no-install-recommends maven"
      work=$(mktemp -d "$cache/tmp.XXXXXX")
      mvn -q -B -Dstyle.color=never -f "$here/pom.xml" dependency:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$work" >&2
      mv -T "$work" "$libs"
    fi
    if [ ! -d "$classes" ]; then
      command -v javac >/dev/null || die "javac not found: apt-get install --no-install-recommends openjdk-17-jdk-headless"
      work=$(mktemp -d "$cache/tmp.XXXXXX")
      javac -nowarn -d "$work" -cp "$libs/*" "$here/HiveMain.java" >&2
      mv -T "$work" "$classes"
    fi
  } 9>"$cache/lock"
}
command -v java >/dev/null || die "java not found: apt-get install --no-install-recommends openjdk-17-jdk-headless"
if [ "${1:-}" = --fetch ]; then fetch; echo "$libs"; exit; fi

[ $# -eq 2 ] || usage
mkdir -p "$1"/{conf,data,extensions}; data=$(cd "$1" && pwd); port=$2
fetch
# By default a session silently loses what it is owed beyond 1,000 messages, and 10 of a client may be unacknowledged.
cat >"$data/conf/config.xml" <<XML
<?xml version="1.0"?>
<hivemq>
  <listeners><tcp-listener><port>$port</port><bind-address>127.0.0.1</bind-address></tcp-listener></listeners>
  <persistence><mode>file</mode></persistence>
  <mqtt>
    <queued-messages><max-queue-size>1000000</max-queue-size></queued-messages>
    <receive-maximum><server-receive-maximum>40</server-receive-maximum></receive-maximum>
  </mqtt>
  <anonymous-usage-statistics><enabled>false</enabled></anonymous-usage-statistics>
</hivemq>
XML
ulimit -n "$(ulimit -Hn)" # its file persistence alone holds about 1,200 open
# the openings that HiveMQ's own start script gives to Java 17
# shellcheck disable=SC2086
exec java ${JAVA_OPTS:--Xmx512m} -cp "$classes:$libs/*" \
  --add-opens java.base/java.lang=ALL-UNNAMED --add-opens java.base/java.nio=ALL-UNNAMED --add-opens java.base/sun.nio.ch=ALL-UNNAMED \
  --add-opens jdk.management/com.sun.management.internal=ALL-UNNAMED --add-exports java.base/jdk.internal.misc=ALL-UNNAMED \
  HiveMain "$data"
