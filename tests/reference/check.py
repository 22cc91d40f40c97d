#!/usr/bin/env python3
"""Checks `embedded.json` against a second implementation of the network: NumPy in float64, sharing no code with MLX.

    python tests/reference/check.py [PROMPTS]      needs numpy and tokenizers only; PROMPTS limits the number of prompts

It reads `assets/`, dequantizes every weight, runs each prompt with its expected tokens in one pass and compares the
logits of all 64 positions with those in the file. It fails if a logit deviates by more than 1e-3 of the largest, if the
best token differs at a position that is not a near tie, if the prompt ids do not follow from the pieces, or if the file
was generated from other weights.
"""

import hashlib
import json
import struct
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TOLERANCE = 1e-3


class Weights:
    def __init__(self, path):
        self.data = path.read_bytes()
        (n,) = struct.unpack("<Q", self.data[:8])
        self.header = json.loads(self.data[8 : 8 + n])
        self.start = 8 + n

    def raw(self, name):
        entry = self.header[name]
        a, b = entry["data_offsets"]
        dtype = {"U32": "<u4", "F16": "<f2", "F32": "<f4"}[entry["dtype"]]
        return np.frombuffer(self.data[self.start + a : self.start + b], dtype).reshape(entry["shape"])

    def vector(self, name):
        return self.raw(name).astype(np.float64)

    def matrix(self, name, bits=4, group=64):
        """w = scale * q + bias; eight 4-bit values in a word, the lowest first."""
        words = self.raw(name + ".weight")
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        q = ((words[..., None] >> shifts) & ((1 << bits) - 1)).reshape(words.shape[0], -1)
        scales = np.repeat(self.vector(name + ".scales"), group, axis=1)
        biases = np.repeat(self.vector(name + ".biases"), group, axis=1)
        return scales * q + biases


class Network:
    def __init__(self, folder):
        self.c = c = json.loads((folder / "config.json").read_text())
        w = Weights(folder / "model.safetensors")
        self.embed = w.matrix("model.embed_tokens")
        self.norm = w.vector("model.norm.weight")
        self.layers = []
        for i in range(c["num_hidden_layers"]):
            p = f"model.layers.{i}."
            self.layers.append(
                {
                    "input_norm": w.vector(p + "input_layernorm.weight"),
                    "post_norm": w.vector(p + "post_attention_layernorm.weight"),
                    **{k: w.matrix(f"{p}self_attn.{k}_proj") for k in "qkvo"},
                    **{k: w.matrix(f"{p}mlp.{k}_proj") for k in ("gate", "up", "down")},
                }
            )

    def rms_norm(self, x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.c["rms_norm_eps"]) * weight

    def rotate(self, x):
        """RoPE on x: heads, positions, head_dim. Element i is rotated with element i + head_dim / 2."""
        half = x.shape[-1] // 2
        frequency = self.c["rope_theta"] ** (-np.arange(half) / half)
        angle = np.arange(x.shape[1])[:, None] * frequency
        cos, sin = np.cos(angle), np.sin(angle)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def logits(self, ids, rows):
        """The logits after each of the last `rows` ids."""
        c = self.c
        heads, kv_heads, dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        n = len(ids)
        x = self.embed[ids]
        mask = np.triu(np.full((n, n), -np.inf), 1)
        for layer in self.layers:
            h = self.rms_norm(x, layer["input_norm"])
            q = self.rotate((h @ layer["q"].T).reshape(n, heads, dim).swapaxes(0, 1))
            k = self.rotate((h @ layer["k"].T).reshape(n, kv_heads, dim).swapaxes(0, 1))
            v = (h @ layer["v"].T).reshape(n, kv_heads, dim).swapaxes(0, 1)
            out = np.empty((n, heads, dim))
            for head in range(heads):
                shared = head // (heads // kv_heads)
                scores = q[head] @ k[shared].T / np.sqrt(dim) + mask
                scores = np.exp(scores - scores.max(-1, keepdims=True))
                out[:, head] = scores / scores.sum(-1, keepdims=True) @ v[shared]
            x = x + out.reshape(n, heads * dim) @ layer["o"].T
            h = self.rms_norm(x, layer["post_norm"])
            gate = h @ layer["gate"].T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ layer["up"].T)) @ layer["down"].T
        return self.rms_norm(x[-rows:], self.norm) @ self.embed.T


def main():
    golden = json.loads((HERE / "embedded.json").read_text(encoding="utf-8"))
    problems = []
    for s in golden["source"]:
        if hashlib.sha256((ROOT / s["file"]).read_bytes()).hexdigest() != s["sha256"]:
            problems.append(f"{s['file']} is not the file that embedded.json was generated from")
    tokenizer = Tokenizer.from_file(str(ROOT / "assets/tokenizer.json"))
    tokenizer.encode_special_tokens = True
    network = Network(ROOT / "assets")
    limit = int(sys.argv[1]) if len(sys.argv) > 1 else None
    worst, positions, ties = 0.0, 0, []
    for g in golden["prompts"][:limit]:
        ids = []
        for piece in g["pieces"]:
            ids += piece if isinstance(piece, list) else tokenizer.encode(piece, add_special_tokens=False).ids
        if ids != g["ids"]:
            problems.append(f"{g['name']}: the pieces do not encode to the ids")
        tokens = g["tokens"]
        logits = network.logits(g["ids"] + tokens[:-1], len(tokens))
        largest = np.array(g["largest"])
        top2 = np.array(g["top2"])
        deviation = np.abs(np.abs(logits).max(axis=1) - largest) / largest
        for column in (0, 2):
            value = logits[np.arange(len(tokens)), top2[:, column].astype(int)]
            deviation = np.maximum(deviation, np.abs(value - top2[:, column + 1]) / largest)
        for point in g["checkpoints"]:
            p = point["position"]
            off = np.abs(logits[p, golden["probes"]] - point["logits"]).max() / largest[p]
            deviation[p] = max(deviation[p], off)
        flips = [int(i) for i in np.flatnonzero(logits.argmax(axis=1) != tokens)]
        for i in flips:
            if i not in g["near_ties"]:
                problems.append(f"{g['name']}: the best token differs at position {i}")
        if deviation.max() > TOLERANCE:
            problems.append(f"{g['name']}: off by {deviation.max():.1e} of the largest logit at position {deviation.argmax()}")
        worst, positions = max(worst, deviation.max()), positions + len(tokens)
        ties += [f"{g['name']}[{i}]" for i in g["near_ties"]]
        print(f"{g['name']:32} {len(ids):5} tokens, deviation {deviation.max():.1e} of the largest logit, {len(flips)} other tokens", flush=True)
    print(f"{positions} positions, deviation at most {worst:.1e} of the largest logit; near ties: {', '.join(ties) or 'none'}")
    for problem in problems:
        print("FAILED", problem)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
