#!/usr/bin/env python3
"""Regenerates `embedded.json`, the reference with which the Rust decoder is compared.

From the repository's root, on any machine with Python 3.11 or later (no GPU, no PyTorch, about 7 minutes on two cores):

    python3 -m venv /tmp/goldens
    /tmp/goldens/bin/pip install "mlx[cpu]==0.32.4" mlx-lm==0.32.2 tokenizers==0.23.3
    /tmp/goldens/bin/python tests/reference/make.py            # regenerates embedded.json, then runs check.py

The reference is mlx-lm's `llama` network on `assets/`, with activations, scales and biases in float32. The 4-bit weights
are the model's own, so the reference adds no rounding to them. Each prompt of `prompts.toml` is completed greedily with 64
tokens. EOS tokens do not end the completion, so that every prompt has 64 positions to compare.

`embedded.json`:

    source      sizes and SHA-256 of the weights and the tokenizer that it was generated from
    probes      the vocabulary indices whose logits are kept in full
    near_tie    the fraction of the largest |logit| below which the best two logits count as tied
    prompts[]   name, language
                infill      the request: { prefix, suffix, path?, repository?, files, order }, or
                complete    the request: { prompt }
                pieces      the prompt as [control token id] and "text", in order; each text is encoded separately and
                            without special tokens, and text that looks like a control token is plain text
                ids         the prompt's tokens
                tokens      the 64 greedy tokens; tokens[i] is the best token of the logits at position i
                top2        per position [best id, best logit, second id, second logit]
                largest     per position the largest |logit|
                checkpoints [{ position, logits at `probes`, mean, mean square of all logits }]
                gap_min     the smallest difference of the best two logits, as a fraction of the largest |logit|
                near_ties   the positions at which that fraction is below `near_tie`: these tokens may differ
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
# 64 indices spread over the vocabulary: control tokens, bytes, and merges.
PROBES = [0, 3, 4, 5, 8, 10, 100, 200] + [300 + 287 * i for i in range(56)]

FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX, REPO_NAME, FILE_SEP = 3, 4, 5, 7, 8
# Marks the hole in a prompt's text.
HOLE = "<|>"


def pieces_of(prompt):
    """Returns the prompt as control token ids and texts, and the request that produces it."""
    if HOLE not in prompt["text"]:
        return [prompt["text"]], {"complete": {"prompt": prompt["text"]}}
    prefix, suffix = prompt["text"].split(HOLE)
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
    """Returns the greedy tokens and, per position, all logits as float32."""
    cache = make_prompt_cache(model)
    if len(ids) > 1:
        # Without lm_head: the logits of the prompt's inner positions are not used.
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
    """Nine significant digits identify every float32."""
    return float(f"{float(x):.9g}")


def golden(model, tokenizer, prompt):
    pieces, asked = pieces_of(prompt)
    ids = encode(tokenizer, pieces)
    tokens, logits = generate(model, ids)
    # A stable sort: of two equal logits the lower id is first, as in argmax.
    best = np.argsort(-logits, axis=1, kind="stable")[:, :2]
    top2 = np.take_along_axis(logits, best, axis=1)
    largest = np.abs(logits).max(axis=1)
    gaps = (top2[:, 0].astype(np.float64) - top2[:, 1]) / largest
    return {
        "name": prompt["name"],
        "language": prompt["language"],
        **asked,
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


def write(goldens):
    """One line per field of a prompt, so that a diff shows which fields changed."""
    head = {
        "source": [source("model.safetensors"), source("tokenizer.json"), source("config.json")],
        "reference": "mlx-lm, float32 activations, greedy, end of text ignored",
        "probes": PROBES,
        "near_tie": NEAR_TIE,
    }

    def fields(value, indent):
        pad = " " * indent
        return ",\n".join(f"{pad}{json.dumps(k)}: {json.dumps(v, ensure_ascii=False, separators=(',', ':'))}" for k, v in value.items())

    prompts = ",\n".join("  {\n" + fields(g, 3) + "\n  }" for g in goldens)
    OUT.write_text("{\n" + fields(head, 1) + ',\n "prompts": [\n' + prompts + "\n ]\n}\n", encoding="utf-8")


def main():
    # With compilation, MLX would use a C++ compiler for fused elementwise kernels if the machine has one.
    mx.disable_compile()
    mx.set_default_device(mx.cpu)
    model, _ = load_model(ASSETS)
    model.set_dtype(mx.float32)
    tokenizer = Tokenizer.from_file(str(ASSETS / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    goldens = []
    for prompt in tomllib.loads((HERE / "prompts.toml").read_text(encoding="utf-8"))["prompt"]:
        g = golden(model, tokenizer, prompt)
        goldens.append(g)
        text = tokenizer.decode(g["tokens"], skip_special_tokens=False)
        print(f"{g['name']:32} {len(g['ids']):5} tokens, gap {g['gap_min']:.1e} {g['near_ties'] or ''} {text[:60]!r}", flush=True)
    write(goldens)
    size = OUT.stat().st_size
    assert size < 1_000_000, size
    print(f"{OUT.name}: {len(goldens)} prompts, {size} bytes", flush=True)
    return subprocess.call([sys.executable, str(HERE / "check.py")])


if __name__ == "__main__":
    if "--count" in sys.argv:
        # Prints the prompts' lengths only, without the model: for writing prompts.
        t = Tokenizer.from_file(str(ASSETS / "tokenizer.json"))
        t.encode_special_tokens = True
        for p in tomllib.loads((HERE / "prompts.toml").read_text(encoding="utf-8"))["prompt"]:
            print(p["name"], len(encode(t, pieces_of(p)[0])))
        sys.exit()
    sys.exit(main())
