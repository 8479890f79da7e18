#!/usr/bin/env bash
# Prints the oldest glibc that a binary runs on: the highest version among the symbols that it takes from there.
#
#   glibc.sh BINARY
set -euo pipefail
objdump -T "$1" | grep -oE 'GLIBC_[0-9.]+' | sed 's/^GLIBC_//' | sort -uV | tail -n 1
