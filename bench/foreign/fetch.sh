#!/bin/sh
# Gets the servers that are not written in Rust: ws for Node (npm), and uWebSockets, compiled, out of
# the Python package socketify (pip; Linux on x86-64 only, and libuv has to be installed: libuv1).
#
#     bench/foreign/fetch.sh
#
# Each is left out of the comparison where it is missing.
set -u
cd "$(dirname "$0")"
failed=0

npm install --no-audit --no-fund || failed=1

folder=$(mktemp -d)
if pip download --quiet --no-deps --no-binary :all: --dest "$folder" socketify==0.0.31 &&
    tar -xzf "$folder"/socketify-*.tar.gz -C "$folder" --strip-components 1; then
    cp "$folder/src/socketify/libsocketify_linux_amd64.so" . || failed=1
else
    failed=1
fi
rm -r "$folder"
exit $failed
