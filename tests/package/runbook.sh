# Walks docs/operations.md on the systemd install: all that it tells to type is run there as it is written, and does what
# the text says. What runbook.py finds in the page and is not in WALKS fails, and so does what WALKS has and the page has
# not. Source it, don't run it; functions and variables are those of test.sh.
# shellcheck shell=bash disable=SC2154,SC2034 # set by the script that sources it; used by name

declare -A WALKS=(
    ["check"]=names_all_mistakes
    ["plextrac-bridge check"]=names_all_mistakes
    ["check --connect"]=tries_the_broker
    ["plextrac-bridge check --connect"]=tries_the_broker
    ["plextrac-bridge --config /etc/plextrac-bridge/config.toml check --connect"]=tries_the_broker
    ["explain"]=explains_a_body
    ["healthcheck"]=knows_whether_it_runs
    ["plextrac-bridge healthcheck"]=knows_whether_it_runs
    ["send"]=sends_an_event
    ["plextrac-bridge send"]=sends_an_event
    ["journal verify"]=verifies_the_journal
    ["plextrac-bridge journal verify"]=shows_that_it_is_empty
    ["dead-letters list"]=lists_letters
    ["plextrac-bridge dead-letters list"]=shows_that_it_is_empty
    ["plextrac-bridge dead-letters show cm1-4f2a90c1d3e5"]=shows_a_letter
    ["dead-letters replay"]=replays_both
    ["plextrac-bridge dead-letters replay --reason unroutable"]=replays_one
    ["plextrac-bridge dead-letters drop --older-than 720h"]=drops_the_old_one
    ["dead-letters list --json"]=lists_letters_as_json
    ["dead-letters list --invalid"]=lists_bodies
    ["dead-letters list --invalid --reason probe"]=lists_the_probe
    ["dead-letters replay --invalid --reason invalid --lenient"]=replays_the_invalid_body
    ["dead-letters replay --invalid --reason malformed --as-is"]=replays_the_malformed_body
    ["dead-letters replay --invalid --reason probe --as-is"]=replays_the_probe
    ["curl 127.0.0.1:8081/metrics"]=answers_metrics
    ["curl 127.0.0.1:8081/readyz"]=answers_ready
    ["curl 127.0.0.1:8081/livez"]=answers_live
    ["systemctl status plextrac-bridge"]=shows_that_it_runs
    ["systemctl stop plextrac-bridge"]=stops
    ["systemctl restart plextrac-bridge"]=restarts
    ["systemctl reload plextrac-bridge"]=reloads_the_buffer
    ["journalctl -u plextrac-bridge -n 50"]=shows_the_last_line
    ["ss -tn sport = :8080"]=finds_peers
    ["ulimit -Hn"]=is_a_number
    # Of other installs, and of brokers.
    ["docker exec plextrac-bridge plextrac-bridge dead-letters list"]=elsewhere
    ["docker run --stop-timeout"]=elsewhere
    ["docker ps"]=elsewhere
    ["kubectl get pods"]=elsewhere
    ["rabbitmq-diagnostics alarms"]=elsewhere
    ["nats stream info"]=elsewhere
    # What the program says, and what is in the settings of others.
    ["0 unsettled"]=is_said
    ["... is of version 2 of the journal's format, and this program reads version 1"]=is_said
    ["journal: ..."]=is_said
    ["failed to open the journal: ... No space left on device"]=is_said
    ["dead letters: ..."]=is_said
    ["buffer full"]=is_said
    ["journal full"]=is_said
    ["the broker has been away"]=is_said
    ["has no leader"]=is_said
    ["no majority of its replicas answers it"]=is_said
    ['validation = "lenient"']=is_said
    ["lb_policy first"]=elsewhere
)

runbook() {
    local command
    local -A typed=()
    cp "$settings" "$temporary/before"
    while IFS= read -r command; do
        typed[$command]=1
        step "docs/operations.md: $command" walk "$command"
    done < <(python3 tests/package/runbook.py docs/operations.md)
    for command in "${!WALKS[@]}"; do
        [ -n "${typed[$command]:-}" ] || step "docs/operations.md has no longer: $command" false
    done
    cp "$temporary/before" "$settings"
    ctl restart plextrac-bridge
}
walk() { # COMMAND
    local how=${WALKS[$1]:-}
    [ -n "$how" ] || { echo "tests/package/runbook.sh does not say what this does, or what it is" && return 1; }
    "$how" "$1"
}
# As the page says: commands of the program may lack its name.
run() { # COMMAND
    case ${1%% *} in check | dead-letters | explain | healthcheck | journal | send) set -- "plextrac-bridge $1" ;; esac
    inside bash -c "$1"
}
# What a clean root lacks is asked from outside, through its network.
beside() { nsenter -t "$leader" -n bash -c "$1"; }
gives() { # WORDS FUNCTION COMMAND
    "${@:2}" >"$temporary/given" 2>&1 || { cat "$temporary/given" && return 1; }
    grep -qE -- "$1" "$temporary/given" || { cat "$temporary/given" && echo "not there: $1" && return 1; }
}
gives_no() { # WORDS: in what was given last
    fails grep -E -- "$1" "$temporary/given"
}

elsewhere() { :; }
is_said() {
    local part
    while IFS= read -r part; do
        # Of the system's words, of versions and of numbers the program has none by heart.
        part=$(sed -E 's/^(0 )? *//; s/[0-9].*//; s/ *$//' <<<"$part")
        [ -z "$part" ] || [[ $part == "No space"* ]] || grep -qaF -- "${part%% = *}" "$binary" ||
            { echo "the program never says: $part" && return 1; }
    done <<<"${1//.../$'\n'}"
}
is_a_number() { gives '^([0-9]+|unlimited)$' run "$1"; }

tries_the_broker() { gives '^broker: good$' run "$1"; }
names_all_mistakes() {
    cp "$settings" "$temporary/right"
    printf '[nonsense]\na = 1\n[bufer]\nmax_events = 1\n' >>"$settings"
    fails gives . run "$1"
    grep -q nonsense "$temporary/given" && grep -q bufer "$temporary/given"
    cp "$temporary/right" "$settings"
    gives 'settings: good' run "$1"
}
knows_whether_it_runs() {
    gives . run "$1"
    ctl stop plextrac-bridge
    fails run "$1"
    ctl start plextrac-bridge
}
explains_a_body() {
    printf '{"event":"ReportPublished"}' >"$root/srv/body"
    gives ReportPublished run "$1 /srv/body"
}
sends_an_event() {
    local before
    before=$(stored)
    gives '^1 accepted' run "$1"
    soon more_than "$before"
}
answers_metrics() { gives '^plextrac_bridge_build_info\{.*\} 1$' beside "$1"; }
answers_ready() { gives '^ready' beside "$1"; }
answers_live() { gives '^live' beside "$1"; }
shows_that_it_runs() { gives 'Active: active \(running\)' run "$1"; }
shows_the_last_line() { gives . run "$1"; }
stops() {
    run "$1"
    is ActiveState inactive
    ctl start plextrac-bridge
}
restarts() {
    local pid
    pid=$(show MainPID)
    run "$1"
    is ActiveState active
    fails is MainPID "$pid"
}
# "raise `buffer.max_bytes` or `buffer.max_events`, then ...: no restart"
reloads_the_buffer() {
    local pid
    pid=$(show MainPID)
    printf '[buffer]\nmax_events = 4321\n' >>"$settings"
    run "$1"
    soon gives '^plextrac_bridge_buffer_capacity_events 4321$' beside "curl 127.0.0.1:8081/metrics"
    is MainPID "$pid"
}
finds_peers() {
    local load
    load=$(mktemp -u -p "$temporary")
    mkfifo "$load"
    # A sender that has begun.
    nsenter -t "$leader" -n bash -c 'exec 3<>/dev/tcp/127.0.0.1/8080 && read -r' <"$load" &
    exec 6>"$load"
    soon gives '127.0.0.1:8080' beside "$1"
    exec 6>&-
    wait $! || true
}

# A bridge with two letters, both refused as unroutable: the one that the page names, and one of months ago that is another's.
state=$root/var/lib/private/plextrac-bridge
letter() { # ID REASON TIME
    printf '{"version":1,"time":"%s","reason":"%s","text":"no queue is bound","attempts":1,"id":"%s","source":"plextrac","event":"ReportPublished","received":"%s","signature":null,"traceparent":null,"address":"ReportPublished","key":"","headers":{},"body":"{\\"event\\":\\"ReportPublished\\",\\"cuid\\":\\"body of %s\\"}"}\n' \
        "$3" "$2" "$1" "$3" "$1"
}
with_letters() {
    ctl stop plextrac-bridge
    rm -f "$state"/dead-letters/*
    {
        letter cm1-4f2a90c1d3e5 unroutable "$(date -u +%FT%TZ)"
        letter cm1-000000000001 too_large "$(date -u -d '60 days ago' +%FT%TZ)"
    } >"$state/dead-letters/00000001.ndjson"
    chown -R --reference="$state" "$state/dead-letters"
    ctl start plextrac-bridge
}
left() { gives "^$1 in " run "dead-letters list"; }
lists_letters() {
    with_letters
    gives 'unroutable .*ReportPublished .*cm1-4f2a90c1d3e5' run "$1"
    gives_no 'body of'
    left 2
}
lists_letters_as_json() {
    with_letters
    gives '"id":"cm1-4f2a90c1d3e5"' run "$1"
    python3 -c 'import json, sys; all(json.loads(line) for line in sys.stdin) or sys.exit(1)' <"$temporary/given"
}
shows_a_letter() {
    with_letters
    gives 'body of cm1-4f2a90c1d3e5' run "$1"
    gives 'no queue is bound' run "$1"
    gives_no cm1-000000000001
}
replays() { # HOW_MANY COMMAND
    local before
    before=$(stored)
    gives . run "$2"
    same "events published" "$(($(stored) - before))" "$1"
}
replays_both() {
    with_letters
    replays 2 "$1"
    left 0
}
replays_one() {
    with_letters
    replays 1 "$1"
    left 1
}
drops_the_old_one() {
    with_letters
    replays 0 "$1"
    gives cm1-4f2a90c1d3e5 run "dead-letters list"
    left 1
    # What a command leaves with no daemon there, the daemon can use.
    ctl stop plextrac-bridge
    run "dead-letters drop --all"
    ctl start plextrac-bridge
    left 0
}
verifies_the_journal() { gives '^sound' run "$1"; }
# "stop it, and check that ..."
shows_that_it_is_empty() {
    ctl stop plextrac-bridge
    rm -f "$state"/dead-letters/*
    gives '(: 0 unsettled|^0 in )' run "$1"
    ctl start plextrac-bridge
}

# Three bodies that are not published: not the documented payload, no JSON, no event.
with_bodies() {
    local body
    ctl stop plextrac-bridge
    rm -f "$state"/invalid/*
    sed -i '/^validation = /d; s/^\[sources.plextrac\]/&\nvalidation = "strict"/' "$settings"
    ctl start plextrac-bridge
    for body in '{"event":"Odd"}' '{"event":' '{}'; do
        printf '%s' "$body" >"$root/srv/body"
        run 'send http://127.0.0.1:8080/webhooks/plextrac /srv/body' >/dev/null || true
    done
    soon gives '^3 in ' run "dead-letters list --invalid"
}
lists_bodies() {
    with_bodies
    gives invalid run "$1"
    grep -q malformed "$temporary/given"
    grep -q probe "$temporary/given"
}
lists_the_probe() {
    with_bodies
    gives probe run "$1"
    gives_no malformed
}
# "publishes the refused ones"
replays_the_invalid_body() {
    with_bodies
    replays 1 "$1"
}
replays_the_malformed_body() {
    with_bodies
    replays 1 "$1"
    grep -qF application/octet-stream "$events"/*.ndjson
}
replays_the_probe() {
    with_bodies
    replays 1 "$1"
}
