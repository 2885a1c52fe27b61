#!/bin/bash
# start.sh DATA_DIR PORT [tls=PORT]     a private OpenLDAP directory on 127.0.0.1, in the foreground; log on standard error
#   tls=PORT   ldaps:// there, and STARTTLS on the other port; its authority's certificate is DATA_DIR/ca.pem
# Base dc=plant,dc=example. Users (uid, password): anna anna-secret, ben ben-secret, "a,b*(c)" odd-secret. Group operators (anna and the odd
# one), group night (ben, by memberUid). Service account cn=gateway,dc=plant,dc=example, gateway-secret. Without a bind nothing is readable.
# Made anew at each start.
set -euo pipefail
PATH=$PATH:/usr/sbin
usage() { sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 64; }
[ $# -ge 2 ] || usage
mkdir -p "$1"; data=$(cd "$1" && pwd); urls="ldap://127.0.0.1:$2"; shift 2
tls=
for kv; do
  case $kv in
    tls=*) tls=${kv#*=}; urls="$urls ldaps://127.0.0.1:$tls" ;;
    *) echo "start.sh: unknown argument '$kv'" >&2; usage ;;
  esac
done
if [ -n "$tls" ]; then
  cd "$data"
  new=(openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256)
  "${new[@]}" -x509 -days 3650 -subj "/CN=Directory CA" -keyout ca.key -out ca.pem 2>/dev/null
  "${new[@]}" -subj /CN=localhost -keyout server.key -out server.csr 2>/dev/null
  printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n' >server.ext
  openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 -sha256 -extfile server.ext -out server.pem 2>/dev/null
fi
{
  printf 'include /etc/ldap/schema/%s.schema\n' core cosine nis inetorgperson
  echo "pidfile $data/slapd.pid"
  echo "modulepath /usr/lib/ldap"; echo "moduleload back_mdb"
  [ -z "$tls" ] || printf 'TLSCertificateFile %s\nTLSCertificateKeyFile %s\n' "$data/server.pem" "$data/server.key"
  echo "access to attrs=userPassword by anonymous auth by * none"
  echo "access to * by users read by * none"
  echo "database mdb"; echo 'suffix "dc=plant,dc=example"'; echo "directory $data/db"; echo "maxsize 16777216"
} >"$data/slapd.conf"
rm -rf "$data/db"; mkdir "$data/db"
hashed() { slappasswd -h '{SSHA}' -s "$1"; }
slapadd -f "$data/slapd.conf" <<EOF
dn: dc=plant,dc=example
objectClass: dcObject
objectClass: organization
o: plant

dn: cn=gateway,dc=plant,dc=example
objectClass: organizationalRole
objectClass: simpleSecurityObject
userPassword: $(hashed gateway-secret)

dn: ou=people,dc=plant,dc=example
objectClass: organizationalUnit

dn: uid=anna,ou=people,dc=plant,dc=example
objectClass: inetOrgPerson
cn: Anna
sn: A
userPassword: $(hashed anna-secret)

dn: uid=ben,ou=people,dc=plant,dc=example
objectClass: inetOrgPerson
cn: Ben
sn: B
userPassword: $(hashed ben-secret)

dn: uid=a\\2Cb*(c),ou=people,dc=plant,dc=example
objectClass: inetOrgPerson
cn: Odd
sn: O
userPassword: $(hashed odd-secret)

dn: ou=groups,dc=plant,dc=example
objectClass: organizationalUnit

dn: cn=operators,ou=groups,dc=plant,dc=example
objectClass: groupOfNames
member: uid=anna,ou=people,dc=plant,dc=example
member: uid=a\\2Cb*(c),ou=people,dc=plant,dc=example

dn: cn=night,ou=groups,dc=plant,dc=example
objectClass: posixGroup
gidNumber: 1
memberUid: ben
EOF
exec slapd -d 0 -f "$data/slapd.conf" -h "$urls"    # -d keeps it in the foreground
