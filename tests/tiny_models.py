"""Tiny random language models, made in milliseconds, for tests of decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
