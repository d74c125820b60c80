#!/usr/bin/env bash
#
# Gets the peers of tests/interop.rs what they need, in interop/ of cargo's target directory:
#
#   venv          Python's `websockets` (requirements.txt)
#   node          Node's `ws` (package-lock.json)
#   tls           a CA and a certificate of it for localhost, 127.0.0.1 and ::1
#   tools         what there is and where: a line `NAME PATH` for each
#
# Python (3.11 or later), Node with npm, openssl and Chromium are taken from PATH; $PYTHON, $NODE and $CHROMIUM may name
# others. What can't be had is left out, and the tests skip it.
#
# Exit status: 0 all there, 1 something is missing, 2 wrong usage.

set -euo pipefail

[ $# -eq 0 ] || {
    sed -n '3,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -n "${CARGO_TARGET_DIR:-}" ]; then
    mkdir -p "$CARGO_TARGET_DIR"
    target=$(cd "$CARGO_TARGET_DIR" && pwd)
else
    target=$(cd "$here" && cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
fi
readonly here dir=$target/interop
missing=0

say() { printf 'interop: %s\n' "$*"; }
lack() {
    say "missing: $*"
    missing=1
}

# found NAME PATH: for the list of tools.
found() {
    printf '%s %s\n' "$1" "$2" >>"$dir/tools.new"
    say "$1: $2"
}

# made NAME KEY COMMAND...: runs COMMAND in a new folder, and keeps the folder as NAME if it succeeds. Not done again
# while KEY stays the same.
made() {
    local name=$1 key=$2
    shift 2
    key=$(printf '%s\n' "$key" "$dir" | cksum)
    [ "$(cat "$dir/$name/.key" 2>/dev/null)" != "$key" ] || return 0
    rm -rf "${dir:?}/$name"
    mkdir "$dir/$name"
    if ! "$@" "$dir/$name" >"$dir/$name.log" 2>&1; then
        tail -n 5 "$dir/$name.log" >&2
        rm -rf "${dir:?}/$name"
        return 1
    fi
    printf '%s\n' "$key" >"$dir/$name/.key"
}

first_of() {
    local candidate
    for candidate in "$@"; do
        if [ -n "$candidate" ] && type -P "$candidate"; then return; fi
    done
    return 1
}

# --- Python ----------------------------------------------------------------------------------------------------------

make_venv() {
    "$python" -m venv "$1" && "$1/bin/python" -m pip --disable-pip-version-check install --requirement "$here/requirements.txt"
}

set_up_python() {
    python=$(first_of "${PYTHON:-}" python3) || return 1
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || return 1
    made venv "$("$python" -VV) $(cat "$here/requirements.txt")" make_venv || return 1
    found python "$dir/venv/bin/python"
}

# --- Node ------------------------------------------------------------------------------------------------------------

make_node_modules() {
    cp "$here/package.json" "$here/package-lock.json" "$1"
    (cd "$1" && npm ci --ignore-scripts --no-audit --no-fund)
}

set_up_node() {
    local node
    node=$(first_of "${NODE:-}" node nodejs) || return 1
    made node "$(cat "$here/package-lock.json")" make_node_modules || return 1
    found node "$node"
    found node_modules "$dir/node/node_modules"
}

# --- certificates ----------------------------------------------------------------------------------------------------

make_certificates() {
    cd "$1" || return 1
    local new=(openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650)
    "${new[@]}" -keyout ca.key -out ca.pem -subj "/CN=framemill interop CA" \
        -addext "keyUsage=critical,keyCertSign,cRLSign" &&
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out cert.csr \
            -subj "/CN=localhost" &&
        printf '%s\n' "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1" "basicConstraints=critical,CA:FALSE" \
            "extendedKeyUsage=serverAuth" >cert.ext &&
        openssl x509 -req -in cert.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 -extfile cert.ext -out cert.pem &&
        openssl verify -CAfile ca.pem cert.pem
}

set_up_tls() {
    type -P openssl >/dev/null || return 1
    made tls 1 make_certificates || return 1
    found tls "$dir/tls"
}

# --- all -------------------------------------------------------------------------------------------------------------

set_up_chromium() {
    local chromium
    chromium=$(first_of "${CHROMIUM:-}" chromium-headless-shell chromium chromium-browser google-chrome) || return 1
    found chromium "$chromium"
}

mkdir -p "$dir"
: >"$dir/tools.new"
set_up_python || lack "Python 3.11 or later with venv, and what requirements.txt says"
set_up_node || lack "Node with npm, and what package-lock.json says"
set_up_chromium || lack "Chromium"
set_up_tls || lack "openssl"
mv "$dir/tools.new" "$dir/tools"
exit $missing
