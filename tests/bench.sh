#!/usr/bin/env bash
# What one event costs the bridge, in processor time: the real daemon (release) on the embedded file broker takes signed
# events from `plextrac-bridge send`, and /proc says what it used from the first request until the last one is published.
#
#   bench.sh [EVENTS]      20000 by default
set -euo pipefail
tests=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$tests/.."
. "$tests/brokers/lib.sh" # free_base, port numbers no client is given by chance

events=${1:-20000}
bridge=${BRIDGE:-$PWD/target/release/plextrac-bridge}
[ -x "$bridge" ] || die "no $bridge: cargo build --release"

home=$(mktemp -d)
daemon=
finish() {
    if [ -n "$daemon" ] && kill "$daemon" 2>/dev/null; then wait "$daemon" || true; fi
    rm -rf "$home"
}
trap finish EXIT

port=$(free_base 2)
mkdir "$home/state" "$home/events"
cat >"$home/config.toml" <<EOF
state_directory = "$home/state"
[ingress]
listen = "127.0.0.1:$port"
[admin]
listen = "127.0.0.1:$((port + 1))"
[log]
level = "warn"
[sources.plextrac]
secret = "a secret of this benchmark alone"
[broker.file]
directory = "$home/events"
EOF

"$bridge" --config "$home/config.toml" serve >"$home/log" 2>&1 &
daemon=$!
for _ in $(seq 100); do
    ! "$bridge" --config "$home/config.toml" healthcheck --ready >/dev/null 2>&1 || break
    kill -0 "$daemon" 2>/dev/null || break
    sleep 0.1
done
"$bridge" --config "$home/config.toml" healthcheck --ready >/dev/null || { cat "$home/log" >&2; die "the bridge did not become ready"; }

ticks() { # of processor time, user and system
    local stat
    stat=$(cat "/proc/$daemon/stat")
    # shellcheck disable=SC2086
    set -- ${stat##*) }
    printf '%s' $((${12} + ${13}))
}
published() { { cat "$home"/events/*.ndjson 2>/dev/null || true; } | wc -l; }

ticks_before=$(ticks)
from=$(now_ms)
"$bridge" --config "$home/config.toml" send --count "$events" "http://127.0.0.1:$port/webhooks/plextrac"
sent=$(now_ms)
for _ in $(seq 300); do
    [ "$(published)" -lt "$events" ] || break
    sleep 0.1
done
until=$(now_ms)
ticks_after=$(ticks)
arrived=$(published)
[ "$arrived" -ge "$events" ] || { cat "$home/log" >&2; die "$arrived of $events events arrived"; }

awk -v events="$events" -v ticks=$((ticks_after - ticks_before)) -v hz="$(getconf CLK_TCK)" \
    -v sending=$((sent - from)) -v all=$((until - from)) -v peak="$(awk '/^VmHWM/ {print $2}' "/proc/$daemon/status")" 'BEGIN {
    printf "events                %d\n", events
    printf "processor time        %.1f us per event (accept to publish, the sender not counted)\n", ticks / hz * 1e6 / events
    printf "sent in               %.2f s, %.0f per second\n", sending / 1000, events * 1000 / (sending > 0 ? sending : 1)
    printf "all published after   %.2f s\n", all / 1000
    printf "peak memory           %.1f MiB\n", peak / 1024
}'
