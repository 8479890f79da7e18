#!/usr/bin/env bash
# Makes the pictures in docs/ from real runs: the demo on a terminal, and the page of a bridge with some minutes of traffic,
# during which its broker was away for a while, in light and dark.
#
#   make.sh BINARY
set -euo pipefail
binary=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/plextrac-bridge
# shellcheck source=tests/brokers/lib.sh
. tests/brokers/lib.sh # free_base

python3 tests/pictures/demo.py "$binary" docs/demo.svg

scratch=$(mktemp -d)
trap 'kill "${bridge:-}" 2>/dev/null || true; wait; rm -rf "$scratch"' EXIT
port=$(free_base 2)
(umask 077 && printf 'a secret of these pictures alone' >"$scratch/secret" && printf 'another secret altogether' >"$scratch/wrong")
cat >"$scratch/config.toml" <<END
ack = "journaled"
state_directory = "state"
[ingress]
listen = "127.0.0.1:$port"
[admin]
listen = "127.0.0.1:$((port + 1))"
[sources.plextrac]
secret_file = "secret"
[broker.file]
directory = "away/events"
END
cd "$scratch"
"$binary" --config config.toml serve >log 2>&1 &
bridge=$!
until "$binary" --config config.toml healthcheck --ready >/dev/null 2>&1; do sleep 0.2; done

to() { "$binary" send --secret-file "$1" "http://127.0.0.1:$port/webhooks/$2" "${@:3}" >/dev/null 2>&1 || true; }
# Loads the page now, and draws it a minute and a half of traffic later.
NODE_PATH=$cache/node/page/node_modules node "$OLDPWD/tests/pictures/page.js" "http://127.0.0.1:$((port + 1))/" 100 \
    "$OLDPWD/docs/page-light.webp" "$OLDPWD/docs/page-dark.webp" &
page=$!
burst=0
while kill -0 "$page" 2>/dev/null; do
    burst=$((burst + 1))
    [ "$burst" != 10 ] || mkdir away
    to secret plextrac --count $((20 + burst * 7 % 30)) --rate $((12 + burst * 7 % 30))
    case $burst in
    14) to wrong plextrac ;;
    40) to secret PlexTrac ;;
    esac
done
wait "$page"
