# Installs system packages by apt, through sudo where the caller is not root. Source it, don't run it.
# shellcheck shell=bash

# Debian starts the services of what it installs, on all interfaces; a policy forbids that where none is set yet.
install_packages() { # PACKAGE...
    command -v apt-get >/dev/null || {
        echo "no apt-get here: install what these Debian packages hold yourself: $*" >&2
        return 1
    }
    local as_root=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || {
            echo "neither root nor sudo: have an administrator run: apt-get install --no-install-recommends $*" >&2
            return 1
        }
        as_root=(sudo)
    fi
    (
        policy=/usr/sbin/policy-rc.d
        log=$(mktemp)
        made=
        trap 'rm -f "$log"; [ -z "$made" ] || "${as_root[@]}" rm -f "$policy"' EXIT
        if [ ! -e "$policy" ]; then
            made=1
            printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
            "${as_root[@]}" chmod 755 "$policy"
        fi
        apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300)
        # A list that cannot be refreshed is not the end: what is asked for may be known already.
        "${apt[@]}" update >"$log" 2>&1 || true
        "${apt[@]}" install --no-install-recommends "$@" >>"$log" 2>&1 </dev/null || {
            tail -n 20 "$log" >&2
            echo "apt-get install $* failed" >&2
            exit 1
        }
    )
}
