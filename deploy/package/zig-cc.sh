#!/bin/sh
# zig as the C compiler for a version of glibc, for build scripts that read CC alone (librdkafka's); cargo-zigbuild sets
# it for the others.
#
#   GLIBC         the version
#   PACKAGE_VENV  where zig is
exec "$PACKAGE_VENV/bin/python" -m ziglang cc -g -fno-sanitize=all -target "$(uname -m)-linux-gnu.$GLIBC" "$@"
