#!/bin/bash
# start.sh DATA_DIR PORT [key=value ...]     Apache Kafka (one KRaft node) on 127.0.0.1, in the foreground
# start.sh --fetch     only downloads what it needs, and prints the folder of the jars
#   controller=PORT    the node's own second port (default PORT + 1)
#   proxied=PORT:SEEN  a second listener on PORT for clients that come through a proxy on SEEN: Kafka tells them to come back to SEEN
#   mtls=PORT sasl_tls=PORT certs=DIR   listeners with TLS by DIR/ca.pem, server.pem, server.key: one that demands a client's certificate,
#                      whose common name is the user, and one for logins as plant-7 or reader, password secret, by PLAIN, SCRAM and
#                      unsigned tokens. With them only plant-7, and who comes over the plain listener, may do anything
#   conf=FILE          further lines of server.properties, which win
# JAVA_OPTS replaces the default -Xmx512m. Standard output: READY; the log is on standard error.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
die() { echo "start.sh: $*" >&2; exit 64; }
usage() { sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 64; }

fetch() { # sets libs to the folder of the jars that pom.xml pins; safe when several start at once
  local cache=${TIDEGATE_PEERS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tidegate-peers}/kafka work
  libs=$cache/libs-$(cksum <"$here/pom.xml" | cut -d' ' -f1)
  [ ! -d "$libs" ] || return 0
  command -v mvn >/dev/null || die "mvn not found: apt-get install --no-install-recommends maven"
  mkdir -p "$cache"
  {
    flock 9
    if [ ! -d "$libs" ]; then
      work=$(mktemp -d "$cache/tmp.XXXXXX")
      mvn -q -B -Dstyle.color=never -f "$here/pom.xml" dependency:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$work" >&2
      mv -T "$work" "$libs"
      archive || echo "start.sh: no class archive; every start will take 2 s longer" >&2
    fi
  } 9>"$cache/lock"
}
archive() { # keeps what a broker loads in $libs.jsa (Java's class-data sharing): ready in half the time
  local work pid ready=no
  work=$(mktemp -d)
  JAVA_OPTS="-Xmx512m -XX:ArchiveClassesAtExit=$libs.jsa.part" \
    "${BASH_SOURCE[0]}" "$work" $((20000 + RANDOM % 12000)) >"$work/out" 2>"$work/err" 9>&- & pid=$!
  while kill -0 $pid 2>/dev/null && [ $ready = no ]; do
    if grep -q READY "$work/out"; then ready=yes; else sleep 0.2; fi
  done
  kill $pid 2>/dev/null || true
  wait $pid || true
  rm -rf "$work"
  [ $ready = yes ] && mv "$libs.jsa.part" "$libs.jsa"
}
command -v java >/dev/null || die "java not found: apt-get install --no-install-recommends openjdk-17-jre-headless"
if [ "${1:-}" = --fetch ]; then fetch; echo "$libs"; exit; fi

[ $# -ge 2 ] || usage
mkdir -p "$1"; data=$(cd "$1" && pwd); port=$2; shift 2
declare -A o=([controller]=$((port + 1)))
for kv; do
  case $kv in
    controller=*|proxied=*|mtls=*|sasl_tls=*|certs=*|conf=*) o[${kv%%=*}]=${kv#*=} ;;
    *) echo "start.sh: unknown argument '$kv'" >&2; usage ;;
  esac
done
fetch
run=(java -cp "$libs/*" -Dlog4j2.configurationFile="$here/log4j2.properties" -XX:+UseSerialGC -XX:-UsePerfData -Xlog:disable)
[ ! -f "$libs.jsa" ] || run+=(-XX:SharedArchiveFile="$libs.jsa")

listeners=PLAINTEXT://127.0.0.1:$port; advertised=$listeners
if [ -n "${o[proxied]:-}" ]; then
  listeners+=,PROXIED://127.0.0.1:${o[proxied]%:*}; advertised+=,PROXIED://127.0.0.1:${o[proxied]#*:}
fi
for l in mtls:MTLS sasl_tls:SASLTLS; do
  if [ -n "${o[${l%:*}]:-}" ]; then
    listeners+=,${l#*:}://127.0.0.1:${o[${l%:*}]}; advertised+=,${l#*:}://127.0.0.1:${o[${l%:*}]}
  fi
done
scram=()
{
  sed -e "s#@DATA@#$data#" -e "s#@CONTROLLER_PORT@#${o[controller]}#" \
    -e "s#@LISTENERS@#$listeners#" -e "s#@ADVERTISED@#$advertised#" "$here/server.properties"
  if [ -n "${o[certs]:-}" ]; then
    c=$(realpath "${o[certs]}"); cat "$c/server.key" "$c/server.pem" >"$data/keystore.pem"
    security=org.apache.kafka.common.security
    printf 'ssl.keystore.type=PEM\nssl.keystore.location=%s\nssl.truststore.type=PEM\nssl.truststore.location=%s\n' "$data/keystore.pem" "$c/ca.pem"
    printf 'listener.name.mtls.ssl.client.auth=required\nssl.principal.mapping.rules=RULE:^CN=([^,]+).*$/$1/\n'
    printf 'sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER\n'
    printf 'listener.name.sasltls.plain.sasl.jaas.config=%s.plain.PlainLoginModule required user_plant-7="secret" user_reader="secret";\n' $security
    for m in 256 512; do printf 'listener.name.sasltls.scram-sha-%s.sasl.jaas.config=%s.scram.ScramLoginModule required;\n' $m $security; done
    printf 'listener.name.sasltls.oauthbearer.sasl.jaas.config=%s.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";\n' $security
    printf 'authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\nsuper.users=User:ANONYMOUS;User:plant-7\n'
    for u in plant-7 reader; do for m in 256 512; do scram+=(--add-scram "SCRAM-SHA-$m=[name=$u,password=secret]"); done; done
  fi
  [ -z "${o[conf]:-}" ] || cat "${o[conf]}"
} >"$data/server.properties"

if [ ! -f "$data/log/meta.properties" ]; then
  "${run[@]}" -Xmx128m -XX:TieredStopAtLevel=1 kafka.tools.StorageTool format \
    -t TidegatePeersKafkaAAAA -c "$data/server.properties" "${scram[@]}" >"$data/format.log" 2>&1 ||
    { cat "$data/format.log" >&2; exit 1; }
fi
# shellcheck disable=SC2086
exec "${run[@]}" ${JAVA_OPTS:--Xmx512m} kafka.Kafka "$data/server.properties"
