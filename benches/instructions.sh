#!/usr/bin/env bash
# How many instructions one event takes on its whole way through the program (the kernel's not counted), by callgrind:
# the real daemon on the embedded file broker, twice, with fewer and with more events; what a start costs drops out.
# Compares with the figure in instructions.txt, so that slow creep is seen.
#
#   instructions.sh [BINARY]     target/release/plextrac-bridge by default
set -euo pipefail
benches=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$benches/.."
. tests/brokers/lib.sh # free_base, die

bridge=$(realpath "${1:-target/release/plextrac-bridge}")
[ -x "$bridge" ] || die "no $bridge: cargo build --release"
command -v valgrind >/dev/null || die "valgrind is missing: apt-get install valgrind"
few=2000 many=6000
# In percent: how often threads wake each other differs from run to run.
tolerance=5

home=$(mktemp -d)
daemon=
finish() {
    if [ -n "$daemon" ] && kill "$daemon" 2>/dev/null; then wait "$daemon" || true; fi
    rm -rf "$home"
}
trap finish EXIT

instructions() { # EVENTS
    local port at=$home/$1
    port=$(free_base 2)
    mkdir -p "$at/state" "$at/events"
    cat >"$at/config.toml" <<TOML
state_directory = "$at/state"
[ingress]
listen = "127.0.0.1:$port"
threads = 1
[admin]
listen = "127.0.0.1:$((port + 1))"
[log]
level = "warn"
[sources.plextrac]
secret = "a secret of this benchmark alone"
[broker.file]
directory = "$at/events"
TOML
    valgrind --tool=callgrind --callgrind-out-file="$at/callgrind" --log-file="$at/valgrind" \
        "$bridge" --config "$at/config.toml" serve >"$at/log" 2>&1 &
    daemon=$!
    for _ in $(seq 300); do
        ! "$bridge" --config "$at/config.toml" healthcheck --ready >/dev/null 2>&1 || break
        sleep 0.1
    done
    "$bridge" --config "$at/config.toml" send --count "$1" --connections 4 >/dev/null
    # A stop delivers first what was accepted.
    kill "$daemon"
    wait "$daemon" || { cat "$at/log" >&2; die "the bridge failed"; }
    daemon=
    sed -n 's/^summary: //p' "$at/callgrind"
}

fewer=$(instructions "$few")
more=$(instructions "$many")
each=$(((more - fewer) / (many - few)))
expected=$(sed -n '/^[0-9]/p' "$benches/instructions.txt")
printf 'instructions per event  %d, %d expected (%+d %%)\n' "$each" "$expected" $(((each - expected) * 100 / expected))
if [ $((each * 100)) -gt $((expected * (100 + tolerance))) ]; then
    die "more than $tolerance % above benches/instructions.txt: find out why, or write the new figure there"
fi
