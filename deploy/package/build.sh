#!/usr/bin/env bash
# Builds the packages of a binary: .tar.gz, .deb and .rpm, beside its bill of materials and the SHA-256 of all. The same
# binary, version and time give the same bytes.
#
#   build.sh BINARY [DIRECTORY]      target/package by default
#
#   SBOM                the binary's bill of materials (target/plextrac-bridge.cdx.json)
#   PACKAGE_VERSION     instead of the version of Cargo.toml
#   SOURCE_DATE_EPOCH   time of all files, the last commit's by default
#   MAINTAINER, HOMEPAGE  fields of the packages
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/checks.sh # a temporary directory

[ $# -ge 1 ] || { echo "usage: build.sh BINARY [DIRECTORY]" >&2 && exit 2; }
binary=$(realpath "$1")
to=$(realpath -m "${2:-target/package}")
sbom=$(realpath "${SBOM:-target/plextrac-bridge.cdx.json}")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/plextrac-bridge
NFPM=${NFPM:-${PACKAGE_VENV:-$cache/package-venv}/bin/nfpm}
package=$PWD/deploy/package

VERSION=${PACKAGE_VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
MAINTAINER=${MAINTAINER:-plextrac-bridge maintainers <plextrac-bridge@users.noreply.github.com>}
HOMEPAGE=${HOMEPAGE:-}
export VERSION SOURCE_DATE_EPOCH MAINTAINER HOMEPAGE TZ=UTC LC_ALL=C

# For which machine the binary is, by its ELF header.
case $(od -An -tx1 -j18 -N2 "$binary" | tr -d ' ') in
3e00) machine=x86_64 ARCH=amd64 ;;
b700) machine=aarch64 ARCH=arm64 ;;
*) echo "$binary is neither for x86_64 nor for aarch64" >&2 && exit 1 ;;
esac
# The oldest C library that has all that the binary asks for.
GLIBC=$("$package/glibc.sh" "$binary")
export ARCH GLIBC

stage=$temporary/stage
mkdir -p "$stage"/{systemd,man,completions,doc,examples,debian,rpm}
install -m 755 "$binary" "$stage/plextrac-bridge"
"$binary" man --directory "$stage/man" >/dev/null
"$binary" completions bash >"$stage/completions/plextrac-bridge.bash"
"$binary" completions fish >"$stage/completions/plextrac-bridge.fish"
"$binary" completions zsh >"$stage/completions/_plextrac-bridge"
cp deploy/systemd/* "$stage/systemd"
cp "$package/config.toml" LICENSE "$stage"
cp config/default.toml "$stage/doc"
cp config/{kafka,rabbitmq,nats}.toml "$stage/examples"
cp "$sbom" "$stage/doc/plextrac-bridge.cdx.json"
cp CHANGELOG.md "$stage/doc/changelog"

archive() { # the same tree for any Linux
    local name=plextrac-bridge-$VERSION-$machine-linux root
    root=$temporary/$name
    mkdir "$root"
    cp -r "$stage"/{plextrac-bridge,LICENSE,man,completions,systemd,examples} "$root"
    cp "$package/config.toml" README.md CHANGELOG.md config/default.toml "$stage/doc/plextrac-bridge.cdx.json" "$root"
    chmod -R u=rwX,go=rX "$root"
    tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --format=ustar \
        -C "$temporary" -c "$name" | gzip -9n >"$to/$name.tar.gz"
}

packages() {
    local script
    # In a package the program is in /usr/bin.
    sed -i 's:/usr/local/bin:/usr/bin:' "$stage"/systemd/*
    find "$stage/man" "$stage/doc/changelog" -type f -exec gzip -9n {} +
    cp "$package"/debian/{copyright,lintian-overrides} "$stage/debian"
    gzip -9n >"$stage/debian/changelog.Debian.gz" <<TEXT
plextrac-bridge (${VERSION/-/\~}-1) stable; urgency=medium

  * Version $VERSION; changelog.gz says what changed.

 -- $MAINTAINER  $(date -R -d "@$SOURCE_DATE_EPOCH")
TEXT
    for script in debian/{postinst,prerm,postrm} rpm/{post,preun,postun}; do
        sed -e "/^@FIRST_STEPS@\$/{r $package/first-steps" -e 'd}' "$package/$script" >"$stage/$script"
    done
    find "$stage" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    for script in deb rpm; do
        (cd "$stage" && "$NFPM" package -f "$package/nfpm.yaml" -p "$script" -t "$to/" >/dev/null)
    done
}

mkdir -p "$to"
rm -f "$to"/plextrac-bridge[-_]* "$to/SHA256SUMS"
archive
packages
cp "$sbom" "$to/plextrac-bridge-$VERSION-$machine-linux.cdx.json"
(cd "$to" && sha256sum -- *.tar.gz *.deb *.rpm *.cdx.json >SHA256SUMS && cat SHA256SUMS)
