#!/bin/sh
# Gets or builds the servers that are not written in Rust:
#
# - ws for Node (node and npm)
# - uWebSockets, compiled, out of the Python package socketify (pip; Linux on x86-64 only, and libuv
#   has to be installed: libuv1)
# - gorilla/websocket, in gorilla.go (Debian: golang-go, golang-github-gorilla-websocket-dev)
# - libwebsockets on libuv, in lws.c (Debian: gcc, libwebsockets-dev, libwebsockets-evlib-uv)
#
#     bench/foreign/prepare.sh
#
# Each is left out of the comparison where it is missing. Ends with 1 if any is.
set -u
cd "$(dirname "$0")"
missing=0
mkdir -p build
# Which versions they are, for the results.
: >build/versions

# done_with NAME VERSION, or NAME alone where it failed.
done_with() {
    if [ "${2:-}" ]; then
        echo "$1 $2" | tee -a build/versions
    else
        echo "prepare.sh: $1 is missing" >&2
        missing=1
    fi
}

if npm install --silent --no-audit --no-fund; then
    done_with "ws" "$(sed -n 's/.*"version": "\(.*\)".*/\1/p' node_modules/ws/package.json) on Node $(node --version)"
else
    done_with ws
fi

socketify=0.0.31
folder=$(mktemp -d)
if pip download --quiet --no-deps --no-binary :all: --dest "$folder" socketify==$socketify &&
    tar -xzf "$folder"/socketify-*.tar.gz -C "$folder" --strip-components 1 &&
    cp "$folder/src/socketify/libsocketify_linux_amd64.so" .; then
    done_with uWebSockets "as in socketify $socketify"
else
    done_with uWebSockets
fi
rm -r "$folder"

# Where Debian has the sources of Go packages.
gorilla=/usr/share/gocode
rm -f build/gorilla build/lws
if [ -d $gorilla/src/github.com/gorilla/websocket ] &&
    GO111MODULE=off GOPATH=$gorilla go build -o build/gorilla gorilla.go; then
    version=$(dpkg-query --show --showformat '${Version}' golang-github-gorilla-websocket-dev)
    done_with gorilla/websocket "$version with $(go env GOVERSION)"
else
    done_with gorilla/websocket
fi

if cc -O2 -Wall -Wextra lws.c -o build/lws -lwebsockets; then
    done_with libwebsockets "$(dpkg-query --show --showformat '${Version}' libwebsockets-dev)"
else
    done_with libwebsockets
fi
exit $missing
