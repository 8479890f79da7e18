#!/usr/bin/env bash
# Checks a program that was built with the file broker alone: it says so, demonstrates itself, and explains to settings of
# another broker what is missing.
#
#   file_only.sh BINARY
set -euo pipefail
tests=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/checks.sh
. "$tests/checks.sh"
bridge=$(realpath "$1")

says_so() { "$bridge" --version | grep -x 'brokers: file'; }

demonstrates_itself() {
    "$bridge" demo --once >"$temporary/demo"
    grep -F 'built without kafka, rabbitmq, nats' "$temporary/demo" && grep -F '4 published, 0 lost' "$temporary/demo"
}

explains() { # BROKER
    local code=0
    printf '[sources.plextrac]\nsecret = "a secret of this test alone"\n[broker.%s]\n' "$1" >"$temporary/config.toml"
    "$bridge" --config "$temporary/config.toml" check >"$temporary/check" 2>&1 || code=$?
    cat "$temporary/check"
    [ "$code" = 78 ] && [ "$(grep -c . "$temporary/check")" = 1 ] &&
        grep -F "\`broker.$1\`" "$temporary/check" | grep -F "without the feature \`$1\` (brokers: file); install a release, or build"
}

check "its version says so" says_so
check "the demo works, and says so" demonstrates_itself
for broker in kafka rabbitmq nats; do check "settings of $broker are explained" explains "$broker"; done

report file_only
