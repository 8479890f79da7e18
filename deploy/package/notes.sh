#!/usr/bin/env bash
# Prints the section of a version in CHANGELOG.md. Fails if it is empty, or if Cargo.toml or the chart have another
# version; `Unreleased` is compared with neither.
#
#   notes.sh VERSION
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

[ $# = 1 ] || { echo "usage: notes.sh VERSION" >&2 && exit 2; }
while [ "$1" != Unreleased ] && IFS='|' read -r file line; do
    grep -qxF -- "$line" "$file" || { echo "$file does not say: $line" >&2 && exit 1; }
done <<END
Cargo.toml|version = "$1"
deploy/helm/plextrac-bridge/Chart.yaml|version: $1
deploy/helm/plextrac-bridge/Chart.yaml|appVersion: "$1"
END
notes=$(awk -v version="[$1]" '/^## / { inside = $2 == version; next } inside' CHANGELOG.md)
[ -n "$notes" ] || { echo "CHANGELOG.md has no section [$1]" >&2 && exit 1; }
printf '%s\n' "$notes"
