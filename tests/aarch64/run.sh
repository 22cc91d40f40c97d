#!/usr/bin/env bash
# Runs the kernel tests for aarch64: cross-compiled here, executed by qemu-user, which has NEON, dotprod and i8mm.
#
# For Debian 12 or later on x86-64. Installs missing packages with apt-get, as root or through sudo:
#   rustc-web, libstd-rust-web-dev:arm64          a Rust compiler in /usr/bin whose standard library is packaged for
#                                                 arm64; cargo remains the installed one
#   gcc-aarch64-linux-gnu, libc6-dev-arm64-cross  the linker, and the C library for linking
#   qemu-user                                     runs the tests
# For the arm64 package, the script adds the architecture arm64 to dpkg.
set -euo pipefail
cd "$(dirname "$0")/../.."

missing=()
for package in rustc-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [[ ${#missing[@]} -gt 0 ]]; then
    echo "installing ${missing[*]}"
    as_root=()
    [[ $(id -u) -eq 0 ]] || as_root=(sudo)
    "${as_root[@]}" dpkg --add-architecture arm64
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

export RUSTC=/usr/bin/rustc CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# The arm64 package installs a C library that the emulator finds without `-L`. With `-L /usr/aarch64-linux-gnu`, a program gets
# a loader and a C library of different versions, and its first thread never starts.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64
# Two compilers must not share a target folder.
export CARGO_TARGET_DIR=target/aarch64
# Tests fail if i8mm is not available. Without this, they would silently run without i8mm on an emulator that lacks it.
export SOUFFLEUR_ISA=i8mm
# Favours compile time: only the kernels have to be fast, and their results are the same at any optimization level.
export CARGO_PROFILE_RELEASE_OPT_LEVEL=1
cargo test --locked --release --target aarch64-unknown-linux-gnu --config 'profile.release.package."*".opt-level=0' \
    --lib models::backend::cpu
