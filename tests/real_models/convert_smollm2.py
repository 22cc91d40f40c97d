#!/usr/bin/env python3
"""Converts SmolLM2's GGUF file to an MLX folder: the same weights, bit for bit. Standard library only.

    convert_smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf OUT

Q4_1 blocks (f16 scale, f16 minimum, 32 four-bit integers) become MLX's 4-bit groups of 32. Q8_0 blocks become its 8-bit
groups (integer + 128, bias = -128 scale, exact in f16). f32 is copied. The rows of q and k, which GGUF interleaves for
llama's RoPE, are deinterleaved. tokenizer.json gets the vocabulary and merges of the file, and SmolLM2's pre-tokenizer.
"""

import json
import struct
import sys
from pathlib import Path

FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
F32, Q4_1, Q8_0 = 0, 3, 8
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, format):
        values = struct.unpack_from("<" + format, self.data, self.at)
        self.at += struct.calcsize("<" + format)
        return values[0] if len(values) == 1 else values

    def text(self):
        length = self.take("Q")
        self.at += length
        return bytes(self.data[self.at - length : self.at]).decode()

    def value(self, kind):
        if kind == 8:
            return self.text()
        if kind == 9:
            kind, count = self.take("IQ")
            return [self.value(kind) for _ in range(count)]
        return self.take(FIXED[kind])


def read(path):
    reader = Reader(memoryview(Path(path).read_bytes()))
    assert reader.take("I") == 0x46554747 and reader.take("I") == 3, "a GGUF 3 file"
    tensor_count, key_count = reader.take("QQ")
    values = {}
    for _ in range(key_count):
        key = reader.text()
        values[key] = reader.value(reader.take("I"))
    infos = []
    for _ in range(tensor_count):
        name, dimensions = reader.text(), reader.take("I")
        shape = [reader.take("Q") for _ in range(dimensions)][::-1]
        infos.append((name, shape, *reader.take("IQ")))
    start = (reader.at + 31) // 32 * 32
    return values, [(name, shape, kind, reader.data[start + offset :]) for name, shape, kind, offset in infos]


def deinterleave(rows, heads):
    """Per head: rows with adjacent RoPE pairs -> the first row of every pair, then the second row of every pair."""
    size = len(rows) // heads
    return [rows[h * size + 2 * i + side] for h in range(heads) for side in (0, 1) for i in range(size // 2)]


# A byte of Q4_1 contains inputs j (low nibble) and j + 16 (high nibble), a byte of MLX inputs 2j and 2j + 1.
LOW = [[(a & 15) | (b & 15) << 4 for b in range(256)] for a in range(256)]
HIGH = [[a >> 4 | b & 0xF0 for b in range(256)] for a in range(256)]


def q4_1(row):
    words, scales, biases = bytearray(), bytearray(), bytearray()
    for at in range(0, len(row), 20):
        block = bytes(row[at : at + 20])
        scales += block[:2]
        biases += block[2:4]
        pairs = list(zip(block[4::2], block[5::2]))
        words += bytes(LOW[a][b] for a, b in pairs) + bytes(HIGH[a][b] for a, b in pairs)
    return words, scales, biases


PLUS_128 = bytes((i + 128) % 256 for i in range(256))


def q8_0(row):
    words, scales, biases = bytearray(), bytearray(), bytearray()
    for at in range(0, len(row), 34):
        block = bytes(row[at : at + 34])
        (scale,) = struct.unpack("<e", block[:2])
        bias = struct.pack("<e", -128 * scale)
        assert struct.unpack("<e", bias)[0] == -128 * scale
        scales += block[:2]
        biases += bias
        words += block[2:].translate(PLUS_128)
    return words, scales, biases


def convert(tensors, heads, kv_heads):
    """Returns name -> (safetensors dtype, shape, bytes)."""
    out = {}
    for name, shape, kind, data in tensors:
        part = name.removesuffix(".weight").split(".")
        base = ".".join((["model.layers", part[1]] if part[0] == "blk" else []) + [NAMES[part[-1]]])
        if kind == F32:
            out[base + ".weight"] = ("F32", shape, bytes(data[: 4 * shape[0]]))
            continue
        rows, columns = shape
        block, one = {Q4_1: (20, q4_1), Q8_0: (34, q8_0)}[kind]
        size = columns // 32 * block
        lines = [data[row * size : (row + 1) * size] for row in range(rows)]
        if part[-1] in ("attn_q", "attn_k"):
            lines = deinterleave(lines, heads if part[-1] == "attn_q" else kv_heads)
        words, scales, biases = (b"".join(part) for part in zip(*map(one, lines)))
        bits = 4 if kind == Q4_1 else 8
        out[base + ".weight"] = ("U32", [rows, columns * bits // 32], words)
        out[base + ".scales"] = ("F16", [rows, columns // 32], scales)
        out[base + ".biases"] = ("F16", [rows, columns // 32], biases)
    return out


def write(path, tensors):
    header, at = {"__metadata__": {"format": "mlx"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for _, _, data in tensors.values():
            file.write(data)


def tokenizer(values):
    tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": t, **flags} for i, (t, kind) in enumerate(zip(tokens, kinds)) if kind == 3],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in values["tokenizer.ggml.merges"]],
        },
    }


def main(source, out):
    values, tensors = read(source)
    of = lambda key: values["llama." + key]
    heads, kv_heads = of("attention.head_count"), of("attention.head_count_kv")
    group = {"group_size": 32, "bits": 4, "mode": "affine", "model.embed_tokens": {"group_size": 32, "bits": 8}}
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "rope_theta": of("rope.freq_base"),
        "vocab_size": of("vocab_size"),
        "max_position_embeddings": of("context_length"),
        "tie_word_embeddings": True,
        "eos_token_id": values["tokenizer.ggml.eos_token_id"],
        "hidden_act": "silu",
        "quantization": group,
        "quantization_config": group,
    }
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write(out / "model.safetensors", convert(tensors, heads, kv_heads))
    tokens = values["tokenizer.ggml.tokens"]
    names = {"eos_token": tokens[config["eos_token_id"]], "bos_token": tokens[values["tokenizer.ggml.bos_token_id"]]}
    for name, value in [("config", config), ("tokenizer", tokenizer(values)), ("tokenizer_config", names)]:
        (out / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
