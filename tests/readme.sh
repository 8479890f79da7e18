#!/usr/bin/env bash
# Checks the documents against the program: runs the shell blocks marked `<!-- run -->`, page by page, in a directory
# with the settings, the secret and the state directory of a bridge on files. A block with another mark is run by
# tests/package (`<!-- run: NAME -->`) or needs what is not there (`<!-- needs: WHAT -->`); one without a mark is an
# error. The rest is checked as far as it goes without a network: examples of settings by `check`, Python by its
# compiler, links by files and headings, commands and flags by --help, metrics by what the program registers, settings
# by config/default.toml.
#
#   readme.sh [BINARY]      target/debug/plextrac-bridge by default
set -euo pipefail
tests=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$tests/.."
# shellcheck source=tests/checks.sh
. "$tests/checks.sh"
. "$tests/brokers/lib.sh" # free_base, port numbers no client is given by chance

bridge=$(realpath "${1:-target/debug/plextrac-bridge}")
[ -x "$bridge" ] || die "no $bridge: cargo build"
pages=(README.md SECURITY.md docs/*.md)

# The blocks of one language in a page, each followed by a line with only NUL; indented ones lose their indent.
blocks() { # LANGUAGE PAGE
    awk -v language="$1" '
        match($0, /^ *```/) && !inside && substr($0, RLENGTH + 1) == language { inside = 1; indent = RLENGTH - 3; next }
        inside && /^ *```$/ { inside = 0; printf "%c", 0; next }
        inside { print substr($0, indent + 1) }' "$2"
}
marked() { # PAGE
    awk '/^<!-- run -->$/ { marked = 1; next }
        marked && /^```sh$/ { inside = 1; marked = 0; next }
        inside && /^```$/ { inside = 0; next }
        inside' "$1"
}

runs() (
    local port page ran=0
    mkdir -p "$temporary/bin" "$temporary/tmp"
    ln -s "$bridge" "$temporary/bin/plextrac-bridge"
    for page in "${pages[@]}"; do
        marked "$page" >"$temporary/marked.sh"
        [ -s "$temporary/marked.sh" ] || continue
        ran=$((ran + 1)) port=$(free_base 2)
        mkdir "$temporary/run-$ran" && cd "$temporary/run-$ran"
        (umask 077 && mkdir state && printf 'a secret of this test alone' >secret)
        printf 'state_directory = "state"\n[sources.plextrac]\nsecret_file = "secret"\n[broker.file]\n' >bridge.toml
        echo "--- $page"
        # Other ports than the usual, and nothing left behind in the directories it makes.
        env TMPDIR="$temporary/tmp" PATH="$temporary/bin:$PATH" PLEXTRAC_BRIDGE__INGRESS__LISTEN="127.0.0.1:$port" \
            PLEXTRAC_BRIDGE__ADMIN__LISTEN="127.0.0.1:$((port + 1))" timeout 60 bash -euo pipefail \
            "$temporary/marked.sh" 2>&1 || return 1
        cd - >/dev/null
    done | tee "$temporary/run" || return 1
    [ "$(grep -c '^--- ' "$temporary/run")" -ge 4 ] && [ "$(grep -c '^{"body":' "$temporary/run")" = 3 ]
)

all_are_marked() {
    local page bad=
    for page in "${pages[@]}"; do
        awk -v page="$page" '
            /^ *```/ { if (!inside && $1 == "```sh" && before !~ /^ *<!-- (run|run: [a-z-]+|needs: .*) -->$/) {
                    print page ":" NR ": a block without a mark"; bad = 1 }
                inside = !inside }
            { before = $0 }
            END { exit bad }' "$page" || bad=1
    done
    [ -z "$bad" ]
}

# The files of these examples do not exist here: stand-ins take their place.
settings_are_good() {
    local etc=$temporary/etc block name page number=0
    mkdir -p "$etc" "$temporary/state"
    for name in secret secret-2026-11 secret-2026-12; do
        (umask 077 && printf 'a secret of this test alone, %s' "$name" >"$etc/$name")
    done
    while IFS= read -r -d '' block; do
        # Alone neither a head nor a source is a whole file.
        case $block in *'[broker.'*) ;; *'secrets = '*) block+=$'\n[broker.file]\n' ;; *) continue ;; esac
        case $block in *'[sources.'*) ;; *) block+=$'\n[sources.plextrac]\nsecret_file = "'$etc$'/secret"\n' ;; esac
        (umask 077 && case $block in
            *broker.rabbitmq*) printf 'amqps://user:password@localhost:5671/%%2f' ;;
            *) printf 'a password of this test' ;;
        esac >"$etc/broker")
        number=$((number + 1))
        # A .creds file takes a key pair: left out.
        printf '%s\n' "$block" | sed -e "s:/etc/plextrac-bridge:$etc:" -e '/^credentials_file/d' >"$temporary/$number.toml"
        echo "--- block $number"
        "$bridge" --config "$temporary/$number.toml" check || return 1
    done < <(for page in "${pages[@]}"; do blocks toml "$page"; done)
    [ "$number" -ge 5 ]
}

python_compiles() {
    local readme=docs/consumers.md block number=0
    while IFS= read -r -d '' block; do
        number=$((number + 1))
        python3 -c 'import sys; compile(sys.stdin.read(), sys.argv[1], "exec")' "$readme" <<<"$block" || return 1
    done < <(blocks python "$readme")
    [ "$number" -ge 3 ]
}

links_lead_somewhere() {
    local page link target section heading bad=
    for page in *.md docs/*.md docs/adr/*.md deploy/helm/*/README.md examples/*/README.md; do
        while IFS= read -r link; do
            case $link in http*) continue ;; esac
            target=$(dirname "$page")/${link%%#*}
            [ "${link%%#*}" ] || target=$page
            [ -e "$target" ] || { echo "$page: no file $link" && bad=1 && continue; }
            case $link in *'#'*) section=${link#*#} ;; *) continue ;; esac
            heading=$(sed -n 's/^##* //p' "$target" | tr '[:upper:]' '[:lower:]' | tr -cd 'a-z0-9 _\n-' | tr ' ' - |
                grep -Fx "$section" || true)
            [ -n "$heading" ] || { echo "$page: no section $link" && bad=1; }
        done < <(grep -oE '\]\([^)]+\)' "$page" | sed 's/^](//; s/)$//')
    done
    [ -z "$bad" ]
}

# Every command and flag of the examples, and of inline code, is one that --help knows; every `make` target exists.
commands_exist() {
    local line flag command readme bad=
    local known='\b(serve|check|demo|sign|send|explain|schema|healthcheck|dead-letters (list|show|replay|drop)|journal verify)\b'
    while IFS= read -r line; do
        read -ra command < <(grep -oE "$known" <<<"${line#*plextrac-bridge }" | head -n 1) || true
        [ -n "${command[*]}" ] || { echo "no command in: $line" && bad=1 && continue; }
        for flag in $(grep -oE -- ' --[a-z-]+' <<<"${line#*plextrac-bridge }" || true); do
            "$bridge" "${command[@]}" --help | grep -qF -- "$flag" || { echo "${command[*]} has no $flag" && bad=1; }
        done
    done < <(
        for readme in "${pages[@]}"; do blocks sh "$readme"; done | tr '\0' '\n' |
            grep -oE '(^|until |exec bridge-[a-z]+ )plextrac-bridge [^;]*'
        cat "${pages[@]}" | grep -oE '`plextrac-bridge (--config [^ `]+ )?[a-z][^`]*'
    )
    for flag in $(cat "${pages[@]}" CONTRIBUTING.md | grep -oE '`make [a-z-]+' | cut -d' ' -f2 | sort -u); do
        grep -q "^$flag:" Makefile || { echo "no target $flag" && bad=1; }
    done
    [ -z "$bad" ]
}

metrics_exist() {
    local name bad=
    local metric='(plextrac_bridge_)?[a-z_]+_total\b|plextrac_bridge_[a-z_]+[a-z]|`[a-z_]+_seconds`'
    for name in $(cat "${pages[@]}" | grep -oE "$metric" | tr -d '`' | sed 's/^plextrac_bridge_//' | grep -v ^process_ | sort -u); do
        grep -qF "\"$name\"" src/metrics.rs || { echo "no metric $name" && bad=1; }
    done
    [ -z "$bad" ]
}

settings_exist() {
    local name bad=
    local setting='`(ingress|buffer|journal|publish|deduplication|dead_letters|admin|log|shutdown)\.[a-z_.]+\b'
    for name in $(cat "${pages[@]}" | grep -oE "$setting" | tr -d '`' | sort -u); do
        awk -v name="$name" '/^\[/ { gsub(/[][]/, "", $1); section = $1 }
            section == name || section "." $1 == name && $2 == "=" { found = 1 } END { exit !found }' config/default.toml ||
            { echo "no setting $name" && bad=1; }
    done
    [ -z "$bad" ]
}

check "the marked blocks run" runs
check "every block of commands is run, or says what it needs" all_are_marked
check "the README is at most 10,000 bytes" test "$(wc -c <README.md)" -le 10000
check "the examples of settings are good" settings_are_good
check "the examples in Python compile" python_compiles
check "links lead somewhere" links_lead_somewhere
check "commands, flags and targets exist" commands_exist
check "metrics exist" metrics_exist
check "settings exist" settings_exist

report readme
