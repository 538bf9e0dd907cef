"""Write a trained nano model and its tokenizer as one GGUF file that llama.cpp and transformers read.

    python3 tools/nano/to_gguf.py --model small --out build/nano --type Q8_0

exports the checkpoint that train.py left under --out (train.py itself exports when it has finished).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gguf
import model as net
import numpy as np
import torch
import vocabulary as v
from numpy.typing import NDArray
from tokenizers import Tokenizer

TYPES = {
    "F16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "Q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


def add_shape(writer: gguf.GGUFWriter, name: str, shape: net.Shape, file_type: gguf.LlamaFileType) -> None:
    """The keys of a Llama: sizes, norm epsilon, rotary base."""
    writer.add_name(name)
    writer.add_license("apache-2.0")
    writer.add_file_type(file_type)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_rope_freq_base(shape.theta)
    writer.add_vocab_size(shape.vocabulary)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    """Tokens in id order, merges, special ids and the chat template. Raises ValueError for duplicate tokens."""
    raw = json.loads(tokenizer.to_str())
    tokens = sorted(raw["model"]["vocab"], key=raw["model"]["vocab"].__getitem__)
    if len(set(tokens)) != len(tokens) or tuple(tokens[: len(v.SPECIALS)]) != v.SPECIALS:
        raise ValueError("the tokenizer's tokens are not distinct or do not begin with the special ones")
    writer.add_tokenizer_model("gpt2")
    # Must name the same splitting as vocabulary.SPLIT: a missing or other name changes token ids without an error.
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    kinds = [gguf.TokenType.CONTROL if token in v.SPECIALS else gguf.TokenType.NORMAL for token in tokens]
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in raw["model"]["merges"]])
    writer.add_bos_token_id(v.PAD_ID)
    writer.add_eos_token_id(v.END_ID)
    writer.add_pad_token_id(v.PAD_ID)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(v.CHAT_TEMPLATE)


def add_tensor(
    writer: gguf.GGUFWriter, name: str, weight: NDArray[np.float32], kind: gguf.GGMLQuantizationType
) -> None:
    """A matrix in the wanted type, a vector (a norm) in 32 bits."""
    if weight.ndim == 1:
        writer.add_tensor(name, weight)
    elif kind == gguf.GGMLQuantizationType.F16:
        writer.add_tensor(name, weight.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)


def export(model: net.Llama, tokenizer: Tokenizer, name: str, file_type: str, path: Path) -> None:
    """Write `model` to `path`.

    No permutation of q and k is needed: the model turns adjacent pairs, which is how GGUF's "llama" stores them. There
    is no output matrix: its absence means that the embedding serves for both.
    """
    kind, stored = TYPES[file_type]
    writer = gguf.GGUFWriter(path, "llama")
    add_shape(writer, name, model.shape, stored)
    add_tokenizer(writer, tokenizer)
    for key, weight in model.state_dict().items():
        add_tensor(writer, key.replace("blocks.", "blk."), weight.detach().float().cpu().numpy(), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Export one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(net.SHAPES), required=True)
    parser.add_argument("--out", type=Path, default=Path("build/nano"))
    parser.add_argument("--type", choices=sorted(TYPES), default="Q8_0")
    args = parser.parse_args()
    model = net.Llama(net.SHAPES[args.model])
    model.load_state_dict(torch.load(args.out / f"{args.model}.pt", map_location="cpu")["net"])
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    export(model, tokenizer, f"nano-{args.model}", args.type, args.out / f"nano-{args.model}.gguf")


if __name__ == "__main__":
    main()
