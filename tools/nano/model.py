"""A Llama in plain torch: RMS norm, rotary positions over adjacent pairs (as in GGUF), SwiGLU, tied embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as fn


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one model; the head size is width / heads."""

    width: int
    layers: int
    heads: int
    hidden: int
    vocabulary: int = 2048
    context: int = 512
    theta: float = 10_000.0
    eps: float = 1e-5


SHAPES = {
    "small": Shape(width=96, layers=3, heads=3, hidden=256),
    "medium": Shape(width=160, layers=5, heads=5, hidden=448),
    "large": Shape(width=384, layers=7, heads=6, hidden=1024),
}


def rotations(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (length, head size / 2)."""
    size = shape.width // shape.heads
    speeds = shape.theta ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), speeds)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn adjacent pairs of the last axis of x (batch, heads, length, size) by their position's angles."""
    pairs = x.float().unflatten(-1, (-1, 2))
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)


class Norm(nn.Module):
    """RMS norm in 32 bits."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Scale x (..., width) to unit root mean square, then by the weight."""
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight
        return scaled.to(x.dtype)


class Block(nn.Module):
    """Attention and SwiGLU, each on a normed residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attn_norm, self.ffn_norm = Norm(shape.width, shape.eps), Norm(shape.width, shape.eps)
        self.attn_q, self.attn_k, self.attn_v, self.attn_output = (
            nn.Linear(shape.width, shape.width, bias=False) for _ in range(4)
        )
        self.ffn_gate, self.ffn_up = (nn.Linear(shape.width, shape.hidden, bias=False) for _ in range(2))
        self.ffn_down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (batch, length, width) -> the same shape."""
        y = self.attn_norm(x)
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.attn_q, self.attn_k, self.attn_v)
        )
        mixed = fn.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.attn_output(mixed.transpose(1, 2).flatten(2))
        z = self.ffn_norm(x)
        return x + self.ffn_down(fn.silu(self.ffn_gate(z)) * self.ffn_up(z))


class Llama(nn.Module):
    """Token ids in, logits of chosen positions or a loss over answers out."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = Norm(shape.width, shape.eps)
        cos, sin = rotations(shape, shape.context)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._start()

    def _start(self) -> None:
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                last = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * self.shape.layers) ** 0.5 if last else 0.02)

    def states(self, ids: Tensor) -> Tensor:
        """ids (batch, length) -> normed states (batch, length, width)."""
        length = ids.shape[1]
        x = self.token_embd(ids)
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        return self.output_norm(x)

    def logits(self, ids: Tensor, places: Tensor) -> Tensor:
        """Logits (batch, window, vocabulary) at `places` (batch, window) of ids (batch, length)."""
        states = self.states(ids)
        chosen = states.gather(1, places.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        return fn.linear(chosen, self.token_embd.weight)

    def forward(self, ids: Tensor, places: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy [nats a token] of `targets` (batch, window; -100 is ignored) at `places`."""
        scores = self.logits(ids, places).float()
        return fn.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=-100)
