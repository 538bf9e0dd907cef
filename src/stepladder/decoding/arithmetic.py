"""The steps of a decoder layer over a cache, each in one place, so that kernels can stand in for them.

``Plain`` does them with PyTorch's operations on any device; it is what kernels (``kernels.py``) are tested against.
Matrix products come as partial sums that whoever reads them adds up, since a product over few tokens is split among the
processors along the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu


class Places(NamedTuple):
    """Where the tokens of a pass stand: ``slots``, ``starts``, ``widths`` (rows,) int64 on the device.

    ``columns`` is the width of the rectangle, of which row r uses the first ``widths[r]``; ``reach`` is at least every
    start + width.
    """

    slots: Tensor
    starts: Tensor
    widths: Tensor
    columns: int
    reach: int

    def positions(self) -> Tensor:
        """(rows, columns)."""
        return self.starts[:, None] + torch.arange(self.columns, device=self.starts.device)

    def real(self) -> Tensor:
        """(rows, columns): False where a column is padding."""
        return torch.arange(self.columns, device=self.starts.device) < self.widths[:, None]


@dataclass(frozen=True, slots=True)
class Heads:
    """How queries, keys and values lie in a layer's first product: ``query`` heads, then ``shared`` keys, and values.

    ``bias`` (all of them,), ``query_norm`` and ``key_norm`` (width,) where the family has them; ``cos`` and ``sin``
    (positions, width) as rotated halves use them.
    """

    query: int
    shared: int
    width: int
    cos: Tensor
    sin: Tensor
    eps: float
    bias: Tensor | None = None
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None


class Arithmetic(Protocol):
    """One way to compute a layer. Tokens of a pass lie one behind another, rows × columns of them."""

    def add_norm(self, hidden: Tensor, parts: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(hidden + Σ parts, that normalised by its root mean square and weighted), both (tokens, size)."""
        ...

    def product(self, read: Tensor, weight: Tensor) -> Tensor:
        """Partial sums of read · weightᵀ, (parts, tokens, outputs), in float32 or finer."""
        ...

    def gated(self, read: Tensor, gate: Tensor, up: Tensor) -> Tensor:
        """silu(read · gateᵀ) * (read · upᵀ), (tokens, inner)."""
        ...

    def rotate(self, parts: Tensor, heads: Heads, keys: Tensor, values: Tensor, places: Places) -> Tensor:
        """Queries (tokens, heads, width), rotated; keys and values are put into their memory."""
        ...

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, places: Places, scale: float) -> Tensor:
        """(tokens, heads · width): each token over what stands in its row up to itself."""
        ...


class Plain:
    """PyTorch's operations, for any device and dtype. Padding goes to the cache's last position: no row has it."""

    def add_norm(self, hidden: Tensor, parts: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """As in ``Arithmetic``."""
        if parts is not None:
            hidden = (fine(hidden) + parts.sum(0)).to(hidden.dtype)
        return hidden, _normed(hidden, weight, eps).to(hidden.dtype)

    def product(self, read: Tensor, weight: Tensor) -> Tensor:
        """As in ``Arithmetic``; one part."""
        return fine(read @ weight.T)[None]

    def gated(self, read: Tensor, gate: Tensor, up: Tensor) -> Tensor:
        """As in ``Arithmetic``."""
        return (silu(fine(read @ gate.T)) * fine(read @ up.T)).to(read.dtype)

    def rotate(self, parts: Tensor, heads: Heads, keys: Tensor, values: Tensor, places: Places) -> Tensor:
        """As in ``Arithmetic``."""
        made = parts.sum(0)
        if heads.bias is not None:
            made = made + heads.bias
        positions, real = places.positions(), places.real()
        split = made.view(made.shape[0], heads.query + 2 * heads.shared, heads.width)
        query, key, value = torch.split(split, [heads.query, heads.shared, heads.shared], 1)
        if heads.query_norm is not None and heads.key_norm is not None:
            query, key = (
                _normed(part.to(keys.dtype), norm, heads.eps)
                for part, norm in ((query, heads.query_norm), (key, heads.key_norm))
            )
        at = positions.clamp(max=heads.cos.shape[0] - 1).flatten()
        query, key = (_rotated(part, heads.cos[at], heads.sin[at]).to(keys.dtype) for part in (query, key))
        written = positions.masked_fill(~real, keys.shape[2] - 1)
        shape = (*positions.shape, heads.shared, heads.width)
        keys[places.slots[:, None], :, written] = key.view(shape)
        values[places.slots[:, None], :, written] = value.to(values.dtype).view(shape)
        return query

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, places: Places, scale: float) -> Tensor:
        """As in ``Arithmetic``; what stands behind a row's end is multiplied by zero, so it must be finite."""
        rows, shared = len(places.slots), keys.shape[1]
        tokens, heads, width = query.shape
        asked = query.view(rows, places.columns, heads, width).transpose(1, 2)
        later = torch.arange(places.reach, device=query.device) > places.positions()[:, None, :, None]
        hidden = torch.zeros(later.shape, dtype=query.dtype, device=query.device).masked_fill_(later, -torch.inf)
        found = scaled_dot_product_attention(
            asked.reshape(rows, shared, -1, width),
            keys[:, :, : places.reach].index_select(0, places.slots),
            values[:, :, : places.reach].index_select(0, places.slots),
            attn_mask=hidden.repeat(1, 1, heads // shared, 1),
            scale=scale,
        )
        return found.reshape(rows, heads, places.columns, width).transpose(1, 2).reshape(tokens, heads * width)


def fine(numbers: Tensor) -> Tensor:
    """In float32, or float64 where they are that."""
    return numbers if numbers.dtype == torch.float64 else numbers.float()


def _normed(numbers: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over the last dimension; in float32 whatever the dtype, rounded to it and then weighted, as transformers does."""
    short = numbers.float()
    scaled = short * torch.rsqrt(short.pow(2).mean(-1, keepdim=True) + eps)
    return fine(weight) * fine(scaled.to(weight.dtype))


def _rotated(numbers: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(tokens, heads, width) by (tokens, width), the two halves of the width rotated against each other."""
    first, second = numbers.chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    return fine(numbers) * fine(cos)[:, None] + fine(turned) * fine(sin)[:, None]
