#!/usr/bin/env bash
# Tests the packages in a clean Debian under a systemd of its own, by the commands of docs/install.md and those of
# docs/operations.md (runbook.sh); root only. The .rpm is installed, upgraded and erased by rpm, without a systemd. See root.sh for the root itself.
#
#   test.sh BINARY [DIRECTORY]      the binary, and what deploy/package/build.sh made of it: target/package by default
#
#   OLDER       a directory with packages of an older version; else the same binary is packed as version 0.0.1
#   GLIBC_MAX   the newest version of glibc that the binary may need
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/checks.sh
cache=${XDG_CACHE_HOME:-$HOME/.cache}/plextrac-bridge
. tests/package/root.sh

[ "$(id -u)" = 0 ] || { echo "only root can lay out and boot a root" >&2 && exit 1; }
binary=$(realpath "$1")
packages=$(realpath "${2:-target/package}")
older=${OLDER:-$temporary/older}
root=$temporary/root
deb=$(echo "$packages"/*.deb) rpm=$(echo "$packages"/*.rpm)
trap 'power_off; rm -rf "$temporary"' EXIT

# As `check`, in a shell of its own that the first failure ends.
step() { # NAME COMMAND...
    local name=$1 status
    shift
    set +e
    (set -e && "$@") >"$temporary/step" 2>&1 </dev/null
    status=$?
    set -e
    check "$name" outcome "$status"
}
outcome() { cat "$temporary/step" && return "$1"; }
# Runs the block of docs/install.md that has this name, in the root, as it is written.
documented() { # NAME [DIRECTORY]
    awk -v mark="<!-- run: $1 -->" '$0 == mark { marked = 1; next }
        marked && /^```sh$/ { inside = 1; next }
        inside && /^```$/ { exit }
        inside' README.md docs/install.md >"$root/srv/block"
    [ -s "$root/srv/block" ] || { echo "no block $1 in README.md and docs/install.md" && return 1; }
    inside bash -euc "cd '${2:-/srv}' && . /srv/block"
}
ctl() { inside systemctl "$@"; }
show() { ctl show --property="$1" --value plextrac-bridge.service; }
is() { same "$1" "$(show "$1")" "$2"; } # PROPERTY VALUE
same() { # NAME HAVE WANTED
    [ "$2" = "$3" ] || { echo "$1: '$2', not '$3'" && return 1; }
}
fails() { if "$@" >/dev/null; then echo "should fail: $*" && return 1; fi; }
absent() { # PATH...
    local path
    for path in "$@"; do [ ! -e "$path" ] && [ ! -L "$path" ] || { echo "exists: $path" && return 1; }; done
}
nothing_named_so() { # DIRECTORY...
    same "left behind" "$(find "$@" -name 'plextrac-bridge*' -o -name '*_plextrac-bridge')" ""
}
soon() { within 20 "$@"; } # COMMAND...
within() { # SECONDS COMMAND...
    local limit=$1 end=$((SECONDS + $1))
    shift
    until "$@" >"$temporary/soon" 2>&1; do
        [ "$SECONDS" -lt "$end" ] || { cat "$temporary/soon" && echo "not within $limit s: $*" && return 1; }
        sleep 0.1
    done
}
logged() { inside journalctl --quiet --no-pager --output=cat --unit plextrac-bridge | grep -F -- "$1" >/dev/null; }
both_are() { same "$1" "$(ctl "$1" plextrac-bridge.service plextrac-bridge.socket | sort -u)" "$2"; } # QUESTION ANSWER

settings=$root/etc/plextrac-bridge/config.toml
drop_ins=/run/systemd/system/plextrac-bridge.service.d
events=$root/var/lib/private/plextrac-bridge/events
. tests/package/runbook.sh
stored() { cat "$events"/*.ndjson 2>/dev/null | wc -l; }
more_than() { [ "$(stored)" -gt "$1" ]; }

load() { # signed requests from outside the root, through its network
    local before
    before=$(stored)
    mkfifo "$temporary/open"
    nsenter -t "$leader" -n python3 tests/package/load.py 8080 "$(cat "$root/etc/plextrac-bridge/secret")" 200 \
        <"$temporary/open" >"$temporary/load" &
    loading=$!
    exec 7>"$temporary/open"
    soon more_than "$((before + 50))"
}
judged() { # [--none-refused]
    exec 7>&-
    wait "$loading"
    rm "$temporary/open"
    soon python3 tests/package/judge.py "$temporary/load" "$events" "$@"
    cat "$temporary/soon"
}

runs_on_old_systems() {
    local have
    have=$(deploy/package/glibc.sh "$binary")
    echo "needs glibc $have"
    printf '%s\n' "$have" "${GLIBC_MAX:-2.34}" | sort -VC
}
same_bytes_twice() {
    deploy/package/build.sh "$binary" "$temporary/again" >/dev/null
    cmp "$packages/SHA256SUMS" "$temporary/again/SHA256SUMS"
}
lintian_is_content() { lintian --allow-root --fail-on error --tag-display-limit 0 "$deb"; }

installs_and_starts_nothing() {
    documented install /srv/older >"$temporary/installed" 2>&1 || { cat "$temporary/installed" && return 1; }
    cat "$temporary/installed"
    same "steps to the first event" "$(grep -c '^  [123]\. ' "$temporary/installed")" 3
    both_are is-enabled disabled
    both_are is-active inactive
    inside dpkg --verify plextrac-bridge
    inside systemd-analyze verify --man=no plextrac-bridge.service plextrac-bridge.socket
    inside plextrac-bridge --version
}
without_a_secret_it_fails_once() {
    fails ctl start plextrac-bridge
    is ExecMainStatus 243
    is NRestarts 0
    is ActiveState failed
    ctl reset-failed plextrac-bridge
}
first_event() {
    documented first-event
    ctl is-active plextrac-bridge
    same events "$(stored)" 1
}
is_confined() {
    local pid status line
    pid=$(show MainPID)
    status=$(inside cat "/proc/$pid/status" | tr '\t' ' ')
    for line in 'CapEff: 0*' 'CapPrm: 0*' 'CapBnd: 0*' 'CapAmb: 0*' 'NoNewPrivs: 1' 'Seccomp: 2'; do
        grep -qx "$line" <<<"$status" || { echo "not $line: $(grep "^${line%% *}" <<<"$status")" && return 1; }
    done
    fails grep -E '^Uid:.* 0( |$)' <<<"$status"
    fails same "user namespace" "$(inside readlink "/proc/$pid/ns/user")" "$(inside readlink /proc/1/ns/user)"
    inside mkdir -p /home/0
    # Even for root: these are the mounts of the service.
    inside nsenter -t "$pid" -m -- bash -euc 'for file in /usr/x /etc/x /srv/x /var/x /var/lib/x; do
            if touch $file 2>/dev/null; then echo "wrote $file"; exit 1; fi
        done
        if [ -e /dev/kmsg ] || [ -n "$(ls -A /home /root | grep -v ":$")" ]; then echo "sees too much"; exit 1; fi
        touch /tmp/file'
    absent "$root/tmp/file"
    inside systemd-analyze security --no-pager --threshold=15 plextrac-bridge.service | tail -n 1
}
secret_is_a_credential() {
    local file=/run/credentials/plextrac-bridge.service/plextrac
    inside cmp "$file" /etc/plextrac-bridge/secret
    same mode "$(inside stat -c %a /etc/plextrac-bridge/secret)" 600
    # For the user of the service by an access list, which shows as the group's.
    inside stat -c '%a %U' "$file"
    inside stat -c %a "$file" | grep -qxE '4[04]0'
    fails grep -F "$(cat "$root/etc/plextrac-bridge/secret")" "/proc/$(host_pid)/environ"
}
# The same process as the host numbers it.
host_pid() { pgrep --ns "$leader" --nslist pid --full '^/usr/bin/plextrac-bridge serve'; }
reloads() {
    local pid
    pid=$(show MainPID)
    printf '[sources.second]\npath = "/webhooks/second"\nsecret = "a secret of this test alone"\n' >>"$settings"
    documented reload
    soon logged 'reloaded the settings'
    printf 'a secret of this test alone' >"$root/srv/second"
    inside plextrac-bridge send --secret-file /srv/second http://127.0.0.1:8080/webhooks/second
    is MainPID "$pid"
}
# The unit passes secret and state directory; a settings file without them is enough for it, and for what only reads.
commands_that_read_find_the_state() {
    local command
    cp "$settings" "$temporary/settings"
    sed -i '/^state_directory/d; /^secret_file/d' "$settings"
    ctl restart plextrac-bridge
    for command in healthcheck 'journal verify' 'dead-letters list' 'dead-letters list --invalid'; do
        inside bash -c "plextrac-bridge $command"
    done
    inside plextrac-bridge dead-letters list | grep -F "in /var/lib/plextrac-bridge/"
    cp "$temporary/settings" "$settings"
    ctl restart plextrac-bridge
}
a_wrong_reload_changes_nothing() {
    local pid
    pid=$(show MainPID)
    printf 'nonsense = 1\n' >>"$settings"
    ctl reload plextrac-bridge
    soon logged nonsense
    is MainPID "$pid"
    is ActiveState active
    inside plextrac-bridge send --secret-file /srv/second http://127.0.0.1:8080/webhooks/second
}
wrong_settings_fail_once() {
    fails ctl restart plextrac-bridge
    is ActiveState failed
    is NRestarts 0
    is ExecMainStatus 78
    sed -i /nonsense/d "$settings"
    ctl reset-failed plextrac-bridge
    ctl start plextrac-bridge
}
# A request that waits starts it again and again, at a rate that spares the machine; mended, it answers.
wrong_settings_end_no_socket() {
    local before pid
    ctl stop plextrac-bridge
    printf 'nonsense = 1\n' >>"$settings"
    ctl start plextrac-bridge.socket
    before=$(starts)
    nsenter -t "$leader" -n curl --silent --max-time 5 --output /dev/null http://127.0.0.1:8080/ || true
    [ "$(($(starts) - before))" -le 4 ] || { echo "$(($(starts) - before)) starts in 5 s" && return 1; }
    same socket "$(ctl is-active plextrac-bridge.socket)" active
    sed -i /nonsense/d "$settings"
    inside plextrac-bridge send --source plextrac
    ctl stop plextrac-bridge.socket plextrac-bridge.service
    ctl start plextrac-bridge
}
starts() { inside journalctl --quiet --no-pager --output=cat --unit plextrac-bridge | grep -c '^Starting '; }
# More tries than any limit of starts had, then the address is there.
waits_for_a_late_network() {
    ctl stop plextrac-bridge
    cp "$settings" "$temporary/settings"
    printf '[ingress]\nlisten = "192.0.2.1:8080"\n' >>"$settings"
    ctl start --no-block plextrac-bridge
    within 60 restarted_more_than 7
    nsenter -t "$leader" -n ip address add 192.0.2.1/32 dev lo
    soon is ActiveState active
    cp "$temporary/settings" "$settings"
    nsenter -t "$leader" -n ip address delete 192.0.2.1/32 dev lo
    # By hand as often as anyone likes.
    for _ in {1..8}; do ctl restart plextrac-bridge; done
    is ActiveState active
}
restarted_more_than() { [ "$(show NRestarts)" -gt "$1" ]; }
watchdog_restarts_what_hangs() {
    local pid stalling
    printf '[Service]\nWatchdogSec=2s\n' | inside install -D -m 644 /dev/stdin $drop_ins/watchdog.conf
    ctl daemon-reload
    ctl restart plextrac-bridge
    pid=$(show MainPID)
    # One thread; all others, and the watchdog's, run on.
    python3 tests/package/stall.py "$(host_pid)" delivery &
    stalling=$!
    within 60 is NRestarts 1
    soon is ActiveState active
    wait "$stalling"
    logged 'the delivery task has not moved'
    logged 'Watchdog timeout'
    fails is MainPID "$pid"
    inside rm -r $drop_ins
    ctl daemon-reload
    ctl restart plextrac-bridge
}
upgrades_under_load() {
    local pid
    pid=$(show MainPID)
    load
    documented upgrade /srv/newer
    soon more_than "$(($(stored) + 50))"
    judged
    same version "$(inside dpkg-query --show --showformat '${Version}' plextrac-bridge)" "$(dpkg --field "$deb" Version)"
    fails is MainPID "$pid"
    is ActiveState active
    # The administrator's changes.
    grep -qF /webhooks/second "$settings"
}
socket_refuses_nothing() {
    documented socket
    load
    for _ in {1..20}; do
        ctl restart plextrac-bridge
        soon more_than "$(($(stored) + 20))"
    done
    inside dpkg -i "/srv/newer/${deb##*/}"
    soon more_than "$(($(stored) + 50))"
    judged --none-refused
}
a_request_starts_it() {
    ctl stop plextrac-bridge
    ctl is-active plextrac-bridge.socket
    inside plextrac-bridge send --source plextrac
    is ActiveState active
}
password_is_a_credential() {
    cp "$settings" "$temporary/settings"
    sed -i '/^\[broker.file\]/,/^directory/d' "$settings"
    cat >>"$settings" <<'TEXT'
[broker.kafka]
bootstrap_servers = "127.0.0.1:1"
security_protocol = "sasl_plaintext"
sasl_mechanism = "PLAIN"
username = "bridge"
password_file = "/etc/plextrac-bridge/broker"
TEXT
    documented password
    # Root's commands have what the service has.
    inside plextrac-bridge check
    is ActiveState active
    inside cmp /run/credentials/plextrac-bridge.service/broker /etc/plextrac-bridge/broker
    inside rm -r /etc/systemd/system/plextrac-bridge.service.d /etc/plextrac-bridge/broker
    cp "$temporary/settings" "$settings"
    ctl daemon-reload
    ctl restart plextrac-bridge
}
stays_stopped_at_an_upgrade() {
    ctl disable --now plextrac-bridge.socket plextrac-bridge.service
    inside dpkg -i "/srv/newer/${deb##*/}"
    both_are is-active inactive
    ctl enable --now plextrac-bridge.service
}
removal_keeps_settings_and_state() {
    local before
    before=$(stored)
    ctl enable plextrac-bridge.socket
    documented remove
    both_are is-active inactive
    absent "$root/usr/bin/plextrac-bridge"
    nothing_named_so "$root/etc/systemd"
    grep -qF /webhooks/second "$settings"
    same events "$(stored)" "$before"
    # Installed again, it continues once it is started.
    documented install /srv/newer
    both_are is-active inactive
    ctl start plextrac-bridge
    inside plextrac-bridge send --source plextrac
    soon more_than "$before"
}
purge_deletes_both() {
    documented purge
    absent "$settings" "$root/var/lib/private/plextrac-bridge" "$root/var/lib/plextrac-bridge"
    nothing_named_so "$root/etc/systemd" "$root/usr"
    # The administrator's own file.
    [ -e "$root/etc/plextrac-bridge/secret" ]
    rm -r "$root/etc/plextrac-bridge"
}
by_hand() {
    documented by-hand /srv/newer
    documented first-event
    is ActiveState active
    same events "$(stored)" 1
}
no_unit_failed() { same failed "$(ctl list-units --failed --no-legend)" ""; }

rpm_in_its_root() {
    local in=$temporary/rpm-root edited
    edited=$in/etc/plextrac-bridge/config.toml
    lay_out "$in"
    rpm --root "$in" --initdb
    rpm --root "$in" -i --nodeps "$older"/*.rpm >"$temporary/rpm" 2>&1
    same "steps to the first event" "$(grep -c '^  [123]\. ' "$temporary/rpm")" 3
    rpm --root "$in" -V --nodeps plextrac-bridge
    chroot "$in" plextrac-bridge --version
    chroot "$in" systemctl enable plextrac-bridge.socket plextrac-bridge.service
    echo '# mine' >>"$edited"
    rpm --root "$in" -U --nodeps "$rpm" >"$temporary/rpm" 2>&1
    # Debian's rpm says of itself that it is not for Debian.
    same "said at an upgrade" "$(grep -v '^rpm: ' "$temporary/rpm")" ""
    same installed "$(rpm --root "$in" -qa)" "$(rpm -qp "$rpm")"
    grep -qx '# mine' "$edited"
    [ "$(chroot "$in" systemctl is-enabled plextrac-bridge.service)" = enabled ]
    mkdir -p "$in/var/lib/private/plextrac-bridge"
    rpm --root "$in" -e plextrac-bridge
    grep -qx '# mine' "$edited.rpmsave"
    [ -d "$in/var/lib/private/plextrac-bridge" ]
    nothing_named_so "$in/etc/systemd" "$in/usr"
}

if [ -z "${OLDER:-}" ]; then
    PACKAGE_VERSION=0.0.1 deploy/package/build.sh "$binary" "$older" >/dev/null
fi
step "the binary runs on glibc ${GLIBC_MAX:-2.34}" runs_on_old_systems
step "the same bytes twice" same_bytes_twice
step "lintian: no errors" lintian_is_content
lay_out "$root"
mkdir -p "$root"/srv/{older,newer}
cp "$older"/*.deb "$root/srv/older"
cp "$packages"/* "$root/srv/newer"
check "a clean $ROOT_SUITE boots" boot "$root"
[ -n "$leader" ] || report package
step "the checksums are right" documented checksums /srv/newer
step "an installation starts nothing and names three steps" installs_and_starts_nothing
step "a start without a secret fails once" without_a_secret_it_fails_once
step "a secret, settings, a start: the first event" first_event
step "the service is confined" is_confined
step "its secret is a credential" secret_is_a_credential
runbook
step "commands that read find the state directory of the unit" commands_that_read_find_the_state
step "a reload changes settings in the same process" reloads
step "a reload of wrong settings changes nothing" a_wrong_reload_changes_nothing
step "a start with wrong settings fails once" wrong_settings_fail_once
step "with the socket, wrong settings keep the port and spin not" wrong_settings_end_no_socket
step "a network that comes late is waited for" waits_for_a_late_network
step "the watchdog restarts a bridge with a thread that hangs" watchdog_restarts_what_hangs
step "an upgrade under load loses nothing" upgrades_under_load
step "with the socket, twenty restarts and an upgrade refuse nothing" socket_refuses_nothing
step "a request starts a bridge that was stopped" a_request_starts_it
step "a broker's password is a credential" password_is_a_credential
step "an upgrade leaves a stopped bridge stopped" stays_stopped_at_an_upgrade
step "a removal keeps settings and state" removal_keeps_settings_and_state
step "a purge deletes both" purge_deletes_both
step "by hand, from the archive" by_hand
step "no unit failed" no_unit_failed
power_off
step "the .rpm is installed, upgraded and erased" rpm_in_its_root
printf 'package: ended after %s s\n' "$SECONDS"
report package
