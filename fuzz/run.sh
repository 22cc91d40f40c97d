#!/usr/bin/env bash
# Fuzzes a target, starting from the committed seeds. Needs only the stable compiler; cargo-fuzz works as well.
#
#   fuzz/run.sh gguf_header|gguf_model [SECONDS]
#
# New inputs are written to fuzz/corpus, which is not committed, and crashes to fuzz/artifacts. An allocation of more than
# 64 MiB counts as a crash: no input is long enough to justify it.
set -euo pipefail
cd "$(dirname "$0")"
TARGET=${1:?usage: fuzz/run.sh gguf_header|gguf_model [SECONDS]}
SECONDS_MAX=${2:-600}
COVERAGE="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
RUSTFLAGS="--cfg fuzzing -Cdebug-assertions -Coverflow-checks $COVERAGE" \
    cargo build --release --bin "$TARGET" --target "$(rustc -vV | sed -n 's/^host: //p')"
mkdir -p "corpus/$TARGET" artifacts
exec target/*/release/"$TARGET" "corpus/$TARGET" seeds -max_total_time="$SECONDS_MAX" -max_len=131072 -malloc_limit_mb=64 \
    -rss_limit_mb=1024 -timeout=10 -artifact_prefix=artifacts/ -print_final_stats=1
