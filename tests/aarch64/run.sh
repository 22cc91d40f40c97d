#!/usr/bin/env bash
# The kernels' tests on aarch64: built here, run by qemu-user, which has NEON, dotprod and i8mm.
#
# For Debian 12 or later on x86-64. Installs what is missing, by apt-get as root or through sudo:
#   rustc-web, libstd-rust-web-dev:arm64          a Rust compiler whose standard library exists for arm64, in /usr/bin;
#                                                 cargo stays the machine's own
#   gcc-aarch64-linux-gnu, libc6-dev-arm64-cross  the linker, and the C library to link with
#   qemu-user                                     runs the tests
# For the arm64 package, the architecture arm64 is added to dpkg's.
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
# The arm64 package brings the C library that the emulator finds by itself. With `-L /usr/aarch64-linux-gnu` a program gets the
# loader of another version than its C library, and its first thread never starts.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64
# Another compiler than the machine's must not share its target folder.
export CARGO_TARGET_DIR=target/aarch64
# A test fails unless these are the kernels that run: without it, an emulator without i8mm would test less.
export SOUFFLEUR_ISA=i8mm
# Built as quickly as can be: only the kernels have to run fast, and what they give is the same at any level.
export CARGO_PROFILE_RELEASE_OPT_LEVEL=1
cargo test --locked --release --target aarch64-unknown-linux-gnu --config 'profile.release.package."*".opt-level=0' \
    --lib models::backend::cpu
