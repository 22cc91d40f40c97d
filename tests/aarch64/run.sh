#!/usr/bin/env bash
# Runs the CPU kernels' tests on aarch64 under qemu-user, which has NEON, dotprod and i8mm.
#
# For Debian 12 or later on x86-64. Installs missing packages with apt-get, as root or through sudo:
#   rustc-web, libstd-rust-web-dev:arm64          a Rust compiler in /usr/bin with a standard library for arm64;
#                                                 cargo itself is not replaced
#   gcc-aarch64-linux-gnu, libc6-dev-arm64-cross  the linker, and the C library to link with
#   qemu-user                                     runs the tests
# The architecture arm64 is added to dpkg for the arm64 package.
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
# The arm64 package installs a C library where the emulator looks by default. Do not use `-L /usr/aarch64-linux-gnu`: the
# loader and the C library would be of different versions, and the first thread would never start.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64
# A different compiler needs its own target folder.
export CARGO_TARGET_DIR=target/aarch64
# Makes a test fail if other kernels are selected: an emulator without i8mm would test less.
export SOUFFLEUR_ISA=i8mm
# Optimized for build time: the results are the same at any level.
export CARGO_PROFILE_RELEASE_OPT_LEVEL=1
cargo test --locked --release --target aarch64-unknown-linux-gnu --config 'profile.release.package."*".opt-level=0' \
    --lib models::backend::cpu
