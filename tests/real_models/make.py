#!/usr/bin/env python3
"""Regenerates `llama_cpp/*.json`: the completions of llama.cpp on real models, with which the Rust decoder is compared.

    tests/real_models/fetch.sh DIR
    python3 -m venv /tmp/peer && /tmp/peer/bin/pip install xllamacpp==2026.10.11549
    /tmp/peer/bin/python tests/real_models/make.py DIR            # a few minutes on two cores

Ten prompts per model, completed greedily with 64 tokens, starting with an empty cache. EOS tokens are excluded from the
choice, so that every prompt has 64 positions to compare. The prompts are those of ../reference/prompts.toml. If one has a
hole, the Coder models infill it (prefix, suffix, middle); SmolLM2 has no FIM tokens and continues the prefix.

    model, peer     the file, and the program that completed the prompts
    ends            the excluded EOS tokens
    prompts[]       name; text, or prefix and suffix
                    ids       the prompt's tokens; each text is encoded separately
                    tokens    the completion's tokens
                    top2      per token of `tokens`: best id, its log-probability, second id, its log-probability,
                              without excluded tokens; null inside a multi-token character, for which llama.cpp reports
                              the last token only
                    answer    the completion's text, for readers
"""

import importlib.metadata
import json
import sys
import tomllib
import urllib.request
from pathlib import Path

import xllamacpp

HERE = Path(__file__).resolve().parent
TOKENS = 64
HOLE = "<|>"
ENDS = ["<|endoftext|>", "<|im_end|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<repo_name>", "<reponame>", "<file_sep>"]
MARKERS = {"prefix": "<|fim_prefix|>", "suffix": "<|fim_suffix|>", "middle": "<|fim_middle|>"}
TEXTS = ["not-control", "unicode", "c-header", "sql-builder", "go-pool"]
HOLES = ["enum-display", "ts-reducer", "windows-lines", "word-start", "rust-lru"]
CODERS = [f"qwen2.5-coder-{size}-instruct-q4_k_m" for size in ("0.5b", "1.5b")]
MODELS = ["SmolLM2-135M-Instruct.Q4_1", *CODERS]


def serve(path, port):
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads, params.warmup, params.port = 8192, 1, 2, False, port
    return xllamacpp.Server(params)


def ask(server, path, body):
    data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(server.listening_address + path, data, kind), timeout=900) as answer:
        return json.load(answer)


def tokenize(server, text, special=False):
    return ask(server, "/tokenize", {"content": text, "parse_special": special})["tokens"]


def golden(server, ends, name, text, fills):
    if HOLE in text and fills:
        prefix, suffix = text.split(HOLE)
        asked = {"prefix": prefix, "suffix": suffix}
        marker = {name: tokenize(server, marker, True) for name, marker in MARKERS.items()}
        assert all(len(ids) == 1 for ids in marker.values())
        ids = marker["prefix"] + tokenize(server, prefix) + marker["suffix"] + tokenize(server, suffix) + marker["middle"]
    else:
        asked = {"text": text.split(HOLE)[0]}
        ids = tokenize(server, asked["text"])
    body = {"prompt": ids, "n_predict": TOKENS, "temperature": 0, "ignore_eos": True, "n_probs": 2 + len(ends)}
    answer = ask(server, "/completion", {**body, "cache_prompt": False, "return_tokens": True})
    tokens, top2, choices = answer["tokens"], [], answer["completion_probabilities"]
    for token in tokens:
        if not choices or choices[0]["id"] != token:
            top2.append(None)
            continue
        first, second = [top for top in choices.pop(0)["top_logprobs"] if top["id"] not in ends][:2]
        top2.append([first["id"], round(first["logprob"], 5), second["id"], round(second["logprob"], 5)])
    assert not choices and len(tokens) == TOKENS and not set(tokens) & set(ends), answer
    print(f"  {name}: {len(ids)} tokens in")
    return {"name": name, **asked, "ids": ids, "tokens": tokens, "top2": top2, "answer": answer["content"]}


def main(folder):
    prompts = tomllib.loads((HERE.parent / "reference/prompts.toml").read_text())["prompt"]
    texts = {prompt["name"]: prompt["text"] for prompt in prompts}
    peer = f"xllamacpp {importlib.metadata.version('xllamacpp')}"
    for port, model in enumerate(MODELS, 18211):
        print(model)
        server = serve(Path(folder) / f"{model}.gguf", port)
        ends = [ids[0] for ids in (tokenize(server, end, True) for end in ENDS) if len(ids) == 1]
        goldens = [golden(server, ends, name, texts[name], model in CODERS) for name in TEXTS + HOLES]
        lines = ",\n".join(json.dumps(golden, ensure_ascii=False) for golden in goldens)
        head = json.dumps({"model": model, "peer": peer, "ends": ends})[:-1]
        (HERE / f"llama_cpp/{model}.json").write_text(f'{head}, "prompts": [\n{lines}\n]}}\n')
        del server


if __name__ == "__main__":
    main(*sys.argv[1:])
