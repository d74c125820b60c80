#!/usr/bin/env bash
#
# Runs the Autobahn test suite against the example server, or the example client, and compares every case with
# expected.json.
#
#   tests/autobahn/run.sh [--role server|client] [--workers N ...] [--cases SET|PATTERN ...] [--program-args "..."]
#
#   --role server|client   what is tested (default: server)
#   --workers N ...        worker counts, one run of the suite for each (default: 0 2)
#   --cases SET|PATTERN ...  which cases (default: core)
#         core     sections 1 to 7, 9 and 10: all but compression
#         quick    core without most of the big messages of section 9
#         compression  sections 12 and 13: permessage-deflate, 216 cases of 1000 messages each
#         compression-sample  a tenth of those: each subsection, each size of message and of fragment
#         all      everything
#         or patterns of the suite: '6.*' 9.3.4
#         With any case of sections 12 and 13 the program is started with --deflate.
#   --program-args "..."   more arguments for the server or client, split at spaces
#   --program PATH         run this binary instead of building examples/bench_server.rs or autobahn_client.rs
#   --timeout SECONDS      bound on one run of the suite
#
# The suite is Python 2 code. The interpreter is $PY27, or the newest 2.7 of pyenv, or python2.7 on PATH;
# the suite is installed once, under ${XDG_CACHE_HOME:-~/.cache}/framemill-autobahn.
# Reports are left in autobahn/ of cargo's target directory.
#
# Exit status: 0 all as expected, 1 not all, 2 wrong usage, 3 the suite cannot be had on this machine.

set -euo pipefail

readonly NOT_AS_EXPECTED=1 USAGE=2 NO_SUITE=3
readonly MAX_MESSAGE=33554432 # section 9 echoes messages of 16 MiB
readonly START_SECONDS=10 STOP_SECONDS=10
# The third number is the size of message and of fragment: 1 to 10 are 16 bytes to 128 KiB in one frame, 11 to 15 are
# 8 to 128 KiB in frames of 256 bytes, 16 to 18 are 128 KiB in frames of 1, 4 and 32 KiB. 12.1 to 12.5 differ in what is
# sent, 13.1 to 13.7 in what is offered.
readonly COMPRESSION_SAMPLE=(
    12.1.1 12.1.9 12.1.16 12.2.4 12.2.14 12.3.3 12.3.12 12.4.5 12.4.18 12.5.7 12.5.11
    13.1.2 13.1.13 13.2.6 13.2.15 13.3.4 13.3.8 13.4.10 13.4.3 13.5.5 13.6.1 13.7.17
)

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

say() { printf 'autobahn: %s\n' "$*"; }
fail() {
    local status=$1
    shift
    printf 'autobahn: %s\n' "$*" >&2
    exit "$status"
}

# --- arguments -------------------------------------------------------------------------------------------------------

role=server
workers=()
cases=()
program_args=()
program=
limit=
stall=60 # seconds that a case may take

parse_arguments() {
    local option
    while [ $# -gt 0 ]; do
        option=$1
        shift
        case $option in
        --role)
            [ $# -gt 0 ] && [[ $1 =~ ^(server|client)$ ]] || fail $USAGE "$option is server or client"
            role=$1
            shift
            ;;
        --workers)
            while [ $# -gt 0 ] && [[ $1 != --* ]]; do
                [[ $1 =~ ^[0-9]+$ ]] || fail $USAGE "--workers takes numbers, not '$1'"
                workers+=("$1")
                shift
            done
            ;;
        --cases)
            while [ $# -gt 0 ] && [[ $1 != --* ]]; do
                add_cases "$1"
                shift
            done
            ;;
        --program-args)
            [ $# -gt 0 ] || fail $USAGE "$option needs a value"
            read -ra program_args <<<"$1"
            shift
            ;;
        --program)
            [ $# -gt 0 ] && [ -x "$1" ] || fail $USAGE "$option needs the path of a program"
            program=$1
            shift
            ;;
        --timeout)
            [ $# -gt 0 ] && [[ $1 =~ ^[1-9][0-9]*$ ]] || fail $USAGE "$option needs a number of seconds"
            limit=$1
            shift
            ;;
        -h | --help)
            sed -n '3,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        *) fail $USAGE "unknown argument '$option' (see --help)" ;;
        esac
    done
    [ ${#workers[@]} -gt 0 ] || workers=(0 2)
    [ ${#cases[@]} -gt 0 ] || add_cases core
    if with_compression; then
        program_args=(--deflate "${program_args[@]}")
        # A thousand messages, each in hundreds of frames, take the suite itself a minute or more. It allows a case 480 s.
        stall=540
        limit=${limit:-7200}
    fi
    limit=${limit:-300}
}

# Whether any case is of section 12 or 13. In a pattern a star stands for anything, dots included.
with_compression() {
    local pattern
    for pattern in "${cases[@]}"; do
        case $pattern in 12.* | 13.* | '*'* | '1*'* | '12*'* | '13*'*) return 0 ;; esac
    done
    return 1
}

add_cases() {
    case $1 in
    core) cases+=('1.*' '2.*' '3.*' '4.*' '5.*' '6.*' '7.*' '9.*' '10.*') ;;
    quick) cases+=('1.*' '2.*' '3.*' '4.*' '5.*' '6.*' '7.*' 9.1.1 9.2.1 9.3.4 9.4.4 9.5.6 9.6.6 9.7.1 9.8.1 '10.*') ;;
    compression) cases+=('12.*' '13.*') ;;
    compression-sample) cases+=("${COMPRESSION_SAMPLE[@]}") ;;
    all) cases+=('*') ;;
    *)
        [[ $1 =~ ^[0-9.*]+$ ]] || fail $USAGE "'$1' is neither a set of cases nor a pattern"
        cases+=("$1")
        ;;
    esac
}

# --- the suite -------------------------------------------------------------------------------------------------------

python27=
site=

find_python27() {
    local candidate
    for candidate in "${PY27:-}" \
        "$(newest "${PYENV_ROOT:-$HOME/.pyenv}"/versions/2.7*/bin/python2.7)" \
        "$(type -P python2.7 || true)"; do
        # Asked for its version, since a pyenv shim may be there for an interpreter that is not.
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (2, 7))' 2>/dev/null; then
            python27=$candidate
            return
        fi
    done
    fail $NO_SUITE "the suite needs Python 2.7 and none was found: set PY27, or 'pyenv install 2.7.18'"
}

newest() { printf '%s\n' "$@" | sort -V | tail -n 1; }

# Installs into a scratch folder and renames it, so that a folder of the final name is always complete.
install_suite() {
    local cache key scratch
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/framemill-autobahn
    key=$({ cat "$here/requirements.txt" && "$python27" -c 'import sys; print(sys.version, sys.maxunicode)'; } | sha256sum)
    site=$cache/${key:0:12}
    [ ! -d "$site" ] || return 0
    say "installing the suite into $site"
    mkdir -p "$cache"
    scratch=$(mktemp -d "$cache/install.XXXXXX")
    if ! "$python27" -m pip --disable-pip-version-check install --no-deps \
        --requirement "$here/requirements.txt" --target "$scratch/site" >"$cache/install.log" 2>&1; then
        tail -n 20 "$cache/install.log" >&2
        rm -rf "$scratch"
        fail $NO_SUITE "the suite could not be installed; all of it: $cache/install.log"
    fi
    mv -T "$scratch/site" "$site" 2>/dev/null || [ -d "$site" ] # another run may have been first
    rm -rf "$scratch"
}

# wstest ARGS...: the suite's command. Its site folder comes first and has its .pth files read. As a server it keeps to
# this machine, and says where it listens, so that it may be told port 0.
wstest() {
    PYTHONPATH=$site exec timeout --kill-after=5 "$limit" "$python27" -u -W ignore -c "
import site, sys
site.addsitedir(sys.argv.pop(1))
from twisted.internet import tcp
listen = tcp.Port.startListening
def listen_here(port):
    port.interface = '127.0.0.1'
    listen(port)
    print 'listening on 127.0.0.1:%d' % port.getHost().port
tcp.Port.startListening = listen_here
from autobahntestsuite.wstest import run
run()" "$site" "$@"
}

# --- one run ---------------------------------------------------------------------------------------------------------

program_pid=
program_killed=
suite_pid=

stop_everything() {
    # The suite runs under `timeout`, which passes this signal on to it.
    [ -z "$suite_pid" ] || kill -TERM "$suite_pid" 2>/dev/null || true
    [ -z "$program_pid" ] || kill -KILL "$program_pid" 2>/dev/null || true
}
trap stop_everything EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

build_program() {
    local example=bench_server
    [ "$role" = server ] || example=autobahn_client
    [ -z "$program" ] || return 0
    say "building the $role"
    (cd "$root" && cargo build --release --example "$example")
    program=$target/release/examples/$example
}

# Starts the suite with the cases and one more member of its specification.
start_suite() {
    local dir=$1 mode=$2 member=$3 pattern patterns=
    for pattern in "${cases[@]}"; do patterns+="${patterns:+, }\"$pattern\""; done
    cat >"$dir/spec.json" <<SPEC
{"outdir": ".", $member, "cases": [$patterns], "exclude-cases": []}
SPEC
    (cd "$dir" && wstest --mode "$mode" --spec spec.json --webport 0) >"$dir/suite.log" 2>&1 </dev/null &
    suite_pid=$!
}

# Waits until the process says in the file where it listens and sets `address`; fails if it does not.
wait_for_address() {
    local file=$1 pid=$2 deadline=$((SECONDS + START_SECONDS))
    address=
    while [ -z "$address" ] && [ $SECONDS -lt $deadline ] && kill -0 "$pid" 2>/dev/null; do
        sleep 0.05
        address=$(sed -n 's/^listening on //p' "$file" | head -n 1)
    done
    [ -n "$address" ]
}

# Asks a process to stop and sets `stop_status`; kills it when it does not in time.
stop() {
    local pid=$1 deadline=$((SECONDS + STOP_SECONDS))
    kill -TERM "$pid" 2>/dev/null || true
    while kill -0 "$pid" 2>/dev/null; do
        if [ $SECONDS -ge $deadline ]; then
            kill -KILL "$pid" 2>/dev/null || true
            break
        fi
        sleep 0.05
    done
    stop_status=0
    wait "$pid" || stop_status=$?
}

# Reads from the suite's log how far it is: sets `total` and `ran`, and `moved` to when it last got further.
#
# It writes its reports only at its own end or when it is asked to, so a run that hangs is ended with care: see below.
look() {
    total=$(sed -n 's/^Ok, will run \([0-9]*\) test cases.*/\1/p' "$1/suite.log")
    ran=$(grep -c '^Running test case' "$1/suite.log" || true)
    if [ "$ran" != "$last_ran" ]; then
        last_ran=$ran moved=$SECONDS
    fi
}

# Shows it.
show() {
    if [ -t 1 ]; then
        printf '\rautobahn: %s: case %s of %s ' "$1" "$ran" "${total:-?}"
    elif [ "$ran" != "$shown" ] && [ $((SECONDS - shown_at)) -ge 5 ]; then
        say "$1: case $ran of ${total:-?}"
        shown=$ran shown_at=$SECONDS
    fi
}

begin_watch() { last_ran=-1 moved=$SECONDS shown=0 shown_at=$SECONDS; }

end_watch() { [ ! -t 1 ] || printf '\r\e[K'; }

# Kills the program, which has taken too long.
kill_program() {
    echo "no progress for $((SECONDS - moved)) s, at $(last_case "$1"): the $role was killed" >>"$1/problems"
    program_killed=yes
    kill -KILL "$program_pid" 2>/dev/null || true
}

last_case() {
    local case
    case=$(sed -n 's/^Running test case ID \([0-9.]*\) .*/case \1/p' "$1/suite.log" | tail -n 1)
    echo "${case:-no case yet}"
}

# The server under test, and the suite as its client.
#
# The suite waits up to 1000 s for an answer, and ends when no case is left or the server is gone. So a case that hangs
# is ended by killing the server: that keeps the cases before it.
test_server() {
    local dir=$1 count=$2 label=$3 gone='' suite_status=0
    "$program" echo --addr 127.0.0.1:0 --workers "$count" --max-message "$MAX_MESSAGE" "${program_args[@]}" \
        >"$dir/program.out" 2>"$dir/program.err" </dev/null &
    program_pid=$!
    if wait_for_address "$dir/program.out" "$program_pid"; then
        say "$label: server on $address"
        start_suite "$dir" fuzzingclient "\"servers\": [{\"agent\": \"framemill\", \"url\": \"ws://$address\"}]"
        begin_watch
        while kill -0 "$suite_pid" 2>/dev/null; do
            sleep 0.2
            look "$dir"
            if ! kill -0 "$program_pid" 2>/dev/null; then
                gone=${gone:-$SECONDS}
                [ $((SECONDS - gone)) -lt $STOP_SECONDS ] || kill -TERM "$suite_pid" 2>/dev/null || true
            elif [ $((SECONDS - moved)) -ge $stall ]; then
                kill_program "$dir"
            elif [ "$total" = 0 ]; then # the suite would wait for ever
                kill -TERM "$suite_pid" 2>/dev/null || true
            fi
            show "$label"
        done
        end_watch
        wait "$suite_pid" || suite_status=$?
        suite_pid=
        case $suite_status in
        0) ;;
        124) echo "the suite was ended after $limit s, at $(last_case "$dir")" ;;
        *) echo "the suite ended with status $suite_status: $(tail -n 1 "$dir/suite.log")" ;;
        esac >>"$dir/problems"
        kill -0 "$program_pid" 2>/dev/null || [ -n "$program_killed" ] ||
            echo "the server ended during the run" >>"$dir/problems"
    else
        echo "the server did not say that it listens" >>"$dir/problems"
    fi
    stop "$program_pid"
    program_pid=
    [ "$stop_status" -eq 0 ] || [ -n "$program_killed" ] ||
        echo "the server exited with status $stop_status, not 0" >>"$dir/problems"
}

# The suite as a server, and the client under test.
#
# The client gives up on a case that takes too long, goes on with the next, and asks for the reports at the end. Only if
# it hangs itself is it killed, and then there are none.
test_client() {
    local dir=$1 count=$2 label=$3 client_status=0
    start_suite "$dir" fuzzingserver '"url": "ws://127.0.0.1:0"'
    if wait_for_address "$dir/suite.log" "$suite_pid"; then
        say "$label: the suite on $address"
        "$program" "ws://$address" --workers "$count" --max-message "$MAX_MESSAGE" --seconds "$stall" \
            "${program_args[@]}" >"$dir/program.out" 2>"$dir/program.err" </dev/null &
        program_pid=$!
        begin_watch
        while kill -0 "$program_pid" 2>/dev/null; do
            sleep 0.2
            look "$dir"
            if ! kill -0 "$suite_pid" 2>/dev/null || [ $((SECONDS - moved)) -ge $((stall + 2 * STOP_SECONDS)) ]; then
                kill_program "$dir"
            fi
            show "$label"
        done
        end_watch
        wait "$program_pid" || client_status=$?
        program_pid=
        [ "$client_status" -eq 0 ] || [ -n "$program_killed" ] ||
            echo "the client exited with status $client_status, not 0" >>"$dir/problems"
        kill -0 "$suite_pid" 2>/dev/null || echo "the suite ended during the run" >>"$dir/problems"
    else
        echo "the suite did not say that it listens: $(tail -n 1 "$dir/suite.log")" >>"$dir/problems"
    fi
    stop "$suite_pid" # whose status is that of the signal
    suite_pid=
}

# One run. Whatever goes wrong outside the cases is a line of the run's problems file.
run_once() {
    local dir=$1 count=$2 label=$3 started=$SECONDS
    program_killed=
    rm -rf "$dir"
    mkdir -p "$dir"
    "test_$role" "$dir" "$count" "$label"
    if [ -s "$dir/problems" ] && [ -s "$dir/program.err" ]; then
        say "$label: the end of what the $role said:"
        tail -n 20 "$dir/program.err"
    fi
    say "$label: took $((SECONDS - started)) s"
}

# --- all runs --------------------------------------------------------------------------------------------------------

parse_arguments "$@"
find_python27
install_suite
target=$(cd "$root" && cargo metadata --no-deps --format-version 1 |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
build_program

runs=()
for count in "${workers[@]}"; do
    dir=$target/autobahn/$role-workers-$count
    label="$role, workers $count"
    run_once "$dir" "$count" "$label"
    runs+=("$label=$dir")
done
python3 "$here/report.py" --expected "$here/expected.json" --cases "${cases[*]}" "${runs[@]}" || exit $NOT_AS_EXPECTED
