#!/usr/bin/env python3
"""Regenerates `embedded.json`, the reference that the Rust decoder is compared with.

From the repository's root, on any machine with Python 3.11 or later (no GPU, no PyTorch, about 7 minutes on two cores):

    python3 -m venv /tmp/reference
    /tmp/reference/bin/pip install "mlx[cpu]==0.32.4" mlx-lm==0.32.2 tokenizers==0.23.3
    /tmp/reference/bin/python tests/reference/make.py            # everything derived from the weights, then check.py

The reference is mlx-lm's `llama` network on `assets/`, with activations, scales and biases in float32, so the 4-bit weights
are the only quantization. Each prompt of `prompts.toml` is completed greedily with 64 tokens; EOS does not stop it, so
that every prompt has 64 positions to compare.

`embedded.json`:

    source      sizes and SHA-256 of the weights and the tokenizer that it was made from
    probes      the vocabulary indices whose logits are kept in full
    near_tie    the fraction of the largest |logit| under which two best logits count as tied
    prompts[]   name, language
                infill      the request: { prefix, suffix, path?, repository?, files, order }, or
                complete    the request: { prompt }
                pieces      the prompt as [control token id] and "text", in order; every text is encoded separately,
                            and control tokens spelled in it are plain text
                ids         the prompt's tokens
                tokens      the 64 greedy tokens; the logits of position i chose tokens[i]
                top2        per position [best id, best logit, second id, second logit]
                largest     per position the largest |logit|
                checkpoints [{ position, logits at `probes`, mean, mean square of all logits }]
                gap_min     the smallest gap between the best two, as a fraction of the largest |logit|
                near_ties   the positions where that fraction is below `near_tie`: these tokens may flip
"""

import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
ASSETS = HERE.parent.parent / "assets"
OUT = HERE / "embedded.json"

TOKENS = 64
CHECKPOINTS = [0, 31, 63]
NEAR_TIE = 1e-3
# 64 indices spread over the vocabulary: control tokens, bytes, and merged tokens.
PROBES = [0, 3, 4, 5, 8, 10, 100, 200] + [300 + 287 * i for i in range(56)]

FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX, REPO_NAME, FILE_SEP = 3, 4, 5, 7, 8
# The cursor in an infill prompt's text.
CURSOR = "<|>"


def pieces_of(prompt):
    """The prompt as control token ids and texts, and the request for it."""
    if CURSOR not in prompt["text"]:
        return [prompt["text"]], {"complete": {"prompt": prompt["text"]}}
    prefix, suffix = prompt["text"].split(CURSOR)
    infill = {"prefix": prefix, "suffix": suffix, "files": prompt.get("files", []), "order": prompt["order"]}
    pieces = []
    if "repository" in prompt:
        infill["repository"] = prompt["repository"]
        pieces += [[REPO_NAME], prompt["repository"] + "\n"]
    for file in infill["files"]:
        pieces += [[FILE_SEP], f"{file['path']}\n{file['text']}\n"]
    if "path" in prompt:
        infill["path"] = prompt["path"]
        pieces += [[FILE_SEP], prompt["path"] + "\n"]
    if prompt["order"] == "prefixSuffixMiddle":
        pieces += [[FIM_PREFIX], prefix, [FIM_SUFFIX], suffix, [FIM_MIDDLE]]
    else:
        assert prompt["order"] == "suffixPrefixMiddle", prompt["order"]
        pieces += [[FIM_PREFIX], [FIM_SUFFIX], suffix, [FIM_MIDDLE], prefix]
    return pieces, {"infill": infill}


def encode(tokenizer, pieces):
    ids = []
    for piece in pieces:
        ids += piece if isinstance(piece, list) else tokenizer.encode(piece, add_special_tokens=False).ids
    return ids


def generate(model, ids):
    """The greedy tokens and, per position, all logits as float32."""
    cache = make_prompt_cache(model)
    if len(ids) > 1:
        # Without the lm_head: the logits of the inner prompt positions are not needed.
        mx.eval(model.model(mx.array([ids[:-1]]), cache), [c.state for c in cache])
    tokens, rows = [], []
    last = ids[-1]
    for _ in range(TOKENS):
        logits = model(mx.array([[last]]), cache)[0, -1]
        assert logits.dtype == mx.float32, logits.dtype
        row = np.array(logits)
        last = int(row.argmax())
        tokens.append(last)
        rows.append(row)
    return tokens, np.stack(rows)


def number(x):
    """Nine significant digits represent every float32 exactly."""
    return float(f"{float(x):.9g}")


def make_case(model, tokenizer, prompt):
    pieces, request = pieces_of(prompt)
    ids = encode(tokenizer, pieces)
    tokens, logits = generate(model, ids)
    # A stable sort: of equal logits the lower id comes first, as in argmax.
    best = np.argsort(-logits, axis=1, kind="stable")[:, :2]
    top2 = np.take_along_axis(logits, best, axis=1)
    largest = np.abs(logits).max(axis=1)
    gaps = (top2[:, 0].astype(np.float64) - top2[:, 1]) / largest
    return {
        "name": prompt["name"],
        "language": prompt["language"],
        **request,
        "pieces": pieces,
        "ids": ids,
        "tokens": tokens,
        "top2": [[int(b[0]), number(v[0]), int(b[1]), number(v[1])] for b, v in zip(best, top2)],
        "largest": [number(x) for x in largest],
        "checkpoints": [
            {
                "position": p,
                "logits": [number(logits[p, i]) for i in PROBES],
                "mean": number(logits[p].astype(np.float64).mean()),
                "mean_square": number((logits[p].astype(np.float64) ** 2).mean()),
            }
            for p in CHECKPOINTS
        ],
        "gap_min": number(gaps.min()),
        "near_ties": [int(i) for i in np.flatnonzero(gaps < NEAR_TIE)],
    }


def source(name):
    data = (ASSETS / name).read_bytes()
    return {"file": f"assets/{name}", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def write(cases):
    """One line per field of a prompt, so that a diff shows what moved."""
    head = {
        "source": [source("model.safetensors"), source("tokenizer.json"), source("config.json")],
        "reference": "mlx-lm, float32 activations, greedy, end of text ignored",
        "probes": PROBES,
        "near_tie": NEAR_TIE,
    }

    def fields(value, indent):
        pad = " " * indent
        return ",\n".join(f"{pad}{json.dumps(k)}: {json.dumps(v, ensure_ascii=False, separators=(',', ':'))}" for k, v in value.items())

    prompts = ",\n".join("  {\n" + fields(case, 3) + "\n  }" for case in cases)
    OUT.write_text("{\n" + fields(head, 1) + ',\n "prompts": [\n' + prompts + "\n ]\n}\n", encoding="utf-8")


def main():
    # MLX would call a C++ compiler, if there is one, for fused elementwise kernels.
    mx.disable_compile()
    mx.set_default_device(mx.cpu)
    model, _ = load_model(ASSETS)
    model.set_dtype(mx.float32)
    tokenizer = Tokenizer.from_file(str(ASSETS / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    cases = []
    for prompt in tomllib.loads((HERE / "prompts.toml").read_text(encoding="utf-8"))["prompt"]:
        case = make_case(model, tokenizer, prompt)
        cases.append(case)
        text = tokenizer.decode(case["tokens"], skip_special_tokens=False)
        print(f"{case['name']:32} {len(case['ids']):5} tokens, gap {case['gap_min']:.1e} {case['near_ties'] or ''} {text[:60]!r}", flush=True)
    write(cases)
    size = OUT.stat().st_size
    assert size < 1_000_000, size
    print(f"{OUT.name}: {len(cases)} prompts, {size} bytes", flush=True)
    return subprocess.call([sys.executable, str(HERE / "check.py")])


if __name__ == "__main__":
    if "--count" in sys.argv:
        # Prints only the prompts' lengths, without loading the model.
        t = Tokenizer.from_file(str(ASSETS / "tokenizer.json"))
        t.encode_special_tokens = True
        for p in tomllib.loads((HERE / "prompts.toml").read_text(encoding="utf-8"))["prompt"]:
            print(p["name"], len(encode(t, pieces_of(p)[0])))
        sys.exit()
    sys.exit(main())
