#!/usr/bin/env bash
# Writes the release binary's bill of materials, CycloneDX 1.5 in JSON: every crate in it or of its build, with version,
# hash, licence and what depends on what. Then sbom.py validates it. The same commit gives the same bytes.
#
#   sbom.sh [FILE]      target/plextrac-bridge.cdx.json by default
#
# cargo-cyclonedx is compiled from crates.io the first time (some minutes), into ~/.cache/plextrac-bridge/cyclonedx.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VERSION=0.5.9
cache=${XDG_CACHE_HOME:-$HOME/.cache}/plextrac-bridge
PYTHON=${PYTHON:-${VENV:-$cache/venv}/bin/python}
CYCLONEDX=${CYCLONEDX:-$cache/cyclonedx}
file=$(realpath -m "${1:-target/plextrac-bridge.cdx.json}")

SECONDS=0
have=$("$CYCLONEDX/bin/cargo-cyclonedx" cyclonedx --version 2>/dev/null || true)
if [ "${have##* }" != "$VERSION" ]; then
    printf 'sbom: compiling cargo-cyclonedx %s into %s, once\n' "$VERSION" "$CYCLONEDX"
    cargo install --quiet --locked --root "$CYCLONEDX" --version "$VERSION" cargo-cyclonedx
    printf 'sbom: compiled in %s s\n' "$SECONDS"
fi

# It writes beside each package's Cargo.toml: a copy keeps this tree clean.
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
cp -r --parents Cargo.toml Cargo.lock config src tests/suite benches "$temporary"
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
"$CYCLONEDX/bin/cargo-cyclonedx" cyclonedx --quiet --manifest-path "$temporary/Cargo.toml" --format json \
    --spec-version 1.5 --describe binaries
mkdir -p "$(dirname "$file")"
# The place of the copy means nothing to anybody.
sed "s|path+file://$temporary|path+file:///plextrac-bridge|" "$temporary/plextrac-bridge_bin.cdx.json" >"$file"
"$PYTHON" tests/sbom.py "$file"
