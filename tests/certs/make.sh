#!/bin/sh
# Makes the certificates of the tests anew: self-signed, for localhost and 127.0.0.1, valid for 50
# years. For tests only: the keys are public.
#
#     tests/certs/make.sh        (needs the openssl command, 1.1.1 or later)
set -eu
cd "$(dirname "$0")"

certificate() { # name, key algorithm and its options
    name=$1
    shift
    openssl req -x509 -nodes -days 18262 -sha256 "$@" \
        -keyout "$name.key" -out "$name.pem" \
        -subj "/CN=framemill test" \
        -addext "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1" \
        -addext "basicConstraints=critical,CA:TRUE" \
        -addext "extendedKeyUsage=serverAuth"
    openssl pkcs12 -export -passout pass:framemill \
        -inkey "$name.key" -in "$name.pem" -out "$name.p12"
}

certificate ec -newkey ec -pkeyopt ec_paramgen_curve:prime256v1
certificate rsa -newkey rsa:4096

# The same keys in the forms that older tools write, and behind a password.
openssl pkey -in ec.key -traditional -out ec.sec1.key
openssl pkey -in rsa.key -traditional -out rsa.pkcs1.key
openssl pkcs8 -topk8 -in ec.key -passout pass:framemill -out ec.encrypted.key
