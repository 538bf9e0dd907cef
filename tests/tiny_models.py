"""Tiny random language models, made in milliseconds, for tests of decoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from gguf_maker import byte_alphabet
from stepladder.decoding.models import LanguageModel
from stepladder.decoding.tokenizer import Tokenizer

KINDS: dict[str, tuple[type[Any], type[Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def tiny_network(
    kind: str = "llama",
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    vocab: int = 64,
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    shared: int = 2,
    context: int = 128,
    sharpness: float = 1.0,
    **settings: Any,
) -> Any:
    """A transformers model with random weights; the higher ``sharpness``, the further its laws are from even."""
    make_config, make_model = KINDS[kind]
    config = make_config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        head_dim=hidden // heads,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **settings,
    )
    before = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        network = make_model(config).to(dtype).eval()
    finally:
        torch.random.set_rng_state(before)
    with torch.no_grad():
        network.get_output_embeddings().weight.mul_(sharpness)
    return network


def other_network(family: str, **settings: Any) -> Any:
    """A random float32 model of any family of transformers; small where its names for sizes are the usual ones."""
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if family not in {"gpt2", "bloom"}:
        sizes |= {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    config = CONFIG_MAPPING[family](**sizes, **settings)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def tiny_model(
    kind: str = "llama",
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    context: int = 128,
    slots: int = 8,
    chunk: int = 512,
    name: str | None = None,
    **settings: Any,
) -> LanguageModel:
    """A random LanguageModel; ``settings`` as in ``tiny_network``."""
    network = tiny_network(kind, dtype=dtype, seed=seed, context=context, **settings)
    return LanguageModel(network, name=name or f"tiny-{kind}-{seed}", context=context, slots=slots, chunk=chunk)


TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")


def letters(words: Sequence[str] | None = None, *, template: str | None = TEMPLATE) -> Tokenizer:
    """A tokenizer of these words, those like <|this|> control tokens; by default SPECIALS and all 256 bytes."""
    words = words or [*SPECIALS, *byte_alphabet()]
    backend = Backend(models.BPE({word: number for number, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(word, special=True, normalized=False) for word in words if word.startswith("<|")])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template), name="letters")


def save_gguf(network: Any, path: Path, *, kind: str = "F32", left_out: str = "", **changes: Any) -> Path:
    """A network of KINDS as a GGUF file, as llama.cpp's converter writes them, with all bytes as tokens.

    ``kind`` is how matrices are stored; ``left_out`` names a weight or key that is not written; ``changes`` are keys of
    the header, dots as double underscores, or weights (arrays) to put in besides.
    """
    config = network.config
    writer = gguf.GGUFWriter(path, config.model_type)
    words = [*SPECIALS, *byte_alphabet(), "he", "ll", "hell"]
    words += [f"<unused{number}>" for number in range(config.vocab_size - len(words))]
    header = {
        f"{config.model_type}.context_length": config.max_position_embeddings,
        f"{config.model_type}.embedding_length": config.hidden_size,
        f"{config.model_type}.block_count": config.num_hidden_layers,
        f"{config.model_type}.feed_forward_length": config.intermediate_size,
        f"{config.model_type}.attention.head_count": config.num_attention_heads,
        f"{config.model_type}.attention.head_count_kv": config.num_key_value_heads,
        f"{config.model_type}.attention.key_length": config.head_dim,
        f"{config.model_type}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{config.model_type}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [3] * len(SPECIALS) + [1] * (len(words) - len(SPECIALS)),
        "tokenizer.ggml.merges": ["h e", "l l", "he ll"],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
    }
    extra = {key.replace("__", "."): value for key, value in changes.items()}
    weights = {key: extra.pop(key) for key in list(extra) if isinstance(extra[key], np.ndarray)}
    for key, value in (header | extra).items():
        if key != left_out:
            _add_key(writer, key, value)
    for name, weight in network.state_dict().items():
        weights.setdefault(_gguf_name(name), _gguf_array(name, weight, config))
    for name, array in weights.items():
        if name != left_out:
            _add_weight(writer, name, array, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_key(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def _add_weight(writer: gguf.GGUFWriter, name: str, array: np.ndarray, kind: str) -> None:
    if array.ndim == 1 or kind == "F32":
        writer.add_tensor(name, array)
    else:
        stored = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(array, stored), raw_dtype=stored)


def _gguf_name(name: str) -> str:
    outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, _, what = name.rpartition(".")
    if stem in outside:
        return f"{outside[stem]}.{what}"
    _, _, layer, part = stem.split(".", 3)
    inside = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "attn_output",
    }
    short = inside.get(part) or part.replace("self_attn.", "attn_").replace("mlp.", "ffn_").replace("_proj", "")
    return f"blk.{layer}.{short}.{what}"


def _gguf_array(name: str, weight: torch.Tensor, config: Any) -> np.ndarray:
    """In llama.cpp's order: a Llama's rotated halves become pairs side by side."""
    array = weight.float().numpy()
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = heads.get(name.split(".")[-2])
    if config.model_type != "llama" or count is None:
        return array
    halves = array.reshape(count, 2, array.shape[0] // count // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
