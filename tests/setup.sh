#!/usr/bin/env bash
# Makes a machine ready (written for Debian 12). Says what it installs, one line each; takes a second when all is there.
#
#   setup.sh demo      what a program with the file broker alone needs: a C compiler, the Rust toolchain
#   setup.sh build     what a build needs: a C and C++ compiler, make, perl, the Rust toolchain
#   setup.sh brokers   that, and real brokers
#   setup.sh test      (default) that, clients to read them back, what the examples need, and the tools of `make lint`
#   setup.sh package   what a build needs, and what makes packages and tests them
#
# System packages come by apt, through sudo where the caller is not root. Everything else goes to a cache directory
# that all clones share: ${XDG_CACHE_HOME:-~/.cache}/plextrac-bridge, with brokers/, helm/ and venv/ (BROKERS_HOME,
# HELM_DIST, VENV), node/ (one directory per lockfile), go/ (modules, the example's program, actionlint), package-venv/
# (PACKAGE_VENV) and package-roots/.
set -euo pipefail
tests=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$tests/.."
. "$tests/packages.sh"

mode=${1:-test}
case $mode in
demo | build | brokers | test | package) ;;
*) echo "usage: setup.sh [demo|build|brokers|test|package]" >&2 && exit 2 ;;
esac

cache=${XDG_CACHE_HOME:-$HOME/.cache}/plextrac-bridge
VENV=${VENV:-$cache/venv}
PACKAGE_VENV=${PACKAGE_VENV:-$cache/package-venv}
export BROKERS_HOME=${BROKERS_HOME:-$cache/brokers}
mkdir -p "$cache"
exec 8>"$cache/.lock"
flock 8 # one at a time; a second waits, then finds everything there
SECONDS=0

say() { printf 'setup: %s\n' "$*"; }

packages=()
want() { # PACKAGE WHY CHECK...: wanted if the check fails
    local package=$1 why=$2
    shift 2
    "$@" >/dev/null 2>&1 8>&- && return
    say "missing $package: $why"
    packages+=("$package")
}
compiles() { printf 'int main(void) { return 0; }\n' | "$1" -x "$2" - -o /dev/null; } # COMPILER LANGUAGE
java_17() { [ "$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p')" -ge 17 ]; }
has() { command -v "$1"; }
go_needed=$(sed -n 's/^go //p' examples/go-nats/go.mod)
# Asked where the module is: from 1.21 on Go fetches a newer one by itself, unless it was told not to.
go_new() { printf 'go%s\n%s\n' "$go_needed" "$(cd examples/go-nats && go env GOVERSION)" | sort -VC; }

want gcc "compiles what is in C, and links" compiles cc c
want libc6-dev "the C library's headers" compiles cc c
want ca-certificates "certificates for the package registries" test -s /etc/ssl/certs/ca-certificates.crt
if [ "$mode" != demo ]; then
    want g++ "librdkafka's build asks for it" compiles c++ c++
    want make "builds librdkafka and OpenSSL" has make
    want perl "configures OpenSSL" perl -MIPC::Cmd -MFindBin -e 1
    want git "the checks ask it for the project's files" has git
fi
if [ "$mode" = brokers ] || [ "$mode" = test ]; then
    want default-jre-headless "runs Kafka (Java 17 or newer)" java_17
    want maven "fetches Kafka" has mvn
    want kcat "asks Kafka whether it is ready" has kcat
    want rabbitmq-server "a broker" test -x /usr/lib/rabbitmq/bin/rabbitmq-server
    want openssl "makes the brokers' certificates" has openssl
    want procps "processes and their memory" has ps
fi
if [ "$mode" = test ]; then
    want python3 "clients that read the brokers back" has python3
    want python3-venv "the virtual environment of those clients" python3 -c 'import ensurepip, venv'
    want nodejs "signs as PlexTrac does, runs an example" has node
    want npm "fetches what the example in Node.js uses, and the schema of AsyncAPI" has npm
    want golang-go "builds the example in Go (Go $go_needed or newer)" go_new
    want curl "a client that is not ours" has curl
    want prometheus "promtool checks metrics, the scrape configuration and the alerts" has promtool
    want faketime "steps the clock of a daemon" has faketime
    want systemd "systemd-analyze checks the unit" has systemd-analyze
    want chromium "shows the admin page to its tests" has chromium
    want shellcheck "checks the shell scripts" has shellcheck
fi
if [ "$mode" = package ]; then
    want python3 "runs nfpm and zig, and loads a bridge" has python3
    want python3-venv "the virtual environment of nfpm and zig" python3 -c 'import ensurepip, venv'
    want binutils "tells which glibc a binary needs" has objdump
    want lintian "checks the .deb" has lintian
    want rpm "installs the .rpm" has rpm
    want mmdebstrap "makes a clean root" has mmdebstrap
    want systemd-container "boots it" has systemd-nspawn
    want iproute2 "addresses and connections in its network" has ip
    want curl "requests from outside the root" has curl
    want procps "finds the processes in it" has pgrep
fi
if [ ${#packages[@]} != 0 ]; then
    say "installing what is missing by apt"
    install_packages "${packages[@]}" 8>&- || exit 1
    if { [ "$mode" = brokers ] || [ "$mode" = test ]; } && ! java_17; then
        say "java is still older than 17, which Kafka needs: put a newer one first in PATH" >&2
        exit 1
    fi
    if [ "$mode" = test ] && ! go_new 2>/dev/null; then
        say "Go is still older than $go_needed, which the example in Go needs: put a newer one first in PATH, see https://go.dev/doc/install" >&2
        exit 1
    fi
fi

# The toolchain itself, its version and its components follow from rust-toolchain.toml.
toolchain=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
tools=(cargo "cargo fmt" "cargo clippy")
[ "$mode" != demo ] || tools=(cargo)
for tool in "${tools[@]}"; do
    # shellcheck disable=SC2086
    if ! $tool --version >/dev/null 2>&1 8>&-; then
        say "missing: $tool. Install Rust $toolchain by rustup (with rustfmt and clippy), see https://www.rust-lang.org/tools/install" >&2
        exit 1
    fi
done
have=$(rustc --version | cut -d' ' -f2)
if ! printf '%s\n' "$toolchain" "$have" | sort -VC; then
    say "rustc is $have, $toolchain or newer is needed: rustup toolchain install $toolchain" >&2
    exit 1
fi

# Exactly what these files say, in a virtual environment of their own.
python_packages() { # VENV FILE...
    local venv=$1 wanted
    shift
    wanted=$(cat "$@")
    if [ "$wanted" = "$(cat "$venv/requirements.txt" 2>/dev/null)" ] && "$venv/bin/python" -c '' 2>/dev/null; then
        return
    fi
    say "installing Python packages into $venv: $(grep -v '^#' <<<"$wanted" | paste -sd' ')"
    python3 -m venv --clear "$venv"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --only-binary :all: "${@/#/--requirement=}"
    printf '%s\n' "$wanted" >"$venv/requirements.txt"
}

# Exactly what a lockfile says, in a directory of its own.
node_packages() { # DIRECTORY
    local to=$cache/node/${1##*/}
    ! cmp -s "$1/package-lock.json" "$to/installed.json" || return 0
    say "installing Node packages into $to: $(sed -n 's/^    "\(.*\)": "\([0-9.]*\)",*$/\1@\2/p' "$1/package.json" | paste -sd' ')"
    rm -rf "$to"
    mkdir -p "$to"
    cp "$1/package.json" "$1/package-lock.json" "$to"
    npm ci --prefix "$to" --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null
    cp "$1/package-lock.json" "$to/installed.json"
}

# The example in Go, built. lint.sh knows the directories.
go_program() {
    local to=$cache/go source
    source=$(cat examples/go-nats/{main.go,go.mod,go.sum} | sha256sum)
    if [ "$source" = "$(cat "$to/consumer.sha256" 2>/dev/null)" ] && [ -x "$to/consumer" ]; then
        return
    fi
    say "building examples/go-nats into $to"
    mkdir -p "$to"
    (cd examples/go-nats && GOMODCACHE=$to/modules GOCACHE=$to/build GOFLAGS="-mod=readonly -modcacherw" CGO_ENABLED=0 \
        go build -trimpath -buildvcs=false -o "$to/consumer.new" . 2>"$to/build.log") || { cat "$to/build.log" >&2 && exit 1; }
    mv "$to/consumer.new" "$to/consumer"
    printf '%s\n' "$source" >"$to/consumer.sha256"
}

# A checker of workflows, from its source.
ACTIONLINT=v1.7.12
action_linter() {
    local to=$cache/go
    [ "$ACTIONLINT" != "$(cat "$to/actionlint.version" 2>/dev/null)" ] || return 0
    say "building actionlint $ACTIONLINT into $to"
    GOBIN=$to GOMODCACHE=$to/modules GOCACHE=$to/build GOFLAGS=-modcacherw CGO_ENABLED=0 \
        go install -trimpath "github.com/rhysd/actionlint/cmd/actionlint@$ACTIONLINT" 2>"$to/build.log" ||
        { cat "$to/build.log" >&2 && exit 1; }
    printf '%s\n' "$ACTIONLINT" >"$to/actionlint.version"
}

{
    case $mode in
    demo | build) ;;
    package) python_packages "$PACKAGE_VENV" "$tests/package/requirements.txt" ;;
    brokers) PYTHON=python3 "$tests/brokers/install.sh" ;;
    test)
        python_packages "$VENV" "$tests/requirements.txt" examples/python-kafka/requirements.txt
        node_packages examples/node-rabbitmq
        node_packages tests/asyncapi
        node_packages tests/page
        go_program
        action_linter
        PYTHON=$VENV/bin/python "$tests/brokers/install.sh"
        PYTHON=$VENV/bin/python "$tests/chart/install.sh"
        ;;
    esac
} 8>&-
say "ready (${SECONDS} s)"
