# A clean Debian with systemd: made once, kept in the cache, laid out and booted for each run. Source it, don't run it.
# shellcheck shell=bash disable=SC2154 # cache and temporary are set by the script that sources it

ROOT_SUITE=bookworm
# What the packages depend on is there; nothing else, so that what they forget is missed.
ROOT_PACKAGES=systemd,systemd-sysv,dbus,ca-certificates

# The cached archive; made anew where the list above changes.
root_archive() {
    local archive=$cache/package-roots/$ROOT_SUITE-${ROOT_PACKAGES//,/-}.tar
    if [ ! -e "$archive" ]; then
        printf 'making a clean %s in %s, once\n' "$ROOT_SUITE" "$archive" >&2
        mkdir -p "${archive%/*}"
        mmdebstrap --quiet --variant=minbase --include="$ROOT_PACKAGES" --format=tar "$ROOT_SUITE" "$archive.new" >&2
        mv "$archive.new" "$archive"
    fi
    printf '%s' "$archive"
}

lay_out() { # DIRECTORY
    mkdir -p "$1"
    tar -C "$1" --exclude='./dev/*' -xf "$(root_archive)"
    # The documents say sudo; here everything is done by root.
    printf '#!/bin/sh\nexec "$@"\n' >"$1/usr/local/bin/sudo"
    chmod 755 "$1/usr/local/bin/sudo"
}

leader='' nspawn=''
boot() { # DIRECTORY
    local state='' left=150
    systemd-nspawn --quiet --directory "$1" --register=no --keep-unit --boot --private-network --console=pipe \
        </dev/null >"$temporary/console" 2>&1 &
    nspawn=$!
    until leader=$(pgrep -P "$nspawn") && state=$(inside systemctl is-system-running 2>/dev/null); do
        if [ $((left -= 1)) -le 0 ] || ! kill -0 "$nspawn" 2>/dev/null; then
            echo "systemd is ${state:-not there}"
            tail -n 20 "$temporary/console"
            return 1
        fi
        sleep 0.2
    done
}
inside() {
    nsenter -t "$leader" -m -u -i -p -n -C -- env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"
}
power_off() {
    local left=100
    [ -n "$nspawn" ] || return 0
    inside systemctl poweroff >/dev/null 2>&1 || true
    while kill -0 "$nspawn" 2>/dev/null; do
        [ $((left -= 1)) -gt 0 ] || { kill -KILL "$nspawn" 2>/dev/null || true; }
        sleep 0.1
    done
    leader='' nspawn=''
}
