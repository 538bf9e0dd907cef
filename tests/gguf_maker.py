"""Writes a tiny Llama with random weights as a GGUF file: numbers are noise, the file is real.

Every byte is one token, so a prompt of N characters (ASCII) is about N tokens. Only printable characters can be
generated: all other embeddings are zero, and with tied embeddings their logits are too.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
ALIGNMENT = 32
SPECIALS = ("<|pad|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}<|im_start|>a\n"
)


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in byte-level BPE, in byte order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(spare)) for byte in range(256)]


def write_gguf(
    path: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 2,
    context: int = 8192,
    tokens: Sequence[str] | None = None,
    seed: int = 1,
) -> Path:
    """A Llama of a few hundred kB. ``tokens`` replaces the vocabulary, to make files that cannot be loaded."""
    vocabulary = list(tokens or [*SPECIALS, *byte_alphabet()])
    meta = _metadata(vocabulary, hidden, layers, heads, context)
    tensors = _tensors(vocabulary, hidden, layers, np.random.default_rng(seed))
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(meta))]
    head += [_string(key) + struct.pack("<I", kind) + value for key, (kind, value) in meta.items()]
    offset, blobs = 0, []
    for name, array in tensors.items():
        shape = array.shape[::-1]
        head.append(_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset))
        blobs.append(_padded(array.astype("<f4").tobytes()))
        offset += len(blobs[-1])
    path.write_bytes(_padded(b"".join(head)) + b"".join(blobs))
    return path


def _metadata(
    vocabulary: Sequence[str], hidden: int, layers: int, heads: int, context: int
) -> Mapping[str, tuple[int, bytes]]:
    counts = {
        "context_length": context,
        "embedding_length": hidden,
        "block_count": layers,
        "feed_forward_length": 2 * hidden,
        "attention.head_count": heads,
        "attention.head_count_kv": heads,
        "rope.dimension_count": hidden // heads,
        "vocab_size": len(vocabulary),
    }
    kinds = [3 if token.startswith("<|") else 1 for token in vocabulary]
    return {
        "general.architecture": (STRING, _string("llama")),
        "general.name": (STRING, _string("noise")),
        "general.file_type": (U32, struct.pack("<I", 0)),
        **{f"llama.{key}": (U32, struct.pack("<I", value)) for key, value in counts.items()},
        "llama.attention.layer_norm_rms_epsilon": (F32, struct.pack("<f", 1e-5)),
        "llama.rope.freq_base": (F32, struct.pack("<f", 10000.0)),
        "tokenizer.ggml.model": (STRING, _string("gpt2")),
        "tokenizer.ggml.pre": (STRING, _string("gpt-2")),
        "tokenizer.ggml.tokens": (ARRAY, _strings(vocabulary)),
        "tokenizer.ggml.token_type": (ARRAY, struct.pack(f"<IQ{len(kinds)}i", I32, len(kinds), *kinds)),
        "tokenizer.ggml.merges": (ARRAY, _strings(["a b"])),
        "tokenizer.ggml.bos_token_id": (U32, struct.pack("<I", 1)),
        "tokenizer.ggml.eos_token_id": (U32, struct.pack("<I", 2)),
        "tokenizer.ggml.padding_token_id": (U32, struct.pack("<I", 0)),
        "tokenizer.ggml.add_bos_token": (BOOL, b"\0"),
        "tokenizer.chat_template": (STRING, _string(TEMPLATE)),
    }


def _tensors(
    vocabulary: Sequence[str], hidden: int, layers: int, chance: np.random.Generator
) -> Mapping[str, np.ndarray]:
    def noise(*shape: int) -> np.ndarray:
        return chance.normal(0.0, 0.3, shape)

    printable = np.array([[len(token) == 1 and 33 <= ord(token) < 127] for token in vocabulary])
    tensors = {
        "token_embd.weight": noise(len(vocabulary), hidden) * printable,
        "output_norm.weight": np.ones(hidden),
    }
    for layer in range(layers):
        block = f"blk.{layer}"
        tensors |= {f"{block}.{name}_norm.weight": np.ones(hidden) for name in ("attn", "ffn")}
        tensors |= {f"{block}.attn_{name}.weight": noise(hidden, hidden) for name in ("q", "k", "v", "output")}
        tensors |= {f"{block}.ffn_{name}.weight": noise(2 * hidden, hidden) for name in ("gate", "up")}
        tensors[f"{block}.ffn_down.weight"] = noise(hidden, 2 * hidden)
    return tensors


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _strings(texts: Sequence[str]) -> bytes:
    return struct.pack("<IQ", STRING, len(texts)) + b"".join(map(_string, texts))


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % ALIGNMENT)
