"""Shapes of well-known models with random weights, and how fast a device copies."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from stepladder.errors import UsageError, nearest

LLAMA = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "tie_word_embeddings": False}
SHAPES: dict[str, dict[str, Any]] = {
    "1B": LLAMA | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                   "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True},
    "7B": LLAMA | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
                   "num_key_value_heads": 32, "vocab_size": 32000},
    "13B": LLAMA | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
                    "num_key_value_heads": 40, "vocab_size": 32000},
    "34B": LLAMA | {"hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 48, "num_attention_heads": 64,
                    "num_key_value_heads": 8, "vocab_size": 32000},
    "70B": LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
                    "num_key_value_heads": 8, "vocab_size": 32000},
    "toy": LLAMA | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4,
                    "num_key_value_heads": 2, "vocab_size": 96},
}  # fmt: skip
"""Llama 3.2 1B, Llama 2 7B and 13B, Code Llama 34B, Llama 2 70B; and one to try a benchmark with."""


def random_network(name: str, *, device: str = "cuda", dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Any:
    """A Llama of that shape, made on the device. Raises UsageError for a shape that is not known."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if name not in SHAPES:
        raise UsageError(f"no shape '{name}'; {nearest(name, tuple(SHAPES))}")
    config = LlamaConfig(**SHAPES[name], bos_token_id=None, eos_token_id=None, pad_token_id=None)
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def seconds_of(run: Callable[[], Any], times: int) -> float:
    """Median seconds of one run on the GPU, each timed by the device's own clock, after two that are not counted."""
    for _ in range(2):
        run()
    spans: list[list[Any]] = [
        [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        for _ in range(times)
    ]
    for begin, end in spans:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return float(statistics.median(begin.elapsed_time(end) for begin, end in spans)) / 1e3


def bandwidth(size: int = 4 * 2**30) -> float:
    """Bytes per second of a copy within the GPU, those read and those written together."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / seconds_of(lambda: target.copy_(source), 10)
