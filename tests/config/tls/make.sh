#!/bin/sh
# Makes the files of this folder anew: certificates, keys and revocation lists that the tests of `check` look at. Nothing trusts them.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

key() { openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$1"; }
# certificate NAME SUBJECT KEY CA-CERTIFICATE CA-KEY FROM TO EXTENSIONS
certificate() {
    openssl req -new -key "$3" -subj "$2" -out "$work/req"
    : > "$work/index"; echo 01 > "$work/serial"
    printf '[ca]\ndefault_ca=d\n[d]\nnew_certs_dir=%s\ndatabase=%s/index\nserial=%s/serial\ndefault_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n[leaf]\nbasicConstraints=CA:FALSE\n[ca_ext]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign,cRLSign\n' "$work" "$work" "$work" > "$work/cnf"
    if [ "$4" = self ]; then signer="-selfsign"; else signer="-cert $4"; fi
    # shellcheck disable=SC2086
    openssl ca -batch -notext -config "$work/cnf" -in "$work/req" $signer -keyfile "$5" -startdate "$6" -enddate "$7" -extensions "$8" -out "$1" 2>/dev/null
}
# list NAME CA-CERTIFICATE CA-KEY FROM TO
list() {
    : > "$work/index"; echo 01 > "$work/crlnumber"
    printf '[ca]\ndefault_ca=d\n[d]\ndatabase=%s/index\ncrlnumber=%s/crlnumber\ndefault_md=sha256\n' "$work" "$work" > "$work/crl.cnf"
    openssl ca -gencrl -config "$work/crl.cnf" -cert "$2" -keyfile "$3" -crl_lastupdate "$4" -crl_nextupdate "$5" -out "$1" 2>/dev/null
}

FROM=20260101000000Z TO=21260101000000Z
key "$work/ca.key"; certificate ca.pem "/CN=Plant CA" "$work/ca.key" self "$work/ca.key" $FROM $TO ca_ext
key "$work/other.key"; certificate other-ca.pem "/CN=Other CA" "$work/other.key" self "$work/other.key" $FROM $TO ca_ext
key "$work/forged.key"; certificate "$work/forged.pem" "/CN=Plant CA" "$work/forged.key" self "$work/forged.key" $FROM $TO ca_ext
key server.key; certificate server.pem "/CN=edge.example" server.key ca.pem "$work/ca.key" $FROM $TO leaf
key other.key
certificate expired.pem "/CN=edge.example" server.key ca.pem "$work/ca.key" $FROM 20260201000000Z leaf
certificate soon.pem "/CN=edge.example" server.key ca.pem "$work/ca.key" $FROM 20261208000000Z leaf
certificate later.pem "/CN=edge.example" server.key ca.pem "$work/ca.key" 20270101000000Z $TO leaf
cat server.pem other-ca.pem > disorder.pem
openssl pkcs8 -topk8 -in server.key -passout pass:x -out encrypted.key
list crl.pem ca.pem "$work/ca.key" $FROM $TO
list old-crl.pem ca.pem "$work/ca.key" $FROM 20260201000000Z
list other-crl.pem other-ca.pem "$work/other.key" $FROM $TO
list forged-crl.pem "$work/forged.pem" "$work/forged.key" $FROM $TO
cat ca.pem other-ca.pem > two-ca.pem
printf -- "-----BEGIN CERTIFICATE-----\n%s\n-----END CERTIFICATE-----\n" "$(echo "no certificate" | base64)" > hollow.pem
openssl req -new -key server.key -subj "/CN=edge.example" -out "$work/req"
openssl x509 -req -in "$work/req" -signkey server.key -days 36500 -out v1.pem 2>/dev/null
echo "no PEM at all" > empty.pem
openssl x509 -in server.pem -outform DER -out server.der
