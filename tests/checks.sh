# Shared by the scripts that run many checks and name those that failed; source it, don't run it.
# shellcheck shell=bash

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

failed=()
check() { # NAME COMMAND...
    local name=$1
    shift
    if "$@" >"$temporary/out" 2>&1; then
        printf 'ok    %s\n' "$name"
    else
        printf 'FAIL  %s\n' "$name"
        sed 's/^/      /' "$temporary/out"
        failed+=("$name")
    fi
}

# The last line of such a script.
report() { # SCRIPT
    [ ${#failed[@]} = 0 ] && return
    printf '%s: %s failed\n' "$1" "${#failed[@]}" >&2
    exit 1
}
