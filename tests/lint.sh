#!/usr/bin/env bash
# Checks every file that is not Rust, and the house rules that the compiler does not know. Runs all checks, names
# those that failed, and fails if any did. The tools come from setup.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/plextrac-bridge
VENV=${VENV:-$cache/venv}
PATH=$VENV/bin:$cache/go:$PATH
. tests/checks.sh

files() { git ls-files --cached --others --exclude-standard -- "$@"; }
# The files of a pattern that hold what must not be there; fails if there are any.
none_with() { # REGEX PATTERN...
    local regex=$1 list
    shift
    mapfile -t list < <(files "$@")
    [ ${#list[@]} = 0 ] || ! grep -nHE "$regex" "${list[@]}"
}

shell_scripts() {
    local list
    mapfile -t list < <(files '*.sh' .ci/run)
    shellcheck --severity=warning --external-sources "${list[@]}"
}

yaml() {
    local list
    # Templates of Helm are no YAML.
    mapfile -t list < <(files '*.yml' '*.yaml' ':!deploy/helm/*/templates/*')
    yamllint --strict -d '{extends: default, rules: {line-length: {max: 120}, document-start: disable,
        truthy: {check-keys: false}, braces: {max-spaces-inside: 1}, comments: {min-spaces-from-content: 1}}}' "${list[@]}"
}

# With the Compose plugin the whole model is checked, else the schema alone.
compose() {
    if docker compose version >/dev/null 2>&1; then
        local profile
        for profile in kafka rabbitmq nats; do docker compose --profile "$profile" --profile grafana config -q; done
    else
        check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
    fi
}
compose_by() { if docker compose version >/dev/null 2>&1; then echo "docker compose config"; else echo "schema only: no Compose plugin here"; fi; }

unit=deploy/systemd/plextrac-bridge.service
units_are_sound() {
    local file
    # Nothing is installed here: some program stands for the bridge.
    for file in deploy/systemd/*; do
        sed 's:/usr/local/bin/plextrac-bridge:/usr/bin/env:' "$file" >"$temporary/${file##*/}"
    done
    systemd-analyze verify --man=no "$temporary"/plextrac-bridge.* 2>"$temporary/verify" || true
    # Units of this machine may have faults of their own.
    ! grep -F plextrac-bridge "$temporary/verify"
}
# The exposure in tenths: 0 is perfect, 100 is no protection at all.
unit_exposure=15
unit_is_confined() { systemd-analyze security --offline=true --no-pager --threshold="$unit_exposure" "$unit"; }

# make package-test runs what is marked with `run: NAME`, tests/readme.sh what is marked with `run` alone.
every_command_is_tested() {
    local name bad=
    awk '/^```sh$/ && last !~ /^<!-- (run|(run|needs): .+) -->$/ { print "line " NR ": neither run: NAME nor needs: WHAT"; bad = 1 }
        { last = $0 } END { exit bad }' docs/install.md || bad=1
    for name in $(sed -n 's/^<!-- run: \(.*\) -->$/\1/p' docs/install.md); do
        grep -q "documented $name\b" tests/package/test.sh || { echo "tests/package/test.sh does not run $name" && bad=1; }
    done
    [ -z "$bad" ]
}

# make package-test runs it; here only that nothing is missing.
every_text_to_type_is_walked() (
    root=
    . tests/package/runbook.sh
    typed=$(python tests/package/runbook.py docs/operations.md)
    diff <(sort <<<"$typed") <(printf '%s\n' "${!WALKS[@]}" | sort)
)

dashboard_asks_promql() {
    python tests/dashboard_queries.py deploy/grafana/dashboards/plextrac-bridge.json >"$temporary/dashboard.yml" &&
        promtool check rules "$temporary/dashboard.yml"
}
dashboard_shows_what_it_says() {
    cp tests/dashboard_test.yml "$temporary" && promtool test rules "$temporary/dashboard_test.yml"
}

# Scripts are read by their interpreters, without being run.
scripts_parse() {
    local file
    while IFS= read -r file; do
        case $file in
        *.js) node --check "$file" ;;
        *.py) python -c 'import sys; compile(open(sys.argv[1], "rb").read(), sys.argv[1], "exec")' "$file" ;;
        esac || return 1
    done < <(files '*.js' '*.py')
}

go_is_sound() (
    cd examples/go-nats
    # What setup.sh fetched and compiled.
    export GOMODCACHE=$cache/go/modules GOCACHE=$cache/go/build GOFLAGS=-mod=readonly GOPROXY=off
    unformatted=$("$(go env GOROOT)/bin/gofmt" -l .)
    [ -z "$unformatted" ] || { printf 'not as gofmt writes it: %s\n' "$unformatted" && exit 1; }
    go vet ./...
)

# A registry's name in a lockfile would send everybody to that registry.
no_lockfile_names_a_registry() { none_with '"resolved"|registry\.' '*package-lock.json'; }

# The clone's own place, the home directory, and homes in general.
no_machine_paths() {
    local list home=${HOME%/}
    mapfile -t list < <(files)
    ! grep -nHIF -e "$PWD/" -e "${home:-$PWD}/" "${list[@]}" && ! grep -nHIE '/(home|Users)/[a-z]' "${list[@]}"
}

long_files_say_why() {
    local file lines bad=
    while IFS= read -r file; do
        lines=$(wc -l <"$file")
        if [ "$lines" -gt 400 ] && ! head -n 20 "$file" | grep -q '^//! Length: .'; then
            echo "$file has $lines lines: more than 400 need a line \`//! Length: <why>\` in its head"
            bad=1
        fi
    done < <(files '*.rs')
    [ -z "$bad" ]
}

# Whoever builds needs this version; rust-toolchain.toml has it build, test and lint here, so it is tried each time.
one_rust_version() {
    local version file text bad=
    version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    while IFS='|' read -r file text; do
        grep -qF -- "$text" "$file" || { echo "$file does not say: $text" && bad=1; }
    done <<END
benches/Cargo.toml|rust-version = "$version"
rust-toolchain.toml|channel = "$version.0"
deploy/Dockerfile|ARG BUILDER=rust:$version.0-
deploy/Dockerfile|RUSTUP_TOOLCHAIN=$version.0
.github/workflows/ci.yml|container: rust:$version.0-
.github/workflows/release.yml|image: rust:$version.0-
CONTRIBUTING.md|Rust $version
END
    [ -n "$version" ] && [ -z "$bad" ]
}

check "shellcheck" shell_scripts
check "yamllint" yaml
check "deploy/Dockerfile (hadolint)" hadolint deploy/Dockerfile
check "docker-compose.yml ($(compose_by))" compose
check "workflows (schema)" check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
check ".github/dependabot.yml (schema)" check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
check "workflows (actionlint)" actionlint
check "workflows, Dependabot (zizmor)" zizmor --offline --quiet --no-progress --strict-collection .github
check "docs/install.md: each command is run by the tests, or says what it needs" every_command_is_tested
check "docs/operations.md: all that is to be typed is in tests/package/runbook.sh" every_text_to_type_is_walked
check "deploy/systemd (systemd-analyze verify)" units_are_sound
check "$unit (systemd-analyze security, at most $unit_exposure of 100)" unit_is_confined
systemd-analyze security --offline=true --no-pager "$unit" 2>/dev/null | sed -n 's/^→ */      /p'
check "deploy/prometheus/prometheus.yml (promtool)" promtool check config deploy/prometheus/prometheus.yml
for rules in deploy/prometheus/{alerts,silence}; do
    check "$rules.yml (promtool check rules)" promtool check rules --lint-fatal "$rules.yml"
    check "$rules.yml (promtool test rules)" promtool test rules "${rules}_test.yml"
done
check "deploy/prometheus: each alert firing and quiet in a test, and in docs/operations.md" \
    python tests/alert_cases.py docs/operations.md deploy/prometheus/*_test.yml
check "deploy/grafana: JSON, its queries (promtool check rules)" dashboard_asks_promql
check "deploy/grafana: several bridges, restarts (promtool test rules)" dashboard_shows_what_it_says
check "scripts in JavaScript and Python parse" scripts_parse
check "examples/go-nats (gofmt, go vet)" go_is_sound
check "docs/schema/*.schema.json (JSON Schema 2020-12)" check-jsonschema --check-metaschema docs/schema/*.schema.json
check "config/: each broker's file is as the schema says" check-jsonschema \
    --schemafile docs/schema/settings.schema.json config/kafka.toml config/rabbitmq.toml config/nats.toml
check "docs/schema/asyncapi.yaml (AsyncAPI 3.0)" check-jsonschema \
    --schemafile "$cache/node/asyncapi/node_modules/@asyncapi/specs/schemas/3.0.0.json" docs/schema/asyncapi.yaml
check "docs/schema/asyncapi.yaml (references, payloads, deviations)" python tests/asyncapi/check.py
check "dependencies: licences, sources, none twice without a reason (cargo-deny)" \
    cargo-deny --locked check -D warnings bans licenses sources
check "one version of Rust everywhere" one_rust_version
check "release notes: a section of CHANGELOG.md" deploy/package/notes.sh Unreleased
check "no lockfile names a registry" no_lockfile_names_a_registry
check "no leftovers in Rust (dbg, todo, fixme)" none_with '\b(dbg|todo|unimplemented)!|\b([Tt][Oo][Dd][Oo]|[Ff][Ii][Xx][Mm][Ee]|[Xx]{3})\b' '*.rs'
check "no #[allow]: #[expect] with a reason" none_with '#!?\[allow\(' '*.rs'
check "no path of this machine" no_machine_paths
check "Rust files over 400 lines say why" long_files_say_why
tests/chart/check.sh || failed+=("deploy/helm")

report lint
