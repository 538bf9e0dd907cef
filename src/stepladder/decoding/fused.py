"""Llamas and their like over the masked layout, with their layers' steps fused.

The same weights as transformers' model and the same cache: queries, keys and values of a layer are one matrix, of which
the model's own three become views, so nothing is held twice, and prompts go on through transformers' code. What a
family has that is not done here is refused with a reason, and then the stock layers run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stepladder.decoding.arithmetic import Arithmetic, Heads, Places, Plain
from stepladder.decoding.cache import KeyValueCache

FAMILIES = ("llama", "qwen2", "qwen3")
KINDS = (torch.bfloat16, torch.float16, torch.float32)
"""What there are kernels for."""


@dataclass(frozen=True, slots=True)
class _Layer:
    before: Tensor
    heads: Heads
    joint: Tensor
    out: Tensor
    after: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    scale: float


class Fused:
    """A model's forward pass over ``cache``, for a rectangle of tokens at places that only the device knows."""

    def __init__(self, model: Any, cache: KeyValueCache, arithmetic: Arithmetic) -> None:
        self._arithmetic = arithmetic
        self._cache = cache
        base = model.model
        self._embedding: Tensor = base.embed_tokens.weight
        self._last: Tensor = base.norm.weight
        self._eps: float = model.config.rms_norm_eps
        self._head: Tensor = model.get_output_embeddings().weight
        cos, sin = _angles(base.rotary_emb, cache.capacity, self._embedding)
        self._layers = [_layer(layer, cos, sin, self._eps) for layer in base.layers]

    def logits(self, tokens: Tensor, places: Places, vocab: int) -> Tensor:
        """(rows, columns) tokens → (rows, columns, vocab) logits in float32, or float64 for a model of that kind."""
        do = self._arithmetic
        hidden, parts = self._embedding[tokens.flatten()], None
        for layer, memory in zip(self._layers, self._cache.layers, strict=True):
            hidden, read = do.add_norm(hidden, parts, layer.before, self._eps)
            query = do.rotate(do.product(read, layer.joint), layer.heads, memory.keys, memory.values, places)
            found = do.attend(query, memory.keys, memory.values, places, layer.scale)
            hidden, read = do.add_norm(hidden, do.product(found, layer.out), layer.after, self._eps)
            parts = do.product(do.gated(read, layer.gate, layer.up), layer.down)
        _, read = do.add_norm(hidden, parts, self._last, self._eps)
        made = do.product(read, self._head[:vocab])
        return (made[0] if len(made) == 1 else made.sum(0)).view(*tokens.shape, vocab)


def why_not(model: Any) -> str | None:
    """What of a model is not done here; None where all is."""
    config = model.config
    if config.model_type not in FAMILIES:
        return f"layers of the family '{config.model_type}' are not fused"
    if config.hidden_act != "silu":
        return f"the activation '{config.hidden_act}' is not fused"
    if getattr(config, "mlp_bias", False) or getattr(model.get_output_embeddings(), "bias", None) is not None:
        return "biases outside of queries, keys and values are not fused"
    kind = base_rope(config)
    if kind in {"dynamic", "longrope"}:
        return f"rotations of the kind '{kind}' follow the length of the text"
    if any(layer.self_attn.o_proj.bias is not None for layer in model.model.layers):
        return "biases outside of queries, keys and values are not fused"
    if type(model.model.layers[0].mlp.gate_proj) is not nn.Linear:
        return "its matrices are not plain ones"
    return None


def base_rope(config: Any) -> str:
    """The kind of a model's rotations."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return str(parameters.get("rope_type", "default"))


def arithmetic_for(device: torch.device, dtype: torch.dtype, longest: int) -> Arithmetic | str:
    """Kernels on a GPU of compute capability 8.0 or more, or why there are none; PyTorch's operations elsewhere."""
    if device.type != "cuda":
        return Plain()
    if dtype not in KINDS:
        return f"there are no kernels for {dtype}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "kernels need a GPU of compute capability 8.0 or more"
    try:
        from stepladder.decoding.kernels import Kernels
    except ImportError as error:
        return f"Triton is not there: {error}"
    return Kernels(longest)


def _layer(layer: Any, cos: Tensor, sin: Tensor, eps: float) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    width: int = attention.head_dim
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    query, shared = (len(part.weight) // width for part in parts[:2])
    has_bias = parts[0].bias is not None
    heads = Heads(
        query,
        shared,
        width,
        cos,
        sin,
        eps,
        torch.cat([part.bias for part in parts]) if has_bias else None,
        attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        attention.k_norm.weight if hasattr(attention, "k_norm") else None,
    )
    return _Layer(
        layer.input_layernorm.weight,
        heads,
        _joined([part.weight for part in parts]),
        attention.o_proj.weight,
        layer.post_attention_layernorm.weight,
        mlp.gate_proj.weight,
        mlp.up_proj.weight,
        mlp.down_proj.weight,
        attention.scaling,
    )


def _joined(weights: list[nn.Parameter]) -> Tensor:
    """One matrix with the rows of all; they become views of it. Matrices that are such views already are kept."""
    first = weights[0].data
    sizes = [len(weight) for weight in weights]
    ends = [weight.data_ptr() + weight.numel() * weight.element_size() for weight in weights]
    if all(end == after.data_ptr() for end, after in zip(ends, weights[1:], strict=False)) and (
        first.untyped_storage().nbytes()
        >= (first.storage_offset() + sum(sizes) * first.shape[1]) * first.element_size()
    ):
        return first.as_strided((sum(sizes), first.shape[1]), (first.shape[1], 1))
    joint = torch.cat([weight.data for weight in weights])
    for weight, view in zip(weights, torch.split(joint, sizes), strict=True):
        weight.data = view
    return joint


def _angles(rotary: Any, positions: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, (positions, width), as the model makes them."""
    with torch.inference_mode():
        cos, sin = rotary(like, torch.arange(positions, device=like.device)[None])
    return cos[0].contiguous(), sin[0].contiguous()
